"""Command-line arguments: names are TrainingArguments', defaults are the paper's, errors are one line.

Nothing here imports torch, so that bad input is refused in well under a second.
"""

import argparse
import atexit
import errno
import gc
import json
import math
import os
import re
import select
import shlex
import signal
import sys
import textwrap
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

from lth_scale import caches, files, schedule
from lth_scale.redaction import redact_logs, without_secrets

EMBEDDED = "embedded"
GLUE_TASKS = ("mnli", "qqp", "stsb", "wnli", "qnli", "mrpc", "rte", "sst2", "cola")
TASKS = (*GLUE_TASKS, "squad", "mlm")
# The Hub's data of each task: name and configuration.
DATASETS = {task: ("nyu-mll/glue", task) for task in GLUE_TASKS} | {
    "squad": ("rajpurkar/squad", "plain_text"),
    "mlm": ("wikimedia/wikipedia", "20231101.en"),
}
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
# What --optim_args may set: the least and the greatest number, or the words for yes and no.
# With an eps that fp32 rounds to 0, a weight without a gradient becomes NaN.
ADAM: dict[str, Any] = {"eps": (1e-30, 1.0), "amsgrad": ("true", "false")}
OPTIM_ARGS: dict[str, dict[str, Any]] = {
    "adamw_torch": ADAM,
    "adamw_torch_fused": ADAM,
    "sgd": {"momentum": (0.0, 1.0), "dampening": (0.0, 1.0), "nesterov": ("true", "false")},
    "adamw_bnb_8bit": {"eps": ADAM["eps"]},
}
OPTIMIZERS = tuple(OPTIM_ARGS)
ELSEWHERE = {
    "lr": "--learning_rate",
    "weight_decay": "--weight_decay",
    "fused": "--optim adamw_torch_fused",
}
CONTROLS = ("random_mask", "random_layerwise", "reinit", "shuffle_layers", "shuffle_within", "one_shot")
AGAIN = "start the same command again: it goes on from what was written last"
UNUSABLE = {
    errno.ENAMETOOLONG: "the name is too long, and a shorter one is needed",
    errno.ELOOP: "its links lead round in a circle",
}
FULL = ("No space left on device", "Disk quota exceeded", "File too large")  # in the words of safetensors' errors
# What --help shows together: the flags of imp and transfer by the title of their group.
GROUPS = {
    "what to train": "task preset model_name_or_path model_revision fresh_head keep_head dataset_path max_seq_length "
    "doc_stride max_train_samples max_eval_samples ticket theta allow_other_weights seed seeds output_dir",
    "search": "target_sparsity prune_rate schedule scope pattern score ignore rewind rewind_step lr_span dense "
    "keep_theta distill early_bird",
    "comparison": "control compare_with connectivity keep_network",
    "training": "per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_grad_norm num_train_epochs max_steps optim optim_args",
    "precision and speed": "bf16 fp16 full_determinism per_device_eval_batch_size dataloader_num_workers",
    "checkpoints and tracking": "save_steps save_total_limit logging_steps report_to run_name ddp_timeout",
    "Hub": "push_to_hub hub_model_id hub_private_repo",
}
# What stands for a flag's value in --help, by the name of the flag or of its type.
METAVARS = {
    **dict.fromkeys(("dataset_path", "output_dir", "dense", "compare_with"), "DIR"),
    **dict.fromkeys(("ticket", "theta"), "FILE"),
    **dict.fromkeys(("hub_model_id", "run_name"), "NAME"),
    **{"model_name_or_path": "MODEL", "model_revision": "REVISION", "pattern": "PATTERN"},
    **{"rewind_step": "STEP", "keep_theta": "STEPS", "ignore": "REGEX", "int": "N", "float": "X", "str": "TEXT"},
}
PATHS = {name for name, value in METAVARS.items() if value in ("DIR", "FILE")}  # flags whose values are paths
# Variables that name directories in which something is written.
DIRECTORIES = (
    *("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"),
    *("HF_MODULES_CACHE", "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)
SILENCE = 20  # seconds in which the first rank of a node can say what the others would say too
LONGEST = 240  # characters of a library's error, or of a value in a file, that a message has
VERBOSE = "--verbose"
# Where a library's error refers to what it has logged, which is not shown here.
SHOWN = "(reports?|errors?|logs?|messages?|output|traceback|table)"
ELSEWHERE_SAID = rf"\babove {SHOWN}\b|\b(see|{SHOWN}) above\b(?! \d)"
QUICK_LOOK = "a quick look: few examples, a small encoder, no finding"
OTHER_ALLOWED = "a ticket of other weights than the base model's was allowed (--allow_other_weights)"
FRESH_HEAD = "a fresh MLM head: drawn from --seed, not the one that the encoder was pre-trained with"
KEPT_HEAD = "a kept head: the checkpoint's own, not drawn from --seed"

# Chen et al. 2020, Table 1 and the README of VITA-Group/BERT-Tickets@4d8e035: batch, rate, length.
GLUE_DEFAULTS: dict[str, Any] = {
    "model_name_or_path": "google-bert/bert-base-uncased",
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "max_seq_length": 128,
}
# The same sources; a round of the MLM search is 10,000 steps (`--save_steps 10000` there).
DEFAULTS: dict[str, dict[str, Any]] = dict.fromkeys(GLUE_TASKS, GLUE_DEFAULTS) | {
    "squad": GLUE_DEFAULTS
    | {"per_device_train_batch_size": 16, "learning_rate": 3e-5, "num_train_epochs": 2.0, "max_seq_length": 384},
    "mlm": GLUE_DEFAULTS
    | {
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-5,
        "num_train_epochs": 1.0,
        "max_steps": 10_000,
        "max_seq_length": 512,
    },
}
DEMO: dict[str, dict[str, Any]] = {
    task: {
        "model_name_or_path": EMBEDDED,
        "dataset_path": EMBEDDED,
        "target_sparsity": 0.8,
        "max_seq_length": 128,
        "control": "random_mask",
        **sizes,
    }
    for task, sizes in {
        "mlm": {"per_device_train_batch_size": 16, "learning_rate": 5e-4, "max_steps": 50, "max_eval_samples": 300},
        "sst2": {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "max_steps": 150},
    }.items()
}
# BERT-mini of Turc et al. 2019 (arXiv:1908.08962) on a slice of the real data.
QUICK: dict[str, Any] = {
    "model_name_or_path": "google/bert_uncased_L-4_H-256_A-4",
    "max_train_samples": 2_000,
    "max_eval_samples": 500,
    "max_steps": 60,
    "learning_rate": 2e-4,
    "max_seq_length": 128,
    "prune_rate": 0.2,
    "target_sparsity": 0.8,
}


class BadInput(ValueError):
    """Something the user gave cannot be used; the message names the flag, its value and the remedy."""


class Stopped(RuntimeError):
    """A command that ends before its work is done; what was written before it stands, and it can go on from there."""


class Diverged(Stopped):
    """A training whose loss is no number any more."""


def flag(help: str, default: Any = None, **options: Any) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help, **options})


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one training of a subnetwork is told. Every field is a flag of the same name."""

    task: str = flag("what to train on", MISSING, choices=TASKS)
    preset: str | None = flag(
        "demo: small model and data inside the package, no network; quick: a small encoder, a slice of the real data",
        choices=("demo", "quick"),
    )
    model_name_or_path: str = flag("Hub name, a directory, or 'embedded'")
    model_revision: str | None = flag("branch, tag or commit of a Hub model")
    fresh_head: bool = flag("mlm: draw the MLM head from --seed, as for an encoder that comes without one", False)
    keep_head: bool | None = flag("all but mlm: start from the checkpoint's head; else one is drawn from --seed", False)
    dataset_path: str | None = flag("directory with train.jsonl and validation.jsonl in the Hub's columns")
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
    optim: str = flag("optimizer", "adamw_torch", choices=OPTIMIZERS)
    optim_args: str | None = flag("its arguments, as in 'momentum=0.9,nesterov=true'")
    bf16: bool = flag("bfloat16 mixed precision", False)
    fp16: bool = flag("float16 mixed precision, with loss scaling (GPU)", False)
    seed: int = flag("seed of the head, the data order, dropout and random masks", 42)
    full_determinism: bool = flag("deterministic algorithms alone, where there are any: slower on GPUs", False)
    dataloader_num_workers: int = flag("processes that prepare batches", 0)
    ticket: str | None = flag("start from this ticket's mask instead of the dense network")
    allow_other_weights: bool = flag("take a --ticket that was found in other weights than the base model's", False)
    ignore: tuple[str, ...] | None = flag(
        "leave dense what one of these is found in the name of, in the base model (default: the ticket's)",
        nargs="+",
        of=str,
    )

    logging_steps: int = flag("steps between logged losses", 10)
    save_steps: int = flag("steps between checkpoints within a round; 0: only when a signal asks for one", 500)
    save_total_limit: int = flag("checkpoints of the round in training that are kept", 2)
    ddp_timeout: int = flag("seconds after which ranks that wait for another give up", 1800)
    report_to: str = flag("where runs are tracked", "mlflow", choices=("mlflow", "none"))
    run_name: str | None = flag("name of the run in MLflow")
    push_to_hub: bool = flag("upload model, ticket and card to the Hub when all is done", False)
    hub_model_id: str | None = flag("user/name there (default: yours, and the name of --output_dir)")
    hub_private_repo: bool = flag("make the repository private, where it is new", False)

    def as_dict(self) -> dict[str, Any]:
        """The fields and their values, as JSON gives them back."""
        return {name: [*value] if isinstance(value, tuple) else value for name, value in asdict(self).items()}

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
    target_sparsity: float = flag("fraction of the prunable weights pruned in the last round (default: 0.9)")
    prune_rate: float = flag("fraction pruned each round: of all (linear) or of the rest (geometric)", 0.1)
    schedule: str = flag("sparsities of the rounds", "linear", choices=("linear", "geometric", "one_shot", "cubic"))
    scope: str = flag("one threshold for all matrices, or one for each", "global", choices=("global", "layerwise"))
    pattern: str = flag(
        "what is pruned together: single weights, N:M (2:4 keeps 2 of 4 in a row) or block:RxC (block:4x1)",
        "unstructured",
    )
    score: str = flag("what a weight is worth", "magnitude", choices=("magnitude", "movement"))
    rewind: str = flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        choices=("weights", "lr", "none"),
    )
    rewind_step: str = flag("i, in steps (100) or as a fraction of a round (0.05)", "0")
    dense: str | None = flag("take round 0 and θᵢ from this finished search of the same task, seed and training")
    keep_theta: str | None = flag("keep θᵢ at these further points too, for searches that take --dense (0.05,0.1)")
    control: str = flag("compare the last two tickets with", "none", choices=("none", *CONTROLS))
    distill: bool = flag("learn from the dense network's outputs too, from round 1 on", False)
    early_bird: bool = flag("end a round's training when the mask it would give stops moving", False)


@dataclass(frozen=True, kw_only=True)
class Transfer(Training):
    """What one transfer is told: train m ⊙ θ on a task, once for each seed."""

    seeds: tuple[int, ...] = flag("train once with each (default: --seed)", nargs="+", of=int)
    target_sparsity: float | None = flag("without --ticket: the sparsity of random_mask, random_layerwise or one_shot")
    scope: str | None = flag(
        "one_shot without --ticket: one threshold for all matrices, or one for each (default: global)",
        choices=("global", "layerwise"),
    )
    theta: str | None = flag(
        "θᵢ instead of θ₀ for the encoder, and compared with --ticket instead: a theta.safetensors of lth_scale.imp"
    )
    control: str = flag("take in the ticket's place", "none", choices=("none", *CONTROLS))
    compare_with: str | None = flag("a finished transfer of the same task; prints whether this one matches it")
    connectivity: bool = flag(
        "also train the first two seeds' data orders from one start and join them linearly", False
    )
    keep_network: bool = flag("keep the first seed's network, to export or time it; --push_to_hub does too", False)


# Flags that change what is shown, not what is found: the same search may go on with others.
COSMETIC = (
    *("output_dir", "logging_steps", "report_to", "run_name", "dataloader_num_workers", "seeds", "compare_with"),
    *("save_steps", "save_total_limit", "ddp_timeout", "push_to_hub", "hub_model_id", "hub_private_repo"),
    "keep_network",
)

# What a ticket may name to be loaded; a revision becomes a path in the Hub's cache.
HUB_NAME, REVISION = r"(\w[\w.-]*/)?\w[\w.-]*", r"(\w[\w./-]*)?"
FRACTION = "a fraction, at least 0 and below 1, such as 0.7"


class Range(NamedTuple):
    """The least and the greatest value of a flag, and both in words."""

    least: float
    most: float
    words: str


COUNT = Range(1, 10**9, "1 or more, at most 1,000,000,000")
BATCH = Range(1, 2**16, "1 or more, at most 65,536")
TOKENS = Range(1, 2**20, "1 or more, at most 1,048,576")
RANGES = {
    "target_sparsity": Range(0, math.nextafter(1, 0), FRACTION),
    "prune_rate": Range(math.ulp(0), 1, "a fraction above 0 and at most 1, such as 0.1"),
    "learning_rate": Range(math.ulp(0), 1000, "a number above 0 and at most 1,000, such as 2e-5"),
    "warmup_steps": Range(0, 10**9, "0 or more steps, at most 1,000,000,000, or a fraction below 1"),
    "weight_decay": Range(0, 1000, "0 or more, at most 1,000, such as 0.01"),
    "max_grad_norm": Range(0, 1e12, "0 (off) or more, at most 1e12, such as 1.0"),
    "num_train_epochs": Range(math.ulp(0), 10**6, "a number above 0 and at most 1,000,000, such as 3"),
    "max_steps": Range(-1, 10**9, "-1 (use epochs), 0 (train nothing) or more, at most 1,000,000,000"),
    "seeds": Range(0, 2**32 - 1, "integers from 0 to 4294967295"),
    "seed": Range(0, 2**32 - 1, "an integer from 0 to 4294967295"),
    "max_seq_length": TOKENS._replace(least=8, words="8 or more, at most 1,048,576"),
    "doc_stride": TOKENS,
    "dataloader_num_workers": Range(0, 1024, "0 or more, at most 1,024"),
    "save_steps": Range(0, 10**9, "0 (none) or more, at most 1,000,000,000"),
    "ddp_timeout": Range(1, 10**7, "1 or more, at most 10,000,000"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), BATCH
    ),
    **dict.fromkeys(("max_train_samples", "max_eval_samples", "logging_steps", "save_total_limit"), COUNT),
}
LARGEST_STEP = 2**24  # examples a device and optimizer step: their row numbers are held in memory


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line and no usage text, and the usage says `lth imp` where that was called."""

    def __init__(self, prog: str | None = None, **options: Any):
        called = "lth " if Path(sys.argv[0]).name == "lth" else "python -m lth_scale."
        super().__init__(prog=prog and prog.replace("lth_scale.", called), **options)
        about = "print a library's whole error above the line that sums it up"
        self.add_argument(VERBOSE, action="store_true", default=argparse.SUPPRESS, help=about)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's. Raises BadInput for names of files that are no text, and for an empty value.

        An empty one would stand for the current directory.
        """
        given = [*(sys.argv[1:] if args is None else args)]
        check_names(given)
        for before, part in zip(["", *given], given, strict=False):
            if not part or (part.startswith("--") and part.endswith("=")):
                name = part.rstrip("=") or (before if before.startswith("--") else "argument")
                raise BadInput(f"{name} '': is empty; give a value, or leave it out")
        namespace, rest = super().parse_known_args(args, namespace)
        vars(namespace).pop("verbose", None)  # `is_verbose` reads it: it is no part of what a run is told
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise BadInput; `main` of each command turns it into exit code 2."""
        raise BadInput(f"{message.removeprefix('argument ')} (see --help)")


