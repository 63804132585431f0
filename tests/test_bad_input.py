"""Bad input of every command ends in one line with flag or file, value and remedy, and exit code 2.

Nothing is overwritten. The messages are the table of docs/bad_input.md; running this whole file
with UPDATE_DOCS=1 rewrites it.
"""

import gzip
import importlib
import json
import lzma
import math
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from conftest import sentence, write_jsonl
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from lth_scale import Ticket
from lth_scale.config import directories
from lth_scale.config.arguments import Transfer
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.resolution import parse
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.export import export

DOCS = Path(__file__).parent.parent / "docs/bad_input.md"
BEGIN, END = "<!-- bad input: begin -->\n", "<!-- bad input: end -->\n"
SAID: dict[str, str] = {}  # the rows of the table, by case
Lay = Callable[[Path, Path], object]  # (directory of the test, that of `made`): writes files


@dataclass(frozen=True)
class Case:
    """One bad input, given as flags or described in words, and what its message must name.

    argv: the flags where `given` is in words; … is the directory of the test. imp and transfer
    get the flags of `small` before them, except those in `without`. The message must always name
    the first flag and its value.
    """

    command: str
    given: str
    named: tuple[str, ...]
    argv: str = ""
    lay: Lay = lambda here, made: None
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.command}: {self.given}"


LONG = "1234567890" * 40  # no more than its beginning is said


def case(command: str, given: str, *named: str, **more) -> Case:
    """Create a Case. If `given` is flags, its message must name the first one and its value."""
    if given.startswith("--") and not {"argv", "lay"} & more.keys():
        first, *rest = given.split()
        value = rest[:1] if rest and not rest[0].startswith("--") else ()
        named, more = (first, *value, *named), {**more, "argv": given}
        named = [word.replace(LONG, LONG[:20]) for word in named]
    return Case(command, given, tuple(named), **more)


FLAGS = [
    case("imp", "--task sst3", "sst2"),
    case("imp", "no --task", "--task", without=("task",)),
    case("imp", "--fresh_head", "--task mlm", "omit the flag"),
    case("imp", "--keep_head --task mlm", "--task mlm", "omit the flag"),
    case("transfer", "--fresh_head", "--task mlm", "omit the flag"),
    *(
        case("imp", *words)
        for words in (
            ("--target_sparsity 1.2", "0.7"),
            ("--target_sparsity -0.1", "0.7"),
            ("--target_sparsity nan", "0.7"),
            ("--prune_rate 0", "0.1"),
            ("--prune_rate 1.5", "0.1"),
            *(
                (f"--prune_rate 1e-09 --schedule {schedule}", "rounds", "1,000", "0.1")
                for schedule in ("linear", "geometric", "cubic")
            ),
            ("--prune_rate 5e-324", "more than 1e15 rounds", "1,000"),
            *(
                (f"--{name} {LONG}", "(400 digits)", words)
                for name, words in (
                    ("max_steps", "at most 1,000,000,000"),
                    ("seed", "4294967295"),
                    ("max_seq_length", "at most 1,048,576"),
                    ("per_device_train_batch_size", "at most 65,536"),
                    ("ddp_timeout", "at most 10,000,000"),
                    ("save_steps", "at most 1,000,000,000"),
                    ("dataloader_num_workers", "at most 1,024"),
                    ("max_train_samples", "at most 1,000,000,000"),
                    ("rewind_step", "4 steps"),
                    ("pattern", "2:4"),
                )
            ),
            (f"--pattern 2:{LONG}", "2:4"),
            ("--num_train_epochs 1e+308", "at most 1,000,000"),
            ("--learning_rate 1e+300", "at most 1,000"),
            (
                "--gradient_accumulation_steps 65536 --per_device_train_batch_size 65536",
                "at most 16,777,216",
            ),
            ("--rewind_step ²", "0.05"),
            ("--learning_rate fast",),
            ("--learning_rate 0", "2e-5"),
            ("--learning_rate inf", "2e-5"),
            ("--max_steps -2", "-1"),
            ("--max_steps 1.5",),
            ("--num_train_epochs 0",),
            ("--per_device_train_batch_size 0", "1 or more"),
            ("--gradient_accumulation_steps 0", "1 or more"),
            ("--max_train_samples 0", "1 or more"),
            ("--max_eval_samples -1", "1 or more"),
            ("--doc_stride 0", "1 or more"),
            ("--save_total_limit 0", "1 or more"),
            ("--ddp_timeout 0", "1 or more"),
            ("--max_seq_length 3", "8 or more"),
            ("--seed -1",),
            ("--weight_decay -0.1",),
            ("--warmup_steps -5",),
            ("--max_grad_norm -1",),
            ("--bf16 --fp16", "use one"),
            ("--fp16", "GPU", "--bf16"),
            ("--optim lion", "sgd"),
            ("--optim adamw_bnb_8bit", "CUDA GPU", "adamw_torch"),
            ("--optim_args momentum", "NAME=NUMBER"),
            ("--optim_args speed=3", "adamw_torch", "eps, amsgrad"),
            ("--optim_args lr=0.1", "--learning_rate"),
            ("--optim_args weight_decay=0.1", "--weight_decay"),
            ("--optim_args fused=true", "adamw_torch_fused"),
            *(
                (f"--optim_args {words}", "eps, amsgrad")
                for words in (
                    "maximize=true",
                    "differentiable=true",
                    "foreach=false",
                    "betas=0.9",
                    "params=1",
                    "=3",
                )
            ),
            *(
                (f"--optim_args {words}", "from 1e-30 to 1")
                for words in ("eps=nan", "eps=0", "eps=-1", "eps=true")
            ),
            ("--optim_args eps=1e-6,eps=1e-5", "twice"),
            ("--optim_args amsgrad=2", "amsgrad=true"),
            ("--optim_args momentum=1e400 --optim sgd", "from 0 to 1"),
            ("--optim_args nesterov=true --optim sgd", "momentum"),
            ("--schedule sudden", "linear"),
            ("--scope local", "layerwise"),
            ("--rewind all", "none"),
            ("--rewind_step half", "0.05"),
            ("--rewind_step -3", "0.05"),
            ("--rewind_step 4", "4 steps"),
            ("--rewind_step 1.0", "0.05"),
            ("--rewind_step 2 --rewind none", "--rewind none"),
            ("--lr_span all_rounds --rewind lr", "--rewind lr"),
            ("--lr_scheduler_type sawtooth", "linear"),
            ("--control placebo", "random_mask"),
            ("--report_to paper", "mlflow"),
            ("--preset huge", "demo"),
            ("--dataset_path embedded --task rte", "rte", "sst2"),
            ("--learning_rat 1", "--help"),
            ("--save_steps -1", "0 (none)"),
            ("--dataset_path /no/such/place", "train.jsonl"),
            ("--model_name_or_path /no/such/model", "config.json"),
            ("--model_name_or_path ./no/model", "save_pretrained"),
            ("--ticket /no/ticket", "no such file", "ticket.safetensors"),
            ("--pattern 4:2", "2:4", "block:4x1"),
            ("--pattern block:0x4", "block:4x1"),
            ("--pattern block:3x5", "encoder.layer.0", "divide"),
            ("--target_sparsity 0.3 --pattern 2:4", "2:4", "0.5"),
            ("--ignore ( pooler", "regular expression", "'pooler'"),
            ("--ignore a{9,1}", "regular expression"),
            ("--ignore *x", "regular expression"),
            ("--ignore querry pooler", "matches no weight"),
            ("--ignore querry", "matches no weight of BertModel"),
            ("--ignore encoder", "no matrix"),
            ("--score taylor", "accumulated_taylor"),
            ("--score movement", "use accumulated_taylor", "not movement pruning"),
            ("--score accumulated_taylor --max_steps 0", "--max_steps"),
            ("--early_bird --rewind none", "--lr_span round"),
            ("--dense /no/run", "--output_dir"),
            ("--keep_theta late", "0.05"),
            ("--output_dir /proc/nothing/here", "another"),
            ("--output_dir /dev/null/x", "another"),
        )
    ),
    *(
        case("imp", f"--{name} of 300 letters", "too long", "shorter", argv=f"--{name} {'n' * 300}")
        for name in ("ticket", "output_dir", "model_name_or_path", "dataset_path")
    ),
    case(
        "imp",
        "--model_name_or_path with a password",
        "https://h/m",
        "Hub name",
        argv="--model_name_or_path https://u:p@h/m",
    ),
    case("imp", "--preset demo --task cola", "cola", "sst2", without=("dataset_path",)),
    *(
        case("transfer", *words, without=("target_sparsity",))
        for words in (
            ("--seeds -1",),
            ("--control random_mask", "--ticket", "--target_sparsity"),
            ("--control dense_long", "--ticket"),
            ("--control dense_restarts", "--ticket"),
            ("--target_sparsity 0.5", "--ticket", "one_shot"),
            ("--target_sparsity 1.5 --control one_shot", "0.7"),
            ("--scope layerwise", "one_shot"),
            ("--scope each --control one_shot --target_sparsity 0.5", "layerwise"),
            ("--ignore [", "regular expression"),
            ("--ignore querry", "no weight"),
            ("--connectivity", "--seeds 1 2"),
            ("--theta /no/theta", "theta.safetensors"),
            ("--rewind lr", "--help"),
            ("--compare_with /no/run", "--output_dir"),
        )
    ),
    *(
        case("report", *words)
        for words in (
            ("--delta -1 .", "0 or more"),
            ("--delta nan .", "0 or more"),
            ("--delta much .",),
            ("--report_to paper .", "mlflow"),
            ("no directory", "DIRECTORY"),
        )
    ),
    *(
        case("ticket", *words)
        for words in (
            ("no path", "TICKET"),
            ("--output new.safetensors .", "--union"),
            ("--union a --intersect b .", "not allowed"),
        )
    ),
    case("ticket", "--union … without --output", "--output", "--union", argv="… --union …"),
]


