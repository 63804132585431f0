"""What a checkpoint within a round costs, beside a step and beside what the ranks agree on after
each step.

`python benchmarks/checkpoint.py --layers 12 --hidden 768` or under `torchrun --nproc_per_node 2`; medians [quartiles].
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from lth_scale.config.resolution import resolve
from lth_scale.distributed.watchdog import SignalHandler
from lth_scale.training import batches, checkpoints, loop, networks, preparation


class Words:
    """A task of random words, as much of one as a step needs."""

    grouped, more, fresh = False, {}, frozenset()

    def __init__(self, config: BertConfig):
        self.model, self.tokenizer = BertForMaskedLM(config), None
        self.train = self.validation = Dataset.from_dict({"input_ids": [[1] * 128] * 4096})

    def collate(self, rows):
        words = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": words, "labels": words}

    eval_collate = collate

    def loss(self, model, batch):
        out = model(**batch)
        return out.loss, out.logits


class Batches(batches.Batches):
    def __getitem__(self, n: int):
        words = torch.randint(
            0, self.task.model.config.vocab_size, (self.args.per_device_train_batch_size, 128)
        )
        return {"input_ids": words, "labels": words}


def timed(what, times: int) -> str:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    low, middle, high = numpy.quantile(seconds, (0.25, 0.5, 0.75))
    return f"{1000 * middle:.3f} [{1000 * low:.3f}, {1000 * high:.3f}] ms (n = {times})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    args = resolve(
        {"task": "mlm", "per_device_train_batch_size": 4, "max_steps": 1 << 20, "preset": "demo"}
    )
    accelerator: Accelerator = preparation.make_accelerator(args)
    heads, wide = given.hidden // 64, 4 * given.hidden
    config = BertConfig(
        num_hidden_layers=given.layers,
        hidden_size=given.hidden,
        num_attention_heads=heads,
        intermediate_size=wide,
    )
    batches.Batches = Batches
    net = networks.prepare(accelerator, Words(config), args)
    everything = {
        name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()
    }
    theta = net.initial
    networks.restart(net, theta, everything, 0, 1)
    home, signals = Path(tempfile.gettempdir(), "checkpoints"), SignalHandler()

    def step() -> None:
        loop.train(net, net.step + 1, lambda _: 1e-5, lambda *_: None)

    step()
    lines = {
        "a step of 4 × 128 tokens": timed(step, given.times),
        "agreeing after a step": timed(lambda: signals.poll(net.engine.ranks), 100 * given.times),
        "writing a checkpoint": timed(lambda: checkpoints.save(net, home, {}, 0.0, 1), given.times),
        "taking it up": timed(lambda: checkpoints.resume(net, home), given.times),
    }
    if accelerator.is_main_process:
        size = sum(file.stat().st_size for file in checkpoints.list_checkpoints(home)[0].iterdir())
        print(
            f"{net.engine.name}, {accelerator.num_processes} ranks, {size / 1e6:,.0f} MB a checkpoint"
        )
        print("\n".join(f"{name:<26} {value}" for name, value in lines.items()))
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
