"""Writing an export, reading it back, and comparing it with the network it was made from."""

import copy
import math
from pathlib import Path
from typing import Any

from lth_scale.config.errors import Stopped
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable
from lth_scale.pruning.ticket import digest
from lth_scale.shipping.export.architectures import unique_state
from lth_scale.shipping.export.comparison import difference
from lth_scale.shipping.export.inputs import real_inputs
from lth_scale.shipping.export.loading import load_network, load_variants
from lth_scale.shipping.export.locations import FORMAT, seal
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.shipping.export.source import ExportSource
from lth_scale.tracking.versions import versions

TOLERANCE = 1e-4  # of an fp32 export, relative to the largest output


def describe(source: ExportSource, kind: str, dtype: str) -> dict[str, Any]:
    """The entries of export.json that are known before anything is written."""
    state = unique_state(source.model)
    return {
        "format": FORMAT,
        "kind": kind,
        "dtype": dtype,
        "architecture": type(source.model).__name__,
        "source": printable(without_secrets(str(source.path))),
        "source_sha256": digest(state),
        "sparsity": source.sparsity,
        "pruned": source.pruned,
        "prunable": source.prunable,
        "dense_bytes": sum(tensor.nbytes for tensor in state.values()),
        "versions": versions(),
    }


def write_export(directory: Path, source: ExportSource, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write an export, read it back and compare. Returns the content of export.json.

    manifest: from `describe`. Raises BadInput if the dtype cannot hold a value, and Stopped if an
    fp32 export does not give the outputs of its source, or a variant NaN or infinity.
    """
    kind, dtype = manifest["kind"], manifest["dtype"]
    spec = FORMATS[kind]
    save_settings(directory, source, manifest["architecture"], spec.compute_dtype(dtype))
    batches, description = real_inputs(source)
    facts = spec.make().write(source.model, directory / spec.file, dtype, batches[0])
    manifest = {**manifest, **facts}
    seal(directory, manifest | {"difference": {}})
    measured = difference(source.model, load_network(directory), batches)
    if not measured["relative"] < (TOLERANCE if dtype == "float32" else math.inf):
        raise Stopped(
            f"--format {kind}: its outputs differ from the source's by {measured['relative']:.1e} of "
            "the largest; nothing was kept: use another --format"
        )
    manifest["difference"] = {**measured, "inputs": description}
    for name, network in load_variants(directory).items():
        manifest[f"difference_{name}"] = measured = difference(source.model, network, batches)
        if not math.isfinite(measured["relative"]):
            raise Stopped(
                f"--format {kind}: outputs of {spec.variants[name]} are NaN or infinite; "
                "nothing was kept: use another --format"
            )
    return seal(directory, manifest)


def save_settings(
    directory: Path, source: ExportSource, architecture: str, compute_dtype: str
) -> None:
    """Save config.json and the tokenizer, before its first use: it keeps the padding of the last."""
    config = copy.deepcopy(source.model.config)
    config.architectures, config.dtype = [architecture], compute_dtype
    config.save_pretrained(directory)
    if source.tokenizer:
        source.tokenizer.save_pretrained(directory)
