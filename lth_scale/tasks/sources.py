"""The user's own data: raw rows of each split, with all columns and the place of each row."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy
from datasets import Dataset, DatasetDict

from lth_scale.config import files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief, first_line
from lth_scale.tasks import data
from lth_scale.tasks.locations import own_files
from lth_scale.tasks.tables import looks_like_data, read_table

FORMAT = 1  # of the cached tables; another one is read from the file again
MOST_SHOWN = 12  # names of columns in a message
Strata = Callable[["Source"], Sequence[Hashable]]
Prepare = Callable[["Source"], "Source"]


@dataclass(frozen=True)
class Source:
    """Raw rows of one split, in the order of the file, with all its columns.

    name: the flag and the file, or the dataset on the Hub, for messages. numbers: int64 (rows,),
    the number of each row in that file, from 1; None if these are all of its rows.
    """

    rows: Dataset
    name: str
    numbers: numpy.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, row: int) -> int:
        """The number in the file, from 1, of the row with this index."""
        return row + 1 if self.numbers is None else int(self.numbers[row])

    def select(self, indices: Sequence[int] | numpy.ndarray) -> "Source":
        """The rows with these indices, in this order."""
        numbers = numpy.arange(1, len(self) + 1) if self.numbers is None else self.numbers
        chosen = numpy.asarray(indices, dtype=numpy.int64)
        return Source(self.rows.select(chosen), self.name, numbers[chosen])

    def bad(self, row: int, column: str, problem: str) -> BadInput:
        """The error of a value; row: its index. problem: what is wrong, and the remedy after ;"""
        return BadInput(f"{self.name}: column {column!r}, row {self.number(row)}: {problem}")

    def require(self, columns: Sequence[str], flag: str) -> None:
        """Raise BadInput unless the rows have these columns, which `flag` names."""
        for column in columns:
            if column not in self.rows.column_names:
                raise BadInput(
                    f"--{flag} {','.join(columns)}: {self.name} has no column {column!r}, only "
                    f"{self.column_list()}; name one of these{self.header_hint()}"
                )

    def column_list(self) -> str:
        """The names of the columns, for a message."""
        names = self.rows.column_names
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        return ", ".join(brief(repr(name), 60) for name in names[:MOST_SHOWN]) + more

    def header_hint(self) -> str:
        """What to add to a message about columns if the first row is probably not a header."""
        if not looks_like_data(self.rows.column_names):
            return ""
        return (
            " (they look like a row of data: is the first row, with the columns' names, missing?)"
        )


def as_they_are(source: Source) -> Source:
    """The source: its rows are those of the task."""
    return source


def load_sources(
    args: Training, strata: Strata | None = None, prepare: Prepare = as_they_are
) -> dict[str, Source]:
    """Load the rows of `train`, `validation` and, if there is one, `test`.

    strata: classes of the training rows that --validation_split_percentage keeps in proportion.
    prepare: makes rows of those of a file, such as sentences of lines, before all else.
    --shuffle_train_dataset applies; --max_train_samples and --max_eval_samples are those of
    `limit_sources`. The same on every rank and at every start. Raises BadInput.
    """
    sources = _hub_sources(args) if args.dataset_name else {}
    for split, path in own_files(args).items():
        sources[split] = prepare(_file_source(args, split, path))
    if "train" not in sources:
        raise BadInput(
            f"--dataset_path {args.dataset_path}: train.* is missing; add it, such as train.csv"
        )
    if "validation" not in sources:
        sources |= _split_off(args, sources["train"], strata)
    if args.shuffle_train_dataset:
        order = numpy.random.default_rng(args.seed).permutation(len(sources["train"]))
        sources["train"] = sources["train"].select(order)
    return sources


def limit_sources(args: Training, sources: dict[str, Source]) -> dict[str, Source]:
    """The sources with the rows that --max_train_samples and --max_eval_samples leave."""
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    counts = {
        split: min(limits.get(split) or len(rows), len(rows)) for split, rows in sources.items()
    }
    return {split: source.select(range(counts[split])) for split, source in sources.items()}


def _file_source(args: Training, split: str, path: Path) -> Source:
    flag = "dataset_path" if args.dataset_path else f"{split}_file"
    try:
        digest = files.sha256(path)
    except OSError as error:
        raise BadInput(f"--{flag} {path}: {error.strerror}; use a readable file") from None
    key = data.fingerprint("table", FORMAT, path.name, digest)
    return Source(data.materialize_table(lambda: read_table(path, flag), key), f"--{flag} {path}")


def _hub_sources(args: Training) -> dict[str, Source]:
    """`train` and, if there is one, `validation` of --dataset_name."""
    name = str(args.dataset_name)
    flag = f"--dataset_name {name}"
    if Path(name).is_dir():
        splits = _saved_splits(flag, name)
    else:
        splits = data.load_hub(name, args.dataset_config_name)
    if "train" not in splits:
        raise BadInput(
            f"{flag}: no split 'train', only {', '.join(map(repr, splits))}; use another dataset"
        )
    kept = [split for split in ("train", "validation") if split in splits]
    return {split: Source(splits[split], f"{flag}, {split}") for split in kept}


def _saved_splits(flag: str, directory: str) -> DatasetDict:
    """The splits of a directory of save_to_disk. Raises BadInput."""
    try:
        saved = datasets.load_from_disk(directory)
    except Exception as error:  # a damaged directory raises many kinds
        raise BadInput(
            f"{flag}: cannot be loaded as a directory of save_to_disk ({first_line(error)}); use "
            "one, or --dataset_path or --train_file for other files"
        ) from None
    return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)


def _split_off(args: Training, train: Source, strata: Strata | None) -> dict[str, Source]:
    """Part of the training rows as validation rows: --validation_split_percentage of each class.

    Each class keeps a training row. Raises BadInput without the flag, and if no row is left.
    """
    percentage = args.validation_split_percentage
    if percentage is None:
        raise BadInput(
            f"{train.name}: no validation rows; specify --validation_file, or "
            "--validation_split_percentage such as 10"
        )
    classes = strata(train) if strata else [0] * len(train)
    held_out = split_rows(classes, percentage, args.seed)
    if not held_out.any():
        raise BadInput(
            f"--validation_split_percentage {percentage}: none of the {len(train)} rows of "
            f"{train.name}; use a larger percentage, or more rows"
        )
    return {
        "train": train.select(numpy.flatnonzero(~held_out)),
        "validation": train.select(numpy.flatnonzero(held_out)),
    }


def split_rows(classes: Sequence[Hashable], percentage: int, seed: int) -> numpy.ndarray:
    """Which rows are held out, bool (rows,): a percentage in all, and of each class.

    Rows are drawn at random by `seed`. Shares are rounded by largest remainder, and each class
    keeps one row at least.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes))}
    by_row = numpy.array([numbers[name] for name in classes])
    sizes = numpy.bincount(by_row)
    shares = sizes * percentage / 100
    counts = numpy.floor(shares).astype(int)
    missing = round(float(shares.sum())) - int(counts.sum())
    # Classes of one row stay in training, so they take no part in the rounding.
    for number in numpy.argsort(numpy.where(sizes > 1, counts - shares, 1), kind="stable")[
        :missing
    ]:
        counts[number] += 1
    counts = numpy.minimum(counts, sizes - 1)
    held_out = numpy.zeros(len(by_row), dtype=bool)
    order = numpy.random.default_rng(seed).permutation(len(by_row))
    for number, count in enumerate(counts):
        held_out[order[by_row[order] == number][:count]] = True
    return held_out
