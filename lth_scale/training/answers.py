"""The rows of --test_file: predicted by the dense network and by the last ticket."""

import csv
import io
from itertools import zip_longest
from pathlib import Path

from lth_scale.config import files
from lth_scale.config.run_files import TEST_ANSWERS, TEST_TABLE
from lth_scale.tasks.task import PredictsTest, Task
from lth_scale.training import loop
from lth_scale.training.networks import Network


def predict(net: Network, stage: Path) -> None:
    """Write the network's answers to the test rows, if there are any, into its stage."""
    task = net.task
    if not isinstance(task, PredictsTest) or task.test is None:
        return
    table, order = loop.results_of(net, task.test)
    if net.accelerator.is_main_process:
        files.write_json(stage / TEST_ANSWERS, task.answers(table, order))


def write(task: Task, dense: Path, ticket: Path, directory: Path) -> None:
    """Write predictions.csv: the number of each test row, its answers, and its label if known.

    dense, ticket: the stages that answered.
    """
    if not isinstance(task, PredictsTest) or task.test is None:
        return
    given = [files.read_json(stage / TEST_ANSWERS) for stage in (dense, ticket)]
    names, columns = ["row", "dense", "ticket"], [range(1, len(given[0]) + 1), *given]
    if task.test_labels:
        names, columns = [*names, "label"], [*columns, task.test_labels]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *zip_longest(*columns)])
    files.write_bytes(directory / TEST_TABLE, text.getvalue().encode())
