"""The flags of a search and of a transfer: TrainingArguments' names, the paper's defaults.

Does not import torch, so that `--help` and bad input take well under a second.
"""

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from typing import Any, Literal

from lth_scale.config.defaults import EMBEDDED, SCHEDULERS
from lth_scale.config.flags import (
    BATCH,
    COUNT,
    DELTA,
    FRACTION,
    ON_HUB_OR_LOCAL,
    SEED,
    TOKENS,
    Group,
    Range,
    absolute_if_local,
    check_names,
    comparison_flag,
    data_flag,
    flags_of,
    hub_flag,
    own_data_flag,
    precision_flag,
    report_to_flag,
    search_flag,
    tracking_flag,
    training_flag,
    value_type,
)
from lth_scale.config.registry import REGISTRIES

QUICK_LOOK = "a quick look: few examples, a small encoder, no finding"
OTHER_ALLOWED = (
    "a ticket of other weights than the base model's was allowed (--allow_other_weights)"
)
_FRESH_HEAD = "a fresh MLM head: initialised from --seed, not the pre-trained one"
_KEPT_HEAD = "a kept head: the checkpoint's own, not initialised from --seed"
_ABOVE_0 = math.ulp(0)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The flags that a search and a transfer share. Every field is a flag of the same name.

    Raises BadInput for an earlier name of an entry that was renamed, such as a score.
    """

    task: str = data_flag(
        "task to train on, or package.module:function", MISSING, registry="task", grid=True
    )
    preset: str | None = data_flag(
        "demo: embedded model and data, no network; quick: a small encoder, part of the real data",
        choices=("demo", "quick"),
    )
    model_name_or_path: str = data_flag("Hub name, a directory, or 'embedded'", metavar="MODEL")
    model_revision: str | None = data_flag(
        "branch, tag or commit of a Hub model", metavar="REVISION"
    )
    fresh_head: bool = data_flag(
        "mlm: initialise the MLM head from --seed, as for an encoder without one", False
    )
    keep_head: bool | None = data_flag(
        "all but mlm: start from the checkpoint's head instead of a fresh one", False
    )
    dataset_path: str | None = data_flag(
        "directory with train.jsonl and validation.jsonl; your own data: train.* and so on",
        metavar="DIR",
    )
    dataset_name: str | None = own_data_flag(
        "dataset on the Hub, or a directory of save_to_disk", metavar="NAME"
    )
    dataset_config_name: str | None = own_data_flag(
        "configuration of --dataset_name", metavar="CONFIG"
    )
    train_file: str | None = own_data_flag(
        "training rows: csv, tsv, json, jsonl, parquet, arrow or txt, also .gz or .xz",
        metavar="FILE",
    )
    validation_file: str | None = own_data_flag("validation rows", metavar="FILE")
    test_file: str | None = own_data_flag(
        "rows that the dense network and the last ticket predict, in predictions.csv",
        metavar="FILE",
    )
    text_column_names: str | None = own_data_flag(
        "text-classification: column of the text, or two columns of a pair, such as a,b",
        metavar="COLUMNS",
    )
    text_column_name: str | None = own_data_flag(
        "column of the words (token-classification) or of the text (fill-mask)", metavar="COLUMN"
    )
    label_column_name: str | None = own_data_flag("column of the labels", metavar="COLUMN")
    label_separator: str | None = own_data_flag(
        "text-classification: the label column holds several, separated by this", metavar="TEXT"
    )
    do_regression: bool = own_data_flag(
        "text-classification: labels are numbers to predict, not classes", False
    )
    version_2_with_negative: bool = own_data_flag(
        "question-answering: some questions have no answer, as in SQuAD v2", False
    )
    validation_split_percentage: int | None = own_data_flag(
        "percentage of the training rows to validate on",
        range=Range(1, 99, "an integer from 1 to 99"),
    )
    shuffle_train_dataset: bool = own_data_flag(
        "shuffle the training rows by --seed before --max_train_samples", False
    )
    metric_name: str | None = own_data_flag(
        "metric of `evaluate` by which networks are compared: its name or a local path",
        metavar="METRIC",
    )
    greater_is_better: str | None = own_data_flag(
        "whether more is better in --metric_name", choices=("true", "false")
    )
    output_dir: str = data_flag(
        "directory for all output (default: below runs/)", metavar="DIR", cosmetic=True, grid=True
    )

    per_device_train_batch_size: int = training_flag(
        "examples per device and micro-step", range=BATCH
    )
    per_device_eval_batch_size: int = precision_flag(
        "examples per device in evaluation", 64, range=BATCH
    )
    gradient_accumulation_steps: int = training_flag(
        "micro-steps per optimizer step", 1, range=BATCH
    )
    learning_rate: float = training_flag(
        "peak learning rate",
        range=Range(_ABOVE_0, 1000, "a number above 0 and at most 1,000, such as 2e-5"),
    )
    lr_scheduler_type: str = training_flag("learning rate schedule", "linear", choices=SCHEDULERS)
    warmup_steps: float = training_flag(
        "warmup steps; below 1, a fraction of the schedule",
        0.0,
        range=Range(0, 10**9, "0 or more steps, at most 1,000,000,000, or a fraction below 1"),
    )
    weight_decay: float = training_flag(
        "decoupled weight decay of matrices",
        0.0,
        range=Range(0, 1000, "0 or more, at most 1,000, such as 0.01"),
    )
    max_grad_norm: float = training_flag(
        "gradient clipping; 0 disables it",
        1.0,
        range=Range(0, 1e12, "0 (off) or more, at most 1e12, such as 1.0"),
    )
    num_train_epochs: float = training_flag(
        "epochs per round if --max_steps is -1",
        range=Range(_ABOVE_0, 10**6, "a number above 0 and at most 1,000,000, such as 3"),
    )
    max_steps: int = training_flag(
        "optimizer steps per round; 0 trains nothing; -1 counts epochs instead",
        range=Range(-1, 10**9, "-1 (use epochs), 0 (train nothing) or more, at most 1,000,000,000"),
    )
    max_seq_length: int = data_flag(
        "tokens per sequence, special tokens included", range=TOKENS._replace(least=8)
    )
    doc_stride: int = data_flag(
        "tokens between the starts of two windows over one context (squad)", 128, range=TOKENS
    )
    max_train_samples: int | None = data_flag(
        "use the first N training examples (mlm: blocks)", range=COUNT
    )
    max_eval_samples: int | None = data_flag(
        "use the first N validation examples (mlm: blocks)", range=COUNT
    )
    optim: str = training_flag("optimizer", "adamw_torch", registry="optimizer")
    optim_args: str | None = training_flag(
        "optimizer arguments, such as 'momentum=0.9,nesterov=true'"
    )
    bf16: bool = precision_flag("bfloat16 mixed precision", False)
    fp16: bool = precision_flag("float16 mixed precision with loss scaling (GPU)", False)
    seed: int = data_flag(
        "seed of the head, the data order, dropout and random masks", 42, range=SEED, grid=True
    )
    full_determinism: bool = precision_flag(
        "use deterministic algorithms where they exist: slower on GPUs", False
    )
    dataloader_num_workers: int = precision_flag(
        "processes that load batches", 0, range=Range(0, 1024), cosmetic=True
    )
    ticket: str | None = data_flag(
        "start from this ticket's mask instead of the dense network", metavar="FILE", grid=True
    )
    allow_other_weights: bool = data_flag(
        "accept a --ticket that was found in weights other than the base model's", False
    )
    ignore: tuple[str, ...] | None = search_flag(
        "leave weights dense whose names in the base model match (default: the ticket's)",
        metavar="REGEX",
    )

    logging_steps: int = tracking_flag(
        "steps between logged losses", 10, range=COUNT, cosmetic=True
    )
    save_steps: int = tracking_flag(
        "steps between checkpoints within a round; 0: only when a signal asks for one",
        500,
        range=Range(0, 10**9, "0 (none) or more, at most 1,000,000,000"),
        cosmetic=True,
    )
    save_total_limit: int = tracking_flag(
        "checkpoints of the current round to keep", 2, range=COUNT, cosmetic=True
    )
    ddp_timeout: int = tracking_flag(
        "seconds after which a rank that waits for another gives up",
        1800,
        range=Range(1, 10**7),
        cosmetic=True,
    )
    report_to: str = report_to_flag(group=Group.TRACKING, registry="tracker", cosmetic=True)
    run_name: str | None = tracking_flag("name of the run in MLflow", metavar="NAME", cosmetic=True)
    push_to_hub: bool = hub_flag(
        "upload model, ticket and card to the Hub at the end", False, cosmetic=True
    )
    hub_model_id: str | None = hub_flag(
        "repository on the Hub (default: your user name and the name of --output_dir)",
        metavar="USER/NAME",
        cosmetic=True,
    )
    hub_private_repo: bool = hub_flag("make a new repository private", False, cosmetic=True)

    def __post_init__(self) -> None:
        check_names(self)

    def as_dict(self) -> dict[str, Any]:
        """The fields and their values, with lists for tuples, as JSON has them."""
        return {
            name: [*value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def as_saved(self) -> dict[str, Any]:
        """`as_dict` with absolute paths, which are valid in any working directory."""
        values = self.as_dict()
        for spec, declared in flags_of(type(self)):
            if declared.path and (path := values[spec.name]) not in (None, EMBEDDED):
                values[spec.name] = os.path.abspath(path)
        for name in ON_HUB_OR_LOCAL:
            if values[name]:
                values[name] = absolute_if_local(values[name])
        return values

    @property
    def note(self) -> str:
        """The caveats that every output of these settings shows, or ""."""
        notes = (
            QUICK_LOOK if self.preset == "quick" else "",
            OTHER_ALLOWED if self.allow_other_weights and self.ticket else "",
            self.head_note,
        )
        return "; ".join(filter(None, notes))

    @property
    def head_note(self) -> str:
        """The part of `note` about an unusual start of the head."""
        return _FRESH_HEAD if self.fresh_head else _KEPT_HEAD if self.keep_head else ""


@dataclass(frozen=True, kw_only=True)
class Arguments(Training):
    """The flags of a search."""

    lr_span: str = search_flag(
        "what one schedule covers: a round (the paper) or all (the official code) "
        "(default: all_rounds with --rewind none, else round)",
        choices=("round", "all_rounds"),
    )
    target_sparsity: float = search_flag(
        "fraction of the prunable weights that are pruned in the last round (default: 0.9)",
        range=FRACTION,
        grid=True,
    )
    prune_rate: float = search_flag(
        "fraction pruned per round: of all weights (linear) or of the remaining (geometric)",
        0.1,
        range=Range(_ABOVE_0, 1, "a fraction above 0 and at most 1, such as 0.1"),
    )
    schedule: str = search_flag("sparsities of the rounds", "linear", registry="schedule")
    scope: str = search_flag(
        "one threshold for all matrices or one per matrix",
        "global",
        choices=("global", "layerwise"),
        method=True,
    )
    pattern: str = search_flag(
        "what is pruned together: single weights, N:M (2:4 keeps 2 of 4 in a row) or block:RxC",
        "unstructured",
        metavar="PATTERN",
        method=True,
    )
    score: str = search_flag("importance of a weight", "magnitude", registry="score", method=True)
    rewind: str = search_flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        choices=("weights", "lr", "none"),
        method=True,
        grid=True,
    )
    rewind_step: str = search_flag(
        "i, in steps (100) or as a fraction of a round (0.05)",
        "0",
        metavar="STEP",
        method=True,
        grid=True,
    )
    dense: str | None = search_flag(
        "reuse round 0 and θᵢ of this finished search of the same task, seed and training",
        metavar="DIR",
        grid=True,
    )
    keep_theta: str | None = search_flag(
        "save θᵢ at these further points for searches that use --dense (0.05,0.1)",
        metavar="STEPS",
        grid=True,
    )
    control: str = comparison_flag(
        "compare the last two tickets with; for round k, dense_long and dense_restarts train "
        "k + 1 times as much",
        "none",
        registry="control",
        grid=True,
    )
    distill: bool = search_flag(
        "also learn from the dense network's outputs, from round 1 on", False, method=True
    )
    early_bird: bool = search_flag(
        "stop training a round when the mask it would give is stable", False, method=True
    )


@dataclass(frozen=True, kw_only=True)
class Transfer(Training):
    """The flags of a transfer: train m ⊙ θ on a task, once per seed."""

    seeds: tuple[int, ...] = data_flag(
        "train once with each seed (default: --seed)", range=SEED, cosmetic=True, grid=True
    )
    target_sparsity: float | None = search_flag(
        "without --ticket: the sparsity of random_mask, random_layerwise or one_shot",
        range=FRACTION,
        grid=True,
    )
    scope: str | None = search_flag(
        "one_shot without --ticket: one threshold for all matrices or one per matrix "
        "(default: global)",
        choices=("global", "layerwise"),
        method=True,
    )
    theta: str | None = data_flag(
        "start from theta.safetensors of a search, or weights.safetensors of a "
        "--rewind none round; --ticket of the same base",
        metavar="FILE",
        grid=True,
    )
    control: str = comparison_flag(
        "train instead of the ticket; dense_long and dense_restarts train k + 1 times as much, "
        "with k the round of the ticket",
        "none",
        registry="control",
        grid=True,
    )
    compare_with: str | None = comparison_flag(
        "a finished transfer of the same task; prints whether this one matches it",
        metavar="DIR",
        cosmetic=True,
    )
    delta: float | None = comparison_flag(
        "loss that --compare_with tolerates, in the unit printed (default: 1 for percentages)",
        range=DELTA,
        cosmetic=True,
    )
    connectivity: bool = comparison_flag(
        "also train the data orders of the first two seeds from one start and interpolate linearly",
        False,
    )
    keep_network: bool = comparison_flag(
        "save the network of the first seed for lth_scale.export; implied by --push_to_hub",
        False,
        cosmetic=True,
    )


@functools.cache
def flags_with(fact: Literal["cosmetic", "method", "grid", "path", "several"]) -> frozenset[str]:
    """The names of the flags of a search or a transfer with a fact of `Flag`.

    `several` selects the flags that take several values.
    """
    return frozenset(
        spec.name
        for kind in (Arguments, Transfer)
        for spec, declared in flags_of(kind)
        if (value_type(spec)[1] if fact == "several" else getattr(declared, fact))
    )


@functools.cache
def _registries() -> dict[str, str]:
    """The kind of the registry of each flag of a search or a transfer that has one."""
    both = (flag for kind in (Arguments, Transfer) for flag in flags_of(kind))
    return {spec.name: declared.registry for spec, declared in both if declared.registry}


def flags_in(group: Group) -> frozenset[str]:
    """The names of the flags of a search or a transfer in a section of --help."""
    both = (flag for kind in (Arguments, Transfer) for flag in flags_of(kind))
    return frozenset(spec.name for spec, declared in both if declared.group == group)


def with_current_names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved flags, among other facts, with the current names of what was renamed since."""
    values = {**saved}
    for flag, kind in _registries().items():
        renamed, value = REGISTRIES[kind].renamed, values.get(flag)
        if isinstance(value, str) and value in renamed:
            values[flag] = renamed[value].name
    return values


def same_value(name: str, one: Any, other: Any) -> bool:
    """True if two values of the flag `name` are equal or paths to the same place."""
    is_path = name in ON_HUB_OR_LOCAL or name in flags_with("path")
    if one == other or not is_path or not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    return EMBEDDED not in (one, other) and os.path.realpath(one) == os.path.realpath(other)
