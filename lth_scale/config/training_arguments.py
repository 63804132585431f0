"""The flags that a search and a transfer share: TrainingArguments' names, the paper's defaults.

Does not import torch, so that `--help` and bad input take well under a second.
"""

import math
from dataclasses import MISSING, asdict, dataclass
from typing import Any

from lth_scale.config.defaults import SCHEDULERS
from lth_scale.config.flags import (
    BATCH,
    COUNT,
    DATA,
    HUB,
    PRECISION,
    SEARCH,
    SEED,
    TOKENS,
    TRACKING,
    TRAINING,
    Range,
    flag,
    flags_of,
)
from lth_scale.config.local_paths import absolute, absolute_model

QUICK_LOOK = "a quick look: few examples, a small encoder, no finding"
OTHER_ALLOWED = (
    "a ticket of other weights than the base model's was allowed (--allow_other_weights)"
)
FRESH_HEAD = "a fresh MLM head: initialised from --seed, not the pre-trained one"
KEPT_HEAD = "a kept head: the checkpoint's own, not initialised from --seed"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The flags that a search and a transfer share. Every field is a flag of the same name."""

    task: str = flag("task to train on", MISSING, group=DATA, registry="task", grid=True)
    preset: str | None = flag(
        "demo: embedded model and data, no network; quick: a small encoder, part of the real data",
        group=DATA,
        choices=("demo", "quick"),
    )
    model_name_or_path: str = flag(
        "Hub name, a directory, or 'embedded'", group=DATA, metavar="MODEL"
    )
    model_revision: str | None = flag(
        "branch, tag or commit of a Hub model", group=DATA, metavar="REVISION"
    )
    fresh_head: bool = flag(
        "mlm: initialise the MLM head from --seed, as for an encoder without one", False, group=DATA
    )
    keep_head: bool | None = flag(
        "all but mlm: start from the checkpoint's head instead of a fresh one", False, group=DATA
    )
    dataset_path: str | None = flag(
        "directory with train.jsonl and validation.jsonl in the Hub's columns",
        group=DATA,
        metavar="DIR",
    )
    output_dir: str = flag(
        "directory for all output (default: below runs/)",
        group=DATA,
        metavar="DIR",
        cosmetic=True,
        grid=True,
    )

    per_device_train_batch_size: int = flag(
        "examples per device and micro-step", group=TRAINING, range=BATCH
    )
    per_device_eval_batch_size: int = flag(
        "examples per device in evaluation", 64, group=PRECISION, range=BATCH
    )
    gradient_accumulation_steps: int = flag(
        "micro-steps per optimizer step", 1, group=TRAINING, range=BATCH
    )
    learning_rate: float = flag(
        "peak learning rate",
        group=TRAINING,
        range=Range(math.ulp(0), 1000, "a number above 0 and at most 1,000, such as 2e-5"),
    )
    lr_scheduler_type: str = flag(
        "learning rate schedule", "linear", group=TRAINING, choices=SCHEDULERS
    )
    warmup_steps: float = flag(
        "warmup steps; below 1, a fraction of the schedule",
        0.0,
        group=TRAINING,
        range=Range(0, 10**9, "0 or more steps, at most 1,000,000,000, or a fraction below 1"),
    )
    weight_decay: float = flag(
        "decoupled weight decay of matrices",
        0.0,
        group=TRAINING,
        range=Range(0, 1000, "0 or more, at most 1,000, such as 0.01"),
    )
    max_grad_norm: float = flag(
        "gradient clipping; 0 disables it",
        1.0,
        group=TRAINING,
        range=Range(0, 1e12, "0 (off) or more, at most 1e12, such as 1.0"),
    )
    num_train_epochs: float = flag(
        "epochs per round if --max_steps is -1",
        group=TRAINING,
        range=Range(math.ulp(0), 10**6, "a number above 0 and at most 1,000,000, such as 3"),
    )
    max_steps: int = flag(
        "optimizer steps per round; 0 trains nothing; -1 counts epochs instead",
        group=TRAINING,
        range=Range(-1, 10**9, "-1 (use epochs), 0 (train nothing) or more, at most 1,000,000,000"),
    )
    max_seq_length: int = flag(
        "tokens per sequence, special tokens included",
        group=DATA,
        range=TOKENS._replace(least=8, words="8 or more, at most 1,048,576"),
    )
    doc_stride: int = flag(
        "tokens between the starts of two windows over one context (squad)",
        128,
        group=DATA,
        range=TOKENS,
    )
    max_train_samples: int | None = flag(
        "use the first N training examples (mlm: blocks)", group=DATA, range=COUNT
    )
    max_eval_samples: int | None = flag(
        "use the first N validation examples (mlm: blocks)", group=DATA, range=COUNT
    )
    optim: str = flag("optimizer", "adamw_torch", group=TRAINING, registry="optimizer")
    optim_args: str | None = flag(
        "optimizer arguments, such as 'momentum=0.9,nesterov=true'", group=TRAINING
    )
    bf16: bool = flag("bfloat16 mixed precision", False, group=PRECISION)
    fp16: bool = flag("float16 mixed precision with loss scaling (GPU)", False, group=PRECISION)
    seed: int = flag(
        "seed of the head, the data order, dropout and random masks",
        42,
        group=DATA,
        range=SEED,
        grid=True,
    )
    full_determinism: bool = flag(
        "use deterministic algorithms where they exist: slower on GPUs", False, group=PRECISION
    )
    dataloader_num_workers: int = flag(
        "processes that load batches",
        0,
        group=PRECISION,
        range=Range(0, 1024, "0 or more, at most 1,024"),
        cosmetic=True,
    )
    ticket: str | None = flag(
        "start from this ticket's mask instead of the dense network",
        group=DATA,
        metavar="FILE",
        grid=True,
    )
    allow_other_weights: bool = flag(
        "accept a --ticket that was found in weights other than the base model's", False, group=DATA
    )
    ignore: tuple[str, ...] | None = flag(
        "leave weights dense whose names in the base model match (default: the ticket's)",
        group=SEARCH,
        metavar="REGEX",
    )

    logging_steps: int = flag(
        "steps between logged losses", 10, group=TRACKING, range=COUNT, cosmetic=True
    )
    save_steps: int = flag(
        "steps between checkpoints within a round; 0: only when a signal asks for one",
        500,
        group=TRACKING,
        range=Range(0, 10**9, "0 (none) or more, at most 1,000,000,000"),
        cosmetic=True,
    )
    save_total_limit: int = flag(
        "checkpoints of the current round to keep", 2, group=TRACKING, range=COUNT, cosmetic=True
    )
    ddp_timeout: int = flag(
        "seconds after which a rank that waits for another gives up",
        1800,
        group=TRACKING,
        range=Range(1, 10**7, "1 or more, at most 10,000,000"),
        cosmetic=True,
    )
    report_to: str = flag(
        "experiment tracker", "mlflow", group=TRACKING, registry="tracker", cosmetic=True
    )
    run_name: str | None = flag(
        "name of the run in MLflow", group=TRACKING, metavar="NAME", cosmetic=True
    )
    push_to_hub: bool = flag(
        "upload model, ticket and card to the Hub at the end", False, group=HUB, cosmetic=True
    )
    hub_model_id: str | None = flag(
        "repository on the Hub (default: your user name and the name of --output_dir)",
        group=HUB,
        metavar="USER/NAME",
        cosmetic=True,
    )
    hub_private_repo: bool = flag("make a new repository private", False, group=HUB, cosmetic=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and their values, with lists for tuples, as JSON has them."""
        return {
            name: [*value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def as_saved(self) -> dict[str, Any]:
        """Return `as_dict` with absolute paths, which are valid in any working directory."""
        values = self.as_dict()
        values |= {
            spec.name: absolute(values[spec.name])
            for spec, declared in flags_of(type(self))
            if declared.path
        }
        return values | {"model_name_or_path": absolute_model(self.model_name_or_path)}

    @property
    def note(self) -> str:
        """The caveats that every output of these settings shows, or ""."""
        notes = {
            QUICK_LOOK: self.preset == "quick",
            OTHER_ALLOWED: self.allow_other_weights and self.ticket,
            self.head_note: True,
        }
        return "; ".join(text for text, holds in notes.items() if text and holds)

    @property
    def head_note(self) -> str:
        """The part of `note` about an unusual start of the head."""
        return FRESH_HEAD if self.fresh_head else KEPT_HEAD if self.keep_head else ""
