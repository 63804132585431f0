"""Which engine prepares a network, and how third parties add one."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from lth_scale.distributed import engines
from lth_scale.distributed.engines import ENGINES, prepare_engine, register_engine


def accelerator(kind: DistributedType) -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind)


@pytest.fixture
def entries(monkeypatch):
    """The registry with functions that return their own name in place of the engines."""
    for name in ENGINES:
        monkeypatch.setitem(ENGINES._entries, name, lambda *_, name=name: name)
    monkeypatch.setattr(engines, "replicate", ENGINES["NO"])
    yield
    ENGINES._entries.pop("MEGATRON_LM", None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DistributedType.DEEPSPEED, "DEEPSPEED"),
        (DistributedType.FSDP, "FSDP"),
        (DistributedType.NO, "NO"),
        (DistributedType.MULTI_CPU, "NO"),
        (DistributedType.MULTI_GPU, "NO"),
    ],
)
def test_the_launcher_decides_which_engine_prepares_a_network(kind, name, entries):
    assert prepare_engine(accelerator(kind), None, None, 1, 0.0) == name


def test_third_parties_register_an_engine(entries):
    register_engine("MEGATRON_LM", lambda *_: "megatron")
    megatron = accelerator(DistributedType.MEGATRON_LM)
    assert prepare_engine(megatron, None, None, 1, 0.0) == "megatron"
