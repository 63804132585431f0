"""Tokens a second of our training loop under a 70 % mask, beside three others: `python
benchmarks/train_overhead.py`.

Each variant is a process of its own that keeps its model and trains when it is told; the parent
goes round them, so that a change of the machine's speed meets all alike. Ratios are taken round by
round.

masked lth_scale's loop, 70 % of the prunable weights masked dense the same loop, no mask
torch_prune the same loop, the model reparametrised by torch.nn.utils.prune hf_trainer
transformers.Trainer, dense

The model has minilm-l3's shape (3 layers, hidden 384, vocabulary 30522) and random weights, or is
that of --model; tokens are random. On a GPU where there is one; steps are timed from the end of the
first to that of the last.
"""

import argparse
import json
import multiprocessing
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy

from lth_scale.config import files
from lth_scale.science.saved import provenance

VARIANTS = ("masked", "dense", "torch_prune", "hf_trainer")
ROWS = 512


def make_data(length: int):
    """ROWS rows of random token ids, all of `length`, with random binary labels."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS, length), generator=generator)
    labels = torch.randint(0, 2, (ROWS,), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def make_model(directory: str | None = None):
    """A classifier on the encoder of `directory`, or of minilm-l3's shape."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        BertConfig,
        BertForSequenceClassification,
    )

    torch.manual_seed(0)
    if directory:
        return AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    shape = {
        "hidden_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    return BertForSequenceClassification(BertConfig(**shape))


def collate(rows: list[dict]) -> dict:
    """Rows of one length as tensors."""
    import torch

    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def random_task(model, rows) -> SimpleNamespace:
    """A classifier and its rows as a task, as much of one as training needs."""

    def loss(model, batch):
        output = model(**batch)
        return output.loss, output.logits

    splits = {"train": rows, "validation": rows, "more": {}, "fresh": frozenset()}
    functions = {"collate": collate, "eval_collate": collate, "loss": loss}
    return SimpleNamespace(model=model, grouped=False, **splits, **functions)


def our_loop(variant: str, options: SimpleNamespace):
    """steps → the times at which the first and the last of that many steps ended, in lth_scale's
    loop.
    """
    import torch
    from torch.nn.utils import prune

    from lth_scale.config.resolution import resolve
    from lth_scale.pruning import threshold
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.training import loop, networks, preparation

    batch, optim = options.batch, "adamw_torch_fused"
    given = {"per_device_train_batch_size": batch, "optim": optim, "bf16": options.bf16}
    args = resolve({"task": "sst2", "preset": "demo", **given})
    model, rows = make_model(options.model), make_data(options.length)
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()
    }
    threshold.prune(prunable(model), masks, 0.7, "global")
    if variant == "torch_prune":
        for name, mask in masks.items():
            prune.custom_from_mask(
                model.base_model.get_submodule(name.removesuffix(".weight")), "weight", mask
            )

    task = random_task(model, rows)
    net = networks.prepare(preparation.make_accelerator(args), task, args)  # type: ignore[arg-type]
    net.masks = {}
    if variant == "masked":
        networks.restart(net, net.initial, masks, 0, 0)
    net.initial = {}  # a search lets go of θ₀ too

    def go(steps: int) -> list[float]:
        ends: list[float] = []
        until = net.step + steps
        loop.train(
            net,
            until,
            lambda step: 1e-5,
            lambda step, loss: at_ends(ends, step, until - steps, until),
        )
        return ends

    return go


def at_ends(ends: list[float], step: int, began: int, until: int) -> None:
    """Note the time at which the device has done the first step and the last one."""
    import torch

    if step in (began + 1, until):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())


