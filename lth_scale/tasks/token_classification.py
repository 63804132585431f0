"""Token classification: a tag for each word, such as the entity that it belongs to (NER).

Words are aligned as in transformers' run_ner.py: the first piece of a word carries its tag.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy
import pyarrow
import torch
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.texts import brief
from lth_scale.distributed import compat
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.columns import ColumnKind, find_column
from lth_scale.tasks.conll import TAG_COLUMN, WORD_COLUMN, sentences
from lth_scale.tasks.entities import (
    OUTSIDE,
    Counts,
    count_entities,
    count_tags,
    find_entities,
    marks_entities,
)
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import check_labels, load_model, load_tokenizer
from lth_scale.tasks.metrics import is_constant
from lth_scale.tasks.rows import shown
from lth_scale.tasks.sources import Source, limit_sources, load_sources
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, Row, label_config
from lth_scale.tasks.trivial import Trivial, best_of

IGNORED = -100  # the label of a token that no word begins with
LOST = -1  # the prediction for a word that the network does not see,
UNSEEN = "?"  # and as text
OF_WORDS = ["tags", "seen"]  # columns that `align` adds
CANDIDATES = 8  # the most frequent tags, one of which is the best constant prediction

MOST_SHOWN = 5  # tags or kinds of entities in a message

STRINGS = ("string", "large_string")  # types of `datasets`
SENTENCE = {name: List(Value("string")) for name in (WORD_COLUMN, TAG_COLUMN)}

Tags = Sequence[Sequence[str]]  # of the words of each row


LISTS = "use JSON Lines, Parquet, or a .conll file with a word and its tag on each line"
WORDS = ColumnKind("lists of words", "text_column_name", ("tokens", "words"), LISTS)
TAGS = ColumnKind("lists of tags", "label_column_name", ("ner_tags", "tags", "labels"), LISTS)


@dataclass(kw_only=True)
class TokenTask(LoadedTask):
    """Tags of words.

    labels: the tags, by number. words: of the validation rows, `tags` (the number of each word's
    tag) and `seen` (whether the network sees the word). facts: what was taken from the data. test,
    test_words, test_labels: rows to predict, their `seen`, and their tags as text.
    """

    labels: tuple[str, ...]
    words: Dataset
    facts: Mapping[str, Any] = field(default_factory=dict)
    test: Dataset | None = None
    test_words: Dataset | None = None
    test_labels: Sequence[str] = ()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the n tagged words, and their fp32 logits (n, tags)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        tagged = batch["labels"] != IGNORED
        logits, labels = model(**inputs).logits[tagged].float(), batch["labels"][tagged]
        return F.cross_entropy(logits, labels, reduction="sum") / max(1, labels.numel()), logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """Of each word: whether it is its row's first, prediction, label and loss; (words, 4)."""
        tagged = batch["labels"] != IGNORED
        labels, number = batch["labels"][tagged], tagged.nonzero()[:, 0]
        logits = outputs.detach().float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        is_first = number.diff(prepend=number.new_tensor([-1])) != 0
        columns = (is_first, logits.argmax(-1), labels, losses)
        return torch.stack([column.double() for column in columns], dim=1).cpu().numpy()

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """The metrics of `tag_scores`, and the mean loss."""
        predicted, labels = self._named(rows)
        return {**tag_scores(predicted, labels, self._count), "loss": float(rows[:, 3].mean())}

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`prediction` and `label` of each word (int16), and counts of each row (int32).

        The prediction is −1 for a word that the network does not see. The counts are those of
        `Counts`; `words` are those seen. `length` is the number of all words of a row.
        """
        seen = self.words["seen"][:]
        counts = numpy.array([sum(row) for row in seen])
        table = in_word_order(table, counts, order)
        kept: dict[str, numpy.ndarray] = {
            "prediction": numpy.concatenate(predicted_numbers(table, seen)),
            "label": numpy.concatenate(self.words["tags"][:]).astype(numpy.int16),
            "length": numpy.array([*map(len, seen)], numpy.int32),
            **self._row_counts(table, counts),
        }
        return Predictions(kept, is_constant(table[:, 1].astype(int)))

    def answers(self, table: numpy.ndarray, order: numpy.ndarray) -> list[str]:
        """The tags of each test row, separated by spaces; `?` for a word that is not seen."""
        assert self.test_words is not None
        seen = self.test_words["seen"][:]
        table = in_word_order(table, numpy.array([sum(row) for row in seen]), order)
        names = [*self.labels, UNSEEN]  # LOST is the last
        return [" ".join(names[i] for i in row) for row in predicted_numbers(table, seen)]

    def _row_counts(self, table: numpy.ndarray, counts: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """The `Counts` of each row, zeros if it has no words; counts: the lines of each row."""
        of_rows = numpy.zeros((len(counts), len(Counts._fields)), numpy.int32)
        of_rows[counts > 0] = [*map(self._count, *self._named(table))]
        return {name: of_rows[:, i].copy() for i, name in enumerate(Counts._fields)}

    def trivial(self) -> Trivial:
        """The best constant tag, the most frequent one, and O."""
        numbers = zip(self.words["tags"][:], self.words["seen"][:], strict=True)
        rows = [[self.labels[t] for t, seen in zip(*row, strict=True) if seen] for row in numbers]
        return constant_tag_scores([row for row in rows if row], self._count)

    def _named(self, table: numpy.ndarray) -> tuple[Tags, Tags]:
        """The tags that are predicted and those that are right, of the words of each row."""
        starts = table[:, 0].nonzero()[0][1:]
        names = numpy.array(self.labels, dtype=object)
        predicted, labels = (
            [part.tolist() for part in numpy.split(names[table[:, i].astype(int)], starts)]
            for i in (1, 2)
        )
        return predicted, labels

    @property
    def _count(self) -> Callable[[Sequence[str], Sequence[str]], Counts]:
        return count_entities if marks_entities(self.labels) else count_tags


def in_word_order(
    table: numpy.ndarray, counts: numpy.ndarray, order: numpy.ndarray
) -> numpy.ndarray:
    """The lines of a table in the order of the rows and their words.

    counts: int (rows,), the lines of each row. order: as in `KeepsPredictions.predictions`.
    """
    return table[numpy.argsort(numpy.repeat(order, counts[order]), kind="stable")]


def predicted_numbers(table: numpy.ndarray, seen: Sequence[list[bool]]) -> list[numpy.ndarray]:
    """The tag that is predicted for each word of each row, int16; LOST if it is not seen.

    table: in the order of the words. seen: of each row, whether the network sees the word.
    """
    predicted = numpy.full(sum(map(len, seen)), LOST, numpy.int16)
    predicted[numpy.concatenate(seen).astype(bool)] = table[:, 1]
    return numpy.split(predicted, numpy.cumsum([*map(len, seen)])[:-1])


def tag_scores(
    predicted: Tags, labels: Tags, count: Callable[[Sequence[str], Sequence[str]], Counts]
) -> dict[str, float]:
    """F1 over all entities, precision, recall, and the accuracy over words, as seqeval's.

    Of tags that mark no entities, F1, precision and recall are those of all words whose tag is not
    O (the accuracy if there is no O), and `macro_f1` is the mean F1 of these tags. Undefined
    numbers are 0.
    """
    counts = Counts(*map(sum, zip(*map(count, predicted, labels), strict=True)))
    scores = {
        "f1": 2 * counts.hits / max(1, counts.found + counts.entities),
        "precision": counts.hits / max(1, counts.found),
        "recall": counts.hits / max(1, counts.entities),
        "accuracy": counts.correct / max(1, counts.words),
    }
    if count is count_tags:
        scores["macro_f1"] = _macro_f1(predicted, labels)
    return scores


def _macro_f1(predicted: Tags, labels: Tags) -> float:
    """The mean F1 of the tags that are predicted or right anywhere, without O."""
    ours, theirs = (Counter(tag for row in rows for tag in row) for rows in (predicted, labels))
    pairs = zip(predicted, labels, strict=True)
    hits = Counter(p for row in pairs for p, t in zip(*row, strict=True) if p == t)
    tags = (ours | theirs).keys() - {OUTSIDE}
    return sum(2 * hits[tag] / (ours[tag] + theirs[tag]) for tag in tags) / max(1, len(tags))


def constant_tag_scores(
    labels: Tags, count: Callable[[Sequence[str], Sequence[str]], Counts]
) -> Trivial:
    """Scores of giving every word the same tag: the best one, the most frequent one, and O."""
    frequent = Counter(tag for row in labels for tag in row)
    tags = sorted(frequent, key=lambda tag: (-frequent[tag], tag))[:CANDIDATES]
    by_tag = {
        tag: tag_scores([[tag] * len(row) for row in labels], labels, count)
        for tag in {*tags, OUTSIDE}
    }
    outside = {"outside": by_tag[OUTSIDE]} if OUTSIDE in frequent else {}
    return {"constant": best_of([*by_tag.values()]), "majority": by_tag[tags[0]], **outside}


class Tagging(NamedTuple):
    """Columns of words and of their tags, and the tags: as they are in the rows, and their names.

    The number of a tag is its position.
    """

    words: str
    tags: str
    values: tuple[Any, ...]
    names: tuple[str, ...]


def align(
    batch: dict, tokenizer: PreTrainedTokenizerBase, length: int, segments: bool, tagging: Tagging
) -> dict[str, Any]:
    """Encode words, truncated to `length` tokens; the first piece of each has its tag as label.

    Adds `tags` (the number of each word's) and `seen` (whether the word has a piece within the
    length). segments: whether the model takes token types.
    """
    encoded = tokenizer(
        batch[tagging.words],
        is_split_into_words=True,
        truncation=True,
        max_length=length,
        return_token_type_ids=None if segments else False,  # None: if the tokenizer has them
    )
    numbers = {value: number for number, value in enumerate(tagging.values)}
    rows = [[numbers[tag] for tag in tags] for tags in batch[tagging.tags]]
    words = [encoded.word_ids(i) for i in range(len(rows))]
    seen = [
        [word in present for word in range(len(tags))]
        for tags, present in zip(rows, map(set, words), strict=True)
    ]
    labels = [first_pieces(of_row, tags) for of_row, tags in zip(words, rows, strict=True)]
    return {**encoded, "labels": labels, "tags": rows, "seen": seen}


def first_pieces(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The label of each token, IGNORED unless it is the first of a word; words: of each token."""
    return [
        IGNORED if word is None or word == before else tags[word]
        for before, word in pairwise([None, *words])
    ]


