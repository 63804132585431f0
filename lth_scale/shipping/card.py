"""The model card of a ticket on the Hub, and its evaluation results, from what a run has on disk. Needs no network."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from lth_scale.config import files, markdown
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.resolution import resolve
from lth_scale.config.texts import as_words, printable
from lth_scale.pruning.registries import CONTROLS
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.shipping.publication import Publication
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking import console
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import starved_in

METRICS = {"spearman": "spearmanr"}  # ours → the name in `evaluate`
TAGS = [
    "lottery-ticket",
    "pruning",
    "sparsity",
    "sparse",
    "iterative-magnitude-pruning",
    "lth_scale",
]
PICTURE = "figures/score_against_sparsity.png"


@dataclass(frozen=True)
class Licence:
    """An identifier of the Hub's list, further fields of the base model's card, and where that is known from."""

    name: str
    source: str
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a card is about: the record of a search or transfer, and the stage whose network is uploaded.

    public: what of it may be published.
    """

    record: RunDirectory
    stage: Path
    ticket: Ticket
    row: dict[str, Any]
    public: Publication

    @classmethod
    def at(cls, stage: Path) -> "Run":
        """The run that `stage` (rounds/KK or seeds/SS) belongs to, as its arguments.json says."""
        root = stage.absolute().parent.parent
        saved, row = (
            files.read_json(root / "arguments.json"),
            files.read_json(stage / "metrics.json"),
        )
        ticket = Ticket.load(stage / "ticket.safetensors")
        return cls(
            RunDirectory(root, arguments_of(saved)),
            stage,
            ticket,
            row,
            Publication(saved, root, stage),
        )

    @property
    def args(self) -> Training:
        """The flags of the run."""
        return self.record.arguments

    @property
    def control(self) -> str:
        """What a transfer's network was trained with that was not found, or `none`."""
        return self.args.control if isinstance(self.args, Transfer) else "none"


def arguments_of(saved: Mapping[str, Any]) -> Training:
    """arguments.json as flags; what an older version did not write has its default."""
    kind: type = Transfer if "seeds" in saved else Arguments
    known = {spec.name for spec in fields(kind)}
    values = {
        name: tuple(x) if isinstance(x, list) else x for name, x in saved.items() if name in known
    }
    return kind(**values)


def command(run: Run) -> str:
    """The command line that makes the run: the flags that differ from the task's defaults; of paths the last names."""
    args = run.args
    short = {"task": args.task, **({"preset": args.preset} if args.preset else {})}
    usual, now = resolve(short, type(args)).as_dict(), args.as_dict()
    but = {*flags_with("cosmetic"), *short} - {"seeds"}
    changed = {
        name: value for name, value in now.items() if name not in but and value != usual[name]
    }
    if "max_steps" in changed and args.max_steps == -1:
        changed = {name: value for name, value in changed.items() if name != "max_steps"}
        changed["num_train_epochs"] = args.num_train_epochs  # which switches --max_steps off
    kind = "transfer" if isinstance(args, Transfer) else "imp"
    words = ["accelerate", "launch", "-m", f"lth_scale.{kind}"]
    for name, value in run.public.value(short | changed).items():
        words += as_words(name, value) if value is not None else []
    return shlex.join(words)


def evaluated_on(args: Training) -> str:
    """What the scores are about: the Hub's dataset, or local files, and how much of it."""
    name, config = TASKS[args.task].dataset
    what = f"the validation split of `{name}`, `{config}`"
    if args.task == "mlm":
        what = f"text held out of `{name}`, `{config}`"
    if args.dataset_path == EMBEDDED:
        what = "the small data that lth_scale brings for its demo"
    elif args.dataset_path:
        what = f"local files in the columns of `{name}`, `{config}`: its score only if these are its files"
    return what + (
        f"; the first {args.max_eval_samples:,} examples alone" if args.max_eval_samples else ""
    )


def base_of(run: Run) -> str:
    """The base model's name: on the Hub, or of its directory."""
    name = run.args.model_name_or_path
    return "lth_scale-embedded-bert" if name == EMBEDDED else run.public.model(name)