class Wide(argparse.HelpFormatter):
    """argparse's, with room for long flags; no name is broken at its hyphens."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=32, **options)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def is_verbose() -> bool:
    """True where the command line has --verbose."""
    return VERBOSE in sys.argv[1:]


def reason(problem: BaseException) -> str:
    """What went wrong, in a few words without passwords."""
    cause = without_secrets(str(problem)).rpartition("Caused by ")[2]
    return brief(cause) or type(problem).__name__


def brief(text: str, most: int = LONGEST) -> str:
    """A text on one line: all of it, or as many whole sentences, else whole words, as `most` characters hold.

    Of a word that is longer than that, the beginning and the length are left.
    """
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?](?= [A-Z])", text[: most + 2])]
    if ends:
        return text[: ends[-1]]
    words = " ".join(_beginning(word, most) for word in text.split())
    return textwrap.shorten(words, most, break_on_hyphens=False, placeholder=" …")


def _beginning(word: str, most: int) -> str:
    return word if len(word) <= most else f"{word[: most // 2]}… ({len(word):,} characters)"


def printable(text: str) -> str:
    """A text without what could drive a terminal or reorder a line: names in files are anybody's."""
    return "".join(each if is_printable(each) else "�" for each in text)


def is_printable(character: str) -> bool:
    """True for what is seen, spaces of every width and the end of a line."""
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def check_names(words: Sequence[str]) -> None:
    """Refuse paths that are not UTF-8, also by way of links and of the current directory.

    Tracking, the data's cache and safetensors take text alone. Raises BadInput.
    """
    try:
        places = [("the current directory", os.getcwd())]
    except FileNotFoundError:
        raise BadInput("the current directory: is not there any more; change to another") from None
    places += [(name, os.environ[name]) for name in DIRECTORIES if name in os.environ]
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[i - 1] if i and words[i - 1].startswith("--") else ""
        places.append((name, value) if equals and name.startswith("--") else (before, word))
    for name, value in places:
        if not is_text(value) or not is_text(os.path.realpath(value)):
            raw = os.path.realpath(value) if is_text(value) else value
            shown = raw.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
            raise BadInput(f"{name} {shown}: is not UTF-8, as a path has to be here; give another, or rename it")


