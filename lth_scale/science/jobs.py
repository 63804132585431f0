"""A job: one command of a study."""

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from lth_scale.config import arguments, checks, parsers, resolution
from lth_scale.config.arguments import Arguments, Training
from lth_scale.config.command import as_argv
from lth_scale.config.errors import BadInput
from lth_scale.pruning.registries import sparsities
from lth_scale.science.study_file import KINDS, Flags

# Flags whose values are files of other jobs, below the study's directory.
FILES = ("ticket", "dense")


@dataclass(frozen=True)
class Job:
    """A search (`imp`) or a transfer with its flags, and the jobs whose files it needs.

    FILES among its flags are relative to the study's directory.
    """

    id: str
    kind: str
    flags: Flags
    needs: tuple[str, ...] = ()

    @functools.cached_property
    def args(self) -> Training:
        """The arguments that the command will resolve. Raises BadInput."""
        try:
            flags = vars(parser_of(self.kind).parse_args(as_argv(self.flags)))
            # Set after resolving: these files do not exist yet.
            late = {
                name: flags.pop(name)
                for name in (*FILES, "control")
                if self.needs and name in flags
            }
            args = replace(resolution.resolve(flags, KINDS[self.kind]), **late)
            if isinstance(args, Arguments):
                checks.check_search(args)
        except BadInput as problem:
            raise BadInput(f"{self.id}: {problem}") from None
        return args

    @functools.cached_property
    def sparsities(self) -> list[float]:
        """The sparsities of a search's rounds."""
        args = self.args
        assert isinstance(args, Arguments)
        return sparsities(args.schedule, args.target_sparsity, args.prune_rate)

    def below(self, directory: Path) -> "Job":
        """The job with the paths of its files below the study's directory."""
        located = {name: directory / self.flags[name] for name in FILES if name in self.flags}
        output = directory / "jobs" / self.id
        return replace(self, flags={**self.flags, "output_dir": output, **located})


@functools.cache
def parser_of(kind: str) -> parsers.OneLineParser:
    """The parser of a kind of job."""
    return parsers.add_flags(parsers.OneLineParser(), KINDS[kind])


def difference(old: Flags, new: Flags, ignore: Collection[str]) -> str:
    """The first flag that differs, with both values; empty if there is none."""
    for name in {**old, **new}:
        values = old.get(name), new.get(name)
        if name not in ignore and not arguments.same_value(name, *values):
            return "--{} {} and {}".format(name, *values)
    return ""