def metadata(run: Run, repo: str, licence: Licence) -> ModelCardData:
    """The front matter: base model, task, data, and the scores as `model-index`."""
    args, (data, config) = run.args, TASKS[run.args.task].dataset
    local, more = args.dataset_path is not None, dict[str, Any](licence.more)
    pattern = run.ticket.arguments.get("pattern", "unstructured")
    pipeline = TASKS[args.task].pipeline
    scores = [
        EvalResult(
            task_type=pipeline,
            dataset_type="local" if local else data,
            dataset_name="demo data of lth_scale"
            if args.dataset_path == EMBEDDED
            else f"local files in the columns of {data} ({config})"
            if local
            else f"{data} ({config})",
            dataset_config=config,
            dataset_split="validation",
            metric_type=METRICS.get(name, name),
            metric_value=value,
            metric_name=name,
        )
        for name, value in run.row["eval"].items()
    ]
    return ModelCardData(
        base_model=base_of(run),
        datasets=None if local else [data],
        language=None if local else "en",
        library_name="transformers",
        license=licence.name,
        metrics=[METRICS.get(name, name) for name in run.row["eval"] if name != "loss"],
        pipeline_tag=pipeline,
        tags=[*TAGS, args.task, *([] if pattern == "unstructured" else [pattern])],
        model_name=repo.split("/")[-1],
        eval_results=scores,
        **more,
    )


