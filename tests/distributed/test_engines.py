"""Engines, threshold and masking on real gloo ranks: the result does not depend on the engine.

One launch for each world size runs all cases (sharded.py); each test looks at their results.
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
from lth_scale.pruning.patterns import PruningStep
from lth_scale.pruning.prunable_set import base_digest
from lth_scale.pruning.registries import parse_pattern

# ranks are forks of one process that has imported the slow libraries
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["deepspeed", "lth_scale.training.search"])

KINDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
MEASURED = ("ddp", "zero2", "zero3", "fsdp2")  # ZeRO-1 is ZeRO-2's code
REFERENCED = ("ddp", "zero2", "zero3")
HALF = (*(f"{kind}-bf16" for kind in KINDS), "zero3offload-bf16", "zero2-fp16")
CASES = {
    2: [
        *(f"{kind}-no" for kind in KINDS),
        *HALF,
        "zero3-begin",
        "ddp-threshold",
        "ddp-examples",
        *(f"{kind}-references" for kind in REFERENCED),
        *(f"{kind}-memory" for kind in MEASURED),
    ],
    1: [*(f"{kind}-no" for kind in KINDS), "ddp-end", "ddp-examples", "ddp-references"],
    3: [*(f"{kind}-no" for kind in KINDS), "zero2-end", "ddp-threshold", "ddp-examples"],
}
TRAINED = [
    (case, world)
    for world, cases in CASES.items()
    for case in cases
    if case.split("-")[1] in ("no", "bf16")
]
RUNS = [(*pair, optimizer) for pair in TRAINED for optimizer in trains(*pair)]
FP16 = [("zero2-fp16", 2, optimizer) for optimizer in trains("zero2-fp16", 2)]


def write_model(directory: Path, **sizes) -> None:
    """A BERT without dropout and with a small vocabulary, so that most weights are prunable."""
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
        arguments = (environment, directory, CASES[world], log)
        # daemons, because an interrupt would wait for others
        processes.append(FORKS.Process(target=sharded.rank, args=arguments, daemon=True))
        processes[-1].start()
    until = time.monotonic() + 900
    for process in processes:
        process.join(until - time.monotonic())
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """The directory with the results of every world size."""
    directory = tmp_path_factory.mktemp("sharded")
    # of sizes that make 3 ranks pad, and leave a rank without rows
    write_model(directory / "model", hidden_size=20, intermediate_size=4)
    write_model(directory / "big", hidden_size=256, intermediate_size=1024)
    for split, count in (("train", 64), ("validation", 20)):
        rows = [
            {"idx": i, "sentence": sentence(i), "label": int("good" in sentence(i))}
            for i in range(count)
        ]
        write_jsonl(directory / "data" / f"{split}.jsonl", rows)
        long = " ".join(sentence(i) for i in range(8))
        questions = [
            {
                "context": long[i:],
                "question": "what did the cat see",
                "answers": {"text": ["saw"], "answer_start": [long[i:].index("saw")]},
            }
            for i in range(count // 2)
        ]
        write_jsonl(directory / "questions" / f"{split}.jsonl", questions)
    for world in CASES:
        run_ranks(world, directory)
        if world == 2:
            for kind in ("ddp", "zero2"):
                shutil.copytree(directory / "begun", directory / f"ended-{kind}")
    return directory


def ranks_of(results: Path, case: str, world: int) -> list[dict]:
    return [
        torch.load(results / f"{case}-{world}-{rank}.pt", weights_only=True)
        for rank in range(world)
    ]


@pytest.fixture(scope="session")
def plain(results) -> dict:
    """The same training in one process of PyTorch: forward, g ⊙ m, clip, step."""
    from lth_scale.pruning.prunable_set import prunable
    from lth_scale.tasks import registry
    from lth_scale.training.batches import Batches
    from lth_scale.training.networks import prunable_names

    reference: dict = {}
    for name in OPTIMIZERS:
        args = arguments(results, name, 1)
        task = registry.load_task(args)
        model, batches, known = task.model, Batches(task, args, 0, 1), prunable(task.model)
        weights = {key: known[key] for key in prunable_names(task, args)}
        reference["theta"] = {key: weight.detach().clone() for key, weight in weights.items()}
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
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            norms.append(float(norm))
            optimizer.step()
            optimizer.zero_grad()
        reference[name] = {
            "norms": norms,
            "weights": {k: w.detach().clone() for k, w in model.named_parameters()},
        }
    return reference


def test_deepspeed_compiles_nothing_on_a_cpu(results):
    """A build takes a minute, and hangs at the lock of a killed one."""
    assert not list(Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("deepspeed*"))


@pytest.mark.parametrize("world", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_tile_a_parameter_in_the_order_of_the_ranks(kind, world, results):
    ranks = [rank["pieces"] for rank in ranks_of(results, f"{kind}-no", world)]
    for name, (_, _, numel) in ranks[0].items():
        pieces = [rank[name] for rank in ranks]
        if kind == "ddp":
            assert pieces == [(0, numel, numel)] * world
            continue
        held = [(offset, size) for offset, size, _ in pieces if size]
        ends = [*itertools.accumulate((size for _, size in held), initial=0)]
        assert [offset for offset, _ in held] == ends[:-1] and ends[-1] == numel
    if kind != "ddp" and world == 3:  # a rank holds nothing of some, and ZeRO-3 pads
        assert any(rank[name][1] == 0 for rank in ranks for name in ranks[0])
        assert any(numel % 3 for _, _, numel in ranks[0].values())


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_the_mask_equals_a_stable_sort_in_one_process(case, world, results, plain):
    result = ranks_of(results, case, world)[0]
    for weights, masks, sparsities in (
        (plain["theta"], result["masks"], [0.1, 0.5, 0.9]),
        (tied(plain["theta"]), result["tied"], [0.0, 0.1, 0.3, 0.5, 1.0]),
    ):
        keep, total = ones(weights), sum(w.numel() for w in weights.values())
        for sparsity, mask in zip(sparsities, masks, strict=True):
            keep = dense_reference(weights, keep, round(sparsity * total))
            assert [*mask] == [*keep]
            assert all(torch.equal(mask[name], keep[name]) for name in keep), sparsity


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_every_rank_computes_the_same_base_digest(case, world, results):
    from transformers import AutoModel

    base = base_digest(AutoModel.from_pretrained(results / "model"))
    assert {rank["base"] for rank in ranks_of(results, case, world)} == {base}


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_a_pattern_equals_that_of_one_process(case, world, results, plain):
    masks = ranks_of(results, case, world)[0]["patterns"]
    for pattern in ("2:4", "block:4x1"):
        keep = ones(plain["theta"])
        for sparsity in (0.3, 0.5):
            parse_pattern(pattern).prune(PruningStep(plain["theta"], keep, sparsity))
            assert all(torch.equal(masks[pattern, sparsity][name], keep[name]) for name in keep)


@pytest.mark.parametrize("world", [2, 3])
def test_matrices_cut_anywhere_get_the_mask_of_a_stable_sort(world, results):
    for rank in ranks_of(results, "ddp-threshold", world):
        assert len(rank["equal"]) >= 60 and all(rank["equal"])


@pytest.mark.parametrize("world", [2, 3])
def test_the_traffic_of_a_threshold_hardly_depends_on_sizes(world, results):
    small, large, many = ranks_of(results, "ddp-threshold", world)[0]["traffic"]
    # a digit that a bracket shares is not counted
    assert many[0] == small[0] and abs(large[0] - small[0]) <= 2
    assert max(small[1], large[1], many[1]) < 50_000


@pytest.mark.parametrize(("case", "world", "optimizer"), [*RUNS, *FP16])
def test_pruned_weights_are_zero_in_all_copies_after_each_step(optimizer, case, world, results):
    ranks = ranks_of(results, case, world)
    assert all(rank[optimizer]["held"] for rank in ranks)  # master, working copy and moments
    moments = {key for rank in ranks for key in rank[optimizer]["moments"]}
    assert moments == ({"exp_avg", "exp_avg_sq"} if optimizer == "adamw" else {"momentum_buffer"})


@pytest.mark.parametrize(("case", "world", "optimizer"), RUNS)
def test_clipping_sees_the_norm_of_the_masked_gradient(optimizer, case, world, results, plain):
    tolerance = 1e-5 if case.endswith("-no") else 0.02
    for rank in ranks_of(results, case, world):
        assert rank[optimizer]["norms"][0] == pytest.approx(
            plain[optimizer]["norms"][0], rel=tolerance
        )
    assert plain[optimizer]["norms"][0] > 0.05  # it does clip


@pytest.mark.parametrize(("case", "world", "optimizer"), RUNS)
def test_the_trajectory_is_that_of_one_masked_process(optimizer, case, world, results, plain):
    weights = ranks_of(results, case, world)[0][optimizer]["weights"]
    expected = plain[optimizer]["weights"]
    assert [*weights] == [*expected]
    away = torch.cat([(weights[name] - expected[name]).flatten() for name in expected]).norm()
    whole = torch.cat([weight.flatten() for weight in expected.values()]).norm()
    assert away < (1e-5 if case.endswith("-no") else 1e-2) * whole


@pytest.mark.parametrize(("case", "world", "optimizer"), [*RUNS, *FP16])
def test_training_after_a_restart_is_bit_identical(optimizer, case, world, results):
    """Also after an evaluation."""
    assert all(rank[optimizer]["repeats"] for rank in ranks_of(results, case, world))


@pytest.mark.parametrize(("case", "world", "optimizer"), [*RUNS, *FP16])
def test_training_resumed_from_a_checkpoint_is_bit_identical(optimizer, case, world, results):
    assert all(rank[optimizer]["resumes"] for rank in ranks_of(results, case, world))


def test_a_step_that_overflows_changes_nothing_and_a_restart_restores_the_loss_scale(results):
    for rank in ranks_of(results, "zero2-fp16", 2):
        first, after, restarted = rank["skipped"]["scales"]
        assert after != first and restarted == first
        assert rank["skipped"]["same"] and rank["skipped"]["held"]
        assert "overflow fp16 at the minimum loss scale" in rank["skipped"]["error"]


@pytest.mark.parametrize(("case", "world"), TRAINED)
def test_a_nan_on_one_rank_is_an_error_on_all_ranks(case, world, results):
    for rank in ranks_of(results, case, world):
        error, expected = rank["broken"]
        assert error.startswith(expected)


@pytest.mark.parametrize(("kind", "world"), [("ddp", 1), ("zero2", 3)])
def test_a_search_begun_with_zero3_continues_with_another_engine(kind, world, results):
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from lth_scale import Ticket

    assert ranks_of(results, f"{kind}-end", world)[0]["trained"] == [2, 3]
    out = results / f"ended-{kind}"
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


@pytest.mark.parametrize("kind", REFERENCED)
def test_dense_references_with_a_searchs_budget_are_those_of_one_process(kind, results):
    (alone,) = ranks_of(results, "ddp-references", 1)
    for rank in ranks_of(results, f"{kind}-references", 2):
        assert {*rank} == {*alone} == {"dense_long", "dense_restarts"}
        for control, row in rank.items():
            expected = alone[control]
            assert row["steps"] == expected["steps"] == 2 * 3
            assert row["pruned"] == 0 and row["kept"] == row["prunable"] == expected["prunable"]
            assert row["ticket_sparsity"] == expected["ticket_sparsity"] > row["sparsity"] == 0
            trainings, others = (x.get("restarts", [x]) for x in (row, expected))
            assert len(trainings) == len(others) == (2 if control == "dense_restarts" else 1)
            for one, other in zip(trainings, others, strict=True):
                assert one.get("seed") == other.get("seed")
                assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
                assert one["eval"] == pytest.approx(other["eval"], rel=1e-4)


@pytest.mark.parametrize("kind", MEASURED)
def test_twenty_rounds_take_no_more_memory_than_three(kind, results):
    # a copy that leaks each round would be 16 of them by the end
    for rank in ranks_of(results, f"{kind}-memory", 2):
        first, last = median(rank["memory"][1:4]), median(rank["memory"][-3:])
        assert last < first + 4 * rank["model"], [m >> 20 for m in rank["memory"]]


def test_the_units_of_fsdp_are_layers_and_never_lists_of_layers():
    with torch.device("meta"):
        funnel = hf.FunnelModel(
            hf.FunnelConfig(block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24)
        )
    assert any(isinstance(layers, nn.ModuleList) for layers in funnel.encoder.blocks)
    assert layer_classes(funnel) == ["FunnelLayer"]


@pytest.mark.parametrize("world", [2, 3])
def test_what_is_kept_of_each_example_does_not_depend_on_the_number_of_ranks(world, results):
    (alone,) = ranks_of(results, "ddp-examples", 1)
    main, *others = ranks_of(results, "ddp-examples", world)
    assert {*alone} == {"sst2", "squad"}
    for task, expected in alone.items():
        assert main[task]["scores"] == expected["scores"] and expected["examples"]
        for name, array in expected["examples"].items():
            assert torch.equal(main[task]["examples"][name], array), (task, name)
        for other in others:  # the main process writes the file
            assert other[task] == {"scores": expected["scores"], "examples": {}}