def load_token_classification(args: Training) -> TokenTask:
    """Load a model that tags words, and the rows of the user's own data. Raises BadInput."""
    tokenizer = load_word_tokenizer(args)
    sources, tagging, test_labels = _load_rows(args)
    if args.keep_head:
        check_labels(args, tagging.names)
    config = label_config(tagging.names)
    loaded = load_model(args, AutoModelForTokenClassification, tokenizer, **config)
    inputs = agree_on_inputs(args, loaded.model, tokenizer)
    options = {"length": inputs.length, "segments": inputs.segments, "tagging": tagging}
    encoded = {
        split: data.encode(source.rows, align, tokenizer, **options)
        for split, source in sources.items()
    }
    for split, rows in encoded.items():
        check_lost_words(sources[split].name, rows, inputs.length)
    loaded.remark = "\n".join(filter(None, (loaded.remark, description(tagging, encoded["train"]))))
    inputs_of = {split: rows.remove_columns(OF_WORDS) for split, rows in encoded.items()}
    words_of = {split: rows.select_columns(OF_WORDS) for split, rows in encoded.items()}
    columns = {"text_columns": [tagging.words], "label_column": tagging.tags}
    return TokenTask(
        **vars(loaded),
        train=inputs_of["train"],
        validation=inputs_of["validation"],
        collator=DataCollatorForTokenClassification(
            tokenizer, inputs.padding, inputs.length, label_pad_token_id=IGNORED
        ),
        labels=tagging.names,
        words=words_of["validation"],
        facts={**columns, "labels": [*tagging.names]},
        test=inputs_of.get("test"),
        test_words=words_of.get("test"),
        test_labels=test_labels,
    )