def put(name: str, content: str | bytes) -> Lay:
    """Lay one file."""

    def lay(here: Path, made: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return lay


def damage(copy: str, file: str, content: bytes | int | None, unfinished: bool = True) -> Lay:
    """Copy a finished run to …/out with one file replaced, truncated or (None) deleted."""

    def lay(here: Path, made: Path) -> None:
        shutil.copytree(made / copy, here / "out")
        path = here / "out" / file
        whole = path.read_bytes() if path.is_file() else b""
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(whole[:content] if isinstance(content, int) else content)
        if unfinished:
            (here / "out/complete").unlink()
            shutil.rmtree(here / "out/rounds/03", ignore_errors=True)

    return lay


def begun_with(copy: str, change: Callable[[dict], object]) -> Lay:
    """Copy an unfinished run to …/out with other facts recorded when it was started."""

    def lay(here: Path, made: Path) -> None:
        damage(copy, "x", None)(here, made)
        path = here / "out/arguments.json"
        change(written := json.loads(path.read_text()))
        path.write_text(json.dumps(written))

    return lay


def forged(tensors=None, shape=None, **metadata: str | None) -> Lay:
    """Write a ticket without a checksum, with these metadata strings and tensors."""

    def lay(here: Path, made: Path) -> None:
        with safe_open(made / "search/ticket.safetensors", "numpy") as file:
            strings, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        strings = {**strings, "content_sha256": None, **metadata}
        if shape:
            strings["shapes"] = json.dumps({**json.loads(strings["shapes"]), FIRST: shape})
        strings = {name: text for name, text in strings.items() if text is not None}
        save_arrays({**arrays, **(tensors or {})}, here / "t.safetensors", metadata=strings)

    return lay


def both(*lays: Lay) -> Lay:
    return lambda here, made: [lay(here, made) for lay in lays]


NOTHING = both()


def behind_a_link(path: Path) -> None:
    """Move a directory of a run elsewhere, and lead there."""
    elsewhere = path.with_name(f"{path.name}.elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_pipe(name: str) -> Lay:
    """Lay a FIFO in the place of a file."""

    def lay(here: Path, made: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).unlink(missing_ok=True)
        os.mkfifo(here / name)

    return lay


def link(name: str, to: str) -> Lay:
    """Lay a symbolic link."""

    def lay(here: Path, made: Path) -> None:
        (here / name).unlink(missing_ok=True)
        (here / name).symlink_to(to)

    return lay


def jsonl(values: list[Any]) -> str:
    """One JSON value a line."""
    return "".join(f"{json.dumps(value)}\n" for value in values)


def rows(split: str, content: str | bytes) -> Lay:
    """Lay data of nine good rows a split, but for one."""

    def lay(here: Path, made: Path) -> None:
        for name in ("train", "validation"):
            good = [{"sentence": sentence(i), "label": i % 2} for i in range(9)]
            write_jsonl(here / "data" / f"{name}.jsonl", good)
        put(f"data/{split}.jsonl", content)(here, made)

    return lay


def only_an_archive(here: Path, made: Path) -> None:
    rows("train", "")(here, made)
    (here / "data/train.jsonl").unlink()
    (here / "data/train.jsonl.xz").write_bytes(lzma.compress(json.dumps(ROW).encode() * 99)[:40])


ROW = {"sentence": "good", "label": 1}
DATA = [
    *(
        case(
            "imp",
            f"{split}.jsonl: {what}",
            f"--dataset_path …/data/{split}.jsonl",
            *named,
            lay=rows(split, content),
            argv="--dataset_path …/data",
        )
        for split in ("train", "validation")
        for what, content, *named in (
            ("empty", "", "no rows"),
            ("blank lines alone", "\n\n", "no rows"),
            ("invalid JSON", "{not json}\n", "line 1", "invalid JSON"),
            (
                "a line is cut",
                json.dumps(ROW) + "\n" + json.dumps(ROW)[:-3],
                "line 2",
                "invalid JSON",
            ),
            ("a list", "[1, 2]\n", "line 1", "not a JSON object"),
            ("deep JSON", "[" * 10**5, "line 1", "invalid JSON"),
            ("another column", '{"text": "x", "label": 1}\n', "line 1", "'sentence' is missing"),
            ("no label", '{"sentence": "x"}\n', "'label' is missing"),
            ("a number as text", '{"sentence": 3, "label": 1}\n', "'sentence' is 3"),
            (
                "a word as label",
                '{"sentence": "x", "label": "pos"}\n',
                "'label' is \"pos\"",
                "an integer",
            ),
            ("a truth value as label", '{"sentence": "x", "label": true}\n', "'label' is true"),
            ("a number as text as label", '{"sentence": "x", "label": "1"}\n', "'label' is \"1\""),
            ("a float as label", '{"sentence": "x", "label": 1.0}\n', "'label' is 1.0"),
            ("NaN as label", '{"sentence": "x", "label": NaN}\n', "'label' is NaN"),
            ("null as label", '{"sentence": "x", "label": null}\n', "'label' is null"),
            ("null as text", '{"sentence": null, "label": 1}\n', "'sentence' is null", "a string"),
            (
                "a key twice",
                '{"sentence": "x", "label": 1, "label": 0}\n',
                "line 1",
                "duplicate key 'label'",
            ),
            (
                "an object over many lines",
                json.dumps(ROW, indent=1),
                "line 1",
                "one complete object on each line",
            ),
            (
                "rows inside an object",
                json.dumps({"data": [ROW]}),
                "line 1",
                "rows are nested in 'data'",
            ),
            (
                "a bad row of an array",
                json.dumps([ROW, {**ROW, "label": 7}], indent=1),
                "line 6",
                "label 7",
            ),
            ("UTF-16", json.dumps(ROW).encode("utf-16"), "UTF-16", "convert the file"),
            ("NUL bytes", json.dumps(ROW).encode() + b"\n" + bytes(9), "line 2", "NUL bytes"),
            ("gzip", gzip.compress(json.dumps(ROW).encode()), "gzip", "convert the file"),
            ("label −1", '{"sentence": "x", "label": -1}\n', "label -1", "0 … 1"),
            ("label 2", '{"sentence": "x", "label": 2}\n', "label 2", "0 … 1"),
            ("not UTF-8", b'{"sentence": "\xff\xfe", "label": 1}\n', "not UTF-8"),
        )
    ),
    *(
        case(
            "imp",
            f"train.jsonl: {what}",
            "--dataset_path …/data/train.jsonl: ",
            *named,
            argv="--dataset_path …/data",
            lay=both(rows("validation", json.dumps(ROW)), lay),
        )
        for what, lay, *named in (
            ("a pipe", as_pipe("data/train.jsonl"), "is not a regular file"),
            ("a device", link("data/train.jsonl", "/dev/zero"), "is not a regular file"),
            ("a link to nothing", link("data/train.jsonl", "gone"), "No such file"),
            ("a link to itself", link("data/train.jsonl", "train.jsonl"), "Too many levels"),
        )
    ),
    *(
        case(
            "imp",
            f"a score that is {number}",
            "train.jsonl",
            "line 1",
            "out of range 0.0 … 5.0",
            argv="--task stsb --dataset_path …/data",
            lay=both(
                *(
                    put(
                        f"data/{split}.jsonl",
                        f'{{"sentence1": "a", "sentence2": "b", "label": {number}}}',
                    )
                    for split in ("train", "validation")
                )
            ),
        )
        for number in ("NaN", "1e400", "-1", "5.1")
    ),
    *(
        case(
            "imp",
            f"a question with {what}",
            "…/data/train.jsonl",
            "line 1",
            named,
            lay=both(
                *(
                    put(
                        f"data/{split}.jsonl",
                        json.dumps({"context": "the cat", "question": "who?", "answers": answers}),
                    )
                    for split in ("train", "validation")
                )
            ),
            argv="--task squad --dataset_path …/data",
        )
        for what, named, answers in (
            ("no answer", "SQuAD v1.1 has at least one", {"text": [], "answer_start": []}),
            ("its answer elsewhere", "not at character 3", {"text": ["cat"], "answer_start": [3]}),
            ("null as answers", "'answers' is null", None),
        )
    ),
    case(
        "imp",
        "train.json instead of train.jsonl",
        "--dataset_path …/data",
        "train.jsonl is missing",
        "(found train.json)",
        argv="--dataset_path …/data",
        lay=put("data/train.json", json.dumps([ROW])),
    ),
    case(
        "imp",
        "no validation.jsonl",
        "--dataset_path …/data",
        "validation.jsonl is missing",
        argv="--dataset_path …/data",
        lay=put("data/train.jsonl", json.dumps(ROW)),
    ),
    case(
        "imp",
        "a cut .xz",
        "--dataset_path …/data/train.jsonl.xz",
        "cannot be read",
        argv="--dataset_path …/data",
        lay=only_an_archive,
    ),
    case(
        "imp",
        "text for less than one block",
        "--max_seq_length 32",
        "add text",
        argv="--task mlm --dataset_path …/data",
        lay=both(
            put("data/train.jsonl", '{"text": "short"}'),
            put("data/validation.jsonl", '{"text": "short"}'),
        ),
    ),
]


def own(task: str, what: str, content: list[Any] | str, *named: str, validation: Any = ()) -> Case:
    """Rows of the user's own data that are wrong: of JSON Lines, or lines of CoNLL or of text.

    validation: its rows, if they differ.
    """
    ending = "jsonl" if not isinstance(content, str) else "conll" if "O" in content else "txt"
    names, contents = [f"{split}.{ending}" for split in ("train", "val")], [content, validation]
    if not validation:
        names, contents = [names[0]] * 2, [content]
    lays = [
        put(f"data/{name}", rows if isinstance(rows, str) else jsonl(rows))
        for name, rows in zip(names, contents, strict=False)
    ]
    files = "--train_file …/data/{} --validation_file …/data/{}".format(*names)
    return case(
        *("imp", f"--task {task}: {what}", *named),
        argv=f"--task {task} {files}",
        lay=both(*lays),
        without=("dataset_path",),
    )


WORDS, TAGS = ["the", "cat"], ["O", "B-PER"]
TAGGED = {"tokens": WORDS, "ner_tags": TAGS}
ASKED = {"context": "the cat", "question": "who?"}
NO_ANSWER = {"text": [], "answer_start": []}
ELSEWHERE = {"text": ["cat"], "answer_start": [3]}
OF_WORDS, OF_QUESTIONS, OF_TEXT = "token-classification", "question-answering", "fill-mask"
OF_CLASSES, GOOD = "text-classification", {"text": "the cat", "label": "a"}
OTHER = {"text": "a dog", "label": "b"}


def own_csv(what: str, content: str, *named: str, flags: str = "", name: str = "train.csv") -> Case:
    """Rows of text-classification in a file that is wrong."""
    files = f"--train_file …/data/{name} --validation_split_percentage 50 {flags}"
    return case(
        *("imp", f"--task {OF_CLASSES}: {what}", *named),
        argv=f"--task {OF_CLASSES} {files}",
        lay=put(f"data/{name}", content),
        without=("dataset_path",),
    )


OWN_CLASSES = [
    *(
        case(
            *("imp", f"--task {OF_CLASSES} {flags}".strip(), *named),
            argv=f"--task {OF_CLASSES} {flags}",
            without=("dataset_path",),
        )
        for flags, *named in (
            ("", "--train_file FILE, --dataset_name NAME or --dataset_path DIR"),
            (
                "--train_file /no/file --validation_split_percentage 5",
                "--train_file /no/file: no such file",
            ),
            ("--dataset_name /no/a --train_file /b", "--train_file /b: each", "use one"),
            ("--dataset_name /no/a --dataset_path /b", "--dataset_path /b", "use one"),
            ("--dataset_name a/b --greater_is_better true", "--metric_name"),
            ("--dataset_name a/b --metric_name ours", "--greater_is_better true or false"),
            ("--dataset_name a/b --version_2_with_negative", "question-answering"),
            ("--dataset_name a/b --validation_split_percentage 100", "1 to 99"),
        )
    ),
    case("imp", "--train_file rows.csv", "--task sst2", OF_CLASSES, "omit it"),
    case("imp", "--do_regression", "--task sst2", OF_CLASSES, "omit it"),
    case("imp", "--task no_such_module:load", "cannot be imported", "package.module:function"),
    own_csv("no validation rows of two", "text,label\na,x\n", "1 rows", "percentage"),
    own_csv("tabs in a .csv", "text\tlabel\na\tx\n", "has tabs and no commas", ".tsv"),
    own_csv("a row that is too long", "text,label\na,x\nb,y,z\n", "row 2 has 3 values", "quote"),
    own_csv("two columns of one name", "text,text\na,x\n", "is there 2 times", "rename"),
    own_csv("an open quote", 'text,label\n"a,x\n', "line 2", "close each quote"),
    own_csv("a header alone", "text,label\n", "no rows"),
    own_csv("a name without a format", "a", ".csv", ".parquet", name="train.xlsx"),
    own_csv(
        "no row of names", "good,1\nbad,0\nfine,1\n", "--label_column_name", "is the first row"
    ),
    own_csv("numbers with a fraction", "text,label\na,0.5\nb,1\nc,2\n", "row 1", "--do_regression"),
    own_csv(
        "words as numbers",
        "text,label\na,0.5\nb,x\nc,2\n",
        "row 2",
        "omit --do_regression",
        flags="--do_regression",
    ),
    own_csv(
        "a column that is not there",
        "text,label\na,x\nb,y\n",
        "--label_column_name topic",
        "'text', 'label'",
        flags="--label_column_name topic",
    ),
    own(OF_CLASSES, "one class", [GOOD, GOOD], "column 'label' has 1 class ('a')", "2 at least"),
    own(
        OF_CLASSES,
        "a label that train does not have",
        [GOOD, OTHER],
        "…/data/val.jsonl: column 'label', row 2",
        "correct it, or remove the row",
        validation=[GOOD, GOOD | {"label": "c"}],
    ),
    own(
        OF_CLASSES,
        "null as a label",
        [GOOD, OTHER, GOOD | {"label": None}],
        "…/data/train.jsonl: column 'label', row 3: has no label",
        "remove the row",
    ),
    own(
        OF_CLASSES,
        "null as a text",
        [GOOD, OTHER, GOOD | {"text": None}],
        "…/data/train.jsonl: column 'text', row 3: has no text",
        "fill it in",
    ),
    own(
        OF_CLASSES,
        "two columns of texts",
        [GOOD | {"title": "x"}, OTHER | {"title": "x"}],
        "2 columns of strings",
        "--text_column_names",
        "'text', 'label', 'title'",
    ),
    own(
        OF_CLASSES,
        "labels of two types",
        [GOOD, GOOD | {"label": 1}],
        "…/data/train.jsonl: column 'label', row 2: 1 is of another type",
        "one type",
    ),
]
OWN_DATA = [
    *OWN_CLASSES,
    own(
        OF_WORDS,
        "too few tags",
        [TAGGED, TAGGED | {"ner_tags": ["O"]}],
        "…/data/train.jsonl: column 'ner_tags', row 2: 1 tags for 2 words",
        "one tag",
    ),
    own(
        OF_WORDS,
        "a tag that train does not have",
        [TAGGED],
        "…/data/val.jsonl: column 'ner_tags', row 2",
        '"B-LOC"',
        "(B-PER, O)",
        "add rows",
        validation=[TAGGED, TAGGED | {"ner_tags": ["O", "B-LOC"]}],
    ),
    own(
        OF_WORDS,
        "a row without words",
        [TAGGED, {"tokens": [], "ner_tags": []}],
        "…/data/train.jsonl: column 'tokens', row 2: has no words",
        "remove the row",
    ),
    own(
        OF_WORDS,
        "null as a word",
        [TAGGED, TAGGED | {"tokens": ["a", None]}],
        "…/data/train.jsonl: column 'tokens', row 2: has a null",
        "fill it in",
    ),
    own(
        OF_WORDS,
        "a single tag",
        [TAGGED | {"ner_tags": ["O", "O"]}],
        "…/data/train.jsonl: column 'ner_tags' has only the tag 'O'",
        "two or more",
    ),
    own(
        OF_WORDS,
        "texts instead of lists",
        [{"tokens": "the cat", "ner_tags": "O O"}],
        "none of the columns 'tokens', 'ner_tags' holds lists of words",
        ".conll",
    ),
    own(
        OF_WORDS,
        "columns of other names",
        [{"a": WORDS, "b": TAGS}],
        "columns 'a', 'b' hold lists of words",
        "--text_column_name",
    ),
    own(OF_WORDS, "a line without a tag", "the O\ncat\n", "…/data/train.conll: line 2: 'cat'"),
    own(
        OF_QUESTIONS,
        "a question without an answer",
        [ASKED | {"answers": NO_ANSWER}],
        "…/data/train.jsonl: column 'answers', row 1",
        "--version_2_with_negative",
    ),
    own(
        OF_QUESTIONS,
        "an answer elsewhere",
        [ASKED | {"answers": ELSEWHERE}],
        "…/data/train.jsonl: column 'answers', row 1",
        "not at character 3",
        "correct answer_start",
    ),
    own(
        OF_QUESTIONS,
        "no column of contexts",
        [{"question": "who?"}],
        "…/data/train.jsonl: no column 'context', only 'question'",
        "context, question, answers",
    ),
    own(OF_TEXT, "null as a text", [{"text": "a"}, {"text": None}], "column 'text', row 2: null"),
    own(
        OF_TEXT,
        "two columns of texts",
        [{"a": "x", "b": "y"}],
        "columns 'a', 'b' hold texts",
        "--text_column_name",
    ),
    own(OF_TEXT, "too little text", "short\n", "…/data/train.txt has too little", "add text"),
]


def model(change: Callable[[Path], object]) -> Lay:
    """Lay a copy of the tiny model with one thing wrong."""

    def lay(here: Path, made: Path) -> None:
        shutil.copytree(
            json.loads((made / "search/arguments.json").read_text())["model_name_or_path"],
            here / "model",
        )
        change(here / "model")

    return lay


def configured(**odd: Any) -> Callable[[Path], object]:
    """Change fields of a model's config."""

    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))

    return change


