"""Exit codes, and the one line on stderr that goes with them."""

import errno
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.parsers import VERBOSE, is_verbose
from lth_scale.config.redaction import redact_logs, without_secrets
from lth_scale.config.texts import printable, shortened

UNUSABLE = {
    errno.ENAMETOOLONG: "the name is too long, and a shorter one is needed",
    errno.ELOOP: "its links lead round in a circle",
}
FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
)  # in the words of safetensors' errors
SILENCE = 20  # seconds in which the first rank of a node can say what the others would say too


class Watcher(Protocol):
    """What watches the other ranks of a launched command."""

    def explain(self, error: BaseException) -> str | None:
        """Report an error of this rank to the others; return the message if one of them caused it.

        "" if another rank of this node prints the message, None if the error is this rank's own.
        """


@dataclass
class Process:
    """How this process ends. A distributed launch sets both."""

    watcher: Watcher | None = None
    exit: Callable[[int], NoReturn] = sys.exit


PROCESS = Process()


def exit_on_bad_input(command: Callable[[], None]) -> NoReturn:
    """Run a command; BadInput becomes one `error: …` line a node and exit code 2, Stopped the same and 1.

    It is the last line on stderr. With --verbose the traceback stands above it, with the errors that led to it.
    What it writes can be written by its user alone: the umask is 022 or stricter. Nothing that it says, a traceback
    or a library's log included, holds a password or token.
    """
    redact_logs()
    os.umask(os.umask(0o022) | 0o022)
    code, said = 0, ""
    caught: Exception | None = None
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code, said = 1, f"interrupted; {AGAIN}"
    except Exception as problem:
        caught, verdict = (
            problem,
            (128 + signal.SIGPIPE, "") if is_left(problem) else exit_status(problem),
        )
        if verdict is None:
            print(_whole(problem), end="", file=sys.stderr, flush=True)
        code, said = verdict or (1, "")
    if said:
        tell(said, caught)
    PROCESS.exit(code)


def tell(said: str, problem: Exception | None) -> None:
    """Print the line that says what went wrong; with --verbose, above it, the traceback of what it sums up."""
    is_ours = problem is None or isinstance(problem, BadInput | Stopped)
    more = problem and (not is_ours or sums_up(problem))
    if problem and more and is_verbose():
        print(_whole(problem), end="", file=sys.stderr)
    elif more and is_ours:
        said += f"; add {VERBOSE} for the whole error"
    line = shortened(printable(" ".join(without_secrets(said).split())))
    print("error:", line, file=sys.stderr, flush=True)


def _whole(problem: Exception) -> str:
    text = "".join(traceback.format_exception(problem))
    return printable(without_secrets(text).expandtabs())


def sums_up(problem: BaseException) -> bool:
    """True where an error of ours was raised from a library's, which says more."""
    cause = problem.__cause__
    while isinstance(cause, BadInput | Stopped):
        cause = cause.__cause__
    if type(cause) is not ValueError:
        return cause is not None
    raised = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(cause.__traceback__)][-1:]
    return not any(Path(name).is_relative_to(Path(__file__).parent) for name in raised)


def is_left(problem: Exception) -> bool:
    """True where stdout is a pipe that nobody reads any more, as under `| head`; what waits for it is dropped."""
    if not isinstance(problem, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always told
    left = bool(poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def exit_status(problem: Exception) -> tuple[int, str] | None:
    """The exit code for an error, and what this rank is to say of it; None for one that nobody has foreseen."""
    number = getattr(problem, "errno", None)
    if number in UNUSABLE:
        problem = BadInput(
            f"{getattr(problem, 'filename', '')}: {UNUSABLE[number]}; give another path"
        )
    if isinstance(problem, RuntimeError) and "Symlink loop from" in str(
        problem
    ):  # Path.resolve's of Python 3.11
        problem = BadInput(
            f"{str(problem).partition('from ')[2]}: {UNUSABLE[errno.ELOOP]}; give another path"
        )
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        words in str(problem) for words in FULL
    )
    if full and not isinstance(problem, Stopped):
        problem = Stopped(
            f"{problem}; what was written before stands: free some room, then {AGAIN}"
        )
    watched = PROCESS.watcher is not None
    of_others = PROCESS.watcher.explain(problem) if PROCESS.watcher else None
    if of_others is not None:
        return 1, of_others
    if not isinstance(problem, BadInput | Stopped):
        return None
    code, first = (
        2 if isinstance(problem, BadInput) else 1,
        os.environ.get("LOCAL_RANK", "0") == "0",
    )
    if not (
        first or watched
    ):  # the first rank of the node speaks, and a launcher ends the others with it
        time.sleep(SILENCE)
    return code, str(problem) if first or not watched else ""