def evaluation(run: Run) -> str:
    """The Hub's evaluation-result file (`.eval_results/*.yaml`); nothing where the data is the demo's own."""
    args, (data, config) = run.args, TASKS[run.args.task].dataset
    if args.dataset_path == EMBEDDED:
        return ""
    metric, value = next(iter(run.row["eval"].items()))
    notes = (
        f"{metric} at {run.ticket.sparsity:.2%} sparsity, seed {seed_of(run)}; {evaluated_on(args)}"
    )
    entry = EvalResultEntry(
        dataset_id=data, task_id=config, value=value, notes=notes.replace("`", "")
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def seed_of(run: Run) -> int:
    """The seed of the network that is uploaded."""
    return run.row.get("seed", run.args.seed)


def readme(run: Run, repo: str, licence: Licence, speed: str) -> str:
    """The whole card. speed: a section of Markdown about speed, from `speed_section`."""
    ticket, args = run.ticket, run.args
    kind = (
        "A lottery ticket"
        if run.control == "none"
        else f"A control of a lottery ticket (`{run.control}`)"
    )
    base = markdown.code(base_of(run))
    head = TASKS[args.task].auto_class
    parts = [
        f"---\n{metadata(run, repo, licence).to_yaml()}\n---",
        f"# {repo.split('/')[-1]}",
        f"{kind} in {base}: **{ticket.sparsity:.2%} of its prunable weights are exactly zero** "
        f"({ticket.pruned:,} of {ticket.prunable:,}; embeddings, biases, LayerNorm and heads are not pruned), trained "
        f"on {args.task} with seed {seed_of(run)}.",
        f"## Scores\n\nOn {evaluated_on(args)}.\n\n{scores(run.record)}",
        f"![Score against sparsity]({PICTURE})",
        "## Load it",
        f'```python\nfrom transformers import {head}, AutoTokenizer\nmodel = {head}.from_pretrained("{repo}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n```',
        alone(run, repo),
        speed,
        made(run),
        cautions(run),
        f"## Licence\n\n`{licence.name}`: {licence.source}.",
    ]
    return printable("\n\n".join(parts)) + "\n"


def scores(record: RunDirectory) -> str:
    """The table of the run, as the terminal shows it."""
    args = record.arguments
    if (
        isinstance(args, Transfer)
        and args.compare_with
        and not Path(args.compare_with, "results.json").is_file()
    ):
        record = RunDirectory(record.directory, replace(args, compare_with=None))
    return summary.report(record)


def alone(run: Run, repo: str) -> str:
    """How to use the mask without the weights, and what it then gives."""
    args, ticket = run.args, run.ticket
    start = (
        getattr(args, "rewind_step", "0")
        if getattr(args, "rewind", "weights") == "weights"
        else "none"
    )
    size = (run.stage / "ticket.safetensors").stat().st_size / 1e6
    text = f"`ticket.safetensors` ({size:.1f} MB) is the mask alone, a bit a weight. "
    if start in ("0", "0.0") and not getattr(args, "theta", None) and CONTROLS[run.control].of_base:
        text += "Applied to the base model it gives m ⊙ θ₀, bit for bit, to be trained again:"
    else:
        text += "What it was trained from is not the base model's weights (see the command below); its mask fits those:"
    revision = f', revision="{ticket.base_revision}"' if ticket.base_revision else ""
    code = "from lth_scale import Ticket\nfrom transformers import AutoModel\n"
    on_hub = args.model_name_or_path != EMBEDDED and not run.public.is_local(
        args.model_name_or_path
    )
    where = base_of(run) if on_hub else f"DIRECTORY/OF/{base_of(run)}"
    model = json.dumps(where, ensure_ascii=False)  # a quote in a name does not end the string
    code += f'model = Ticket.from_pretrained("{repo}").apply(AutoModel.from_pretrained({model}{revision}))'
    return (
        f"## The ticket alone, and the small file\n\n{text}\n\n{markdown.code_block(code, 'python')}\n\n"
        "`compact/` holds the same network as a bit a weight and the values (`lth_scale.load_exported`); "
        f"`python -m lth_scale.hub pull {repo}` fetches everything and checks every digest."
    )


def made(run: Run) -> str:
    """Command, versions and commit, from arguments.json, and the digest of the base model's weights."""
    saved = files.read_json(run.record.directory / "arguments.json")
    versions = ", ".join(
        f"{name} {value}" for name, value in saved.get("versions", {}).items() if value
    )
    commit = f"; lth_scale at commit {saved['git_commit']}" if saved.get("git_commit") else ""
    how = markdown.code_block(command(run), "sh")
    base = (
        f" The base model's weights: `base_sha256` {run.ticket.base_sha256}."
        if run.ticket.base_sha256
        else ""
    )
    return f"## How it was made\n\n{how}\n\n{markdown.literal(versions + commit)}.{base}"


def cautions(run: Run) -> str:
    """What the ticket is no evidence for."""
    seeds = len(run.record.rows("seeds")) or 1
    lines = [
        "that it *matches* the full network: that takes a comparison over several seeds under a named rule "
        f"(`lth_scale.report`); here n = {seeds} seed{'s' if seeds > 1 else ''}"
        + ("" if seeds > 1 else ", and no spread can be given"),
        "that it is faster: zeros cost as much as other weights in a dense product; see Speed, and measure",
        f"a result on a test set: the scores are on {evaluated_on(run.args)}",
        "that memory falls by the sparsity: it counts the prunable weights, not the embeddings, and zeros take room",
        "anything about fairness, safety or other languages: none of it was measured, and pruning can change it",
    ]
    if run.control != "none":
        lines.insert(0, f"what a found ticket does: `{run.control}` is a control")
    if words := starved_in(run.row):
        lines.insert(0, f"that every layer is in use: {markdown.literal(words)}")
    if run.args.note:
        lines.insert(0, f"anything, without saying: {run.args.note}")
    return "## What it must not be used to claim\n\n" + "\n".join(f"- {line}." for line in lines)


def speed_section(run: Run) -> str:
    """The table of a speed check of this run, with its machine; or the command that makes one."""
    root = run.record.directory
    for path in (root / "speed/speed.json", root.parent / f"speed-{root.name}/speed.json"):
        try:
            if os.path.lexists(path) and (
                found := measured(files.read_json(path), run.ticket.pruned)
            ):
                return found
        except Exception:  # anybody's file may have this name, and hold anything
            console.say(
                printable(
                    f"{path}: is not a whole report of a speed check, and the card leaves it out"
                )
            )
    return (
        "## Speed\n\nNot measured. `python -m lth_scale.speed` on the run, or on this model once pulled, "
        "times every engine of a machine."
    )


def measured(record: dict[str, Any], pruned: int) -> str:
    """A section of Markdown from a speed.json: its cells with so many pruned weights; '' where it has none."""
    from lth_scale.shipping.speed import report

    cells = [each for each in record["cells"] if each["pruned"] == pruned]
    if not cells:
        return ""
    machine, sections = record["machine"], [report.section(cell) for cell in cells]
    here = (
        f"{machine['cpu']}, {machine['cores']}, {machine['gpu'] or 'no GPU'}, {machine['system']}"
    )
    parts = [
        f"{markdown.literal(here)}; {record['settings']['repeats']} interleaved calls of each engine. {report.READING}"
    ]
    for each in sections:
        title = markdown.literal(each.title.rpartition(": ")[2])
        parts += [
            f"### {title}",
            *map(markdown.literal, each.text),
            *map(markdown.markdown_table, each.tables),
        ]
    return "## Speed\n\n" + "\n\n".join(parts)


def write(folder: Path, run: Run, repo: str, licence: Licence) -> None:
    """README.md and `.eval_results/` in a folder that is to be uploaded."""
    card = run.public.text(readme(run, repo, licence, speed_section(run)))
    if not (folder / PICTURE).is_file():
        card = card.replace(
            f"![Score against sparsity]({PICTURE})", "The picture of the scores could not be drawn."
        )
    files.write_bytes(folder / "README.md", card.encode())
    if found := evaluation(run):
        files.write_bytes(folder / ".eval_results" / f"{run.args.task}.yaml", found.encode())
