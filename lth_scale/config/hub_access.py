"""Requests to the Hugging Face Hub: retries, timeouts, and errors in one line."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lth_scale.config import caches
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.redaction import without_secrets
from lth_scale.config.resolution import HUB_NAME
from lth_scale.config.texts import brief

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
HUB_TIMEOUT = 120.0  # seconds without a byte after which a request is given up
DELAYS = (2, 8)  # seconds before another attempt; the library has its own for most requests
Answer = TypeVar("Answer")


class Refused(Exception):
    """What the Hub said no to, or did not say at all, in a line."""

    def __init__(self, why: str, again: bool):
        super().__init__(why)
        self.again = again  # it may go well the next time


@contextmanager
def polite() -> Iterator[None]:
    """Requests that are given up after SILENCE (the library waits for ever), and no bars."""
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    session = get_session()

    def client(timeout: Any) -> Any:
        hooks, follow = session.event_hooks, session.follow_redirects
        return type(session)(event_hooks=hooks, follow_redirects=follow, timeout=timeout)

    bars = not are_progress_bars_disabled()
    set_client_factory(lambda: client(HUB_TIMEOUT))
    disable_progress_bars()
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES
    constants.HF_HUB_OFFLINE = (
        asked  # and not because the Hub was out of reach when the data was loaded
    )
    try:
        yield
    finally:
        set_client_factory(lambda: client(session.timeout))
        if bars:
            enable_progress_bars()


def _answered(ask: Callable[[], Answer], repo: str, delays: tuple[int, ...] = DELAYS) -> Answer:
    """What `ask` returns, in some attempts. Raises BadInput where the Hub says no, Stopped where it fails."""
    for delay in (*delays, None):
        try:
            return ask()
        except (
            Exception
        ) as problem:  # the library, its HTTP client and its token store raise many kinds
            refused = explain(problem, repo)
            if refused is None:
                raise
            if not refused.again:
                raise BadInput(str(refused)) from problem
            if delay is None:
                raise Stopped(
                    f"{refused}: nothing is lost, and nothing was changed there: run it again"
                ) from problem
            time.sleep(delay)
    raise AssertionError("unreachable")


def explain(problem: BaseException, repo: str) -> Refused | None:
    """What an error of the Hub's library means, or None for one that nobody has foreseen."""
    from huggingface_hub import errors

    chain = [problem]
    while (
        cause := chain[-1].__cause__ or chain[-1].__context__
    ) is not None and cause not in chain:
        chain.append(cause)
    if refused := caches.refused_by_hub_cache(problem):
        return Refused(refused, False)
    where = os.environ.get("HF_ENDPOINT") or "the Hub"
    if any(isinstance(each, errors.LocalTokenNotFoundError) for each in chain):
        return Refused(f"--hub_model_id {repo}: there is no token for {where}; {LOG_IN}", False)
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return Refused(
            f"--hub_model_id {repo}: HF_HUB_OFFLINE is set, so {where} is not asked; unset it",
            False,
        )
    status = next(
        (each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)), 0
    )
    if status == 401:
        return Refused(
            f"--hub_model_id {repo}: {where} does not take the token (401); {LOG_IN}", False
        )
    if status == 403:
        return Refused(
            f"--hub_model_id {repo}: the token may not write there (403); give a name of your own, or a "
            "token with write access",
            False,
        )
    if status in (408, 429) or status >= 500:
        return Refused(f"--hub_model_id {repo}: {where} failed (HTTP {status})", True)
    if status:
        return Refused(
            f"--hub_model_id {repo}: {where} refused it (HTTP {status}: {_short(problem)}); give another, "
            "or mend that",
            False,
        )
    kinds = {name for each in chain for name in (kind.__name__ for kind in type(each).__mro__)}
    if kinds & {"TransportError", "ConnectionError", "TimeoutError"}:
        return Refused(
            f"--hub_model_id {repo}: {where} cannot be reached, or broke off ({_short(problem)})",
            True,
        )
    return None


def _short(problem: BaseException) -> str:
    return brief(without_secrets(str(problem))) or type(problem).__name__


def ticket_file(name: str, revision: str | None = None) -> Path:
    """ticket.safetensors of a repository, in the Hub's cache. Raises BadInput, and Stopped where the Hub fails."""
    from huggingface_hub import hf_hub_download

    check_source(name, revision)
    with polite():
        return Path(
            _fetched(
                lambda: hf_hub_download(name, "ticket.safetensors", revision=revision),
                name,
                revision,
            )
        )


def check_source(name: str, revision: str | None) -> None:
    """Raise BadInput for what cannot be a repository or a revision of it."""
    if not re.fullmatch(HUB_NAME, name, re.ASCII) or ".." in name:
        raise BadInput(f"{name}: is no repository of the Hub; give user/name")
    if revision is not None and (
        not re.fullmatch(r"\w[\w./-]*", revision, re.ASCII) or ".." in revision
    ):
        raise BadInput(f"--revision {revision}: is no branch, tag or commit; give one")


def _fetched(
    fetch: Callable[[], Answer], name: str, revision: str | None, file: str = "ticket.safetensors"
) -> Answer:
    """As `_answered`, for a download: a repository, revision or file that is not there is told apart."""
    from huggingface_hub import errors

    def attempt() -> Answer:
        try:
            return fetch()
        except errors.RevisionNotFoundError as problem:
            raise BadInput(
                f"--revision {revision}: {name} has none of that name; give another"
            ) from problem
        except errors.RemoteEntryNotFoundError as problem:
            raise BadInput(
                f"{name}: holds no {file}; give a repository that lth_scale pushed"
            ) from problem
        except errors.RepositoryNotFoundError as problem:
            raise BadInput(
                f"{name}: is not on the Hub, or private; check the name, or {LOG_IN}"
            ) from problem

    try:
        return _answered(attempt, name)
    except (BadInput, Stopped) as problem:
        raise type(problem)(str(problem).replace("--hub_model_id ", "")) from problem