def is_text(name: str) -> bool:
    """False for what Python has of a file's name that is not UTF-8."""
    try:
        return bool(name.encode()) or not name
    except UnicodeEncodeError:
        return False


def first_line(problem: BaseException) -> str:
    """The first line that says something, with the next one where it only leads up to that."""
    lines = [line.strip() for line in without_secrets(str(problem)).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    text = " ".join(each for each in sentences if not re.search(ELSEWHERE_SAID, each))
    return brief(text).rstrip(".") or type(problem).__name__


def quoted(path: str | Path) -> str:
    """A path as one word of a shell's command line, which is no flag; for a terminal."""
    text = str(path)
    return printable(shlex.quote(f"./{text}" if text.startswith("-") else text))


def as_words(name: str, value: Any) -> list[str]:
    """A flag as words of a command line: true is a flag without a value, and one that begins with - is joined.

    Nothing for a list of no values.
    """
    values = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    if value is True:
        return [f"--{name}"]
    if not values:
        return []
    return [f"--{name}={values[0]}"] if values[0].startswith("-") and len(values) == 1 else [f"--{name}", *values]


def shortened(text: str) -> str:
    """A text in which no number is longer than a hundred digits."""
    return re.sub(r"\d{101,}", lambda found: f"{found[0][:20]}… ({len(found[0])} digits)", text)


def is_local(name: str) -> bool:
    """True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()


def lasting(name: str, value: Any) -> Any:
    """The value of the flag `name`, absolute where it is a local path."""
    is_path = is_local(str(value)) if name == "model_name_or_path" else name in PATHS
    return os.path.abspath(value) if value not in (None, EMBEDDED) and is_path else value


def is_same(name: str, one: Any, other: Any) -> bool:
    """True for the same value of the flag `name`: paths are the same where they lead to the same place."""
    if name in (*PATHS, "model_name_or_path") and isinstance(one, str) and isinstance(other, str):
        return one == other or (EMBEDDED not in (one, other) and os.path.realpath(one) == os.path.realpath(other))
    return one == other


def embedded_path(kind: str) -> Path:
    """The directory inside the package that holds `bert`, or the demo data of a task."""
    return Path(__file__).parent / "embedded" / kind


def build_parser(prog: str, description: str, kind: type) -> OneLineParser:
    """One flag for each field of `kind`, in GROUPS; a flag that is not given is absent from the namespace."""
    parser = OneLineParser(prog=prog, description=description, allow_abbrev=False, formatter_class=Wide)
    needed = [f"--{spec.name} {spec.name.upper()}" for spec in fields(kind) if spec.default is MISSING]
    parser.usage = " ".join(["%(prog)s", *needed, "[flags]"])
    hints, specs = get_type_hints(kind), {spec.name: spec for spec in fields(kind)}
    for title, names in GROUPS.items() if issubclass(kind, Training) else ():
        group = parser.add_argument_group(title)
        for spec in filter(None, (specs.pop(name, None) for name in names.split())):
            add_flag(group, spec, hints[spec.name])
    for spec in specs.values():
        add_flag(parser, spec, hints[spec.name])
    return parser


def add_flag(to: argparse._ActionsContainer, spec: Field, hint: Any) -> None:
    """Add the flag of a field with this type."""
    of = next(t for t in get_args(hint) if t is not type(None)) if isinstance(hint, UnionType) else hint
    of, choices = spec.metadata.get("of", of), spec.metadata.get("choices") or ()
    listed = len(",".join(choices)) > 24  # too long to stand for the value
    others = [choice for choice in choices if choice != spec.default]
    text = spec.metadata["help"] + (f": {', '.join(others)}" if listed else "") + default_of(spec)
    options: dict[str, Any] = {"action": "store_true"}
    if of is not bool:
        name = spec.name.split("_")[-1].upper() if listed else METAVARS.get(spec.name, METAVARS[of.__name__])
        options = {"type": of, "choices": choices or None, "nargs": spec.metadata.get("nargs")}
        options |= {"metavar": name} if listed or not choices else {}
    required = spec.default is MISSING
    to.add_argument(f"--{spec.name}", required=required, default=argparse.SUPPRESS, help=text, **options)


def default_of(spec: Field) -> str:
    """` (default: …)`: the field's, or the paper's for each task; nothing where that is None or False."""
    values = spec.default if isinstance(spec.default, tuple) else (spec.default,)
    shown = " ".join(f"{value}" for value in values if value not in (None, MISSING) and value is not False)
    if spec.name in GLUE_DEFAULTS:
        usual = GLUE_DEFAULTS[spec.name]
        others = {task: DEFAULTS[task][spec.name] for task in ("squad", "mlm")}
        shown = ", ".join([str(usual), *(f"{task} {value}" for task, value in others.items() if value != usual)])
    return f" (default: {shown})" if shown else ""


def ticket_parser() -> OneLineParser:
    """The flags of `lth_scale.ticket`, which imports torch."""
    parser = OneLineParser(prog="lth_scale.ticket", description="Print or combine tickets.")
    parser.add_argument("path", help="a ticket.safetensors, or the directory of a run or a round")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--overlap", metavar="OTHER", help="print the share of kept weights that OTHER keeps too")
    how.add_argument("--union", metavar="OTHER", help="keep what either keeps; needs --output")
    how.add_argument("--intersect", metavar="OTHER", help="keep what both keep; needs --output")
    parser.add_argument("--output", metavar="FILE", help="where to write the combined ticket")
    parser.add_argument("--allow_other_weights", action="store_true", help="take an OTHER that is of another base")
    return parser


def parse(argv: Sequence[str] | None, prog: str, description: str, kind: type = Arguments) -> Any:
    """A `kind` from a command line: what is given, else the preset's, else the paper's.

    Raises BadInput (a ValueError) that names the flag, its value and the remedy.
    """
    given = vars(build_parser(prog, description, kind).parse_args(argv))
    if not {"bf16", "fp16"} & given.keys():
        given |= launched_precision()
    return resolve(given, kind)


def launched_precision() -> dict[str, bool]:
    """The launcher's precision (`accelerate launch --mixed_precision bf16`) as the flag of the same meaning, or {}."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    return {precision: True} if precision in ("bf16", "fp16") else {}


def resolve(given: dict[str, Any], kind: type = Arguments) -> Any:
    """Fill in what was not given and check the whole. Raises BadInput."""
    task, known = given["task"], {spec.name for spec in fields(kind if kind is Arguments else Training)}
    if given.get("preset") == "demo" and task not in DEMO and "dataset_path" not in given:
        raise BadInput(f"--preset demo: has no data for --task {task}; take --task {' or '.join(DEMO)}")
    preset = {None: {}, "demo": DEMO.get(task, DEMO["sst2"]), "quick": QUICK}[given.get("preset")]
    values = DEFAULTS[task] | {name: value for name, value in preset.items() if name in known}
    if "num_train_epochs" in given:
        values["max_steps"] = -1
    if given.get("ticket"):
        values |= origin_of(given)
    values |= {"ignore": ignored_by(given.get("ticket")), **given}
    values["ignore"] = tuple(values["ignore"])
    if Path(values.get("ticket") or "").is_dir() and values.get("ticket"):
        values["ticket"] = os.path.join(values["ticket"], "ticket.safetensors")
    finish: Callable[[dict[str, Any]], None] = fill_in_search if kind is Arguments else fill_in_transfer
    finish(values)
    args = kind(**values)
    check(args)
    return args


def origin_of(given: dict[str, Any]) -> dict[str, Any]:
    """The base model that a ticket was found in, as the flags that load it; {} where the file cannot tell."""
    metadata = header_of(given["ticket"])
    base, revision = metadata.get("base_model", ""), metadata.get("base_revision", "")
    if not base or "model_name_or_path" in given:
        return {}
    # A name without a user or a revision is what a push leaves of a local directory.
    on_hub = re.fullmatch(HUB_NAME, base, re.ASCII) and (base == EMBEDDED or "/" in base or revision)
    is_model = on_hub or os.path.isfile(os.path.join(base, "config.json"))
    if not is_model or not re.fullmatch(REVISION, revision, re.ASCII) or ".." in revision:
        name = f"{base}@{revision}" if revision else base
        raise BadInput(
            f"--ticket {given['ticket']}: its base model {brief(name)!r} is neither a name on the Hub "
            "nor a directory here; give --model_name_or_path, and --model_revision where it needs one"
        )
    return {"model_name_or_path": base, **({"model_revision": revision} if revision else {})}


def ignored_by(ticket: str | None) -> list[str]:
    """--ignore of the search that found a ticket; [] where there is none, or the file cannot tell."""
    try:
        found = [*map(str, json.loads(header_of(ticket)["arguments"])["ignore"] or ())] if ticket else []
        check_regexes(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # a damaged ticket is refused when it is read
    return found


def header_of(ticket: str) -> dict[str, str]:
    """The metadata of a ticket's file, or {} where it has none: it is refused when it is read."""
    from safetensors import SafetensorError, safe_open

    try:
        path = Path(ticket)
        path = path / "ticket.safetensors" if path.is_dir() else path
        files.check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def fill_in_search(values: dict[str, Any]) -> None:
    """Defaults that follow from other flags of a search."""
    values.setdefault("output_dir", os.path.join("runs", f"{values['task']}-{_stem(values)}"))
    values.setdefault("lr_span", "all_rounds" if values.get("rewind") == "none" else "round")
    kind, kept, of = parse_pattern(values.get("pattern", "unstructured"))
    values.setdefault("target_sparsity", 1 - kept / of if kind == "n:m" else 0.9)


def fill_in_transfer(values: dict[str, Any]) -> None:
    """Defaults that follow from other flags of a transfer."""
    values["seeds"] = tuple(dict.fromkeys(values.get("seeds") or (values.get("seed", 42),)))
    values["seed"] = values["seeds"][0]
    source, control = source_name(values.get("ticket")), values.get("control", "none")
    what = source if control == "none" else f"{source}-{control}"
    values.setdefault("output_dir", os.path.join("runs", f"transfer-{values['task']}-{_stem(values)}-{what}"))


def source_name(ticket: str | None) -> str:
    """A short name for where a ticket comes from: `dense`, the run's directory, or that and the round."""
    rooms = Path(ticket or "").resolve().parent.parts
    return "dense" if not ticket else "-".join(rooms[-3::2] if "rounds" in rooms[-2:] else rooms[-1:])


def _stem(values: dict[str, Any]) -> str:
    stem = "demo" if values["model_name_or_path"] == EMBEDDED else Path(values["model_name_or_path"]).name
    return f"{stem}-quick" if values.get("preset") == "quick" else stem


def check(args: Training) -> None:
    """Refuse values out of range and flags that contradict each other. Raises BadInput."""
    check_ranges(args, RANGES)
    examples = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if examples > LARGEST_STEP:
        raise BadInput(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: makes {examples:,} "
            f"examples a step with --per_device_train_batch_size {args.per_device_train_batch_size}; "
            f"give fewer, at most {LARGEST_STEP:,} in all"
        )
    if args.bf16 and args.fp16:
        raise BadInput("--bf16 --fp16: both are set; keep one")
    check_regexes(args.ignore or ())
    options = parse_optim_args(args.optim_args, args.optim)
    if options.get("nesterov") and (not options.get("momentum") or options.get("dampening")):
        raise BadInput(
            f"--optim_args {args.optim_args}: nesterov needs a momentum and no dampening; change one of them"
        )
    if args.fresh_head and args.task != "mlm":
        raise BadInput(f"--fresh_head: is of --task mlm; the head of --task {args.task} is fresh anyway: leave it out")
    if args.keep_head and args.task == "mlm":
        raise BadInput("--keep_head: --task mlm trains the checkpoint's own head anyway; leave it out")
    if isinstance(args, Arguments):
        check_search(args)
    if isinstance(args, Transfer):
        check_transfer(args)
    check_paths(args)


def check_regexes(ignore: Sequence[str]) -> None:
    """Refuse what is no regular expression. Raises BadInput."""
    for regex in ignore:
        try:
            re.compile(regex)
        except (re.error, OverflowError, RecursionError) as problem:
            raise BadInput(
                f"--ignore {regex}: is no regular expression of Python ({problem}); give one such as 'pooler'"
            ) from None


def check_ranges(args: Any, ranges: Mapping[str, Range]) -> None:
    """Refuse values out of their range: fields hold a number, some, or None. Raises BadInput."""
    for name, (least, most, words) in ranges.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not least <= value <= most:
                raise BadInput(f"--{name} {value}: out of range; give {words}")


def check_rounds(args: Arguments, start: float = 0.0) -> None:
    """Refuse a search of too many rounds, from a ticket of sparsity `start`. Raises BadInput."""
    rounds = schedule.count(args.schedule, args.target_sparsity, args.prune_rate, start)
    if rounds > schedule.MOST_ROUNDS:
        counted = f"{rounds:,.0f}" if rounds < 1e15 else "more than 1e15"
        raise BadInput(
            f"--prune_rate {args.prune_rate}: makes {counted} rounds up to --target_sparsity "
            f"{args.target_sparsity}, and a search has {schedule.MOST_ROUNDS:,} at most; "
            "give a larger rate, such as 0.1"
        )


def check_search(args: Arguments) -> None:
    """Refuse flags of a search that contradict each other. Raises BadInput."""
    if not args.ticket:  # else `check_rounds` is called once its sparsity is known
        check_rounds(args)
    parse_rewind_step(args.rewind_step, steps=None)
    for point in points(args.keep_theta):
        parse_rewind_step(point, steps=None, name="keep_theta")
    if args.rewind != "weights" and parse_rewind_step(args.rewind_step, steps=None) != 0:
        raise BadInput(f"--rewind_step {args.rewind_step}: has no meaning with --rewind {args.rewind}; leave one out")
    if args.rewind == "lr" and args.lr_span == "all_rounds":
        raise BadInput("--lr_span all_rounds: contradicts --rewind lr, which restarts it each round; leave one out")
    if args.dense and args.score == "movement":
        raise BadInput("--dense: keeps no movement of round 0; leave it out, or take --score magnitude")
    for flag_name, what in (("dense", "round 0"), ("early_bird", "each round")):
        if getattr(args, flag_name) and args.lr_span == "all_rounds":
            raise BadInput(f"--{flag_name}: needs {what} to be trained by itself; give --lr_span round")
    if args.score == "movement" and (args.max_steps == 0 or args.fp16):
        raise BadInput(
            "--score movement: sums gradients over training; give --max_steps above 0, and --bf16 for --fp16"
        )
    kind, kept, of = parse_pattern(args.pattern)
    if kind == "n:m" and args.target_sparsity < 1 - kept / of:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --pattern {args.pattern} is reached at {1 - kept / of:g}; "
            "give that or more"
        )


def check_transfer(args: Transfer) -> None:
    """Refuse flags of a transfer that contradict each other. Raises BadInput."""
    without = ("random_mask", "random_layerwise", "one_shot")
    if args.target_sparsity is not None and args.ticket:
        raise BadInput(f"--target_sparsity {args.target_sparsity}: the ticket has its own; leave one out")
    if args.target_sparsity is not None and args.control not in without:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --control {args.control} makes no mask; give --ticket, "
            f"or --control {', '.join(without)}"
        )
    if args.control in without and args.target_sparsity is None and not args.ticket:
        raise BadInput(f"--control {args.control}: how many weights to prune is not said; give --ticket FILE or "
                       "--target_sparsity")  # fmt: skip
    if args.scope and not (args.control == "one_shot" and args.target_sparsity):
        raise BadInput(f"--scope {args.scope}: is of --control one_shot with --target_sparsity; leave it out")
    if args.connectivity and len(args.seeds) < 2:
        raise BadInput(f"--connectivity: joins two seeds, and there is one ({args.seeds[0]}); give --seeds 1 2")