def tokenized(**odd: Any) -> Callable[[Path], object]:
    """Change fields of a tokenizer's config."""

    def change(directory: Path) -> None:
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))

    return change


def without_pad_token(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(
        json.dumps({name: value for name, value in config.items() if name != "pad_token"})
    )


def with_a_high_id(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zyx"] = 99999
    path.write_text(json.dumps(content))


def only_a_tokenizer(name: str, **config: Any) -> Callable[[Path], object]:
    """Leave a model no tokenizer but a file that is read by its class, or by code of its own."""

    def change(directory: Path) -> None:
        for path in directory.glob("tokenizer*"):
            path.unlink()
        (directory / name).write_bytes(b"no model")
        (directory / "tokenizer_config.json").write_text(json.dumps(config))

    return change


def in_python(directory: Path) -> None:
    """Give a model the tokenizer of a class that tells no offsets."""
    only_a_tokenizer("vocab.txt", tokenizer_class="EsmTokenizer")(directory)
    (directory / "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\n<mask>\nthe\ncat")


def drop_layer(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1.output.dense" not in name}
    save_file(kept, directory / "model.safetensors")


def overflowing(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["bert.encoder.layer.1.output.LayerNorm.weight"].fill_(3e38)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def rename(old: str, new: str):
    def change(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        renamed = {name.replace(old, new): weight for name, weight in weights.items()}
        save_file(renamed, directory / "model.safetensors")

    return change


def untie(directory: Path) -> None:
    rename("bert.embeddings.word_embeddings.", "cls.predictions.decoder.")(directory)
    configured(tie_word_embeddings=False)(directory)


def poison(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["bert.encoder.layer.1.intermediate.dense.bias"][3] = math.nan
    save_file(weights, directory / "model.safetensors")


def only_a_pickle(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def of_three_layers(here: Path, made: Path) -> None:
    from transformers import AutoModel, BertConfig

    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=9,
    )
    masks = {
        name: torch.ones_like(w, dtype=torch.bool)
        for name, w in prunable(AutoModel.from_config(config)).items()
    }
    Ticket(masks, "three-layers").save(here / "t.safetensors")


def theta_of_others(here: Path, made: Path) -> None:
    """Lay θᵢ of a search in another base."""
    base = {"base_model": "google/other", "base_sha256": "b" * 64}
    save_file(load_file(made / "search/theta.safetensors"), here / "t.safetensors", base)


FIRST = "encoder.layer.0.attention.self.query.weight"
MODELS = [
    *(
        case(
            "imp",
            f"a model directory: {what}",
            "--model_name_or_path …/model",
            *named,
            argv="--model_name_or_path …/model",
            lay=model(change),
        )
        for what, change, *named in (
            ("no weights", lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
            (
                "weights of another format",
                lambda d: (d / "model.safetensors").write_bytes(b"\x08" * 50),
            ),
            ("no config.json", lambda d: (d / "config.json").unlink(), "config.json"),
            ("config.json is invalid JSON", lambda d: (d / "config.json").write_text("{")),
            ("no tokenizer", lambda d: [p.unlink() for p in d.glob("token*")]),
            ("a pickle instead of safetensors", only_a_pickle, "model.safetensors"),
            (
                "weights that overflow",
                overflowing,
                "returns NaN or infinity",
                "use another encoder",
            ),
            ("a layer is missing", drop_layer, "lacks bert.encoder.layer.1.output.dense.weight"),
            (
                "LayerNorms by another name",
                rename("LayerNorm", "layer_norm"),
                "bert.embeddings.layer_norm.bias",
            ),
            (
                "a tied tensor by the head's name, and no tie",
                untie,
                "lacks bert.embeddings.word_embeddings.weight",
            ),
            (
                "NaN in a weight",
                poison,
                "1 of 32 values of bert.encoder.layer.1.intermediate.dense.bias are NaN",
            ),
            ("fewer layers than its weights", configured(num_hidden_layers=1), "encoder.layer.1"),
            (
                "a million layers",
                configured(num_hidden_layers=10**6),
                "num_hidden_layers 1000000",
                "tensors",
            ),
            ("no layers", configured(num_hidden_layers=0), "num_hidden_layers 0"),
            (
                "other sizes",
                configured(intermediate_size=10**12),
                "intermediate.dense.weight of shape (32, 16)",
            ),
            (
                "a dropout that is NaN",
                configured(hidden_dropout_prob=math.nan),
                "hidden_dropout_prob nan",
            ),
            (
                "a number of 400 digits",
                configured(num_hidden_layers=int(LONG)),
                "num_hidden_layers",
            ),
            (
                "custom code for the config",
                configured(auto_map={"AutoConfig": "x.Y"}, model_type="x"),
                "code",
                "auto_map in config.json",
                "transformers has classes for",
            ),
            (
                "custom code for the tokenizer",
                only_a_tokenizer(
                    "words.bin",
                    tokenizer_class="HouseTokenizer",
                    auto_map={"AutoTokenizer": ["x.Y", None]},
                ),
                "auto_map in tokenizer_config.json",
            ),
            (
                "no pad token",
                without_pad_token,
                "no pad token",
                "pad_token in tokenizer_config.json",
            ),
            (
                "a tokenizer that leaves no room",
                tokenized(model_max_length=0),
                "model_max_length 0",
                "remove it",
            ),
            (
                "an id beyond the embeddings",
                with_a_high_id,
                "'zyx' is 99999",
                "resize_token_embeddings",
            ),
            (
                "a SentencePiece model alone",
                only_a_tokenizer("spm.model", tokenizer_class="DebertaV2Tokenizer"),
                "entence",
                "piece",
            ),
            (
                "a kind that transformers does not know",
                configured(model_type="x"),
                "that transformers",
                "newer",
            ),
        )
    ),
    case(
        "imp",
        "--task squad and a tokenizer in Python",
        "--task squad: EsmTokenizer",
        "…/model",
        "tokenizer.json",
        argv="--model_name_or_path …/model --task squad",
        lay=model(in_python),
    ),
    case(
        "imp",
        "--task token-classification and a tokenizer in Python",
        "--task token-classification: EsmTokenizer",
        "…/model",
        "tokenizer.json",
        argv="--model_name_or_path …/model --task token-classification --train_file …/t.conll "
        "--validation_file …/t.conll",
        lay=both(model(in_python), put("t.conll", "the O\n")),
        without=("dataset_path",),
    ),
    case(
        "export",
        "a model directory: custom code",
        "…/model",
        "custom code",
        "is not run",
        argv="…/model --format csr --output_dir …/new",
        lay=model(configured(auto_map={"AutoConfig": "x.Y"}, model_type="x")),
    ),
    *(
        case(
            command,
            f"a model directory: {name} is a pipe",
            f"…/model/{name}: is not a regular file",
            argv="--model_name_or_path …/model"
            if command == "imp"
            else "…/model --format csr --output_dir …/new",
            lay=both(model(lambda d: None), as_pipe(f"model/{name}")),
        )
        for command in ("imp", "export")
        for name in ("model.safetensors", "tokenizer.json")
    ),
    case(
        "imp",
        "a model directory: tokenizer.json links to itself",
        "…/model/tokenizer.json: Too many levels",
        argv="--model_name_or_path …/model",
        lay=both(model(lambda d: None), link("model/tokenizer.json", "tokenizer.json")),
    ),
    *(
        case(
            command,
            f"config.json has {name} {value}",
            "…/model",
            *named,
            lay=model(configured(**{name: value})),
            argv="--model_name_or_path …/model"
            if command == "imp"
            else "…/model --format csr --output_dir …/new",
        )
        for command, name, value, *named in (
            ("imp", "num_labels", 99999999999, "num_labels"),
            ("export", "num_labels", 99999999999, "num_labels"),
            ("imp", "is_decoder", True, "is_decoder True", "set it to false"),
            (
                "imp",
                "quantization_config",
                {"bits": 8},
                "quantization_config",
                "before quantization",
            ),
        )
    ),
]
TICKETS = [
    *(
        case(
            command,
            f"--ticket: {what}" if command == "imp" else what,
            "…/t.safetensors",
            *named,
            lay=lay,
            argv="--ticket …/t.safetensors" if command == "imp" else "…/t.safetensors",
        )
        for command in ("imp", "ticket")
        for what, lay, *named in (
            ("an empty file", put("t.safetensors", "")),
            ("text", put("t.safetensors", "hello"), "cannot be read"),
            (
                "a header of 10¹⁸ bytes",
                put("t.safetensors", (10**18).to_bytes(8, "little") + b"{}"),
                "cannot be read",
            ),
            (
                "a cut file",
                both(forged(), lambda here, made: os.truncate(here / "t.safetensors", 999)),
                "cannot be read",
            ),
            ("another format", forged(format="pt"), "its format is 'pt'"),
            ("an unknown key", forged(licence="x"), "'licence'"),
            ("a count that is wrong", forged(pruned="1"), "it states"),
            ("a count of words", forged(pruned="many"), "many"),
            ("a sparsity that is NaN", forged(sparsity="nan"), "sparsity nan"),
            ("a threshold that is infinite", forged(threshold="inf"), "threshold inf"),
            ("no shapes", forged(shapes=None), "no shapes"),
            ("shapes that are a list", forged(shapes="[]"), "not a JSON object"),
            ("a giant shape", forged(shape=[2**62, 2**62]), f"{FIRST} has 32 bytes"),
            ("deep JSON", forged(arguments="[" * 10**5), "recursion"),
            ("arguments: a list", forged(arguments="[]"), "not a JSON object"),
            ("an invalid regular expression", forged(arguments='{"ignore": ["("]}'), "--ignore ("),
            (
                "regular expressions that are numbers",
                forged(arguments='{"ignore": [1]}'),
                "must be string",
            ),
            ("an invalid pattern", forged(arguments='{"pattern": "3:2"}'), "--pattern 3:2"),
            (
                "a tensor too many",
                forged({"extra": numpy.zeros(1, numpy.uint8)}),
                "names of shapes and tensors differ",
            ),
            (
                "a tensor too short",
                forged({FIRST: numpy.zeros(3, numpy.uint8)}),
                "3 bytes of uint8",
            ),
            ("a checksum that is not its own", forged(content_sha256="0"), "content_sha256"),
            (
                "a base that is not a digest",
                forged(base_sha256="main"),
                "its base_sha256 is not a SHA-256",
            ),
        )
    ),
    *(
        case(
            command,
            f"{words} PIPE",
            "…/pipe",
            "is not a regular file",
            argv=f"{words} …/pipe".strip(),
            lay=both(lay, as_pipe("pipe")),
            without=("target_sparsity",) if command == "transfer" else (),
        )
        for command, words, lay in (
            ("imp", "--ticket", forged()),
            ("transfer", "--ticket", forged()),
            ("transfer", "--theta", forged()),
            ("ticket", "", forged()),
            ("ticket", "…/t.safetensors --overlap", forged()),
        )
    ),
    case(
        "imp",
        "--ticket: a link to itself",
        "--ticket …/t",
        "Too many levels",
        argv="--ticket …/t",
        lay=link("t", "t"),
    ),
    case(
        "transfer",
        "--ticket: a link to itself",
        "…/t",
        "form a loop",
        argv="--ticket …/t",
        lay=link("t", "t"),
        without=("target_sparsity",),
    ),
    case(
        "imp",
        "--ticket: a directory without one",
        "ticket.safetensors",
        "no such file",
        argv="--ticket …",
    ),
    case("ticket", "a directory without one", "ticket.safetensors", argv="…"),
    case(
        "imp",
        "--ticket: of another model",
        "--ticket …/t.safetensors",
        "encoder.layer.2.",
        "three-layers",
        argv="--ticket …/t.safetensors",
        lay=of_three_layers,
    ),
    *(
        case(
            "imp",
            f"--ticket: its base model is {base}@{revision}",
            "--ticket …/t.safetensors",
            f"{base}@{revision}",
            "--model_name_or_path",
            argv="--ticket …/t.safetensors",
            lay=forged(base_model=base, base_revision=revision),
            without=("model_name_or_path",),
        )
        for base, revision in (
            ("bert", "../../x"),
            ("bert", "a/../../x"),
            ("bert", "/etc/x"),
            ("bert", "a b"),
        )
    ),
    *(
        case(
            "imp",
            f"--ticket: its base model is {base}",
            "--ticket …/t.safetensors",
            base,
            "--model_name_or_path",
            argv="--ticket …/t.safetensors",
            lay=forged(base_model=base),
            without=("model_name_or_path",),
        )
        for base in ("/etc", "../x", "a/b/c", "~/m", "-m", "https://h/m")
    ),
    case(
        "transfer",
        "--ticket: a pattern that does not divide",
        "--ticket …/t.safetensors",
        "block:3x5",
        "divide",
        argv="--ticket …/t.safetensors --control one_shot",
        lay=forged(arguments='{"pattern": "block:3x5"}'),
        without=("target_sparsity",),
    ),
    *(
        case(
            command,
            "--control dense_long with a ticket that does not say its rounds",
            "--control dense_long",
            "--ticket …/t.safetensors",
            "rounds",
            argv="--control dense_long --ticket …/t.safetensors",
            lay=forged(arguments="{}"),
            without=("target_sparsity",) if command == "transfer" else (),
        )
        for command in ("imp", "transfer")
    ),
    case(
        "transfer",
        "--connectivity with --control dense_restarts",
        "--connectivity",
        "--control dense_restarts",
        "omit one",
        argv="--connectivity --control dense_restarts --ticket …/t.safetensors --seeds 1 2",
        lay=forged(arguments='{"rounds": 2}'),
        without=("target_sparsity",),
    ),
    case(
        "transfer",
        "--ticket: an invalid scope",
        "--ticket …/t.safetensors",
        "each",
        argv="--ticket …/t.safetensors --control one_shot",
        lay=forged(arguments='{"scope": "each"}'),
        without=("target_sparsity",),
    ),
    case(
        "imp",
        "--pattern 2:4 --ticket …/t.safetensors",
        "was found with another pattern",
        lay=forged(),
        argv="--target_sparsity 0.5 --pattern 2:4 --ticket …/t.safetensors",
    ),
    *(
        case(
            command,
            f"{flag}: of other weights",
            f"{flag} …/t.safetensors",
            "bbbbbbbbbbbb… of 'google/other'",
            "--model_name_or_path",
            "--allow_other_weights",
            argv=f"{flag} …/t.safetensors",
            lay=lay,
            without=("target_sparsity",) if command == "transfer" else (),
        )
        for command, flag, lay in (
            ("imp", "--ticket", forged(base_sha256="b" * 64, base_model="google/other")),
            ("transfer", "--ticket", forged(base_sha256="b" * 64, base_model="google/other")),
            ("transfer", "--theta", theta_of_others),
        )
    ),
    *(
        case(
            "ticket",
            f"{words} with a ticket of other weights",
            f"{words} …/t.safetensors",
            "two bases",
            "bbbbbbbbbbbb… of 'google/other'",
            "--allow_other_weights",
            argv=f"…/ticket.safetensors {words} …/t.safetensors {more}",
            lay=both(
                forged(base_sha256="b" * 64, base_model="google/other"),
                lambda here, made: shutil.copy(made / "search/ticket.safetensors", here),
            ),
        )
        for words, more in (
            ("--overlap", ""),
            ("--union", "--output …/new"),
            ("--intersect", "--output …/new"),
        )
    ),
    case(
        "ticket",
        "--union with a ticket of another network",
        "two networks",
        argv="… --union …/t.safetensors --output …/new",
        lay=both(
            of_three_layers,
            lambda here, made: shutil.copy(made / "search/ticket.safetensors", here),
        ),
    ),
    *(
        case(
            "ticket",
            f"--output {where}",
            "another",
            argv=f"… --union … --output {where}",
            lay=lambda here, made: shutil.copy(made / "search/ticket.safetensors", here),
        )
        for where in ("…/ticket.safetensors", "/proc/no/t.safetensors")
    ),
]
RUNS = [
    case(
        "transfer",
        "--output_dir of a search",
        "--output_dir …/out",
        "another command",
        without=("target_sparsity",),
        lay=damage("search", "x", None),
    ),
    case(
        "imp",
        "--output_dir of a search with other flags",
        "--seed was 42, is 7",
        "--learning_rate was 0.01, is 0.02",
        argv="--seed 7 --learning_rate 0.02",
        lay=damage("search", "x", None),
    ),
    *(
        case(
            command,
            f"--output_dir of a run {what}",
            "--output_dir …/out",
            *named,
            lay=begun_with(of, change),
            without=("target_sparsity",) if command == "transfer" else (),
        )
        for command, of, what, change, *named in (
            (
                "imp",
                "search",
                "on other data",
                lambda w: w["digests"]["data"].update({"train.jsonl": "0" * 64}),
                "--dataset_path: train.jsonl was sha256 000000000000…, is sha256",
            ),
            (
                "imp",
                "search",
                "of another model",
                lambda w: w["digests"]["model"].update({"config.json": "0" * 64}),
                "--model_name_or_path: config.json was sha256 000000000000…, is sha256",
            ),
            (
                "transfer",
                "transfer",
                "with another tokenizer",
                lambda w: w["digests"]["tokenizer"].update(old="0" * 64),
                "--model_name_or_path: old was sha256 000000000000…, is missing",
            ),
            (
                "imp",
                "search",
                "in another precision",
                lambda w: w.update(precision="fp8"),
                "precision was fp8, is no",
            ),
            (
                "imp",
                "search",
                "of other sparsities",
                lambda w: w.update(ladder=[0.0, 0.3]),
                "the sparsity of round 1 was 0.3, is 0.1",
            ),
            (
                "imp",
                "search",
                "whose facts are damaged",
                lambda w: w.update(digests=[]),
                "damaged",
                "another",
            ),
        )
    ),
    *(
        case(
            "imp",
            f"--output_dir with {name} from elsewhere",
            f"--output_dir …/out: holds {name}",
            "another",
            lay=put(
                f"out/{name}/mine" if name in ("rounds", "figures") else f"out/{name}", "precious"
            ),
        )
        for name in ("rounds", "figures", "theta.safetensors", "mlflow.jsonl", "complete", ".lock")
    ),
    case(
        "imp",
        "--output_dir that is a file",
        "--output_dir …/out",
        "another",
        lay=put("out", "precious"),
    ),
    case("imp", "--output_dir that is a pipe", "--output_dir …/out", "another", lay=as_pipe("out")),
    case(
        "imp",
        "--output_dir that is a link to nothing",
        "--output_dir …/out",
        "another",
        lay=link("out", "gone"),
    ),
    case(
        "imp", "--output_dir that is a link to itself", "…/out", "another", lay=link("out", "out")
    ),
    case(
        "imp",
        "--output_dir below a link to nothing",
        "--output_dir …/gone/out",
        "another",
        argv="--output_dir …/gone/out",
        lay=link("gone", "nowhere"),
    ),
    *(
        case(
            "imp",
            f"resumed: {file} is a pipe",
            f"--output_dir …/out: {file}",
            "is not a regular file",
            lay=both(damage("search", "x", None), as_pipe(f"out/{file}")),
        )
        for file in ("results.json", "theta.safetensors", "rounds/01/metrics.json")
    ),
    case(
        "imp",
        "--dense: arguments.json is a pipe",
        "--dense …/out: arguments.json",
        "is not a regular file",
        argv="--dense …/out --output_dir …/new",
        lay=both(damage("search", "x", None, unfinished=False), as_pipe("out/arguments.json")),
    ),
    *(
        case(
            "imp",
            f"resumed: {file} {what}",
            "--output_dir …/out: ",
            file,
            "damaged",
            "another",
            lay=damage("search", file, content),
        )
        for file, what, content in (
            ("arguments.json", "is cut", 9),
            ("results.json", "is not a table", b"{}"),
            ("rounds/01/metrics.json", "is cut", 9),
            ("rounds/01/metrics.json", "lacks its keys", b"{}"),
            ("rounds/01/metrics.json", "is gone", None),
            ("rounds/02/ticket.safetensors", "is cut", 900),
            ("rounds/02/ticket.safetensors", "is gone", None),
            ("theta.safetensors", "is cut", 900),
            ("theta.safetensors", "is empty", b""),
            ("theta.safetensors", "is gone", None),
        )
    ),
    case(
        "imp",
        "finished: rounds/03/metrics.json is cut",
        "--output_dir …/out: rounds/03/metrics.json",
        "damaged",
        lay=damage("search", "rounds/03/metrics.json", 9, unfinished=False),
    ),
    case(
        "transfer",
        "resumed: seeds/42/metrics.json is cut",
        "--output_dir …/out: seeds/42/metrics.json",
        "damaged",
        lay=damage("transfer", "seeds/42/metrics.json", 9),
        without=("target_sparsity",),
    ),
    *(
        case(
            "imp",
            f"--dense: {file} {what}",
            f"--dense …/out: {file}",
            "damaged",
            "another",
            argv="--dense …/out --output_dir …/new",
            lay=damage("search", file, content, unfinished=False),
        )
        for file, what, content in (
            ("arguments.json", "is cut", 9),
            ("rounds/00/metrics.json", "is cut", 9),
            ("theta.safetensors", "is text", b"no"),
            ("rounds/00/ticket.safetensors", "is empty", b""),
            ("rounds/03/model/model.safetensors", "is cut", 900),
        )
    ),
    case(
        "imp",
        "--dense: its round 0 was not kept",
        "--dense …/out",
        "--keep_theta",
        argv="--dense …/out --output_dir …/new",
        lay=damage("search", "x", None, unfinished=False),
    ),
    *(
        case(
            "transfer",
            f"--compare_with: {what}",
            "--compare_with …/out",
            *named,
            without=("target_sparsity",),
            argv="--compare_with …/out --output_dir …/new",
            lay=damage(of, file, content, unfinished=False),
        )
        for of, file, what, content, *named in (
            ("transfer", "results.json", "results.json is cut", 9, "results.json", "damaged"),
            (
                "transfer",
                "results.json",
                "results.json is an object",
                b"{}",
                "results.json",
                "damaged",
            ),
            (
                "transfer",
                "results.json",
                "results.json has other rows",
                b"[1]",
                "no results of lth_scale.transfer",
            ),
            (
                "transfer",
                "arguments.json",
                "arguments.json is gone",
                None,
                "arguments.json",
                "missing",
            ),
            ("search", "x", "a search", None, "no results of lth_scale.transfer"),
        )
    ),
    *(
        case(
            "transfer",
            f"--theta: {what}",
            "--theta …/out/theta.safetensors",
            "use",
            lay=damage("search", "theta.safetensors", content),
            argv="--theta …/out/theta.safetensors --output_dir …/new",
            without=("target_sparsity",),
        )
        for what, content in (("cut", 900), ("empty", b""), ("text", b"no"))
    ),
    case(
        "transfer",
        "--theta: a directory",
        "--theta …",
        "no such file",
        argv="--theta …",
        without=("target_sparsity",),
    ),
    case(
        "transfer",
        "--theta: of another network",
        "--theta …/t.safetensors",
        "of this model",
        argv="--theta …/t.safetensors",
        lay=forged(),
        without=("target_sparsity",),
    ),
    case(
        "imp",
        "--output_dir of a run whose digest is a number",
        "--output_dir …/out",
        "damaged",
        "another",
        lay=begun_with("search", lambda w: w["digests"]["model"].update({"config.json": 5})),
    ),
]
TINY = {
    "flags": {"preset": "demo", "max_steps": 10},
    "tasks": ["sst2"],
    "seeds": [1, 2],
    "sparsities": [0.1],
    "controls": ["reinit"],
    "control_sparsities": [0.1],
}
TO_TINY = {"sources": ["sst2"], "targets": ["sst2"], "sparsity": 0.3}
TO_MLM = {**TO_TINY, "targets": ["mlm"], "sparsity": 0.2}
GRID = "…/study.yaml --output_dir …/out"


def study(*keys: dict) -> Lay:
    return put(
        "study.yaml",
        yaml.safe_dump({key: value for part in (TINY, *keys) for key, value in part.items()}),
    )


def begun(here: Path, made: Path) -> None:
    study()(here, made)
    put("out/jobs/search-sst2-seed1/arguments.json", "{}")(here, made)
    job = {"id": "search-sst2-seed1", "flags": {"max_steps": 9}}
    put("out/study.json", json.dumps({"jobs": [job]}))(here, made)


def done(here: Path, made: Path) -> None:
    study()(here, made)
    put("out/study.json", json.dumps(PLAN))(here, made)
    put("out/jobs/search-sst2-seed1/complete", "")(here, made)
    put("out/jobs/search-sst2-seed1/results.json", '[{"steps": "x"}]')(here, made)


PLAN = {
    "name": "a",
    "note": "",
    "model": "b",
    "tasks": ["sst2"],
    "sparsities": [0.1],
    "jobs": [
        {
            "id": "j",
            "kind": "imp",
            "directory": "jobs/j",
            "flags": {"task": "sst2", "seed": 1, "target_sparsity": 0.1},
        }
    ],
    "cells": [
        {
            "task": "sst2",
            "seed": 1,
            "sparsity": s,
            "control": "none",
            "source": "sst2",
            "rewind": "0",
            "job": "j",
        }
        for s in (0, 0.1)
    ],
}
WRONG_PLANS: dict[str, dict] = {
    "with jobs that lie outside": {"jobs": [{**PLAN["jobs"][0], "directory": "jobs/../../x"}]},
    "with a job at an absolute path": {"jobs": [{**PLAN["jobs"][0], "directory": "/x"}]},
    "with cells of no job": {"cells": [{**PLAN["cells"][0], "job": "x"}]},
    "with a seed in words": {"cells": [{**PLAN["cells"][0], "seed": "9"}]},
    "with a sparsity of 400 digits": {"cells": [{**PLAN["cells"][0], "sparsity": 10**400}]},
    "with an unknown rewind point": {"cells": [{**PLAN["cells"][0], "rewind": "later"}]},
    "with an unknown task": {"tasks": ["\x1b"]},
    "with a list for a note": {"note": []},
    "without jobs": {"jobs": None},
}
RESULTS = [{"round": k, "sparsity": 0.1 * k, "eval": {"accuracy": 0.5}} for k in (0, 1)]


def reported(results: str, **more: str) -> Lay:
    """Lay a study of one job with these results, and further files of the job."""
    parts = {"study.json": json.dumps(PLAN), "jobs/j/results.json": results}
    return both(
        *(put(f"study/{name}", text) for name, text in parts.items()),
        *(put(f"study/jobs/j/{name}", text) for name, text in more.items()),
    )


STUDIES = [
    *(
        case(
            "study",
            yaml.safe_dump(keys, default_flow_style=True, width=10**6).strip(),
            *named,
            lay=study(keys),
            argv=GRID,
        )
        for keys, *named in (
            (dict(seed=[1]), "seed:", "seeds"),
            (dict(tasks=["sst3"]), "search-sst3-seed1", "--task", "'sst3'", "sst2"),
            (dict(tasks={"sst2": {"max_stepz": 1}}), "--max_stepz 1", "--help"),
            (dict(seeds=1), "seeds: 1", "[1, 2, 3]"),
            (dict(seeds=[True]), "seeds: [True]"),
            (dict(sparsities=[70]), "sparsities: [70]", "0.7"),
            (dict(seeds=[2**40]), "--seed 1099511627776"),
            (dict(sparsities=[1.5]), "--target_sparsity 1.5"),
            (dict(sparsities=[float("nan")]), "--target_sparsity nan"),
            (dict(sparsities={"sst3": [0.7]}), "sparsities", "sst3"),
            (dict(sparsities={"mlm": [0.7]}), "sparsities", "mlm", "tasks"),
            (dict(sparsities=[0.15, 0.3]), "sparsity 0.15", "0, 0.1, 0.2, 0.3"),
            (dict(controls=["random"]), "--control", "'random'", "random_mask"),
            (dict(rewind=["later"]), "later", "0.05"),
            (dict(flags={"seed": 1}), "--seed 1", "grid"),
            (
                dict(flags={"preset": "demo", "max_steps": "many"}),
                "search-sst2-seed1",
                "--max_steps",
                "many",
            ),
            (
                dict(flags={"preset": "demo", "lr_span": "all_rounds"}, rewind=[0.5]),
                "seed1-rewind0.5",
                "--lr_span round",
            ),
            (dict(flags=["preset"]), "flags: ['preset']", "{'max_steps': 100"),
            (dict(flags=None), "flags: None"),
            (
                dict(flags={"max_steps": [1, 2]}),
                "flags: {'max_steps': [1, 2]}",
                "{'max_steps': 100",
            ),
            (dict(transfer={"sources": ["sst2"], "targets": ["sst2"]}), "transfer: sparsity"),
            (dict(transfer={**TO_TINY, "sparsity": 0.05}), "sparsity 0.05", "search-sst2-seed1"),
            (dict(transfer={**TO_MLM, "rewind": ["later"]}), "transfer: rewind", "later", "0.05"),
            (
                dict(transfer={**TO_MLM, "sparsity": [0.1, 0.2], "rewind": ["none"]}),
                "transfer: rewind: none",
                "search-sst2-seed1-rewindnone",
                "one sparsity",
            ),
            (
                dict(transfer={**TO_MLM, "rewind": ["none"]}, rewind=["none"]),
                "search-sst2-seed1-rewindnone",
                "0.1 and to 0.2",
                "one sparsity",
            ),
            (dict(launcher="no_such_launcher -m"), "launcher", "no_such_launcher"),
            (dict(include=["nowhere.yaml"]), "nowhere.yaml", "cannot be read"),
            (dict(include=["study.yaml"]), "itself"),
            (dict(name=1), "name: 1"),
            ({1: 2}, "1: unknown key"),
            *(
                (dict(name=name), f"name: {name!r}", "directory")
                for name in ("", " ", "../x", "-x", "a.", "n" * 201)
            ),
            *(
                (dict(note=f"a{bad}b"), "note", ascii(bad)[1:-1], "remove it")
                for bad in ("\x1b", "\x9b", "\x7f", "\u202e", "\u200b", "\ufeff", "\u2028")
            ),
            (dict(note="n" * 1001), "note: has 1,001 characters", "1,000"),
            (dict(tasks={"a\x07": {}}), "tasks", "\\x07"),
            (dict(launcher="a\0"), "launcher", "\\x00"),
            (dict(flags={"preset": "demo", "run_name": "\b"}), "run_name", "\\x08"),
            *(
                (dict(rewind=[point]), "rewind", repr(point), "0.05")
                for point in ("../x", "0.05/../..", " 0.05", "٣")
            ),
            (dict(seeds=[10**20]), "--seed 100000000000000000000"),
            (dict(seeds=[10**400]), "401 characters"),
            (
                dict(flags={"preset": "demo", "save_steps": 10**20}),
                "--save_steps 1",
                "at most 1,000,000,000",
            ),
            (dict(seeds=[*range(5001)]), "15,003 trainings", "10,000"),
            (dict(include=["/dev/zero"]), "/dev/zero", "not a regular file"),
        )
    ),
    *(
        case(
            "study",
            f"a file: {what}",
            "…/study.yaml",
            *named,
            lay=put("study.yaml", text),
            argv=GRID,
        )
        for what, text, *named in (
            ("invalid YAML", "a: [", "cannot be read as YAML"),
            ("empty", "", "no keys"),
            ("a list", "- a", "no keys"),
            ("a key alone", "name: x", "sparsities"),
            ("bytes", bytes(range(256)), "cannot be read as YAML"),
            ("deep", "[" * 10**5, "cannot be read as YAML"),
            ("an impossible date", "name: 2026-99-99", "cannot be read"),
            *(
                (f"a {what}", f"name: a\nseeds: [{text}]", f"line 2: {text}: ambiguous", *better)
                for what, text, *better in (
                    ("octal number", "010", "as 8;", "10"),
                    ("hexadecimal number", "0x10", "16"),
                    ("binary number", "0b11", "3"),
                    ("number with a line", "1_000", "1000"),
                    ("sexagesimal number", "2:4", "124", '"2:4"'),
                    ("fraction with a line", "1_0.5", "10.5"),
                    ("word for truth", "yes", "true", '"yes"'),
                    ("date", "2026-01-01", '"2026-01-01"'),
                )
            ),
            ("a tagged octal number", "seeds: [!!int '010']", "line 1: 010", "8"),
            ("a set", "note: !!set {a}", "line 1", "note: {"),
            ("a merged key", "flags: {<<: {a: 1}}", "line 1: <<", "out"),
            (
                "a key twice",
                "name: a\nseeds: [1]\nname: b",
                "line 3: name: duplicate key",
                "line 1",
            ),
            ("a flag twice", "flags: {bf16: true, bf16: false}", "line 1: bf16: duplicate key"),
            ("a lone surrogate", 'note: "\\ud800"', "note", "\\ud800"),
            ("two documents", "a: 1\n---\nb: 2", "cannot be read"),
            ("UTF-16", "name: a".encode("utf-16"), "cannot be read"),
            ("300,000 bytes", "#" * 300_000, "262,144 bytes"),
            (
                "a Python object",
                "name: !!python/object/apply:os.mkdir ['x']",
                "cannot be read as YAML",
            ),
            (
                "aliases that double 40 times",
                "a0: &a0 [x]\n"
                + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)),
                "*a0",
                "write out",
            ),
        )
    ),
    *(
        case("study", f"a file that is {what}", *named, lay=lay, argv=argv)
        for what, argv, lay, *named in (
            (
                "a FIFO",
                "…/f",
                lambda here, made: os.mkfifo(here / "f"),
                "…/f",
                "not a regular file",
            ),
            (
                "a link to itself",
                "…/f",
                lambda here, made: (here / "f").symlink_to("f"),
                "…/f",
                "symbolic links",
            ),
            ("a device", "/dev/zero", put("x", ""), "/dev/zero", "not a regular file"),
            ("no UTF-8 by its name", "…/\udcff.yaml", put("x", ""), "not UTF-8", "rename"),
        )
    ),
    case(
        "study",
        "--run_name with a control character",
        "--run_name",
        "\\x1b",
        lay=study(),
        argv=f"{GRID} --run_name \x1b",
    ),
    case("study", "a file that is a directory", "cannot be read as YAML", argv="…"),
    case(
        "study", "a file that is not there", "…/no.yaml", "cannot be read as YAML", argv="…/no.yaml"
    ),
    *(
        case("study", words, *named, lay=study(), argv=f"{GRID} {words}")
        for words, *named in (
            ("--index 2 --of 2", "--index 2 --of 2"),
            ("--max_stepz 2", "--help"),
            ("--seed 3", "grid"),
        )
    ),
    case(
        "study",
        "a word without a flag",
        "stray",
        "STUDY.yaml",
        lay=study(),
        argv="…/study.yaml stray",
    ),
    case(
        "study",
        "--output_dir /proc/no/study",
        "another",
        lay=study(),
        argv="…/study.yaml --output_dir /proc/no/study",
    ),
    case(
        "study",
        "--output_dir of the study with other flags",
        "--output_dir …/out",
        "--max_steps 9 and 10",
        lay=begun,
        argv=GRID,
    ),
    *(
        case(
            "study",
            f"--output_dir: study.json {what}",
            "--output_dir …/out",
            "study.json is damaged",
            "another",
            argv=GRID,
            lay=both(begun, put("out/study.json", text)),
        )
        for what, text in (
            ("is cut", '{"jobs": [{"i'),
            ("is a list", "[]"),
            ("has other jobs", '{"jobs": [1]}'),
        )
    ),
    case(
        "study",
        "--dry_run, a results.json has other rows",
        "results.json: is damaged",
        lay=done,
        argv=f"{GRID} --dry_run",
    ),
]
REPORTS = [
    case("report", "a directory that is not a study", "…", "study.json is missing", argv="…"),
    case(
        "report",
        "a study.json that is a directory",
        "study.json is missing",
        argv="…",
        lay=put("study.json/x", ""),
    ),
    *(
        case(
            "report",
            f"study.json: {what}",
            "…/study.json",
            "again",
            lay=put("study.json", text),
            argv="…",
        )
        for what, text in (
            ("cut", "{"),
            ("a list", "[]"),
            ("without keys", '{"name": 1}'),
            ("not UTF-8", b"\xff"),
            *((what, json.dumps({**PLAN, **wrong})) for what, wrong in WRONG_PLANS.items()),
        )
    ),
    case(
        "report",
        "a study.json that is a FIFO",
        "study.json is missing",
        argv="…",
        lay=lambda here, made: os.mkfifo(here / "study.json"),
    ),
    *(
        case(
            "report",
            f"results.json: {what}",
            "results.json",
            "again",
            lay=reported(text),
            argv="…/study",
        )
        for what, text in (
            ("cut", "[{"),
            ("an object", "{}"),
            ("other rows", "[1]"),
            ("a score of words", json.dumps([{**RESULTS[0], "eval": {"accuracy": "high"}}])),
            ("a score of 400 digits", json.dumps([{**RESULTS[0], "eval": {"accuracy": 10**400}}])),
            ("an infinite score", json.dumps([{**RESULTS[0], "eval": {"accuracy": float("inf")}}])),
            ("an invalid round", json.dumps([{**RESULTS[0], "round": 10**20}])),
            ("deep JSON", "[" * 10**5),
        )
    ),
    case(
        "report",
        "a damaged ticket",
        "jobs/j/rounds/01/ticket.safetensors",
        argv="…/study",
        lay=reported(json.dumps(RESULTS), **{"rounds/01/ticket.safetensors": "no"}),
    ),
    case(
        "report",
        "--save /dev/null/x …",
        "--save /dev/null/x: cannot be written",
        "another",
        argv="--report_to none --save /dev/null/x …/study",
        lay=reported(json.dumps(RESULTS)),
    ),
    case(
        "report",
        "--save STUDY/study.json STUDY",
        "/study.json: exists and was not written by --save",
        "delete it",
        argv="--report_to none --save …/study/study.json …/study",
        lay=reported(json.dumps(RESULTS)),
    ),
    case(
        "report",
        "--output_dir /dev/null/x …",
        "another",
        argv="--output_dir /dev/null/x …/study",
        lay=reported(json.dumps(RESULTS)),
    ),
]


def exported(change: Callable[[Path], object]) -> Lay:
    """Lay a compact export of the search as …/out, with one thing wrong."""

    def lay(here: Path, made: Path) -> None:
        shutil.copytree(made / "export", here / "out")
        change(here / "out")

    return lay


def flip(name: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)

    return change


def another_weight(here: Path, made: Path) -> None:
    damage("search", "x", None, unfinished=False)(here, made)
    path = here / "out/rounds/03/model/model.safetensors"
    weights = load_file(path)
    weights[f"bert.{FIRST}"][:] = 1.0
    save_file(weights, path, {"format": "pt"})


def of_class(name: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "architectures": [name]}))

    return change


def without(name: str) -> Lay:
    def lay(here: Path, made: Path) -> None:
        damage("search", "x", None, unfinished=False)(here, made)
        shutil.rmtree(here / "out" / name)

    return lay


TO = "--format compact --output_dir …/new"
EXPORTS = [
    case("export", "--format gguf --output_dir new .", "csr"),
    case("export", "no RUN_OR_CHECKPOINT", argv=TO),
    case("export", "no --format", "--format", argv=". --output_dir …/new"),
    case("export", "no --output_dir", "--output_dir", argv=". --format csr"),
    case("export", "--dtype float64 --format csr --output_dir new .", "float16"),
    *(
        case(
            "export",
            f"--dtype {dtype} --format {kind} --output_dir new .",
            f"--format {kind}",
            named,
        )
        for dtype, kind, named in (
            ("float16", "csr", "float32"),
            ("int8", "compact", "float16"),
            ("float32", "2:4", "bfloat16"),
            ("int8", "onnx", "float32"),
        )
    ),
    case(
        "export",
        "a directory that is not there",
        "/no/such/place",
        "--output_dir",
        argv=f"/no/such/place {TO}",
    ),
    case(
        "export",
        "a model that is not in the cache",
        "no/thing",
        "check the network",
        argv=f"no/thing {TO}",
    ),
    case(
        "export", "a directory without a model", "…: no model there", "config.json", argv=f"… {TO}"
    ),
    case(
        "export",
        "a transfer",
        "keeps its network",
        "lth_scale.imp",
        argv=f"…/out {TO}",
        lay=damage("transfer", "x", None, unfinished=False),
    ),
    case(
        "export",
        "a seed of a transfer",
        "keeps its network",
        "lth_scale.imp",
        argv=f"…/out/seeds/42 {TO}",
        lay=damage("transfer", "x", None, unfinished=False),
    ),
    case(
        "export",
        "a search without a network",
        "no complete round with its network",
        argv=f"…/out {TO}",
        lay=without("rounds/03/model"),
    ),
    case(
        "export",
        "a round whose network was not kept",
        "…/out/rounds/01",
        "no network",
        argv=f"…/out/rounds/01 {TO}",
        lay=damage("search", "x", None, unfinished=False),
    ),
    *(
        case(
            "export",
            f"a search: {file} {what}",
            file,
            "damaged",
            argv=f"…/out {TO}",
            lay=damage("search", file, content, unfinished=False),
        )
        for file, what, content in (
            ("arguments.json", "is cut", 9),
            ("rounds/03/ticket.safetensors", "is cut", 900),
            ("rounds/03/ticket.safetensors", "is gone", None),
            ("rounds/03/model/model.safetensors", "is cut", 900),
        )
    ),
    case(
        "export",
        "a search: weights that its ticket prunes",
        FIRST,
        "is not zero",
        argv=f"…/out {TO}",
        lay=another_weight,
    ),
    *(
        case(
            "export",
            f"a model directory: {what}",
            "…/model",
            *named,
            argv=f"…/model {TO}",
            lay=model(change),
        )
        for what, change, *named in (
            ("no weights", lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
            ("a pickle instead of safetensors", only_a_pickle, "model.safetensors"),
            (
                "an index that leads elsewhere",
                lambda d: (
                    only_a_pickle(d),
                    (d / "model.safetensors.index.json").write_text(
                        '{"metadata": {}, "weight_map": {"x": "../x.bin"}}'
                    ),
                ),
                "../x.bin",
            ),
            ("config.json is invalid JSON", lambda d: (d / "config.json").write_text("{")),
            ("a layer is missing", drop_layer, "lacks", "layer.1.output.dense"),
            (
                "NaN in a weight",
                poison,
                "values of bert.encoder.layer.1.intermediate.dense.bias are NaN",
            ),
            ("fewer layers than its weights", configured(num_hidden_layers=1), "encoder.layer.1"),
            (
                "a tokenizer that is cut",
                lambda d: os.truncate(d / "tokenizer.json", 99),
                "tokenizer",
            ),
        )
    ),
    *(
        case(
            "export",
            f"a model directory of the class {name}",
            name,
            argv=f"…/model {TO}",
            lay=model(of_class(name)),
        )
        for name in ("EvilModel", "Trainer", "RobertaModel")
    ),
    case(
        "export",
        "--output_dir with something else",
        "--output_dir …/out",
        "another directory",
        argv="MODEL --format csr --output_dir …/out",
        lay=put("out/mine", "precious"),
    ),
    case(
        "export",
        "--output_dir that is a file",
        "--output_dir …/out",
        "another directory",
        argv="MODEL --format csr --output_dir …/out",
        lay=put("out", "precious"),
    ),
    *(
        case(
            "export",
            f"--output_dir with another export: {flags}",
            "--output_dir …/out",
            "holds another export",
            argv=f"MODEL {flags} --output_dir …/out",
            lay=exported(lambda d: None),
        )
        for flags in ("--format csr", "--format compact --dtype float16")
    ),
    case(
        "export",
        "--output_dir with an export of another network",
        "--output_dir …/out",
        "another network",
        argv="MODEL --format compact --output_dir …/out",
        lay=exported(lambda d: None),
    ),
    *(
        case(
            "export",
            f"--output_dir {where}",
            "another",
            argv=f"MODEL --format csr --output_dir {where}",
        )
        for where in ("/proc/no/x", "/dev/null/x")
    ),
    case(
        "export",
        "--output_dir of 300 letters",
        "--output_dir",
        "too long",
        argv=f"MODEL --format csr --output_dir {'n' * 300}",
    ),
    *(
        case(
            "export",
            f"an export: {what}",
            f"…/out/{file}",
            *named,
            argv=f"…/out {TO}",
            lay=exported(change),
        )
        for what, file, change, *named in (
            *(
                (f"a bit of {name} changed", name, flip(name), "again")
                for name in ("compact.safetensors", "config.json", "tokenizer.json")
            ),
            (
                "another kind in export.json",
                "export.json",
                lambda d: (d / "export.json").write_text(
                    (d / "export.json").read_text().replace('"kind": "compact"', '"kind": "dense"')
                ),
                "sha256",
            ),
            (
                "a cut file",
                "compact.safetensors",
                lambda d: os.truncate(d / "compact.safetensors", 999),
                "altered",
            ),
            (
                "a lost file",
                "compact.safetensors",
                lambda d: (d / "compact.safetensors").unlink(),
                "missing",
            ),
            (
                "export.json is a list",
                "export.json",
                lambda d: (d / "export.json").write_text("[]"),
                "lth_scale.export/1",
            ),
            (
                "export.json is deep",
                "export.json",
                lambda d: (d / "export.json").write_text("[" * 10**5),
            ),
        )
    ),
    case(
        "export",
        "--format 2:4 of another pattern",
        "--format 2:4",
        FIRST,
        "--pattern 2:4",
        argv="MODEL --format 2:4 --output_dir …/new",
    ),
]
SPEED = [
    case("speed", "no TARGETS", argv=""),
    case(
        "speed", "a run that is not there", "/no/such/run", "save_pretrained", argv="/no/such/run"
    ),
    *(
        case("speed", f"{flags} MODEL", *named, argv=f"MODEL {flags}")
        for flags, *named in (
            ("--batch_size 0", "1 or more"),
            ("--batch_size 1 -4", "--batch_size -4"),
            ("--sequence_length 1", "2 or more"),
            ("--sequence_length 9999", "64 tokens at most"),
            ("--threads 0", "1 to"),
            ("--threads 4096", "1 to"),
            ("--repeats 3", "4 or more"),
            ("--warmup 0", "1 or more"),
            ("--seed -1", "from 0 to 4294967295"),
            ("--max_eval_samples 0", "1 or more"),
            ("--batch_size 1048577", "at most 1,048,576"),
            (f"--repeats {LONG}", "at most 1,000,000"),
            ("--backends fastest", "csr"),
            ("--device tpu", "cuda"),
            ("--device cuda", "--device cpu", "GPU"),
            ("--task sst3", "sst2"),
            ("--report_to paper", "mlflow"),
            ("--dataset_path /no/data", "validation.jsonl"),
            ("--dataset_path embedded", "--task"),
            ("--output_dir /proc/nothing", "another"),
            ("--repeat 5", "--help"),
        )
    ),
    case(
        "speed",
        "--task sst2 of a network for words",
        "--task sst2",
        "ForMaskedLM",
        argv="MODEL --task sst2 --dataset_path embedded",
    ),
    case(
        "speed",
        "--output_dir that is a file",
        "--output_dir",
        "cannot be written",
        argv="MODEL --output_dir …/file",
        lay=put("file", "precious"),
    ),
]
PUSHES = [
    case("hub", "no verb", "COMMAND", argv=""),
    case("hub", "no RUN", "RUN", argv="push"),
    case(
        "hub",
        "a run that is not there",
        "/no/such/run",
        "save_pretrained",
        argv="push /no/such/run --dry_run",
    ),
    case("hub", "a model without a ticket", "MODEL", "lth_scale.imp", argv="push MODEL --dry_run"),
    case(
        "hub",
        "a transfer without its network",
        "--keep_network",
        argv="push …/out --dry_run",
        lay=damage("transfer", "x", None, unfinished=False),
    ),
    *(
        case(
            "hub",
            f"--hub_model_id {name}",
            f"--hub_model_id {name}",
            "user/name",
            argv=f"push …/out --dry_run --hub_model_id {name}",
            lay=damage("search", "x", None, unfinished=False),
        )
        for name in ("a/b/c", "a/--b", "../b", "a/é")
    ),
    case(
        "hub",
        "push without a token",
        "--hub_model_id a/b",
        "HF_TOKEN",
        argv="push …/out --hub_model_id a/b",
        lay=damage("search", "x", None, unfinished=False),
    ),
    case("hub", "pull of no name", "a/b/c", "user/name", argv="pull a/b/c"),
    case(
        "hub",
        "pull with HF_HUB_OFFLINE",
        "a/b",
        "HF_HUB_OFFLINE",
        argv="pull a/b --output_dir …/new",
    ),
    case(
        "hub", "pull --revision ../x", "--revision ../x", "commit", argv="pull a/b --revision ../x"
    ),
    case(
        "hub",
        "pull onto other files",
        "--output_dir …/out",
        "use another",
        argv="pull a/b --output_dir …/out",
        lay=put("out/mine", "precious"),
    ),
    case(
        "imp",
        "--push_to_hub --hub_model_id a/b/c",
        "--hub_model_id a/b/c",
        "user/name",
        argv="--push_to_hub --hub_model_id a/b/c",
    ),
    case(
        "imp",
        "--push_to_hub without a token",
        "--hub_model_id a/b",
        "HF_TOKEN",
        argv="--push_to_hub --hub_model_id a/b",
    ),
]
OTHERS = [
    *(
        case(command, f"{name} with nothing", name, "empty value", argv=f"{words} {name}=", lay=lay)
        for command, name, words, lay in (
            ("imp", "--output_dir", "", NOTHING),
            ("transfer", "--output_dir", "", NOTHING),
            ("imp", "--ticket", "", NOTHING),
            ("study", "--output_dir", GRID, study()),
            ("report", "--output_dir", "…", NOTHING),
            ("report", "--save", "…", NOTHING),
            ("export", "--output_dir", ". --format csr", NOTHING),
            ("speed", "--output_dir", "MODEL", NOTHING),
            ("hub", "--output_dir", "pull a/b", NOTHING),
            ("ticket", "--output", "… --union …", NOTHING),
        )
    ),
    case(
        "study",
        "--output_dir with jobs from elsewhere",
        "--output_dir …/out: holds jobs",
        "another",
        argv=f"{GRID} --output_dir …/out",
        lay=both(study(), put("out/jobs/mine", "precious")),
    ),
    case(
        "report",
        "--output_dir with a page from elsewhere",
        "--output_dir …/out",
        "report.md already exists",
        argv="…/study --report_to none --output_dir …/out",
        lay=both(reported(json.dumps(RESULTS)), put("out/report.md", "precious")),
    ),
    case(
        "speed",
        "--output_dir with a check from elsewhere",
        "--output_dir …/out",
        "speed.json already exists",
        argv="MODEL --output_dir …/out",
        lay=put("out/speed.json", "precious"),
    ),
    case(
        "imp",
        "--output_dir with arguments.json from elsewhere",
        "holds arguments.json",
        "another",
        lay=put("out/arguments.json", '{"task": "sst2"}'),
    ),
    *(
        case(
            "imp",
            f"resumed: {name} is a link",
            f"--output_dir …/out: {name} is a link",
            lay=both(
                damage("search", "x", None),
                lambda here, made, name=name: behind_a_link(here / "out" / name),
            ),
        )
        for name in ("rounds", "figures", "rounds/01")
    ),
    *(
        case(
            "imp",
            f"resumed: .lock {what}",
            "--output_dir …/out: .lock was not",
            "move it away",
            lay=both(
                damage("search", "x", None), lambda here, made: (here / "out/.lock").unlink(), lay
            ),
        )
        for what, lay in (
            ("is a pipe", as_pipe("out/.lock")),
            ("is a directory", put("out/.lock/x", "")),
            ("is from elsewhere", put("out/.lock", b"\xff mine")),
            ("is a link", link("out/.lock", "gone")),
        )
    ),
    *(
        case(
            "study",
            f"a job's {ending} is {what}",
            f"…/out/jobs/search-sst2-seed1{ending}",
            "move it away",
            argv=f"{GRID} --output_dir …/out",
            lay=both(
                study(),
                put("out/study.json", json.dumps({**PLAN, "jobs": []})),
                put("out/jobs/x", ""),
                lay(f"out/jobs/search-sst2-seed1{ending}"),
            ),
        )
        for ending in (".lock", ".log")
        for what, lay in (
            ("a pipe", as_pipe),
            ("a directory", lambda name: put(f"{name}/x", "")),
            ("a link", lambda name: link(name, "thesis")),
        )
    ),
    case(
        "study",
        "--output_dir with study.json from elsewhere",
        "--output_dir …/out",
        "study.json is damaged",
        argv=f"{GRID} --output_dir …/out",
        lay=both(study(), put("out/study.json", '{"jobs": []}')),
    ),
    case(
        "study",
        "seeds given twice in a list",
        "seeds: 1 is given twice",
        "remove one",
        argv=GRID,
        lay=study(dict(seeds=[1, 1])),
    ),
    case(
        "report",
        "--output_dir with a list from elsewhere",
        "--output_dir …/out",
        ".files already exists",
        argv="…/study --report_to none --output_dir …/out",
        lay=both(reported(json.dumps(RESULTS)), put("out/.files", '["report.md"]')),
    ),
    case(
        "report",
        "--output_dir with a pipe for a list",
        "--output_dir …/out",
        ".files already exists",
        argv="…/study --report_to none --output_dir …/out",
        lay=both(reported(json.dumps(RESULTS)), as_pipe("out/.files")),
    ),
    case(
        "report",
        "--save onto a link to nothing",
        "…/dangling: exists",
        "another",
        argv="…/study --report_to none --save …/dangling",
        lay=both(reported(json.dumps(RESULTS)), link("dangling", "gone")),
    ),
    case(
        "hub",
        "push of a run with another hub.json",
        "…/out/hub.json",
        "not written by a push",
        argv="push …/out --dry_run",
        lay=both(damage("search", "x", None, unfinished=False), put("out/hub.json", "{}")),
    ),
]
NAMES = [
    *(
        case(command, f"{what} that is not UTF-8", "…/\\xff", "is not UTF-8", argv=argv)
        for command, what, argv in (
            ("imp", "--output_dir", "--output_dir …/\udcff"),
            ("imp", "--dataset_path", "--dataset_path=…/\udcff"),
            ("transfer", "--ticket", "--ticket …/\udcff"),
            ("ticket", "a path", "…/\udcff"),
            ("study", "a path", "…/\udcff"),
            ("report", "a path", "…/\udcff"),
            ("speed", "a path", "…/\udcff"),
            ("export", "a path", "…/\udcff --format csr --output_dir …/new"),
            ("hub", "a path", "push …/\udcff"),
        )
    )
]
HUB = [  # what the Hub answers, by the name of the model
    case(
        "imp",
        "the Hub: model refused (401)",
        "--model_name_or_path a/401",
        "gated",
        argv="--model_name_or_path a/401",
    ),
    case(
        "imp",
        "the Hub: no such model (404)",
        "--model_name_or_path a/404",
        "not a local folder",
        argv="--model_name_or_path a/404",
    ),
    case(
        "imp",
        "the Hub: error (500)",
        "--model_name_or_path a/500",
        argv="--model_name_or_path a/500",
    ),
    case(
        "imp",
        "the Hub: invalid JSON",
        "--model_name_or_path a/200",
        argv="--model_name_or_path a/200",
    ),
    case(
        "imp",
        "the Hub: no dataset (404)",
        "dataset nyu-mll/glue",
        argv="",
        without=("dataset_path",),
    ),
]
CASES = [
    *FLAGS,
    *DATA,
    *OWN_DATA,
    *MODELS,
    *TICKETS,
    *RUNS,
    *STUDIES,
    *REPORTS,
    *EXPORTS,
    *SPEED,
    *PUSHES,
    *OTHERS,
    *NAMES,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_bert, sst2_data):
    """A finished search and a finished transfer, as the flags of `small` make them."""
    from lth_scale import imp, transfer

    directory = tmp_path_factory.mktemp("made")
    text = (
        "--per_device_train_batch_size 8 --max_steps 4 --max_seq_length 32 --learning_rate 0.01"
        " --report_to none"
    )
    common = [
        *f"--task sst2 --model_name_or_path {tiny_bert} --dataset_path {sst2_data}".split(),
        *text.split(),
    ]
    AcceleratorState._reset_state(reset_partial_state=True)
    imp.run(parse([*common, "--output_dir", f"{directory}/search", "--target_sparsity", "0.3"]))
    AcceleratorState._reset_state(reset_partial_state=True)
    transfer.run(parse([*common, "--output_dir", f"{directory}/transfer"], Transfer))
    export(str(directory / "search"), "compact", directory / "export")
    return directory


@pytest.fixture
def refused(small, made, tiny_bert, sst2_data, capsys, monkeypatch, tmp_path):
    """Run a case in this process, check that it wrote nothing, and return its message."""

    def go(given: Case) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        given.lay(tmp_path, made)
        capsys.readouterr()
        before = snapshot(tmp_path)
        monkeypatch.chdir(tmp_path)
        argv = [
            str(tiny_bert) if part == "MODEL" else part for part in argv_of(given, small, tmp_path)
        ]
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        with pytest.raises(SystemExit) as stop:
            exit_on_bad_input(importlib.import_module(f"lth_scale.{given.command}").main)
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "", err
        assert snapshot(tmp_path) == before
        return check(given, err, {tmp_path: "…", tiny_bert: "MODEL", sst2_data: "DATA"})

    return go


def argv_of(given: Case, small, here: Path) -> list[str]:
    base = small(**dict.fromkeys(given.without)) if given.command in ("imp", "transfer") else []
    return [*base, *(part.replace("…", str(here), 1) for part in shlex.split(given.argv))]


def snapshot(directory) -> dict:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


UNSTABLE = [  # words of Python and of libraries, which come in other versions too
    (r"\(choose from [^)]*\)", "(choose from …)"),
    (r"n{99,}", "nnn…"),
    (r"(1234567890){9,}", "1234567890…"),
    (r"1 to \d+, the cores", "1 to N, the cores"),
    (r"\[Errno \d+\] ", ""),
    (r"(cannot be loaded|read as YAML|(?:had|downloaded) from the Hub) \(.*\); ", r"\1 (…); "),
    (r"(Error while deserializing header): [a-z ]+", r"\1"),
    (r"(recursion depth exceeded)[a-z JSON]*", r"\1"),
    (r"threshold 0\.\d+", "threshold 0.…"),
]


def check(given: Case, err: str, places: dict[Path, str]) -> str:
    """Assert that a message is one line that names what it must; record its row; return it."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for path, name in places.items():
        err = err.replace(str(path), name)
    said = err.removeprefix("error: ").strip()
    assert all(word in said for word in given.named), said
    for pattern, short in UNSTABLE:
        said = re.sub(pattern, short, said)
    wrong = (
        f"`{given.given}`" if given.given == given.argv or given.given[0] == "{" else given.given
    )
    wrong = wrong.replace(LONG, "1234567890…")
    SAID[str(given)] = "| {} | {} | `{}` |\n".format(
        given.command, *(text.replace("|", "\\|") for text in (wrong, said.replace("`", "'")))
    )
    return said


@pytest.mark.parametrize("given", CASES, ids=lambda given: str(given)[:60])
def test_bad_input_is_refused_in_one_line_that_names_it_and_nothing_is_written(given, refused):
    if torch.cuda.is_available() and {"GPU", "CUDA GPU"} & {*given.named}:
        pytest.skip("is no bad input here")
    refused(given)


def test_leftovers_of_a_killed_run_are_not_reported_as_damage(search, tmp_path):
    out = search()
    (out / "complete").unlink()
    (out / "rounds/03/complete").unlink()
    mark = directories.CONTENT.fullmatch((out / ".lock").read_text())[2]
    put(f"out/rounds/03/.metrics.json.{mark}.tmp", "{")(tmp_path, tmp_path)
    put(f"out/.theta.safetensors.{mark}.tmp", "{")(tmp_path, tmp_path)
    search()
    assert (out / "complete").is_file() and not list(out.rglob("*.tmp"))


PROCESSES = {
    "imp": "--task sst2 --target_sparsity 1.2",
    "transfer": "--task sst2 --theta /no/theta",
    "study": "/no/study.yaml",
    "report": "/no/study",
    "ticket": "/no/ticket",
    "export": "/no/model --format csr --output_dir /no/new",
    "speed": "/no/model",
    "hub": "push /no/run",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_input_is_refused_within_5_cpu_seconds(name, command):
    before = cpu_of_children()
    done = command(f"lth_scale.{name}", *PROCESSES[name].split())
    assert cpu_of_children() - before < 5
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class FakeHub(BaseHTTPRequestHandler):
    """Answers 401, 404, 500 or 200 with a page, as the path says; anything else is not there."""

    def do_GET(self) -> None:
        code = next((code for code in (200, 401, 404, 500) if f"a/{code}" in self.path), 404)
        self.send_response(code)
        self.send_header("X-Error-Code", {401: "GatedRepo", 404: "RepoNotFound"}.get(code, ""))
        self.end_headers()
        self.wfile.write(b"<html>not what was asked for</html>")

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


SEVERAL = """
import json, sys
import datasets, huggingface_hub.constants as hub
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale import imp
for argv in json.loads(sys.argv.pop()):
    sys.argv[1:], hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = argv, False, False
    try:
        exit_on_bad_input(imp.main)
    except SystemExit as stop:
        assert stop.code == 2
"""


def test_a_failed_download_from_the_hub_is_reported_in_one_line(
    small, tmp_path, tiny_bert, sst2_data
):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    flags = json.dumps([argv_of(given, small, tmp_path) for given in HUB])
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, flags],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **hub, "HF_HOME": str(tmp_path / "hub")},
    )
    server.shutdown()
    assert done.returncode == 0 and done.stdout == "" and done.stderr.count("\n") == len(HUB), (
        done.stderr
    )
    for given, line in zip(HUB, done.stderr.splitlines(keepends=True), strict=True):
        check(given, line, {Path(hub["HF_ENDPOINT"]): "HUB", tmp_path: "…"})
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_default_model_error_names_the_alternatives(command, tmp_path):
    done = command("lth_scale.imp", "--task", "mlm", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for way in (
        "google-bert/bert-base-uncased",
        "--preset demo",
        "--model_name_or_path DIR",
        "--dataset_path DIR",
    ):
        assert way in done.stderr


@pytest.mark.parametrize(("module", "kind"), [("imp", "Arguments"), ("transfer", "Transfer")])
def test_help_describes_every_flag(module, kind, command):
    from dataclasses import fields

    from lth_scale.config import arguments

    shown = " ".join(command(f"lth_scale.{module}", "--help").stdout.split())
    assert all(
        f"--{spec.name}" in shown and spec.metadata["flag"].help[:20] in shown
        for spec in fields(getattr(arguments, kind))
    )


def test_the_table_in_the_docs_holds_the_actual_messages():
    everything = [str(given) for given in (*CASES, *HUB)]
    assert len(everything) == len({*everything}) >= 80
    if missing := {*everything} - SAID.keys():
        pytest.skip(f"{len(missing)} cases did not run")
    rows = "| command | what is given | what it says, after `error:` |\n| --- | --- | --- |\n"
    table = rows + "".join(SAID[each] for each in everything)
    before, rest = DOCS.read_text().split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("UPDATE_DOCS"):
        DOCS.write_text(f"{before}{BEGIN}{table}{END}{after}")
    else:
        assert found == table, "UPDATE_DOCS=1 ./run test -n 0 tests/test_bad_input.py rewrites it"
