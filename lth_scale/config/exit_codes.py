"""Exit codes, and the one line on stderr that goes with them."""

import errno
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lth_scale.config.command import VERBOSE, is_verbose
from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.redaction import redact_logs, without_secrets
from lth_scale.config.texts import printable

_PACKAGE = Path(__file__).parents[1]
_UNUSABLE = {
    errno.ENAMETOOLONG: "the name is too long; use a shorter path",
    errno.ELOOP: "its symbolic links form a loop; use another path",
}
# As in the messages of safetensors
FULL = ("No space left on device", "Disk quota exceeded", "File too large")
SILENCE = 20  # seconds in which a node's first rank can print what the others would print too


@dataclass
class Process:
    """How this process ends. A distributed launch sets both.

    explain: reports an error of this rank to the others, and returns the message if one of them
    caused it, "" if another rank of this node prints it, and None if the error is this rank's own.
    """

    explain: Callable[[BaseException], str | None] | None = None
    exit: Callable[[int], NoReturn] = sys.exit


PROCESS = Process()


def exit_on_bad_input(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit.

    BadInput becomes one `error: …` line a node and exit code 2, Stopped the same with exit code 1.
    It is the last line on stderr; with --verbose, the traceback precedes it. The umask becomes 022
    or stricter. Passwords and tokens are removed from all output, logs of libraries included.
    """
    redact_logs()
    os.umask(os.umask(0o022) | 0o022)
    PROCESS.exit(_run(command))


def _run(command: Callable[[], None]) -> int:
    try:
        command()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        _print_error(f"interrupted; {AGAIN}", None)
        return 1
    except Exception as problem:
        if isinstance(problem, BrokenPipeError) and _is_stdout_closed():
            return 128 + signal.SIGPIPE
        status = _exit_status(problem)
        if status is None:
            print(_format(problem), end="", file=sys.stderr, flush=True)
            return 1
        code, message = status
        if message:
            _print_error(message, problem)
        return code


def _print_error(message: str, problem: Exception | None) -> None:
    """Print the `error:` line; with --verbose, above it, the traceback that it summarises."""
    is_ours = problem is None or isinstance(problem, BadInput | Stopped)
    has_more = problem and (not is_ours or summarises(problem))
    if problem and has_more and is_verbose():
        print(_format(problem), end="", file=sys.stderr)
    elif has_more and is_ours:
        message += f"; add {VERBOSE} for the whole error"
    line = printable(" ".join(without_secrets(message).split()))
    line = re.sub(r"\d{101,}", lambda n: f"{n[0][:20]}… ({len(n[0])} digits)", line)
    print("error:", line, file=sys.stderr, flush=True)


def _format(problem: Exception) -> str:
    text = "".join(traceback.format_exception(problem))
    return printable(without_secrets(text).expandtabs())


def summarises(problem: BaseException) -> bool:
    """True if an error of this package was raised from one of a library, which says more."""
    cause = problem.__cause__
    while isinstance(cause, BadInput | Stopped):
        cause = cause.__cause__
    if type(cause) is not ValueError:
        return cause is not None
    raised = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(cause.__traceback__)][-1:]
    return not any(Path(name).is_relative_to(_PACKAGE) for name in raised)


def _is_stdout_closed() -> bool:
    """True if stdout is a pipe without a reader, as under `| head`; then discards its buffer."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always reported
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _exit_status(problem: Exception) -> tuple[int, str] | None:
    """The exit code for an error, and this rank's message; None for an unforeseen error."""
    problem = _of_system(problem)
    is_watched = PROCESS.explain is not None
    explanation = PROCESS.explain(problem) if PROCESS.explain else None
    if explanation is not None:
        return 1, explanation
    if not isinstance(problem, BadInput | Stopped):
        return None
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not (is_first or is_watched):
        time.sleep(SILENCE)  # the first rank prints, and a launcher ends the others with it
    message = str(problem) if is_first or not is_watched else ""
    return 2 if isinstance(problem, BadInput) else 1, message


def _of_system(problem: Exception) -> Exception:
    """BadInput for an error about a path, Stopped for a full disk, else the error itself."""
    number, text = getattr(problem, "errno", None), str(problem)
    if number in _UNUSABLE:
        return BadInput(f"{getattr(problem, 'filename', '')}: {_UNUSABLE[number]}")
    if isinstance(problem, RuntimeError) and "Symlink loop from" in text:
        # of Path.resolve in Python 3.11
        path = text.partition("from ")[2].strip("'")
        return BadInput(f"{path}: {_UNUSABLE[errno.ELOOP]}")
    is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if (is_full or any(words in text for words in FULL)) and not isinstance(problem, Stopped):
        return Stopped(f"{problem}; what was written before is kept: free disk space, then {AGAIN}")
    return problem