def points(text: str | None) -> list[str]:
    """The rewind points of --keep_theta."""
    return [point.strip() for point in (text or "").split(",") if point.strip()]


def parse_pattern(text: str) -> tuple[str, int, int]:
    """('unstructured', 1, 1), ('n:m', N, M) or ('block', rows, columns). Raises BadInput."""
    for kind, form in (("n:m", r"(\d{1,9}):(\d{1,9})"), ("block", r"block:(\d{1,9})x(\d{1,9})")):
        found = re.fullmatch(form, text)
        first, second = map(int, found.groups()) if found else (0, 0)
        if found and (0 < first < second <= 64 if kind == "n:m" else min(first, second) > 0):
            return kind, first, second
    if text != "unstructured":
        raise BadInput(
            f"--pattern {text}: is neither unstructured, nor N:M such as 2:4, nor block:RxC such as block:4x1"
        )
    return "unstructured", 1, 1


def check_paths(args: Training) -> None:
    """Refuse local paths that do not hold what they should. Raises BadInput."""
    for name in ("output_dir", "dataset_path", "model_name_or_path"):
        if getattr(args, name) == "":
            raise BadInput(f"--{name} '': is empty; give a value, or leave it out")
    if args.dataset_path not in (None, EMBEDDED) and not Path(str(args.dataset_path)).is_dir():
        raise BadInput(f"--dataset_path {args.dataset_path}: no such directory; it holds train.jsonl and so on")
    if args.dataset_path == EMBEDDED and args.task not in DEMO:
        raise BadInput(f"--dataset_path embedded: has no data for --task {args.task}; take {' or '.join(DEMO)}")
    for name, remedy in (("ticket", "a ticket.safetensors"), ("theta", "a theta.safetensors")):
        value = getattr(args, name, None)
        try:
            if value is not None:
                files.check_regular(Path(str(value)))
        except OSError as problem:
            absent = problem.errno in (errno.ENOENT, errno.ENOTDIR) or Path(str(value)).is_dir()
            why = "no such file" if absent else problem.strerror
            raise BadInput(f"--{name} {value}: {why}; give {remedy}") from None
    for name in ("dense", "compare_with"):
        value = getattr(args, name, None)
        if value is None:
            continue
        if not (Path(value) / "complete").is_file():
            raise BadInput(f"--{name} {value}: no finished run lies there; give the --output_dir of one")
        try:
            files.check_whole(Path(value))
        except ValueError as problem:
            raise BadInput(f"--{name} {value}: {problem}; put back a copy of it, or give another run") from None
    check_model(args.model_name_or_path)