def _load_rows(args: Training) -> tuple[dict[str, Source], Tagging, list[str]]:
    """The rows of each split, their columns, and the tags of the test rows as text."""
    sources = load_sources(args, prepare=as_sentences)
    tagging = find_tagging(args, sources["train"])
    for split in ("train", "validation"):
        check_rows(sources[split], tagging)
    sources, test_labels = limit_sources(args, sources), list[str]()
    check_tagged_words(sources["validation"], tagging)
    if "test" in sources:
        sources["test"], test_labels = untagged(sources["test"], tagging)
    warn_about_words(args, sources, tagging)
    return sources, tagging, test_labels


def load_word_tokenizer(args: Training) -> PreTrainedTokenizerBase:
    """Load a tokenizer that says which word a piece belongs to. Raises BadInput.

    Byte-level ones take each word as one that follows a space, as it does in their pre-training.
    """
    tokenizer = load_tokenizer(args)
    if not tokenizer.is_fast:
        raise BadInput(
            f"--task {args.task}: {type(tokenizer).__name__}, the tokenizer of "
            f"{args.model_name_or_path}, does not report the words of its tokens; use a model with "
            "a tokenizer.json, or another task"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if _add_spaces(state["pre_tokenizer"]):
        with_spaces = Tokenizer.from_str(json.dumps(state)).pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = with_spaces
        # What it is saved with, where its class takes it.
        tokenizer.init_kwargs["add_prefix_space"] = True
        if "add_prefix_space" in vars(tokenizer):
            vars(tokenizer)["add_prefix_space"] = True
    return tokenizer


def _add_spaces(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Set add_prefix_space in the state of a pre-tokenizer; returns whether that changes it."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    changed = [step for step in steps if step.get("add_prefix_space") is False]
    for step in changed:
        step["add_prefix_space"] = True
    return bool(changed)


def as_sentences(source: Source) -> Source:
    """CoNLL-like lines as rows of words and tags; any other rows as they are. Raises BadInput."""
    if source.rows.column_names != ["text"]:
        return source

    def rows() -> Iterator[Row]:
        try:
            yield from sentences(source.rows["text"])
        except ValueError as error:
            raise BadInput(f"{source.name}: {error}") from None

    key = data.fingerprint("sentences", compat.fingerprint(source.rows))
    return replace(source, rows=data.materialize(rows, key, Features(SENTENCE)))


def find_tagging(args: Training, source: Source) -> Tagging:
    """The columns of words and tags, and the tags of the training rows. Raises BadInput."""
    kinds = {
        name: getattr(feature.feature, "dtype", "")
        for name, feature in source.rows.features.items()
        if isinstance(feature, List | LargeList)
    }
    texts = [name for name, kind in kinds.items() if kind in STRINGS]
    words = find_column(source, WORDS, texts, args.text_column_name)
    tagged = [n for n, kind in kinds.items() if n != words and (kind in STRINGS or "int" in kind)]
    tags = find_column(source, TAGS, tagged, args.label_column_name)
    if isinstance(names := source.rows.features[tags].feature, ClassLabel):
        return Tagging(words, tags, (*range(names.num_classes),), (*names.names,))
    values = sorted({tag for row in source.rows[tags] for tag in row or ()} - {None, ""})
    if len(values) < 2:
        known = f"only the tag {values[0]!r}" if values else "no tags"
        raise BadInput(f"{source.name}: column {tags!r} has {known}; use data with two or more")
    return Tagging(words, tags, (*values,), (*map(str, values),))


def check_rows(source: Source, tagging: Tagging) -> None:
    """Raise BadInput for a row without words, or whose tags are missing or unknown."""
    for column, kind in ((tagging.words, WORDS), (tagging.tags, TAGS)):
        source.require([column], kind.flag)
        if not isinstance(source.rows.features[column], List | LargeList):
            raise BadInput(
                f"{source.name}: column {column!r} does not hold {kind.content}; {kind.remedy}"
            )
    row = 0
    for batch in source.rows.select_columns([tagging.words, tagging.tags]).iter(1_000):
        for words, tags in zip(batch[tagging.words], batch[tagging.tags], strict=True):
            if not words or None in words:
                problem = "has a null among the words" if words else "has no words"
                raise source.bad(row, tagging.words, f"{problem}; fill it in, or remove the row")
            if problem := _tag_problem(tags or [], len(words), tagging):
                raise source.bad(row, tagging.tags, problem)
            row += 1


def check_tagged_words(source: Source, tagging: Tagging) -> None:
    """Raise BadInput if all validation words are O: their F1 would be 0 for every network."""
    outside = tagging.names.index(OUTSIDE) if OUTSIDE in tagging.names else None
    tags = {tag for row in source.rows[tagging.tags] for tag in row}
    if outside is not None and tags == {tagging.values[outside]}:
        raise BadInput(
            f"{source.name}: column {tagging.tags!r}: all tags are O, so the F1 is 0 for every "
            "network; add other rows, or raise --max_eval_samples"
        )


def untagged(source: Source, tagging: Tagging) -> tuple[Source, list[str]]:
    """Rows to predict, all with the first tag, and the tags that they have, as text, or [].

    Raises BadInput for a row without words.
    """
    source.require([tagging.words], "text_column_name")
    words, labels = source.rows[tagging.words][:], []
    if tagging.tags in source.rows.column_names:
        names = dict(zip(tagging.values, tagging.names, strict=True))
        rows = source.rows[tagging.tags][:]
        labels = [" ".join(str(names.get(tag, tag)) for tag in row or ()) for row in rows]
    tags = [[tagging.values[0]] * len(row or ()) for row in words]
    key = data.fingerprint("untagged", tagging, compat.fingerprint(source.rows))
    table = partial(pyarrow.table, {tagging.words: words, tagging.tags: tags})
    source = replace(source, rows=data.materialize_table(table, key))
    check_rows(source, tagging)
    return source, labels


def warn_about_words(args: Training, sources: Mapping[str, Source], tagging: Tagging) -> None:
    """Warn about lost characters, and about validation rows that are also in train."""
    texts = {
        split: Dataset.from_dict({"text": [*map(" ".join, sources[split].rows[tagging.words])]})
        for split in ("train", "validation")
    }
    data_warnings.warn_about_texts(args, texts, ["text"])


def _tag_problem(tags: Sequence[Any], words: int, tagging: Tagging) -> str:
    """What is wrong with the tags of a row of `words` words, or ""."""
    if len(tags) != words:
        return (
            f"{len(tags)} tags for {words} words in column {tagging.words!r}; give each word one "
            "tag"
        )
    if not (unknown := [tag for tag in tags if tag not in tagging.values]):
        return ""
    known = brief(", ".join(tagging.names), 80)
    return (
        f"tag {shown(unknown[0])} is none of those in train ({known}); correct it, or add rows "
        "with it to train"
    )


def description(tagging: Tagging, rows: Dataset) -> str:
    """How often the training rows have each tag or kind of entity, and what the score is."""
    names = [[tagging.names[tag] for tag in tags] for tags in rows["tags"]]
    by_tag = Counter(tag for row in names for tag in row)
    words = sum(by_tag.values())
    if marks_entities(tagging.names):
        by_kind = Counter(kind for row in names for kind, _, _ in find_entities(row))
        found, score = "entities", "the F1 of whole entities (seqeval)"
    else:
        by_kind = Counter({tag: n for tag, n in by_tag.items() if tag != OUTSIDE})
        found, score = "tagged words", "the micro F1 over words, as the tags have no B- and I-"
    shares = ", ".join(f"{kind} {count:,}" for kind, count in by_kind.most_common(MOST_SHOWN))
    more = f" and {len(by_kind) - MOST_SHOWN} more" if len(by_kind) > MOST_SHOWN else ""
    outside = f", and {by_tag[OUTSIDE] / words:.1%} of {words:,} words are O" if words else ""
    return (
        f"words are in column {tagging.words!r}, tags in {tagging.tags!r}; train has "
        f"{by_kind.total():,} {found} ({shares}{more}){outside}; the score is {score}"
    )


def check_lost_words(name: str, rows: Dataset, length: int) -> None:
    """Warn about words that the network does not see. Raises BadInput if it sees none."""
    seen, full = rows["seen"][:], [len(ids) >= length for ids in rows["input_ids"][:]]
    if not any(map(any, seen)):
        raise BadInput(f"{name}: the tokenizer turns no word into a token; use other words")
    ends = [len(row) - 1 - row[::-1].index(True) if True in row else -1 for row in seen]
    beyond = [
        len(row) - 1 - end if is_full else 0
        for row, end, is_full in zip(seen, ends, full, strict=True)
    ]
    lost = [row.count(False) - cut for row, cut in zip(seen, beyond, strict=True)]
    ignored = "they are neither trained on nor scored"
    if count := sum(beyond):
        cut = sum(map(bool, beyond))
        warn(
            f"{name}: {count:,} of its {sum(map(len, seen)):,} words, in {cut:,} rows, are beyond "
            f"{length} tokens: {ignored}; raise --max_seq_length, or split the rows"
        )
    if count := sum(lost):
        first = next(i for i, n in enumerate(lost) if n) + 1
        warn(
            f"{name}: {count:,} words, the first of them in row {first}, are no token of this "
            f"tokenizer: {ignored}; remove them if they are blank"
        )
