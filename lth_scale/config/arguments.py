"""Command-line arguments: names are TrainingArguments', defaults are the paper's, errors are one line.

Nothing here imports torch, so that bad input is refused in well under a second.
"""

import os
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config.defaults import EMBEDDED, SCHEDULERS
from lth_scale.config.parsers import PATHS, flag

QUICK_LOOK = "a quick look: few examples, a small encoder, no finding"
OTHER_ALLOWED = (
    "a ticket of other weights than the base model's was allowed (--allow_other_weights)"
)
FRESH_HEAD = (
    "a fresh MLM head: drawn from --seed, not the one that the encoder was pre-trained with"
)
KEPT_HEAD = "a kept head: the checkpoint's own, not drawn from --seed"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one training of a subnetwork is told. Every field is a flag of the same name."""

    task: str = flag("what to train on", MISSING, registry="task")
    preset: str | None = flag(
        "demo: small model and data inside the package, no network; quick: a small encoder, a slice of the real data",
        choices=("demo", "quick"),
    )
    model_name_or_path: str = flag("Hub name, a directory, or 'embedded'")
    model_revision: str | None = flag("branch, tag or commit of a Hub model")
    fresh_head: bool = flag(
        "mlm: draw the MLM head from --seed, as for an encoder that comes without one", False
    )
    keep_head: bool | None = flag(
        "all but mlm: start from the checkpoint's head; else one is drawn from --seed", False
    )
    dataset_path: str | None = flag(
        "directory with train.jsonl and validation.jsonl in the Hub's columns"
    )
    output_dir: str = flag("where everything is written (default: below runs/)")

    per_device_train_batch_size: int = flag("examples a device and micro-step")
    per_device_eval_batch_size: int = flag("examples a device at evaluation", 64)
    gradient_accumulation_steps: int = flag("micro-steps an optimizer step", 1)
    learning_rate: float = flag("peak learning rate")
    lr_scheduler_type: str = flag("shape of the schedule", "linear", choices=SCHEDULERS)
    warmup_steps: float = flag("steps of warm-up; below 1, a fraction of the schedule", 0.0)
    weight_decay: float = flag("decoupled weight decay of matrices", 0.0)
    max_grad_norm: float = flag("gradient clipping; 0 switches it off", 1.0)
    num_train_epochs: float = flag("epochs a round, where --max_steps is -1")
    max_steps: int = flag("optimizer steps a round; 0 trains nothing; -1 counts epochs instead")
    max_seq_length: int = flag("tokens a sequence, special tokens included")
    doc_stride: int = flag("tokens between the starts of two windows over one context (squad)", 128)
    max_train_samples: int | None = flag("use the first N training examples (MLM: blocks)")
    max_eval_samples: int | None = flag("use the first N validation examples (MLM: blocks)")
    optim: str = flag("optimizer", "adamw_torch", registry="optimizer")
    optim_args: str | None = flag("its arguments, as in 'momentum=0.9,nesterov=true'")
    bf16: bool = flag("bfloat16 mixed precision", False)
    fp16: bool = flag("float16 mixed precision, with loss scaling (GPU)", False)
    seed: int = flag("seed of the head, the data order, dropout and random masks", 42)
    full_determinism: bool = flag(
        "deterministic algorithms alone, where there are any: slower on GPUs", False
    )
    dataloader_num_workers: int = flag("processes that prepare batches", 0)
    ticket: str | None = flag("start from this ticket's mask instead of the dense network")
    allow_other_weights: bool = flag(
        "take a --ticket that was found in other weights than the base model's", False
    )
    ignore: tuple[str, ...] | None = flag(
        "leave dense what one of these is found in the name of, in the base model (default: the ticket's)",
        nargs="+",
        of=str,
    )

    logging_steps: int = flag("steps between logged losses", 10)
    save_steps: int = flag(
        "steps between checkpoints within a round; 0: only when a signal asks for one", 500
    )
    save_total_limit: int = flag("checkpoints of the round in training that are kept", 2)
    ddp_timeout: int = flag("seconds after which ranks that wait for another give up", 1800)
    report_to: str = flag("where runs are tracked", "mlflow", registry="tracker")
    run_name: str | None = flag("name of the run in MLflow")
    push_to_hub: bool = flag("upload model, ticket and card to the Hub when all is done", False)
    hub_model_id: str | None = flag(
        "user/name there (default: yours, and the name of --output_dir)"
    )
    hub_private_repo: bool = flag("make the repository private, where it is new", False)

    def as_dict(self) -> dict[str, Any]:
        """The fields and their values, as JSON gives them back."""
        return {
            name: [*value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def to_keep(self) -> dict[str, Any]:
        """`as_dict`, with local paths made absolute: they mean the same when they are read in another directory."""
        return {name: lasting(name, value) for name, value in self.as_dict().items()}

    @property
    def note(self) -> str:
        """What every output has to say of these settings, or nothing."""
        notes = {
            QUICK_LOOK: self.preset == "quick",
            OTHER_ALLOWED: self.allow_other_weights and self.ticket,
            self.head_note: True,
        }
        return "; ".join(text for text, holds in notes.items() if text and holds)

    @property
    def head_note(self) -> str:
        """The part of it on a head that is fresh where it is usually the checkpoint's, or the other way round."""
        return FRESH_HEAD if self.fresh_head else KEPT_HEAD if self.keep_head else ""


