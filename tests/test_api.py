"""Every name of the API pages stays importable from `lth_scale`, without torch until it is used."""

import subprocess
import sys

import pytest

NAMES = {  # as the API pages of version 0.2.0 list them → where they are now
    "controls": "lth_scale.pruning.controls",
    "matching": "lth_scale.science.matching",
    "masking": "lth_scale.pruning.masking",
    "imp.run": "lth_scale.imp.run",
    "imp.imp": "lth_scale.imp.imp",
    "transfer.run": "lth_scale.transfer.run",
    "resolve": "lth_scale.config.resolution.resolve",
    "Training": "lth_scale.config.arguments.Training",
    "Arguments": "lth_scale.config.arguments.Arguments",
    "Transfer": "lth_scale.config.arguments.Transfer",
    "BadInput": "lth_scale.config.errors.BadInput",
    "sparsities": "lth_scale.pruning.registries.sparsities",
    "prunable": "lth_scale.pruning.prunable_set.prunable",
    "export.export": "lth_scale.shipping.export.export.export",
    "export.load_exported": "lth_scale.shipping.export.export.load_exported",
    "load_exported": "lth_scale.shipping.export.export.load_exported",
    "hub.push": "lth_scale.shipping.hub.push",
    "hub.pull": "lth_scale.shipping.pull.pull",
    "hub.verify": "lth_scale.shipping.pull.verify",
    "push": "lth_scale.shipping.hub.push",
    "pull": "lth_scale.shipping.pull.pull",
    "verify": "lth_scale.shipping.pull.verify",
    "ticket.Ticket": "lth_scale.pruning.ticket.Ticket",
    "ticket.digest": "lth_scale.pruning.prunable_set.digest",
    "ticket.base_digest": "lth_scale.pruning.prunable_set.base_digest",
    "Ticket": "lth_scale.pruning.ticket.Ticket",
    "digest": "lth_scale.pruning.prunable_set.digest",
    "base_digest": "lth_scale.pruning.prunable_set.base_digest",
    "prune": "lth_scale.pruning.threshold.prune",
    "smallest": "lth_scale.pruning.threshold.smallest",
    "verdict": "lth_scale.science.noninferiority.verdict",
}


def imported(path: str) -> object:
    """What `from MODULE import NAME` binds, for the path MODULE.NAME."""
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_api_pages_is_importable_from_the_package(name):
    value = imported(f"lth_scale.{name}")
    assert value is not None and value is imported(NAMES[name])


@pytest.mark.parametrize(
    "kind",
    [
        *("score", "schedule", "pattern", "control", "task"),
        *("tracker", "optimizer", "engine", "format", "backend"),
    ],
)
def test_every_registry_is_open_through_the_package(kind):
    import lth_scale

    assert callable(getattr(lth_scale, f"register_{kind}"))


def test_the_package_imports_no_torch():
    code = "import lth_scale, sys; assert lth_scale.resolve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        imported("lth_scale.nothing_of_this_name")
