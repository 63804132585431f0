"""The tasks that --task may name, one line an entry. Does not import torch."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.arguments import Training, flags_in
from lth_scale.config.defaults import DEFAULTS, GLUE_DEFAULTS
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import Group
from lth_scale.config.registry import Registry, lazy

if TYPE_CHECKING:
    from lth_scale.tasks.task import Task


FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")  # package.module:function
# Groups of tasks, as GLUE's paper (Wang et al. 2019, arXiv:1804.07461) has them, and the others.
_SINGLE, _SIMILARITY, _INFERENCE = "single sentence", "similarity and paraphrase", "inference"
_ANSWERING, _MODELLING = "question answering", "language modelling"
CATEGORIES = (_SINGLE, _SIMILARITY, _INFERENCE, _ANSWERING, _MODELLING, "other")


# Flags by which the user's own data is read, and those that every kind of task on it takes.
OWN_DATA = flags_in(Group.OWN_DATA)
_SOURCES = frozenset(
    {
        *("dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file"),
        *("validation_split_percentage", "shuffle_train_dataset"),
    }
)
_METRIC = frozenset({"metric_name", "greater_is_better"})


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A value of --task.

    load: resolved flags → `Task`. dataset: name and configuration on the Hub. metrics: the first
    one compares networks. training_rows: as in Table 1 of Chen et al. 2020 (squad: windows of 384
    tokens), or None if rounds are counted in steps. texts: the text columns. labels: the names of
    the classes, in order; a single one means regression. validation: the validation split. more:
    additional ones, by the suffix of their metrics; their local files are optional. pipeline,
    auto_class: transformers' names for a network with this head, or "" if it may have any.
    own_head: the task trains the head that the encoder was pre-trained with. category: what is
    asked of the text, one of CATEGORIES. data_flags: the flags of `OWN_DATA` that it takes.
    """

    load: Callable[[Training], "Task"]
    dataset: tuple[str, str] = ("", "")
    metrics: tuple[str, ...]
    training_rows: int | None = None
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    validation: str = "validation"
    more: Mapping[str, str] = field(default_factory=dict)
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"
    own_head: bool = False
    category: str = "other"
    data_flags: frozenset[str] = frozenset()

    @property
    def is_of_own_data(self) -> bool:
        """True if the flags say where the data is: there is no dataset of this name."""
        return "train_file" in self.data_flags

    @property
    def needs_data(self) -> bool:
        """True if the flags must say where the data is: no function of the user's brings it."""
        return self.is_of_own_data and bool(self.auto_class)

    @property
    def metric(self) -> str:
        """The metric by which networks are compared."""
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """The training split and all validation splits."""
        return ("train", self.validation, *self.more.values())


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is printed and compared.

    scale: from its value to the unit printed: 100 for fractions, printed in percentage points.
    delta: the loss that matching tolerates by default, in the unit printed; None if that has to be
    given. sign: −1 if less is better.
    """

    scale: int = 100
    delta: float | None = None
    sign: int = 1

    @property
    def digits(self) -> int:
        """The decimals of a score as it is printed; a difference has one more."""
        return 1 if self.scale == 100 else 3


METRICS: Registry[Metric] = Registry("metric")
for _name in ["accuracy", "f1", "exact_match", "matthews_correlation", "pearson", "spearman"]:
    METRICS.register(_name, Metric(delta=1.0))
for _name in ("macro_f1", "micro_f1"):
    METRICS.register(_name, Metric(delta=1.0))
for _name in ("loss", "perplexity", "mse", "mae"):
    METRICS.register(_name, Metric(scale=1, sign=-1))


def metric_named(name: str) -> Metric:
    """How the metric `name` is printed and compared; one that is not in METRICS is a fraction."""
    return METRICS.get(name, Metric())


def adopt_metric(flags: Mapping[str, Any]) -> None:
    """Know the metric of --metric_name as --greater_is_better says: the flags of a run decide.

    It is printed as it is, and has no default δ. Raises BadInput if another run says the opposite.
    """
    name, greater = flags.get("metric_name"), flags.get("greater_is_better")
    if not name or not greater:
        return
    name, sign = Path(name).stem, 1 if greater == "true" else -1
    if name not in METRICS:
        METRICS.register(name, Metric(scale=1, sign=sign))
    elif METRICS[name].sign != sign:
        raise BadInput(
            f"--greater_is_better {greater}: --metric_name {name} is known with the opposite; "
            "omit the flag, or use the value of the other runs"
        )


def best_trivial(
    scores: Mapping[str, Mapping[str, float]], metric: str
) -> tuple[str, float] | None:
    """The best trivial predictor under a metric, and its score in the unit printed.

    scores: predictor → metric → score, as runs record them. None if none has the metric.
    """
    kind = metric_named(metric)
    known = {name: by[metric] * kind.scale for name, by in scores.items() if metric in by}
    if not known:
        return None
    best = max(known, key=lambda name: kind.sign * known[name])
    return best, known[best]


def _custom_kind(name: str) -> TaskKind | None:
    """The kind of `package.module:function`, or None for another name."""
    if not FUNCTION.fullmatch(name):
        return None
    return TaskKind(
        load=lazy("lth_scale.tasks.custom:load_custom"),
        metrics=("score",),
        pipeline="",
        auto_class="",
        data_flags=OWN_DATA,
    )


TASKS: Registry[TaskKind] = Registry("task", find=_custom_kind)


def register_task(name: str, kind: TaskKind, **defaults: Any) -> None:
    """Make `name` a value of --task.

    defaults: of its flags, where they differ from GLUE's. Raises ValueError if the name is taken.
    """
    TASKS.register(name, kind)
    DEFAULTS.setdefault(name, GLUE_DEFAULTS | defaults)


def load_task(args: Training) -> "Task":
    """Load the model, the encoded data and the metric of --task. Raises BadInput."""
    adopt_metric(args.as_dict())
    return TASKS[args.task].load(args)


def _register_glue(
    name: str,
    training_rows: int,
    texts: str,
    labels: str,
    metrics: tuple[str, ...] = ("accuracy",),
    **options: Any,
) -> None:
    kind = TaskKind(
        load=lazy("lth_scale.tasks.glue:load_glue"),
        dataset=("nyu-mll/glue", name),
        metrics=metrics,
        training_rows=training_rows,
        texts=tuple(texts.split()),
        labels=tuple(labels.split()),
        **options,
    )
    register_task(name, kind)


_PAIR = "sentence1 sentence2"
_register_glue(
    "mnli",
    392_702,
    "premise hypothesis",
    "entailment neutral contradiction",
    validation="validation_matched",
    category=_INFERENCE,
    more={"mismatched": "validation_mismatched"},
)
_register_glue(
    "qqp",
    363_846,
    "question1 question2",
    "not_duplicate duplicate",
    ("accuracy", "f1"),
    category=_SIMILARITY,
)
_register_glue("stsb", 5_749, _PAIR, "similarity", ("pearson", "spearman"), category=_SIMILARITY)
_register_glue("wnli", 635, _PAIR, "not_entailment entailment", category=_INFERENCE)
_register_glue(
    "qnli", 104_743, "question sentence", "entailment not_entailment", category=_INFERENCE
)
_register_glue(
    "mrpc", 3_668, _PAIR, "not_equivalent equivalent", ("accuracy", "f1"), category=_SIMILARITY
)
_register_glue("rte", 2_490, _PAIR, "entailment not_entailment", category=_INFERENCE)
_register_glue("sst2", 67_349, "sentence", "negative positive", category=_SINGLE)
_register_glue(
    "cola",
    8_551,
    "sentence",
    "unacceptable acceptable",
    ("matthews_correlation",),
    category=_SINGLE,
)
register_task(
    "squad",
    TaskKind(
        load=lazy("lth_scale.tasks.squad:load_squad"),
        dataset=("rajpurkar/squad", "plain_text"),
        metrics=("f1", "exact_match"),
        training_rows=88_641,
        texts=("question", "context"),
        pipeline="question-answering",
        auto_class="AutoModelForQuestionAnswering",
        category=_ANSWERING,
    ),
)
register_task(
    "mlm",
    TaskKind(
        load=lazy("lth_scale.tasks.mlm:load_mlm"),
        dataset=("wikimedia/wikipedia", "20231101.en"),
        metrics=("accuracy",),
        texts=("text",),
        pipeline="fill-mask",
        auto_class="AutoModelForMaskedLM",
        own_head=True,
        category=_MODELLING,
    ),
)
register_task(
    "text-classification",
    TaskKind(
        load=lazy("lth_scale.tasks.text_classification:load_text_classification"),
        metrics=("accuracy", "macro_f1"),
        data_flags=_SOURCES
        | _METRIC
        | {"text_column_names", "label_column_name", "label_separator", "do_regression"},
    ),
)
register_task(
    "token-classification",
    TaskKind(
        load=lazy("lth_scale.tasks.token_classification:load_token_classification"),
        metrics=("f1", "precision", "recall", "accuracy"),
        pipeline="token-classification",
        auto_class="AutoModelForTokenClassification",
        data_flags=_SOURCES | {"text_column_name", "label_column_name"},
    ),
    learning_rate=5e-5,
)
register_task(
    "question-answering",
    TaskKind(
        load=lazy("lth_scale.tasks.squad:load_question_answering"),
        metrics=("f1", "exact_match"),
        texts=("question", "context"),
        pipeline="question-answering",
        auto_class="AutoModelForQuestionAnswering",
        category=_ANSWERING,
        data_flags=_SOURCES | {"version_2_with_negative"},
    ),
    **DEFAULTS["squad"],
)
register_task(
    "fill-mask",
    TaskKind(
        load=lazy("lth_scale.tasks.mlm:load_mlm"),
        metrics=("accuracy",),
        texts=("text",),
        pipeline="fill-mask",
        auto_class="AutoModelForMaskedLM",
        own_head=True,
        category=_MODELLING,
        data_flags=_SOURCES - {"test_file"} | {"text_column_name"},
    ),
    **DEFAULTS["mlm"] | {"max_steps": -1, "num_train_epochs": 3.0},
)
