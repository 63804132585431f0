"""The native kernels against dense products: fp32 within rounding of float64, int8 to the bit."""

import copy
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForQuestionAnswering,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from lth_scale.config.errors import BadInput
from lth_scale.distributed.pieces import base_model
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.native import kernels
from lth_scale.shipping.native.modules import NativeEncoder, convert
from lth_scale.shipping.native.packing import DTYPES, pack_linear, unpack_linear

pytestmark = pytest.mark.skipif(bool(kernels.unavailable()), reason=kernels.unavailable())
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 100,
    "vocab_size": 100,
    "max_position_embeddings": 300,
}
DISTIL = {
    "dim": 48,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 100,
    "vocab_size": 100,
    "max_position_embeddings": 300,
}
FAMILIES = {
    "bert": (BertForSequenceClassification, BertConfig(**SIZES)),
    "bert tanh": (BertModel, BertConfig(**SIZES, hidden_act="gelu_new")),
    "bert relu": (BertModel, BertConfig(**SIZES, hidden_act="relu")),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SIZES)),
    "electra": (ElectraForQuestionAnswering, ElectraConfig(**SIZES, embedding_size=20)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(**DISTIL)),
    "by linear": (MPNetModel, MPNetConfig(**SIZES)),
}


@pytest.fixture(params=["avx512", "avx2"], scope="class")
def isa(request):
    """Each instruction set that this machine has."""
    try:
        yield torch.ops.lth_scale.use(request.param)
    except ValueError as problem:
        pytest.skip(str(problem))
    finally:
        torch.ops.lth_scale.use("avx2")
        torch.ops.lth_scale.use(BEST)


BEST = torch.ops.lth_scale.use("") if not kernels.unavailable() else ""


def uneven(rows: int, columns: int, sparsity: float, seed: int) -> torch.Tensor:
    """A weight whose rows are pruned unevenly, some entirely, to about `sparsity`."""
    draw = torch.Generator().manual_seed(seed)
    share = torch.rand(rows, 1, generator=draw) * 2 * sparsity if 0 < sparsity < 1 else sparsity
    keep = torch.rand(rows, columns, generator=draw) >= share
    return torch.randn(rows, columns, generator=draw) * keep


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dtype="float32"
) -> torch.Tensor:
    """The product of the kernel with a dense weight."""
    return torch.ops.lth_scale.linear(x, pack_linear(weight, dtype)["packed"], len(weight), bias)


class TestFp32:
    @given(
        SHAPES,
        st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
        st.integers(0, 99),
        st.booleans(),
        st.sampled_from([1, 2]),
    )
    @example((1, 1, 1), 0.0, 0, True, 1)
    @example((3072, 768, 1), 0.9, 1, False, 2)
    @example((768, 3072, 300), 0.5, 2, True, 2)
    @settings(max_examples=40, deadline=None)
    def test_it_equals_the_float64_product_within_rounding(
        self, isa, shape, sparsity, seed, strided, threads
    ):
        (rows, columns, tokens), before = shape, torch.get_num_threads()
        weight, draw = uneven(rows, columns, sparsity, seed), torch.Generator().manual_seed(seed)
        x = (
            torch.randn(tokens, columns * 2, generator=draw)[:, ::2]
            if strided
            else torch.randn(tokens, columns, generator=draw)
        )
        bias = torch.randn(rows, generator=draw)
        torch.set_num_threads(threads)
        try:
            actual = product(x, weight, bias)
        finally:
            torch.set_num_threads(before)
        exact = x.double() @ weight.double().T + bias.double()
        bound = x.double().abs() @ weight.double().abs().T + bias.double().abs()
        assert ((actual - exact).abs() <= 2**-23 * (columns + 2) * bound).all()

    def test_any_leading_shape_is_kept(self, isa):
        weight, x = uneven(5, 7, 0.5, 0), torch.randn(2, 3, 4, 7).transpose(0, 2)
        torch.testing.assert_close(product(x, weight), x @ weight.T)
        assert product(x[:0], weight).shape == (0, 3, 2, 5)

    @given(SHAPES, st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.integers(0, 99))
    @settings(max_examples=25, deadline=None)
    def test_nan_and_infinity_spread_as_in_the_dense_product(self, isa, shape, sparsity, seed):
        rows, columns, tokens = shape
        weight, draw = uneven(rows, columns, sparsity, seed), torch.Generator().manual_seed(seed)
        x = torch.randn(tokens, columns, generator=draw)
        for bad in (float("inf"), -float("inf"), float("nan")):
            row, column = (
                int(torch.randint(size, (), generator=draw)) for size in (tokens, columns)
            )
            x[row, column] = bad
        actual, dense = product(x, weight), (x.double() @ weight.double().T).float()
        torch.testing.assert_close(actual, dense, equal_nan=True, rtol=1e-4, atol=1e-4)

    def test_a_packed_matrix_unpacks_to_the_bit_and_minus_zero_is_not_stored(self):
        weight = uneven(130, 301, 0.8, 3)
        weight[0] = -0.0
        packed = pack_linear(weight, "float32")
        assert unpack_linear(packed).equal(weight)
        assert len(packed["packed"]) < 8 * int((weight != 0).sum()) + 2000


