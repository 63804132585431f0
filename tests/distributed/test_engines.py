"""sharding.py, threshold.py and masking.py on real gloo ranks: what a network becomes does not depend on its engine.

One launch a world size runs all cases (tests/sharded.py); each test looks at what they left.
"""

import itertools
import multiprocessing
import os
import shutil
import socket
import time
from pathlib import Path
from statistics import median

import pytest
import sharded
import torch
import transformers as hf
from conftest import SIZES, WORDS, sentence, write_jsonl
from sharded import OPTIMIZERS, STEPS, arguments, half_mask, tied, trains
from test_threshold import dense_reference, ones
from torch import nn

from lth_scale.distributed.fsdp2 import layer_classes
from lth_scale.pruning.ticket import base_digest

FORKS = multiprocessing.get_context(
    "forkserver"
)  # ranks are copies of one process that has imported what takes long
FORKS.set_forkserver_preload(["deepspeed", "lth_scale.training.search"])

KINDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
LIVED = ("ddp", "zero2", "zero3", "fsdp2")  # ZeRO-1 is ZeRO-2's code
HALF = (
    "ddp-bf16",
    "zero1-bf16",
    "zero2-bf16",
    "zero3-bf16",
    "fsdp2-bf16",
    "zero3offload-bf16",
    "zero2-fp16",
)
CASES = {
    2: [
        *(f"{kind}-no" for kind in KINDS),
        *HALF,
        "zero3-begin",
        "ddp-threshold",
        *(f"{kind}-memory" for kind in LIVED),
    ],
    1: [*(f"{kind}-no" for kind in KINDS), "ddp-end"],
    3: [*(f"{kind}-no" for kind in KINDS), "zero2-end", "ddp-threshold"],
}
TRAINED = [
    (case, world)
    for world, cases in CASES.items()
    for case in cases
    if case.split("-")[1] in ("no", "bf16")
]
LEARNT = [(*pair, optimizer) for pair in TRAINED for optimizer in trains(*pair)]
FP16 = [("zero2-fp16", 2, optimizer) for optimizer in trains("zero2-fp16", 2)]