def check_model(model: str) -> None:
    """Refuse a directory that holds no model, or a pipe in the place of a file. Raises BadInput."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()
    if model != EMBEDDED and looks_local and not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"--model_name_or_path {model}: no model there (config.json is missing); "
            "give a directory saved by save_pretrained, a Hub name, or --preset demo"
        )
    try:
        if model != EMBEDDED and looks_local:
            files.check_model(Path(model))
    except OSError as problem:
        raise BadInput(f"--model_name_or_path {problem.filename}: {problem.strerror}; put a file there") from None


def parse_rewind_step(text: str, steps: int | None, name: str = "rewind_step") -> int | float:
    """The rewind point in steps; a fraction stays a fraction while `steps` a round is None.

    Raises BadInput for what is neither a whole number of steps nor a fraction below 1, and for
    a point at or past the end of a round.
    """
    try:
        value: int | float = int(text) if text.isdigit() else float(text)
    except ValueError:
        value = -1
    if not (isinstance(value, int) or 0 <= value < 1) or value < 0:
        raise BadInput(f"--{name} {text}: give a whole number of steps (100) or a fraction below 1 (0.05)")
    if steps is None:
        return value
    point = round(value * steps) if isinstance(value, float) else value
    if point and point >= steps:
        raise BadInput(f"--{name} {text}: a round has {steps} steps; give a smaller number or a fraction")
    return point


def parse_optim_args(text: str | None, optim: str) -> dict[str, Any]:
    """`'momentum=0.9,nesterov=true'` as keyword arguments of the optimizer. Raises BadInput."""
    pairs: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        try:
            if name in pairs:
                raise ValueError("is given twice; keep one")
            pairs[name] = _optim_arg(name, value, optim)
        except ValueError as problem:
            raise BadInput(f"--optim_args {text}: {part!r} {problem}") from None
    return pairs


def _optim_arg(name: str, value: str, optim: str) -> float | bool:
    if not value:
        raise ValueError("is not NAME=NUMBER or NAME=true; see the optimizer")
    if name in ELSEWHERE:
        raise ValueError(f"is decided by {ELSEWHERE[name]}; give that")
    if name not in OPTIM_ARGS[optim]:
        known = ", ".join(OPTIM_ARGS[optim])
        raise ValueError(f"is nothing that --optim {optim} can be given here; give {known}")
    least, most = OPTIM_ARGS[optim][name]
    if least == "true":
        if value.lower() not in (least, most):
            raise ValueError(f"is not {name}=true or {name}=false; give one of them")
        return value.lower() == "true"
    with suppress(ValueError):
        if least <= float(value) <= most:
            return float(value)
    raise ValueError(f"is not {name}=NUMBER; give one from {least:g} to {most:g}")


@contextmanager
def first_imports() -> Iterator[None]:
    """Where torch is still to come, what is imported inside is never searched for garbage.

    Python would go through it all again and again: a sixth of the time of a short command (benchmarks/start.py).
    Caches that cannot be written are replaced before it. Raises BadInput where nothing can be written.
    """
    try:
        caches.settle(*caches.DATA)
    except OSError as problem:
        raise BadInput(f"TMPDIR: {problem.strerror}; set it to a directory that can be written") from problem
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def exit_on_bad_input(command: Callable[[], None]) -> NoReturn:
    """Run a command; BadInput becomes one `error: …` line a node and exit code 2, Stopped the same and 1.

    It is the last line on stderr. With --verbose the traceback stands above it, with the errors that led to it.
    What it writes can be written by its user alone: the umask is 022 or stricter. Nothing that it says, a traceback
    or a library's log included, holds a password or token.
    """
    redact_logs()
    os.umask(os.umask(0o022) | 0o022)
    code, said, alone = 0, "", os.environ.get("WORLD_SIZE", "1") == "1"
    caught: Exception | None = None
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, said = 1, f"interrupted; {AGAIN}"
    except Exception as problem:
        caught, verdict = problem, (128 + signal.SIGPIPE, "") if is_left(problem) else judge(problem)
        if verdict is None:
            print(_whole(problem), end="", file=sys.stderr, flush=True)
        code, said = verdict or (1, "")
    if said:
        tell(said, caught)
    if alone:
        sys.exit(code)
    # The threads of gloo and of the store are not to be met by an interpreter that is taking itself apart.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def tell(said: str, problem: Exception | None) -> None:
    """Print the line that says what went wrong; with --verbose, above it, the traceback of what it sums up."""
    is_ours = problem is None or isinstance(problem, BadInput | Stopped)
    more = problem and (not is_ours or sums_up(problem))
    if problem and more and is_verbose():
        print(_whole(problem), end="", file=sys.stderr)
    elif more and is_ours:
        said += f"; add {VERBOSE} for the whole error"
    line = shortened(printable(" ".join(without_secrets(said).split())))
    print("error:", line, file=sys.stderr, flush=True)


def _whole(problem: Exception) -> str:
    text = "".join(traceback.format_exception(problem))
    return printable(without_secrets(text).expandtabs())


def sums_up(problem: BaseException) -> bool:
    """True where an error of ours was raised from a library's, which says more."""
    cause = problem.__cause__
    while isinstance(cause, BadInput | Stopped):
        cause = cause.__cause__
    if type(cause) is not ValueError:
        return cause is not None
    raised = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(cause.__traceback__)][-1:]
    return not any(Path(name).is_relative_to(Path(__file__).parent) for name in raised)