def hf_trainer(options: SimpleNamespace):
    """The same for transformers.Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            at_ends(ends, state.global_step, 0, args.max_steps)

    model, rows = make_model(options.model), make_data(options.length)

    def go(steps: int) -> list[float]:
        ends.clear()
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-5,
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            bf16=options.bf16,
        )
        Trainer(
            model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]
        ).train()
        return list(ends)

    return go


def worker(variant: str, options: SimpleNamespace, pipe) -> None:
    """Build the variant, then answer each number of steps with (seconds a step, peak memory in
    bytes).
    """
    import torch

    from lth_scale.training.run import peak_memory

    torch.set_num_threads(options.threads)
    go = hf_trainer(options) if variant == "hf_trainer" else our_loop(variant, options)
    go(3)
    pipe.send("ready")
    while steps := pipe.recv():
        ends = go(steps + 1)  # the first step of a call pays for opening the loader
        pipe.send(((ends[-1] - ends[0]) / steps, peak_memory()))


def measure(options: SimpleNamespace) -> dict[str, list]:
    """variant → [(seconds a step, peak memory)] of each round, the order of variants turning with
    the round.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for variant in VARIANTS:
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(variant, options, theirs), daemon=True).start()
        assert ours.recv() == "ready"
        pipes[variant] = ours
    found: dict[str, list] = {variant: [] for variant in VARIANTS}
    for turn in range(options.rounds):
        for i in range(len(VARIANTS)):
            variant = VARIANTS[(i + turn) % len(VARIANTS)]
            pipes[variant].send(options.steps)
            found[variant].append(pipes[variant].recv())
    for pipe in pipes.values():
        pipe.send(0)
    return found


def summary(found: dict[str, list], tokens: int) -> list[dict]:
    """Medians and quartiles of steps and tokens a second, and of the speed of `masked` against each
    other variant.
    """
    lines = []
    for variant, rounds in found.items():
        speed = [1 / seconds for seconds, _ in rounds]
        ratio = [theirs[0] / ours[0] for ours, theirs in zip(found["masked"], rounds, strict=True)]
        lines.append(
            {
                "variant": variant,
                "steps_per_second": quartiles(speed),
                "masked_is_times_as_fast": quartiles(ratio),
                "tokens_per_second": [round(tokens * each) for each in quartiles(speed)],
                "peak_memory_mb": round(rounds[-1][1] / 1e6),
                "n": len(rounds),
            }
        )
    return lines


def rows(found: dict[str, list], tokens: int) -> list[dict]:
    """The same, round by round, as docs/evidence wants it."""
    said = []
    for variant, rounds in found.items():
        speed, memory = (
            [tokens / seconds for seconds, _ in rounds],
            [most / 1e9 for _, most in rounds[-1:]],
        )
        ratio = [theirs[0] / ours[0] for ours, theirs in zip(found["masked"], rounds, strict=True)]
        named = [("speed", "tokens/s", speed), ("peak memory", "GB", memory)]
        named += [("speed of masked ÷ its own", "×", ratio)] if variant != "masked" else []
        said += [
            {"what": f"{variant}: {what}", "unit": unit, "values": values}
            for what, unit, values in named
        ]
    return said


def quartiles(values: list[float]) -> list[float]:
    """[lower quartile, median, upper quartile]."""
    return numpy.quantile(values, (0.25, 0.5, 0.75)).round(3).tolist()


def mask_alone(options: SimpleNamespace, calls: int = 50) -> dict:
    """Milliseconds of one `masking.mask_gradients` on this model, without the step around it."""
    import torch

    from lth_scale.distributed.ddp import replicated
    from lth_scale.pruning import masking, threshold
    from lth_scale.pruning.prunable_set import prunable

    torch.set_num_threads(options.threads)
    weights = prunable(make_model(options.model))
    masks = {name: torch.ones(weight.numel(), dtype=torch.bool) for name, weight in weights.items()}
    threshold.prune(weights, masks, 0.7, "global")
    optimizer = torch.optim.SGD(weights.values())
    pieces = {name: replicated(weight, optimizer) for name, weight in weights.items()}
    times = []
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    for _ in range(calls):
        started = time.perf_counter()
        masking.mask_gradients(pieces, masks)
        times.append(1e3 * (time.perf_counter() - started))
    return {"mask_alone_ms": quartiles(times), "n": calls}


def main() -> None:
    """Measure and print one JSON line a variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("rounds", 15),
        ("steps", 10),
        ("batch", 32),
        ("length", 64),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--model", help="a directory; by default random weights of minilm-l3's shape"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--save", type=Path, help="keep the measurements for docs/evidence")
    options = SimpleNamespace(**vars(parser.parse_args()))
    print(
        json.dumps(
            {**vars(options), "machine": platform.processor() or platform.machine()}, default=str
        )
    )
    found, tokens = measure(options), options.batch * options.length
    for line in summary(found, tokens):
        print(json.dumps(line), flush=True)
    print(json.dumps(mask_alone(options)))
    if options.save:
        how = shlex.join(["python", "benchmarks/train_overhead.py", *sys.argv[1:]])
        files.write_json(options.save, {"made": provenance(None, how), "rows": rows(found, tokens)})


if __name__ == "__main__":
    main()
