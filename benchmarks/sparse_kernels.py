"""The sparse kernels beside all other dense and sparse products: single Linears, a whole encoder.

`python benchmarks/sparse_kernels.py bounds`, `… linear`, `… encoder --batch_size 1`, `… variants`
print medians [quartiles] of interleaved runs on pinned cores. GFLOP/s count nonzero weights. The
load-port bound is the rate of fused multiply-adds that read from L1, which `bounds.cpp` measures;
the memory bound is the time to read the weights once.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.pop(0)  # transformers looks for a package `kernels`, and would find this file

import torch
from torch import nn
from torch.utils import cpp_extension
from transformers import BertConfig, BertModel

from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.formats.csr import CsrLinear
from lth_scale.shipping.export.formats.onnx import quantize, session
from lth_scale.shipping.native import kernels, modules, packing
from lth_scale.shipping.speed.registry import BACKENDS, Setup
from lth_scale.shipping.speed.timing import (
    Timing,
    measure,
    pinned,
    ratio,
    spread,
    unavailable,
    verdict,
)

SHAPES = ((768, 768), (3072, 768), (768, 3072))  # rows, columns: of BERT-base
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
BLOCK = (1, 4)


def bounds() -> dict[str, float]:
    """GFLOP/s of multiply-adds by where their operand lies, and GB/s from memory, of one core."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "bounds"
        source = Path(__file__).with_name("bounds.cpp")
        subprocess.run(
            ["g++", "-O3", "-march=native", "-std=c++20", source, "-o", program], check=True
        )
        with pinned(1):
            return json.loads(subprocess.run([program], check=True, capture_output=True).stdout)


def pruned(
    rows: int, columns: int, sparsity: float, block: tuple[int, int] = (1, 1)
) -> torch.Tensor:
    """A random weight with that share of its blocks zero."""
    keep = torch.rand(rows // block[0], columns // block[1]) >= sparsity
    return (
        torch.randn(rows, columns)
        / 30
        * keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        + 0.0
    )


def shown(timing: Timing, scale: float = 1000) -> str:
    median, low, high = (scale * each for each in spread(timing.wall))
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"


def dense_linear(rows: int, x: torch.Tensor, folder: Path, threads: int) -> dict:
    """The dense products of one Linear, by engine."""
    import openvino

    layer = nn.Linear(x.shape[1], rows).eval().requires_grad_(False)
    path, small = folder / "linear.onnx", folder / "linear.int8.onnx"
    torch.onnx.export(layer, (x,), str(path), input_names=["x"], dynamo=True, verbose=False)
    quantize(path, small)
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    made = openvino.Core().compile_model(path, "CPU", options)
    compiled = torch.compile(layer, options={"freezing": True})
    return {
        "torch": partial(layer, x),
        "torch compiled": partial(compiled, x),
        "ONNX Runtime": partial(session(path, threads), {"x": x}),
        "OpenVINO": partial(made, [x.numpy()]),
        "ONNX Runtime int8": partial(session(small, threads), {"x": x}),
    }


def linear(tokens: int, threads: int, repeats: int) -> None:
    limit = bounds()
    print(f"bounds of one core: {limit}\n")
    head = (
        "shape",
        "sparsity",
        "engine",
        "ms",
        "GFLOP/s",
        "of the load-port bound",
        "of the memory bound",
    )
    print(f"| {' | '.join(head)} | × best dense fp32 |\n{'| --- ' * 8}|")
    for rows, columns in SHAPES:
        x = torch.randn(tokens, columns)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), pinned(threads):
            runs, flop, size = dense_linear(rows, x, Path(folder), threads), {}, {}
            dense = list(runs)
            for sparsity in SPARSITIES:
                weight = pruned(rows, columns, sparsity)
                layer = nn.Linear(columns, rows, bias=False).requires_grad_(False)
                layer.weight.copy_(weight)
                blocks = packing.pack_linear(pruned(rows, columns, sparsity, BLOCK), "int8")[
                    "packed"
                ]
                packed = packing.pack_linear(weight, "float32")["packed"]
                made = {
                    "csr": partial(CsrLinear(layer), x),
                    "native": partial(by_kernel, x, packed, rows),
                }
                made |= {"native int8, 1×4": partial(by_kernel, x, blocks, rows)}
                runs |= {f"{sparsity:.0%}|{name}": run for name, run in made.items()}
                flop |= {
                    f"{sparsity:.0%}|{name}": 2 * tokens * int((weight != 0).sum()) for name in made
                }
                size |= {
                    f"{sparsity:.0%}|native": packed.nbytes,
                    f"{sparsity:.0%}|native int8, 1×4": blocks.nbytes,
                }
            found, failed = measure(runs, repeats)
        assert not failed, failed
        best = min((spread(found[name].wall)[0], name) for name in dense if "int8" not in name)[1]
        for name, timing in found.items():
            sparsity, _, engine = name.rpartition("|")
            rate = flop.get(name, 2 * tokens * rows * columns) / spread(timing.wall)[0] / 1e9
            port = f"{rate / limit['L1'] / threads:.0%}" if engine == "native" else "—"
            memory = (
                f"{size[name] / spread(timing.wall)[0] / 1e9 / limit['memory']:.0%}"
                if name in size
                else "—"
            )
            median, low, high = ratio(found[best], timing)
            times = f"{median:.2f} [{low:.2f}, {high:.2f}]{', the best' if name == best else ''}"
            row = [
                f"{rows} × {columns}",
                sparsity or "dense",
                engine,
                shown(timing),
                f"{rate:.0f}",
                port,
                memory,
                times,
            ]
            print("| " + " | ".join(row) + " |", flush=True)


