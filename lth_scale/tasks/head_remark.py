"""A line about the parameters that no checkpoint provided."""

from collections.abc import Iterable

from lth_scale.distributed.encoder import base_model
from lth_scale.tasks.weights import LoadedWeights


def head_remark(loaded: LoadedWeights, seed: int, keeps: bool, as_found: bool) -> str:
    """Say where head and pooler come from; "" if the head is the one that the task trains anyway.

    keeps: --keep_head was given. as_found: version 0.1.0 began the run (see `HeadSource`).
    """
    base = base_model(loaded.model)
    modules = loaded.model.named_modules()
    prefix = next(f"{name}." for name, module in modules if module is base)
    initialized = _outside(prefix, loaded.initialized)
    own = _outside(prefix, loaded.own_head)
    parts = []
    if as_found and own:
        parts.append(
            f"the head ({own}) is the checkpoint's, as in version 0.1.0, which began this run"
        )
    elif initialized:
        unused = ", and the checkpoint's own is not used" if own else ""
        parts.append(f"the head ({initialized}) is initialised from --seed {seed}{unused}")
    elif keeps or loaded.renamed:
        renamed = ", under another name there" if loaded.renamed else ""
        parts.append(f"the head ({own}) is the checkpoint's{renamed}")
    if pooler := _modules((name for name in loaded.initialized if name.startswith(prefix)), 3):
        pruned = "" if as_found else " and stays dense"
        parts.append(f"{pooler} is not in the checkpoint: it is initialised from --seed{pruned}")
    return "; ".join(parts)


def _outside(prefix: str, names: Iterable[str]) -> str:
    return _modules(name for name in names if not name.startswith(prefix))


def _modules(names: Iterable[str], depth: int = 1) -> str:
    """The modules of parameters, by the first parts of their names."""
    modules = {".".join(name.split(".")[:-1][:depth]) for name in names}
    return " and ".join(sorted(modules))
