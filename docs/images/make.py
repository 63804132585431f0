"""Draw the pictures of docs/concepts.md and docs/controls.md.

`python docs/images/make.py RUN`, where RUN is the directory of a `./run demo`. Everything but the
diagram of Algorithm 1 is drawn from real numbers: the embedded model's weights, the ticket of RUN,
and the paper's Table 2 (lth_scale/science/paper.json).
"""

import json
import sys
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from transformers import AutoModelForMaskedLM

from lth_scale import Ticket
from lth_scale.pruning import threshold
from lth_scale.pruning.controls import Subnetwork
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.locations import embedded_path

HERE = Path(__file__).parent
MATRIX, SIDE = "encoder.layer.0.attention.self.query.weight", 32
plt.rcParams.update(
    {"font.size": 9, "svg.hashsalt": "lth_scale", "savefig.facecolor": "white"}
)  # text becomes outlines


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture that is the same bytes each time."""
    figure.savefig(HERE / name, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def algorithm() -> None:
    """Algorithm 1 as a loop of four boxes."""
    figure, axes = plt.subplots(figsize=(8.2, 2.6))
    axes.set(xlim=(0, 82), ylim=(0, 26))
    axes.axis("off")
    boxes = {
        "start": (0, "pre-trained θ₀\nmask m of ones"),
        "train": (22, "1  train\nm ⊙ θᵢ for t steps"),
        "prune": (44, "2  prune\nthe smallest |θₜ|\nthat m keeps"),
        "ticket": (66, "ticket\nm, and where\nit came from"),
    }
    for name, (left, text) in boxes.items():
        shade = "0.9" if name in ("train", "prune") else "white"
        axes.add_patch(plt.Rectangle((left, 14), 16, 10, facecolor=shade, edgecolor="black"))
        axes.text(left + 8, 19, text, ha="center", va="center")
    axes.add_patch(plt.Rectangle((33, 1), 16, 7, facecolor="0.9", edgecolor="black"))
    axes.text(41, 4.5, "3  rewind\nweights back to θᵢ", ha="center", va="center")
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
    for tip, tail in (((22, 19), (16, 19)), ((44, 19), (38, 19)), ((66, 19), (60, 19))):
        axes.annotate("", tip, tail, arrowprops=arrow)
    for corner, tip, tail in (((52, 4.5), (49, 4.5), (52, 14)), ((30, 4.5), (30, 14), (33, 4.5))):
        axes.plot(*zip(tail, corner, strict=True), color="black", linewidth=1)
        axes.annotate("", tip, corner, arrowprops=arrow)
    axes.text(53.5, 8.5, "another round:\nmore sparsity", va="center", fontsize=8)
    axes.text(63, 20, "done", ha="center", fontsize=8)
    save(figure, "algorithm.svg")


def cut(weights: dict[str, torch.Tensor]) -> None:
    """Draw all magnitudes of the embedded model, three thresholds, and one corner of a matrix."""
    figure, (left, *panels) = plt.subplots(
        1, 4, figsize=(9, 2.5), width_ratios=(2.2, 1, 1, 1), layout="constrained"
    )
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    left.hist(sizes.numpy(), bins=120, range=(0, 0.3), color="0.75")
    left.set(xlabel="|w| of all prunable weights", yticks=[], xlim=(0, 0.3))
    for axes, (share, style) in zip(panels, ((0.2, ":"), (0.5, "--"), (0.8, "-")), strict=True):
        keep = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        at = threshold.prune(weights, keep, share, "global")
        left.axvline(
            at, color="black", linestyle=style, label=f"{100 * share:.0f} % are below {at:.3f}"
        )
        show(axes, keep[MATRIX].float(), f"mask at {100 * share:.0f} %")
    left.legend(fontsize=8)
    save(figure, "threshold.svg")


def show(axes: plt.Axes, matrix: torch.Tensor, title: str) -> None:
    """One corner of a matrix, dark where it is large."""
    axes.imshow(matrix[:SIDE, :SIDE].numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


def controls(model: torch.nn.Module, weights: dict[str, torch.Tensor], ticket: Ticket) -> None:
    """Draw the same corner of m ⊙ θ for each control, made by the functions that training uses."""
    own = {name: weight.detach() for name, weight in model.named_parameters()}
    names = {name: f"{model.base_model_prefix}.{name}" for name in weights}
    start = Subnetwork(own, ticket.masks_for(model), names, model)
    figure, panels = plt.subplots(1, 7, figsize=(11, 2), layout="constrained")
    pruned = {name: control for name, control in CONTROLS.items() if not control.budget}
    for axes, (name, control) in zip(panels, pruned.items(), strict=True):
        made = control.make(start, 1)
        large = made.matrix(MATRIX).abs()
        rank = large.flatten().argsort().argsort().view(large.shape) / large.numel()
        show(
            axes,
            (0.25 + 0.75 * rank) * made.masks[MATRIX],
            "the ticket" if name == "none" else name,
        )
    save(figure, "controls.svg")


def rules() -> None:
    """MRPC in the paper's Table 2: the ticket fails two rules and passes the third."""
    table = json.loads((HERE.parents[1] / "lth_scale/science/paper.json").read_text())["table2"]
    full, full_sd, sub, sub_sd = (
        table[key]["value"]["mrpc"]
        for key in (
            "full_bert_mean",
            "full_bert_std",
            "f(m_IMP,theta0)_mean",
            "f(m_IMP,theta0)_std",
        )
    )
    figure, axes = plt.subplots(figsize=(7, 1.9))
    for height, mean, sd, name in (
        (1, full, full_sd, "full network"),
        (0, sub, sub_sd, "ticket, 50 %"),
    ):
        axes.errorbar(mean, height, xerr=sd, fmt="o", color="black", capsize=4)
        axes.text(84.38, height, f"{name}: {mean} ± {sd}", va="center", ha="right")
    lines = (
        ("strict", full, "-"),
        ("within_sd_full", full - full_sd, "--"),
        ("within_sd_max", full - sub_sd, ":"),
    )
    for rule, at, style in lines:
        axes.axvline(at, color="0.4", linestyle=style, label=f"{rule}: at least {at:.1f}")
    axes.set(yticks=[], ylim=(-0.6, 1.6), xlim=(84.4, 85.5))
    axes.set_xlabel("accuracy on MRPC, % (paper, Table 2; mean ± sd of 5 runs)")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "rules.svg")


def main() -> None:
    """Draw all of them."""
    model = AutoModelForMaskedLM.from_pretrained(embedded_path("bert"))
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    algorithm()
    cut(weights)
    rules()
    controls(model, weights, Ticket.load(Path(sys.argv[1]) / "rounds/07/ticket.safetensors"))


if __name__ == "__main__":
    main()