def is_left(problem: Exception) -> bool:
    """True where stdout is a pipe that nobody reads any more, as under `| head`; what waits for it is dropped."""
    if not isinstance(problem, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always told
    left = bool(poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def judge(problem: Exception) -> tuple[int, str] | None:
    """The exit code for an error, and what this rank is to say of it; None for one that nobody has foreseen."""
    number = getattr(problem, "errno", None)
    if number in UNUSABLE:
        problem = BadInput(f"{getattr(problem, 'filename', '')}: {UNUSABLE[number]}; give another path")
    if isinstance(problem, RuntimeError) and "Symlink loop from" in str(problem):  # Path.resolve's of Python 3.11
        problem = BadInput(f"{str(problem).partition('from ')[2]}: {UNUSABLE[errno.ELOOP]}; give another path")
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(words in str(problem) for words in FULL)
    if full and not isinstance(problem, Stopped):
        problem = Stopped(f"{problem}; what was written before stands: free some room, then {AGAIN}")
    watch = sys.modules.get("lth_scale.watch")
    watched = bool(watch and watch.WATCHES)
    of_others = watch.explain(problem) if watch else None
    if of_others is not None:
        return 1, of_others
    if not isinstance(problem, BadInput | Stopped):
        return None
    code, first = 2 if isinstance(problem, BadInput) else 1, os.environ.get("LOCAL_RANK", "0") == "0"
    if not (first or watched):  # the first rank of the node speaks, and a launcher ends the others with it
        time.sleep(SILENCE)
    return code, str(problem) if first or not watched else ""