class TestInt8:
    @given(SHAPES, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 99))
    @example((768, 3072, 65), 0.5, 1)
    @settings(max_examples=40, deadline=None)
    def test_it_equals_its_integer_reference_to_the_bit(self, isa, shape, sparsity, seed):
        rows, columns, tokens = shape
        draw = torch.Generator().manual_seed(seed)
        weight, bias = uneven(rows, columns, sparsity, seed), torch.randn(rows, generator=draw)
        x = torch.randn(tokens, columns, generator=draw) * 3 + 1
        scale = weight.abs().amax(1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        whole = (weight / scale[:, None]).round().long()
        low, high = x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)
        step = ((high - low) * torch.tensor(1 / 255)).clamp_min(1e-30)
        inverse = 1 / step
        zero = (-(low * inverse)).round()
        units = ((x * inverse[:, None]).round() + zero[:, None]).clamp(0, 255).long()
        exact = units @ whole.T - zero.long()[:, None] * whole.sum(1)
        assert product(x, weight, bias, "int8").equal(
            exact.float() * (step[:, None] * scale) + bias
        )

    def test_a_token_that_is_not_finite_gives_nan_and_leaves_the_others_alone(self, isa):
        weight, x = uneven(9, 33, 0.5, 0), torch.randn(20, 33)
        clean = product(x, weight, dtype="int8")
        x[3, 5], x[4, 6] = float("inf"), float("nan")
        actual = product(x, weight, dtype="int8")
        assert (
            actual[3:5].isnan().all()
            and actual[:3].equal(clean[:3])
            and actual[5:].equal(clean[5:])
        )

    def test_blocks_of_four_along_k_are_stored_as_one_unit(self):
        blocks = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.1
        weight = torch.randn(64, 256) * blocks.repeat_interleave(4, 1)
        packed = pack_linear(weight, "int8")["packed"]
        assert int(packed[7]) * 4 < 1.3 * int(blocks.sum())
        assert (unpack_linear({"packed": packed}) - weight).abs().max() <= weight.abs().max() / 127


class TestUntrusted:
    @given(st.sampled_from(DTYPES), st.integers(0, 10**9), st.integers(-(2**31), 2**31 - 1))
    @settings(max_examples=200, deadline=None)
    def test_one_changed_word_is_refused_or_stays_inside_the_tensors(self, dtype, place, word):
        packed = pack_linear(uneven(30, 40, 0.6, 0), dtype)["packed"].clone()
        packed[place % min(len(packed), 300)] = word
        try:
            weight = unpack_linear({"packed": packed})
        except ValueError:
            return
        rows, columns = weight.shape
        assert torch.ops.lth_scale.linear(torch.randn(3, columns), packed, rows, None).shape == (
            3,
            rows,
        )

    @pytest.mark.parametrize("cut", [0, 7, 8, -1])
    def test_a_cut_matrix_is_refused(self, cut):
        packed = pack_linear(uneven(30, 40, 0.6, 0), "float32")["packed"]
        with pytest.raises(ValueError, match="packed"):
            unpack_linear({"packed": packed[:cut]})

    def test_another_part_or_shape_is_refused(self):
        with pytest.raises(ValueError, match="of the shape"):
            unpack_linear(pack_linear(uneven(30, 40, 0.6, 0), "int8"), (40, 30))
        with pytest.raises(ValueError, match="one part"):
            unpack_linear({"packed": torch.zeros(9, dtype=torch.int32), "extra": torch.zeros(1)})


def pruned(family: str):
    """A model of a family with random biases, 60 % of its prunable weights zero."""
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 1:
                each.add_(torch.randn_like(each) / 10)
        for weight in prunable(model).values():
            weight.mul_((torch.rand_like(weight) < 0.4) * 3)
    return model


def outputs(model, ids, mask=None) -> torch.Tensor:
    """The first output; if there is one per token, without those of the padding."""
    with torch.inference_mode():
        actual = model(ids, attention_mask=mask)[0]
    return actual[mask.bool()] if mask is not None and actual.shape[:2] == ids.shape else actual