def by_kernel(x: torch.Tensor, packed: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.ops.lth_scale.linear(x, packed, rows, None)


def encoder(batch: int, length: int, threads: int, repeats: int, layers: int) -> None:
    """Time BERT-base's encoder with random weights, sparse backends at each sparsity."""
    torch.manual_seed(0)
    model = (
        BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False)
        .eval()
        .requires_grad_(False)
    )
    ids = {
        "input_ids": torch.randint(1000, 30000, (batch, length)),
        "attention_mask": torch.ones(batch, length).long(),
    }
    runs, precision = {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), pinned(threads):
        setup = Setup(model, [ids], threads, Path(folder))
        for name, backend in BACKENDS.items():
            if why := unavailable(backend, setup):
                print(f"{name} skipped: {why}\n")
            elif not backend.sparse:
                runs[name], precision[name] = (
                    partial(backend.build(setup), ids),
                    backend.precision,
                )
            else:
                for sparsity in SPARSITIES:
                    made = copy.deepcopy(model)
                    for weight in prunable(made).values():
                        weight.copy_(
                            pruned(
                                *weight.shape,
                                sparsity,
                                BLOCK if backend.precision == "int8" else (1, 1),
                            )
                        )
                    key = f"{name} {sparsity:.0%}"
                    sparse = Setup(made, [ids], threads, Path(folder))
                    runs[key], precision[key] = (
                        partial(backend.build(sparse), ids),
                        backend.precision,
                    )
        found, failed = measure(runs, repeats)
    for name, why in failed.items():
        print(f"{name} failed: {why}\n")
    dense = [name for name in found if "%" not in name]
    best = {
        p: min((n for n in dense if precision[n] == p), key=lambda n: spread(found[n].wall)[0])
        for p in ("fp32", "int8")
    }
    print(
        f"{batch} × {length} tokens, {threads} thread(s), n = {repeats}; the best dense: {best}\n"
    )
    print(
        "| engine | ms | CPU ms | × eager | × best dense fp32 | × best dense int8 "
        "| against best fp32 (int8: int8) |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, timing in sorted(found.items(), key=lambda each: spread(each[1].wall)[0]):
        against = [
            ratio(found[each], timing) for each in ("dense-eager", best["fp32"], best["int8"])
        ]
        texts = [f"{median:.2f} [{low:.2f}, {high:.2f}]" for median, low, high in against]
        said = verdict(ratio(found[best["int8" if precision[name] == "int8" else "fp32"]], timing))
        row = [name, shown(timing), f"{1000 * spread(timing.cpu)[0]:.1f}", *texts, said]
        print("| " + " | ".join(row) + " |", flush=True)


# Kernels without one optimization or with one more: (changes in native.cpp, in kernels.h), blocks.
ROWS_SORTED = "std::stable_sort(order.begin(), order.end(),"
FIRST = "(int32_t)lists[order[g]].size()"
LONGEST = (
    "[&] { size_t n = 0; for (int i = 0; i < 4; i++) if (order[g + i] != NO_ROW) "
    "n = std::max(n, lists[order[g + i]].size()); return (int32_t)n; }()"
)
AHEAD = (
    "_mm_prefetch((const char*)(units + 128), _MM_HINT_T0); "
    "_mm_prefetch((const char*)(offsets + 128), _MM_HINT_T0);"
)
VARIANTS: dict[str, tuple[dict[str, str], dict[str, str], tuple[int, int]]] = {
    "as it is": ({}, {}, (192, 128)),
    "rows not sorted": ({ROWS_SORTED: f"if (0) {ROWS_SORTED}", FIRST: LONGEST}, {}, (192, 128)),
    "strips of 32 tokens": ({}, {"SPAN = 4 * W": "SPAN = 2 * W"}, (192, 128)),
    "weights prefetched": ({}, {"uint64_t four = 0;": f"{AHEAD} uint64_t four = 0;"}, (192, 128)),
    "all tiles at once": ({"AT_ONCE = 2;": "AT_ONCE = 1000;"}, {}, (192, 128)),
    "no look for NaN": (
        {"in.finite[t] = kernels": "if (0) in.finite[t] = kernels"},
        {},
        (192, 128),
    ),
    "AVX2": ({}, {}, (192, 128)),
    "no activation": ({}, {"activate(y, at.activation)": "y"}, (192, 128)),
    **{
        f"blocks of {rows} × {units}": ({}, {}, (rows, units))
        for rows, units in ((192, 64), (192, 192), (768, 128))
    },
}


def operators(name: str, folder: Path) -> Any:
    """Our operators, compiled once more with a variant's replacements."""
    in_cpp, in_header, _ = VARIANTS[name]
    space = "".join(filter(str.isalnum, name))
    home = folder / space
    home.mkdir()
    renamed = {
        "TORCH_LIBRARY(lth_scale,": f"TORCH_LIBRARY({space},",
        "_IMPL(lth_scale,": f"_IMPL({space},",
    }
    for file, changes in zip(kernels.SOURCES, (in_cpp | renamed, in_header), strict=True):
        text = Path(kernels.__file__).with_name(file).read_text()
        for old, new in changes.items():
            assert old in text, f"{file} has no {old}"
            text = text.replace(old, new)
        (home / file).write_text(text)
    cpp_extension.load(
        space,
        [str(home / kernels.SOURCES[0])],
        kernels.FLAGS,
        build_directory=home,
        is_python_module=False,
    )
    made = getattr(torch.ops, space)
    made.use("avx2" if name == "AVX2" else "")
    return made


def variants(threads: int, repeats: int) -> None:
    """Print the speed of each variant on three layers of BERT-base and 4 × 128 tokens."""
    size = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    biases, norms = [torch.zeros(rows) for rows, _ in size], [torch.ones(768), torch.zeros(768)] * 2
    print(
        f"| dtype | sparsity | ms a layer | {' | '.join(VARIANTS)} |\n"
        f"{'| --- ' * (3 + len(VARIANTS))}|"
    )
    with tempfile.TemporaryDirectory() as folder:
        ops = {name: operators(name, Path(folder)) for name in VARIANTS}
    for dtype, sparsity in product(packing.DTYPES, SPARSITIES):
        weights = [
            [pruned(*each, sparsity, BLOCK if dtype == "int8" else (1, 1)) for each in size]
            for _ in range(3)
        ]
        runs = {}
        for name, (_, _, blocks) in VARIANTS.items():
            packing.ROW_BLOCK, packing.UNIT_BLOCK = blocks
            packed = [
                [packing.pack_linear(weight, dtype)["packed"] for weight in layer]
                for layer in weights
            ]
            runs[name] = partial(
                layers, ops[name], packed, torch.randn(4, 2, 768, 64), biases, norms
            )
        with pinned(threads):
            found, failed = measure(runs, repeats)
        assert not failed, failed
        own = found["as it is"]
        times = [
            f"{median:.2f} [{low:.2f}, {high:.2f}]"
            for median, low, high in (ratio(own, each) for each in found.values())
        ]
        print(
            "| " + " | ".join([dtype, f"{sparsity:.0%}", shown(own, 1000 / 3), *times]) + " |",
            flush=True,
        )

    fused_or_not(threads, repeats)


def fused_or_not(threads: int, repeats: int) -> None:
    """BERT-base's encoder with one operator a layer, and with each Linear by itself."""
    print(
        "\n| sparsity | one operator a layer, ms | each Linear by itself, ms | ratio |\n"
        f"{'| --- ' * 4}|"
    )
    fuse, ids = modules.fuse, torch.randint(1000, 30000, (1, 128))
    for sparsity in SPARSITIES:
        runs = {}
        for name, how in (("fused", fuse), ("apart", lambda base: None)):
            model = BertModel(BertConfig(), add_pooling_layer=False).requires_grad_(False)
            for weight in prunable(model).values():
                weight.copy_(pruned(*weight.shape, sparsity))
            modules.fuse = how
            runs[name] = partial(modules.convert(model), ids)
        with pinned(threads), torch.no_grad():
            found, _ = measure(runs, repeats)
        median, low, high = ratio(found["apart"], found["fused"])
        times = f"{shown(found['fused'])} | {shown(found['apart'])}"
        times += f" | {median:.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {sparsity:.0%} | {times} |", flush=True)
    modules.fuse = fuse


def layers(ops: Any, packed: list, x: torch.Tensor, biases: list, norms: list) -> torch.Tensor:
    for each in packed:
        x = ops.layer(x, 128, None, each, biases, norms, 12, 0.125, 1e-12, 1)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("bounds", "linear", "encoder", "variants"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    kernels.require()
    if given.what == "bounds":
        print(json.dumps(bounds()))
    elif given.what == "variants":
        variants(given.threads, given.repeats)
    elif given.what == "linear":
        linear(given.batch_size * given.sequence_length, given.threads, given.repeats)
    else:
        encoder(given.batch_size, given.sequence_length, given.threads, given.repeats, given.layers)


if __name__ == "__main__":
    main()
