"""The user's own rows of each split, and where they come from."""

import numpy
import pytest
from datasets import Dataset, DatasetDict

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks.sources import limit_sources, load_sources, split_rows


def write_csv(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def resolved(*words):
    return parse(["--task", "text-classification", *map(str, words)])


@pytest.fixture
def file(tmp_path):
    """120 rows: 80 of a, 39 of b, one of c."""
    labels = ["a"] * 80 + ["b"] * 39 + ["c"]
    return write_csv(tmp_path / "all.csv", [(f"t{i}", x) for i, x in enumerate(labels)])


def test_a_split_off_part_keeps_the_shares_of_classes_and_each_class_in_training(file):
    args = resolved("--train_file", file, "--validation_split_percentage", 20)
    sources = load_sources(args, strata=lambda source: source.rows["label"][:])
    labels = {split: source.rows["label"][:] for split, source in sources.items()}
    counts = {split: [values.count(x) for x in "abc"] for split, values in labels.items()}
    assert counts == {"train": [64, 31, 1], "validation": [16, 8, 0]}
    texts = [text for source in sources.values() for text in source.rows["text"]]
    assert sorted(texts) == sorted(f"t{i}" for i in range(120))


def test_a_split_depends_on_the_seed_alone():
    first, again, other = (split_rows([0] * 50, 10, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and first.sum() == 5


def test_rows_keep_their_numbers_in_the_file_through_splits_and_shuffles(file):
    args = resolved(
        *("--train_file", file, "--validation_split_percentage", 10, "--shuffle_train_dataset"),
        *("--max_train_samples", 30),
    )
    sources = limit_sources(args, load_sources(args))
    train = sources["train"]
    assert len(train) == 30 and len(sources["validation"]) == 12
    numbers = [train.number(row) for row in range(30)]
    assert numbers != sorted(numbers)
    assert [f"t{number - 1}" for number in numbers] == train.rows["text"][:]
    message = str(train.bad(3, "label", "is bad; mend it"))
    assert message == f"--train_file {file}: column 'label', row {numbers[3]}: is bad; mend it"


def test_a_directory_and_one_of_save_to_disk_are_read(file, tmp_path):
    other = write_csv(tmp_path / "validation.csv", [("x", "a")])
    write_csv(tmp_path / "train.csv", [("y", "b")])
    sources = load_sources(resolved("--dataset_path", tmp_path))
    assert {split: source.rows["text"][:] for split, source in sources.items()} == {
        "train": ["y"],
        "validation": ["x"],
    }
    saved = DatasetDict(
        train=Dataset.from_dict({"text": ["p"]}), validation=Dataset.from_dict({"text": ["q"]})
    )
    saved.save_to_disk(tmp_path / "saved")
    given = ("--dataset_name", tmp_path / "saved", "--test_file", other)
    sources = load_sources(resolved(*given))
    assert {split: source.rows["text"][:] for split, source in sources.items()} == {
        "train": ["p"],
        "validation": ["q"],
        "test": ["x"],
    }


def test_no_validation_rows_are_refused_with_both_flags(tmp_path):
    Dataset.from_dict({"text": ["p"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(BadInput) as refusal:
        load_sources(resolved("--dataset_name", tmp_path / "saved"))
    assert all(f"--validation_{x}" in str(refusal.value) for x in ("file", "split_percentage"))


def test_a_missing_header_is_suspected(tmp_path):
    (tmp_path / "rows.csv").write_text("it was good,1\nit was bad,0\nso so,1\n")
    given = ("--train_file", tmp_path / "rows.csv", "--validation_split_percentage", 50)
    source = load_sources(resolved(*given))["train"]
    with pytest.raises(BadInput, match=r"has no column 'text', only 'it was good', '1'.*missing"):
        source.require(["text"], "text_column_names")


def test_limits_leave_a_source_that_has_fewer_rows(file):
    args = resolved("--train_file", file, "--validation_file", file, "--max_eval_samples", 500)
    sources = limit_sources(args, load_sources(args))
    assert numpy.array_equal([len(source) for source in sources.values()], [120, 120])
