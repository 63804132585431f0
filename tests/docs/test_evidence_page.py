"""docs/evidence.md says what the files in docs/evidence say, and its studies can be run."""

import shutil
from pathlib import Path

import evidence_page
import pytest

from lth_scale.science import plans, study_file

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date_with_its_files(tmp_path, undrawn):
    shutil.copytree(DOCS / "evidence", tmp_path / "evidence")
    assert (
        evidence_page.write(tmp_path / "evidence").read_text() == (DOCS / "evidence.md").read_text()
    ), "make it again: python docs/evidence/evidence_page.py"
    for picture in (tmp_path / "evidence").glob("*.png"):
        assert (DOCS / "evidence" / picture.name).is_file(), f"{picture.name} is not committed"


@pytest.mark.parametrize(
    "file", sorted((DOCS / "evidence").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_study_plans_the_conditions_of_its_results(file):
    kept = evidence_page.read(file.with_suffix(".json"))
    planned = {
        (cell.task, cell.seed, cell.sparsity, cell.control)
        for cell in plans.build_plan(
            study_file.load_study(file, {"model_name_or_path": "embedded"})
        ).conditions
    }
    assert planned == {
        tuple(cell[name] for name in ("task", "seed", "sparsity", "control"))
        for cell in kept["plan"]["cells"]
    }