class TestModels:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("length", [1, 17, 64, 130])
    def test_outputs_are_those_of_the_dense_model_with_and_without_padding(
        self, isa, family, length
    ):
        model = pruned(family)
        fast = convert(copy.deepcopy(model))
        assert isinstance(getattr(base_model(fast), "encoder", None), NativeEncoder) == (
            family not in ("distilbert", "by linear")
        )
        ids = torch.randint(5, 100, (3, length), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, length // 2 + 1 :] = 0
        mask[2, 1:] = 0
        for given_mask in (mask, None):
            dense, actual = outputs(model, ids, given_mask), outputs(fast, ids, given_mask)
            assert (dense - actual).abs().max() <= 1e-5 * dense.abs().max()

    def test_int8_outputs_are_near_those_of_its_rounded_weights(self, isa):
        model = pruned("bert")
        fast = convert(copy.deepcopy(model), "int8")
        with torch.no_grad():
            for weight in prunable(model).values():
                weight.copy_(unpack_linear(pack_linear(weight, "int8")))
        ids = torch.randint(5, 100, (2, 40), generator=torch.Generator().manual_seed(1))
        dense, actual = outputs(model, ids), outputs(fast, ids)
        assert 0 < (dense - actual).abs().max() <= 0.03 * dense.abs().max()

    def test_two_threads_give_the_outputs_of_one_to_the_bit(self):
        fast, ids, before = (
            convert(pruned("bert")),
            torch.randint(5, 100, (3, 130)),
            torch.get_num_threads(),
        )
        actual = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            actual.append(outputs(fast, ids))
        torch.set_num_threads(before)
        assert actual[0].equal(actual[1])

    @pytest.mark.parametrize("family", ["bert", "by linear"])
    def test_it_can_be_compiled(self, family):
        fast = convert(pruned(family))
        compiled = torch.compile(fast, backend="aot_eager")
        for length in (40, 70):
            ids = torch.randint(5, 100, (2, length))
            with torch.no_grad():
                torch.testing.assert_close(compiled(ids)[0], fast(ids)[0])

    def test_the_operators_pass_the_checks_of_torch(self):
        x, packed = (
            torch.randn(2, 70, 12),
            pack_linear(uneven(9, 12, 0.5, 0), "float32")["packed"],
        )
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(
            torch.ops.lth_scale.linear.default, (x, packed, 9, torch.randn(9)), test_utils=tests
        )
        torch.library.opcheck(torch.ops.lth_scale.enter.default, (x,), test_utils=tests)
        torch.library.opcheck(
            torch.ops.lth_scale.leave.default, (torch.ops.lth_scale.enter(x), 70), test_utils=tests
        )

    def test_unsupported_masks_and_outputs_are_refused(self):
        fast, ids = convert(pruned("bert")), torch.randint(5, 100, (1, 4))
        with pytest.raises(ValueError, match="differs from query to query"):
            fast(ids, attention_mask=torch.ones(1, 4, 4).tril().bool()[:, None])
        with pytest.raises(ValueError, match="output_attentions"):
            fast(ids, output_attentions=True)
        with pytest.raises(ValueError, match="no instruction set"):
            torch.ops.lth_scale.use("sse2")


class TestBuilding:
    def test_another_processor_is_refused_by_name(self, monkeypatch):
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
        kernels.unavailable.cache_clear()
        try:
            with pytest.raises(BadInput, match=r"x86-64.*arm64.*csr or dense"):
                convert(pruned("bert"))
        finally:
            monkeypatch.undo()
            kernels.unavailable.cache_clear()

    def test_a_missing_compiler_is_named(self, tmp_path):
        text = "from lth_scale.shipping.native import kernels; print(kernels.unavailable())"
        environment = {
            **os.environ,
            "TORCH_EXTENSIONS_DIR": str(tmp_path),
            "CXX": "no-such-compiler",
        }
        result = subprocess.run(
            [sys.executable, "-c", text],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            "no C++ compiler no-such-compiler" in result.stdout
            and len(result.stdout.splitlines()) == 1
        )

    @pytest.mark.machine
    def test_a_compilation_that_was_killed_is_repeated(self, tmp_path):
        text = "from lth_scale.shipping.native import kernels; print([kernels.unavailable()])"
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
        first = subprocess.Popen(
            [sys.executable, "-c", text], env=environment, start_new_session=True
        )
        while not any(tmp_path.rglob("build.ninja")) and first.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert not any(tmp_path.rglob("*.so"))
        result = subprocess.run(
            [sys.executable, "-c", text],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "['']\n" and len([*tmp_path.rglob("*.so")]) == 1
