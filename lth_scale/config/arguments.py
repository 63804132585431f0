"""The flags of a search and of a transfer: TrainingArguments' names, the paper's defaults.

Does not import torch, so that `--help` and bad input take well under a second.
"""

import functools
import math
import os
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lth_scale.config.defaults import EMBEDDED, OPTIMIZERS, SCHEDULERS
from lth_scale.config.flags import (
    BATCH,
    COUNT,
    FRACTION,
    SEED,
    TOKENS,
    Group,
    Range,
    flag,
    flags_of,
    value_type,
)

QUICK_LOOK = "a quick look: few examples, a small encoder, no finding"
OTHER_ALLOWED = (
    "a ticket of other weights than the base model's was allowed (--allow_other_weights)"
)
FRESH_HEAD = "a fresh MLM head: initialised from --seed, not the pre-trained one"
KEPT_HEAD = "a kept head: the checkpoint's own, not initialised from --seed"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The flags that a search and a transfer share. Every field is a flag of the same name."""

    task: str = flag("task to train on", MISSING, group=Group.DATA, registry="task", grid=True)
    preset: str | None = flag(
        "demo: embedded model and data, no network; quick: a small encoder, part of the real data",
        group=Group.DATA,
        choices=("demo", "quick"),
    )
    model_name_or_path: str = flag(
        "Hub name, a directory, or 'embedded'", group=Group.DATA, metavar="MODEL"
    )
    model_revision: str | None = flag(
        "branch, tag or commit of a Hub model", group=Group.DATA, metavar="REVISION"
    )
    fresh_head: bool = flag(
        "mlm: initialise the MLM head from --seed, as for an encoder without one",
        False,
        group=Group.DATA,
    )
    keep_head: bool | None = flag(
        "all but mlm: start from the checkpoint's head instead of a fresh one",
        False,
        group=Group.DATA,
    )
    dataset_path: str | None = flag(
        "directory with train.jsonl and validation.jsonl in the Hub's columns",
        group=Group.DATA,
        metavar="DIR",
    )
    output_dir: str = flag(
        "directory for all output (default: below runs/)",
        group=Group.DATA,
        metavar="DIR",
        cosmetic=True,
        grid=True,
    )

    per_device_train_batch_size: int = flag(
        "examples per device and micro-step", group=Group.TRAINING, range=BATCH
    )
    per_device_eval_batch_size: int = flag(
        "examples per device in evaluation", 64, group=Group.PRECISION, range=BATCH
    )
    gradient_accumulation_steps: int = flag(
        "micro-steps per optimizer step", 1, group=Group.TRAINING, range=BATCH
    )
    learning_rate: float = flag(
        "peak learning rate",
        group=Group.TRAINING,
        range=Range(math.ulp(0), 1000, "a number above 0 and at most 1,000, such as 2e-5"),
    )
    lr_scheduler_type: str = flag(
        "learning rate schedule", "linear", group=Group.TRAINING, choices=SCHEDULERS
    )
    warmup_steps: float = flag(
        "warmup steps; below 1, a fraction of the schedule",
        0.0,
        group=Group.TRAINING,
        range=Range(0, 10**9, "0 or more steps, at most 1,000,000,000, or a fraction below 1"),
    )
    weight_decay: float = flag(
        "decoupled weight decay of matrices",
        0.0,
        group=Group.TRAINING,
        range=Range(0, 1000, "0 or more, at most 1,000, such as 0.01"),
    )
    max_grad_norm: float = flag(
        "gradient clipping; 0 disables it",
        1.0,
        group=Group.TRAINING,
        range=Range(0, 1e12, "0 (off) or more, at most 1e12, such as 1.0"),
    )
    num_train_epochs: float = flag(
        "epochs per round if --max_steps is -1",
        group=Group.TRAINING,
        range=Range(math.ulp(0), 10**6, "a number above 0 and at most 1,000,000, such as 3"),
    )
    max_steps: int = flag(
        "optimizer steps per round; 0 trains nothing; -1 counts epochs instead",
        group=Group.TRAINING,
        range=Range(-1, 10**9, "-1 (use epochs), 0 (train nothing) or more, at most 1,000,000,000"),
    )
    max_seq_length: int = flag(
        "tokens per sequence, special tokens included",
        group=Group.DATA,
        range=TOKENS._replace(least=8, words="8 or more, at most 1,048,576"),
    )
    doc_stride: int = flag(
        "tokens between the starts of two windows over one context (squad)",
        128,
        group=Group.DATA,
        range=TOKENS,
    )
    max_train_samples: int | None = flag(
        "use the first N training examples (mlm: blocks)", group=Group.DATA, range=COUNT
    )
    max_eval_samples: int | None = flag(
        "use the first N validation examples (mlm: blocks)", group=Group.DATA, range=COUNT
    )
    optim: str = flag("optimizer", "adamw_torch", group=Group.TRAINING, choices=OPTIMIZERS)
    optim_args: str | None = flag(
        "optimizer arguments, such as 'momentum=0.9,nesterov=true'", group=Group.TRAINING
    )
    bf16: bool = flag("bfloat16 mixed precision", False, group=Group.PRECISION)
    fp16: bool = flag(
        "float16 mixed precision with loss scaling (GPU)", False, group=Group.PRECISION
    )
    seed: int = flag(
        "seed of the head, the data order, dropout and random masks",
        42,
        group=Group.DATA,
        range=SEED,
        grid=True,
    )
    full_determinism: bool = flag(
        "use deterministic algorithms where they exist: slower on GPUs",
        False,
        group=Group.PRECISION,
    )
    dataloader_num_workers: int = flag(
        "processes that load batches",
        0,
        group=Group.PRECISION,
        range=Range(0, 1024, "0 or more, at most 1,024"),
        cosmetic=True,
    )
    ticket: str | None = flag(
        "start from this ticket's mask instead of the dense network",
        group=Group.DATA,
        metavar="FILE",
        grid=True,
    )
    allow_other_weights: bool = flag(
        "accept a --ticket that was found in weights other than the base model's",
        False,
        group=Group.DATA,
    )
    ignore: tuple[str, ...] | None = flag(
        "leave weights dense whose names in the base model match (default: the ticket's)",
        group=Group.SEARCH,
        metavar="REGEX",
    )

    logging_steps: int = flag(
        "steps between logged losses", 10, group=Group.TRACKING, range=COUNT, cosmetic=True
    )
    save_steps: int = flag(
        "steps between checkpoints within a round; 0: only when a signal asks for one",
        500,
        group=Group.TRACKING,
        range=Range(0, 10**9, "0 (none) or more, at most 1,000,000,000"),
        cosmetic=True,
    )
    save_total_limit: int = flag(
        "checkpoints of the current round to keep",
        2,
        group=Group.TRACKING,
        range=COUNT,
        cosmetic=True,
    )
    ddp_timeout: int = flag(
        "seconds after which a rank that waits for another gives up",
        1800,
        group=Group.TRACKING,
        range=Range(1, 10**7, "1 or more, at most 10,000,000"),
        cosmetic=True,
    )
    report_to: str = flag(
        "experiment tracker",
        "mlflow",
        group=Group.TRACKING,
        choices=("mlflow", "none"),
        cosmetic=True,
    )
    run_name: str | None = flag(
        "name of the run in MLflow", group=Group.TRACKING, metavar="NAME", cosmetic=True
    )
    push_to_hub: bool = flag(
        "upload model, ticket and card to the Hub at the end", False, group=Group.HUB, cosmetic=True
    )
    hub_model_id: str | None = flag(
        "repository on the Hub (default: your user name and the name of --output_dir)",
        group=Group.HUB,
        metavar="USER/NAME",
        cosmetic=True,
    )
    hub_private_repo: bool = flag(
        "make a new repository private", False, group=Group.HUB, cosmetic=True
    )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and their values, with lists for tuples, as JSON has them."""
        return {
            name: [*value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def to_keep(self) -> dict[str, Any]:
        """Return `as_dict` with absolute paths, which are valid in any working directory."""
        return {name: lasting(name, value) for name, value in self.as_dict().items()}

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


@dataclass(frozen=True, kw_only=True)
class Arguments(Training):
    """The flags of a search."""

    lr_span: str = flag(
        "what one schedule covers: a round (the paper) or all (the official code) "
        "(default: all_rounds with --rewind none, else round)",
        group=Group.SEARCH,
        choices=("round", "all_rounds"),
    )
    target_sparsity: float = flag(
        "fraction of the prunable weights that are pruned in the last round (default: 0.9)",
        group=Group.SEARCH,
        range=FRACTION,
        grid=True,
    )
    prune_rate: float = flag(
        "fraction pruned per round: of all weights (linear) or of the remaining (geometric)",
        0.1,
        group=Group.SEARCH,
        range=Range(math.ulp(0), 1, "a fraction above 0 and at most 1, such as 0.1"),
    )
    schedule: str = flag(
        "sparsities of the rounds", "linear", group=Group.SEARCH, registry="schedule"
    )
    scope: str = flag(
        "one threshold for all matrices or one per matrix",
        "global",
        group=Group.SEARCH,
        choices=("global", "layerwise"),
        method=True,
    )
    pattern: str = flag(
        "what is pruned together: single weights, N:M (2:4 keeps 2 of 4 in a row) or block:RxC",
        "unstructured",
        group=Group.SEARCH,
        metavar="PATTERN",
        method=True,
    )
    score: str = flag(
        "importance of a weight",
        "magnitude",
        group=Group.SEARCH,
        choices=("magnitude", "movement"),
        method=True,
    )
    rewind: str = flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        group=Group.SEARCH,
        choices=("weights", "lr", "none"),
        method=True,
        grid=True,
    )
    rewind_step: str = flag(
        "i, in steps (100) or as a fraction of a round (0.05)",
        "0",
        group=Group.SEARCH,
        metavar="STEP",
        method=True,
        grid=True,
    )
    dense: str | None = flag(
        "reuse round 0 and θᵢ of this finished search of the same task, seed and training",
        group=Group.SEARCH,
        metavar="DIR",
        grid=True,
    )
    keep_theta: str | None = flag(
        "save θᵢ at these further points for searches that use --dense (0.05,0.1)",
        group=Group.SEARCH,
        metavar="STEPS",
        grid=True,
    )
    control: str = flag(
        "compare the last two tickets with",
        "none",
        group=Group.COMPARISON,
        registry="control",
        grid=True,
    )
    distill: bool = flag(
        "also learn from the dense network's outputs, from round 1 on",
        False,
        group=Group.SEARCH,
        method=True,
    )
    early_bird: bool = flag(
        "stop training a round when the mask it would give is stable",
        False,
        group=Group.SEARCH,
        method=True,
    )


@dataclass(frozen=True, kw_only=True)
class Transfer(Training):
    """The flags of a transfer: train m ⊙ θ on a task, once per seed."""

    seeds: tuple[int, ...] = flag(
        "train once with each seed (default: --seed)",
        group=Group.DATA,
        range=SEED._replace(words="integers from 0 to 4294967295"),
        cosmetic=True,
        grid=True,
    )
    target_sparsity: float | None = flag(
        "without --ticket: the sparsity of random_mask, random_layerwise or one_shot",
        group=Group.SEARCH,
        range=FRACTION,
        grid=True,
    )
    scope: str | None = flag(
        "one_shot without --ticket: one threshold for all matrices or one per matrix "
        "(default: global)",
        group=Group.SEARCH,
        choices=("global", "layerwise"),
        method=True,
    )
    theta: str | None = flag(
        "start the encoder from θᵢ, a theta.safetensors of lth_scale.imp, and check --ticket against it",
        group=Group.DATA,
        metavar="FILE",
        grid=True,
    )
    control: str = flag(
        "train instead of the ticket", "none", group=Group.COMPARISON, registry="control", grid=True
    )
    compare_with: str | None = flag(
        "a finished transfer of the same task; prints whether this one matches it",
        group=Group.COMPARISON,
        metavar="DIR",
        cosmetic=True,
    )
    connectivity: bool = flag(
        "also train the data orders of the first two seeds from one start and interpolate linearly",
        False,
        group=Group.COMPARISON,
    )
    keep_network: bool = flag(
        "save the network of the first seed for lth_scale.export; implied by --push_to_hub",
        False,
        group=Group.COMPARISON,
        cosmetic=True,
    )


@functools.cache
def flags_with(fact: Literal["cosmetic", "method", "grid", "path", "several"]) -> frozenset[str]:
    """Return the names of the flags of a search or a transfer with a fact of `Flag`.

    `several` selects the flags that take several values.
    """
    return frozenset(
        spec.name
        for kind in (Arguments, Transfer)
        for spec, declared in flags_of(kind)
        if (value_type(spec)[1] if fact == "several" else getattr(declared, fact))
    )


def lasting(name: str, value: Any) -> Any:
    """Return the value of the flag `name`, absolute if it is a local path."""
    is_path = is_local(str(value)) if name == "model_name_or_path" else name in flags_with("path")
    return os.path.abspath(value) if value not in (None, EMBEDDED) and is_path else value


def is_same(name: str, one: Any, other: Any) -> bool:
    """Return True if two values of the flag `name` are equal or paths to the same place."""
    is_path = name == "model_name_or_path" or name in flags_with("path")
    if one == other or not is_path or not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    return EMBEDDED not in (one, other) and os.path.realpath(one) == os.path.realpath(other)


def is_local(name: str) -> bool:
    """Return True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()