def write_model(directory: Path, **sizes) -> None:
    """A BERT without dropout and with a tokenizer of few words, so that most weights are prunable."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(special + sorted(set(WORDS)))}, "[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(directory)
    torch.manual_seed(0)
    options = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | sizes
    BertForMaskedLM(BertConfig(vocab_size=words.get_vocab_size(), **options)).save_pretrained(
        directory
    )


def run_ranks(world: int, directory: Path) -> None:
    """All cases of a world size, in `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    logs = [directory / f"rank-{world}-{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = (environment, directory, CASES[world], log)
        processes.append(
            FORKS.Process(target=sharded.rank, args=given, daemon=True)
        )  # or an interrupt waits for it
        processes[-1].start()
    until = time.monotonic() + 900
    for process in processes:
        process.join(until - time.monotonic())
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="session")
def left(tmp_path_factory) -> Path:
    """The directory in which every world size has left what it found."""
    directory = tmp_path_factory.mktemp("sharded")
    write_model(
        directory / "model", hidden_size=20, intermediate_size=4
    )  # 3 ranks: padding, and a rank without rows
    write_model(directory / "big", hidden_size=256, intermediate_size=1024)
    for split, count in (("train", 64), ("validation", 20)):
        rows = [
            {"idx": i, "sentence": sentence(i), "label": int("good" in sentence(i))}
            for i in range(count)
        ]
        write_jsonl(directory / "data" / f"{split}.jsonl", rows)
    for world in CASES:
        run_ranks(world, directory)
        for kind in ("ddp", "zero2"):
            shutil.copytree(
                directory / "begun", directory / f"ended-{kind}", dirs_exist_ok=True
            ) if world == 2 else None
    return directory


def ranks_of(left: Path, case: str, world: int) -> list[dict]:
    return [
        torch.load(left / f"{case}-{world}-{rank}.pt", weights_only=True) for rank in range(world)
    ]


@pytest.fixture(scope="session")
def plain(left) -> dict:
    """The same training in one process of plain torch: forward, g ⊙ m, clip, step."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.tasks import registry
    from lth_scale.training import networks
    from lth_scale.training.batches import Batches

    found: dict = {}
    for name in OPTIMIZERS:
        args = arguments(left, name, 1)
        task = registry.load_task(args)
        model, batches, known = task.model, Batches(task, args, 0, 1), prunable(task.model)
        weights = {key: known[key] for key in networks.prunable_names(task, args)}
        found["theta"] = {key: weight.detach().clone() for key, weight in weights.items()}
        masks = half_mask({key: weight.shape for key, weight in weights.items()})
        for key, weight in weights.items():
            weight.data *= masks[key]
        decayed = [w for w in model.parameters() if w.ndim >= 2]
        others = [
            {"params": decayed},
            {"params": [w for w in model.parameters() if w.ndim < 2], "weight_decay": 0.0},
        ]
        make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
        momentum = {"momentum": 0.9} if name == "sgd" else {}
        optimizer = make(others, lr=args.learning_rate, weight_decay=0.1, **momentum)
        norms, accumulate = [], args.gradient_accumulation_steps
        model.train()
        for step in range(STEPS):
            for micro in range(accumulate):
                (model(**batches[step * accumulate + micro]).loss / accumulate).backward()
            for key, weight in weights.items():
                weight.grad *= masks[key]
            norms.append(
                float(torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm))
            )
            optimizer.step()
            optimizer.zero_grad()
        found[name] = {
            "norms": norms,
            "weights": {k: w.detach().clone() for k, w in model.named_parameters()},
        }
    return found


def test_deepspeed_compiles_nothing_on_a_cpu(left):
    """What it would compile takes a minute, and waits for ever at the lock of a compile that was killed."""
    assert not list(Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("deepspeed*"))


@pytest.mark.parametrize("world", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_parameter_tile_it_in_the_order_of_the_ranks(kind, world, left):
    found = [rank["pieces"] for rank in ranks_of(left, f"{kind}-no", world)]
    for name, (_, _, numel) in found[0].items():
        pieces = [rank[name] for rank in found]
        if kind == "ddp":
            assert pieces == [(0, numel, numel)] * world
            continue
        held = [(offset, size) for offset, size, _ in pieces if size]
        assert [offset for offset, _ in held] == [
            sum(size for _, size in held[:i]) for i in range(len(held))
        ]
        assert sum(size for _, size in held) == numel
    if kind != "ddp" and world == 3:  # the sizes do make a rank go without, and ZeRO-3 pad
        assert any(rank[name][1] == 0 for rank in found for name in found[0])
        assert any(numel % 3 for _, _, numel in found[0].values())


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_the_mask_is_that_of_a_stable_sort_in_one_process(case, world, left, plain):
    found = ranks_of(left, case, world)[0]
    for weights, masks, sparsities in (
        (plain["theta"], found["masks"], [0.1, 0.5, 0.9]),
        (tied(plain["theta"]), found["tied"], [0.0, 0.1, 0.3, 0.5, 1.0]),
    ):
        keep, total = ones(weights), sum(w.numel() for w in weights.values())
        for sparsity, mask in zip(sparsities, masks, strict=True):
            keep = dense_reference(weights, keep, round(sparsity * total))
            assert [*mask] == [*keep]
            assert all(torch.equal(mask[name], keep[name]) for name in keep), sparsity


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_every_rank_knows_the_base_by_the_same_weights(case, world, left):
    from transformers import AutoModel

    base = base_digest(AutoModel.from_pretrained(left / "model"))
    assert {found["base"] for found in ranks_of(left, case, world)} == {base}


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_a_pattern_is_the_one_of_a_single_process_although_groups_lie_across_ranks(
    case, world, left, plain
):
    from lth_scale.pruning import structured
    from lth_scale.pruning.registries import parse_pattern

    found = ranks_of(left, case, world)[0]["patterns"]
    for pattern in ("2:4", "block:4x1"):
        keep = ones(plain["theta"])
        for sparsity in (0.3, 0.5):
            structured.prune(plain["theta"], keep, sparsity, "global", parse_pattern(pattern))
            assert all(torch.equal(found[pattern, sparsity][name], keep[name]) for name in keep)


@pytest.mark.parametrize("world", [2, 3])
def test_any_matrices_cut_anywhere_get_the_mask_of_a_stable_sort(world, left):
    for rank in ranks_of(left, "ddp-threshold", world):
        assert len(rank["equal"]) >= 60 and all(rank["equal"])


@pytest.mark.parametrize("world", [2, 3])
def test_what_travels_for_a_threshold_depends_neither_on_the_size_nor_much_on_the_matrices(
    world, left
):
    small, large, many = ranks_of(left, "ddp-threshold", world)[0]["traffic"]
    assert (
        many[0] == small[0] and abs(large[0] - small[0]) <= 2
    )  # a digit that a bracket shares is not counted
    assert max(small[1], large[1], many[1]) < 50_000


@pytest.mark.parametrize(("case", "world", "optimizer"), [*LEARNT, *FP16])
def test_after_each_of_thirty_steps_all_copies_are_zero_where_pruned(optimizer, case, world, left):
    ranks = ranks_of(left, case, world)
    assert all(rank[optimizer]["held"] for rank in ranks)  # master, working copy and moments
    moments = {key for rank in ranks for key in rank[optimizer]["moments"]}
    assert moments == ({"exp_avg", "exp_avg_sq"} if optimizer == "adamw" else {"momentum_buffer"})


@pytest.mark.parametrize(("case", "world", "optimizer"), LEARNT)
def test_clipping_sees_the_norm_of_the_masked_gradient(optimizer, case, world, left, plain):
    tolerance = 1e-5 if case.endswith("-no") else 0.02
    for rank in ranks_of(left, case, world):
        assert rank[optimizer]["norms"][0] == pytest.approx(
            plain[optimizer]["norms"][0], rel=tolerance
        )
    assert plain[optimizer]["norms"][0] > 0.05  # it does clip


@pytest.mark.parametrize(("case", "world", "optimizer"), LEARNT)
def test_the_trajectory_is_that_of_one_masked_process(optimizer, case, world, left, plain):
    found, expected = (
        ranks_of(left, case, world)[0][optimizer]["weights"],
        plain[optimizer]["weights"],
    )
    assert [*found] == [*expected]
    away = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    whole = torch.cat([weight.flatten() for weight in expected.values()]).norm()
    assert away < (1e-5 if case.endswith("-no") else 1e-2) * whole


@pytest.mark.parametrize(("case", "world", "optimizer"), [*LEARNT, *FP16])
def test_a_restart_trains_the_same_again_to_the_last_bit(optimizer, case, world, left):
    """And so a second round trains the second round's weights, after an evaluation as well."""
    assert all(rank[optimizer]["repeats"] for rank in ranks_of(left, case, world))


@pytest.mark.parametrize(("case", "world", "optimizer"), [*LEARNT, *FP16])
def test_a_training_resumed_from_a_checkpoint_goes_on_as_the_one_that_wrote_it_to_the_last_bit(
    optimizer, case, world, left
):
    assert all(rank[optimizer]["resumes"] for rank in ranks_of(left, case, world))


def test_a_step_that_overflows_changes_nothing_and_a_restart_restores_the_loss_scale_of_which_there_is_a_least(
    left,
):
    for rank in ranks_of(left, "zero2-fp16", 2):
        first, after, restarted = rank["skipped"]["scales"]
        assert after != first and restarted == first
        assert rank["skipped"]["same"] and rank["skipped"]["held"]
        assert "overflow fp16 at the minimum loss scale" in rank["skipped"]["said"]


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_a_nan_on_one_rank_is_an_error_on_all_that_names_parameter_and_rank(case, world, left):
    for rank in ranks_of(left, case, world):
        said, expected = rank["broken"]
        assert said.startswith(expected)


@pytest.mark.parametrize(("kind", "world"), [("ddp", 1), ("zero2", 3)])
def test_a_search_begun_with_zero3_on_two_ranks_goes_on_otherwise(kind, world, left):
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from lth_scale import Ticket

    assert ranks_of(left, f"{kind}-end", world)[0]["trained"] == [2, 3]
    out = left / f"ended-{kind}"
    tickets = [Ticket.load(out / f"rounds/{k:02d}/ticket.safetensors") for k in range(4)]
    assert [ticket.pruned for ticket in tickets] == [
        round(k / 10 * ticket.prunable) for k, ticket in enumerate(tickets)
    ]
    for before, after in itertools.pairwise(tickets):
        assert all((after.masks[name] <= mask).all() for name, mask in before.masks.items())
    assert len({ticket.theta_sha256 for ticket in tickets}) == 1
    model = AutoModelForSequenceClassification.from_pretrained(out / "rounds/03/model")
    assert model.dtype == torch.float32
    assert {name for name, _ in model.named_parameters()} == set(
        load_file(out / "theta.safetensors")
    )
    for name, mask in tickets[3].masks.items():
        assert not model.bert.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("kind", LIVED)
def test_twenty_rounds_take_no_more_memory_than_three(kind, left):
    for rank in ranks_of(
        left, f"{kind}-memory", 2
    ):  # a copy left behind each round would be 16 of them by the end
        first, last = median(rank["memory"][1:4]), median(rank["memory"][-3:])
        assert last < first + 4 * rank["model"], [m >> 20 for m in rank["memory"]]


def test_the_units_of_fsdp_are_layers_and_never_lists_of_layers():
    with torch.device("meta"):
        funnel = hf.FunnelModel(
            hf.FunnelConfig(block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24)
        )
    assert any(isinstance(layers, nn.ModuleList) for layers in funnel.encoder.blocks)
    assert layer_classes(funnel) == ["FunnelLayer"]