@dataclass(frozen=True, kw_only=True)
class Arguments(Training):
    """What one IMP search is told."""

    lr_span: str = flag(
        "what one schedule covers: a round (the paper) or all (the official code) "
        "(default: all_rounds with --rewind none, else round)",
        choices=("round", "all_rounds"),
    )
    target_sparsity: float = flag(
        "fraction of the prunable weights pruned in the last round (default: 0.9)"
    )
    prune_rate: float = flag(
        "fraction pruned each round: of all (linear) or of the rest (geometric)", 0.1
    )
    schedule: str = flag("sparsities of the rounds", "linear", registry="schedule")
    scope: str = flag(
        "one threshold for all matrices, or one for each", "global", choices=("global", "layerwise")
    )
    pattern: str = flag(
        "what is pruned together: single weights, N:M (2:4 keeps 2 of 4 in a row) or block:RxC (block:4x1)",
        "unstructured",
    )
    score: str = flag("what a weight is worth", "magnitude", registry="score")
    rewind: str = flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        choices=("weights", "lr", "none"),
    )
    rewind_step: str = flag("i, in steps (100) or as a fraction of a round (0.05)", "0")
    dense: str | None = flag(
        "take round 0 and θᵢ from this finished search of the same task, seed and training"
    )
    keep_theta: str | None = flag(
        "keep θᵢ at these further points too, for searches that take --dense (0.05,0.1)"
    )
    control: str = flag("compare the last two tickets with", "none", registry="control")
    distill: bool = flag("learn from the dense network's outputs too, from round 1 on", False)
    early_bird: bool = flag(
        "end a round's training when the mask it would give stops moving", False
    )


@dataclass(frozen=True, kw_only=True)
class Transfer(Training):
    """What one transfer is told: train m ⊙ θ on a task, once for each seed."""

    seeds: tuple[int, ...] = flag("train once with each (default: --seed)", nargs="+", of=int)
    target_sparsity: float | None = flag(
        "without --ticket: the sparsity of random_mask, random_layerwise or one_shot"
    )
    scope: str | None = flag(
        "one_shot without --ticket: one threshold for all matrices, or one for each (default: global)",
        choices=("global", "layerwise"),
    )
    theta: str | None = flag(
        "θᵢ instead of θ₀ for the encoder, and compared with --ticket instead: a theta.safetensors of lth_scale.imp"
    )
    control: str = flag("take in the ticket's place", "none", registry="control")
    compare_with: str | None = flag(
        "a finished transfer of the same task; prints whether this one matches it"
    )
    connectivity: bool = flag(
        "also train the first two seeds' data orders from one start and join them linearly", False
    )
    keep_network: bool = flag(
        "keep the first seed's network, to export or time it; --push_to_hub does too", False
    )


# Flags that change what is shown, not what is found: the same search may go on with others.
COSMETIC = (
    *(
        "output_dir",
        "logging_steps",
        "report_to",
        "run_name",
        "dataloader_num_workers",
        "seeds",
        "compare_with",
    ),
    *(
        "save_steps",
        "save_total_limit",
        "ddp_timeout",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
    ),
    "keep_network",
)


def lasting(name: str, value: Any) -> Any:
    """The value of the flag `name`, absolute where it is a local path."""
    is_path = is_local(str(value)) if name == "model_name_or_path" else name in PATHS
    return os.path.abspath(value) if value not in (None, EMBEDDED) and is_path else value


def is_same(name: str, one: Any, other: Any) -> bool:
    """True for the same value of the flag `name`: paths are the same where they lead to the same place."""
    if name in (*PATHS, "model_name_or_path") and isinstance(one, str) and isinstance(other, str):
        return one == other or (
            EMBEDDED not in (one, other) and os.path.realpath(one) == os.path.realpath(other)
        )
    return one == other


def is_local(name: str) -> bool:
    """True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()
