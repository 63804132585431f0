"""Requests to the Hugging Face Hub: retries, timeouts, and errors in one line."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.resolution import HUB_NAME
from lth_scale.config.startup import hub_cache_problem
from lth_scale.config.texts import reason

if TYPE_CHECKING:
    import httpx

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
HUB_TIMEOUT = 120.0  # seconds without a byte until a request is given up
DELAYS = (2, 8)  # seconds before each retry; the library has its own for most requests
Answer = TypeVar("Answer")


@contextmanager
def session() -> Iterator[None]:
    """Requests time out after HUB_TIMEOUT (the library waits forever) and show no progress bars."""
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    http = get_session()

    def client(timeout: Any) -> "httpx.Client":
        hooks, follow = http.event_hooks, http.follow_redirects
        return type(http)(event_hooks=hooks, follow_redirects=follow, timeout=timeout)

    had_bars = not are_progress_bars_disabled()
    set_client_factory(lambda: client(HUB_TIMEOUT))
    disable_progress_bars()
    # Loading data sets it as well, if the Hub cannot be reached.
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        set_client_factory(lambda: client(http.timeout))
        if had_bars:
            enable_progress_bars()


def request(call: Callable[[], Answer], repo: str, delays: tuple[int, ...] | None = None) -> Answer:
    """Return what `call` returns; retry after DELAYS, or `delays`, if the Hub fails.

    Raises BadInput if the Hub refuses, Stopped if the last attempt fails.
    """
    for delay in (*(DELAYS if delays is None else delays), None):
        try:
            return call()
        except (BadInput, Stopped):
            raise
        except Exception as problem:  # of the library, its HTTP client or its token store
            failure = _explain(problem, repo)
            if failure is None:
                raise
            if delay is None or isinstance(failure, BadInput):
                raise failure from problem
            time.sleep(delay)
    raise AssertionError("unreachable")


def _explain(problem: BaseException, repo: str) -> BadInput | Stopped | None:
    """What an error of the Hub's library means: Stopped if the request may succeed when repeated.

    None for an unforeseen error.
    """
    from huggingface_hub import errors

    if message := hub_cache_problem(problem):
        return BadInput(message)
    chain = [problem]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    hub, subject = os.environ.get("HF_ENDPOINT") or "the Hub", f"--hub_model_id {repo}"
    if any(isinstance(error, errors.LocalTokenNotFoundError) for error in chain):
        return BadInput(f"{subject}: no token for {hub}; {_LOG_IN}")
    if any(isinstance(error, errors.OfflineModeIsEnabled) for error in chain):
        return BadInput(
            f"{subject}: HF_HUB_OFFLINE is set, which blocks requests to {hub}; unset it"
        )
    for error in chain:
        if isinstance(error, errors.HfHubHTTPError):
            return _of_status(error.response.status_code, problem, subject, hub)
    names = {kind.__name__ for error in chain for kind in type(error).__mro__}
    if names & {"TransportError", "ConnectionError", "TimeoutError"}:
        return _interrupted(
            f"{subject}: {hub} cannot be reached, or the connection broke ({reason(problem)})"
        )
    return None


def _of_status(status: int, problem: BaseException, subject: str, hub: str) -> BadInput | Stopped:
    if status in (408, 429) or status >= 500:
        return _interrupted(f"{subject}: {hub} failed (HTTP {status})")
    if status == 401:
        return BadInput(f"{subject}: {hub} does not accept the token (401); {_LOG_IN}")
    if status == 403:
        return BadInput(
            f"{subject}: the token may not write there (403); use a name of your own, or a token "
            "with write access"
        )
    return BadInput(
        f"{subject}: {hub} refused the request (HTTP {status}: {reason(problem)}); correct that, "
        "or use another name"
    )


def _interrupted(message: str) -> Stopped:
    return Stopped(
        f"{message}: nothing is lost and nothing was changed there; run the same command again"
    )


def check_source(name: str, revision: str | None) -> None:
    """Raise BadInput if this cannot be a repository or a revision of one."""
    if not re.fullmatch(HUB_NAME, name, re.ASCII) or ".." in name:
        raise BadInput(f"{name}: not a repository on the Hub; use user/name")
    if revision is None:
        return
    if not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) or ".." in revision:
        raise BadInput(f"--revision {revision}: not the name of a branch, tag or commit; use one")


def fetch(
    call: Callable[[], Answer], name: str, revision: str | None, file: str = "ticket.safetensors"
) -> Answer:
    """`request` for a download: says which of repository, revision and file does not exist."""
    from huggingface_hub import errors

    def attempt() -> Answer:
        try:
            return call()
        except errors.RevisionNotFoundError as problem:
            raise BadInput(
                f"--revision {revision}: {name} has no such revision; use a branch, tag or commit"
            ) from problem
        except errors.RemoteEntryNotFoundError as problem:
            raise BadInput(
                f"{name}: has no {file}; use a repository that lth_scale pushed"
            ) from problem
        except errors.RepositoryNotFoundError as problem:
            raise BadInput(
                f"{name}: does not exist on the Hub, or is private; check the name, or {_LOG_IN}"
            ) from problem

    try:
        return request(attempt, name)
    except (BadInput, Stopped) as problem:
        raise type(problem)(str(problem).replace("--hub_model_id ", "")) from problem
