"""What ends a distributed training early: ranks that fail, die or hang, and signals."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType

import torch.distributed as dist
from accelerate import Accelerator

from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.exit_codes import PROCESS, SILENCE
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief
from lth_scale.distributed import compat
from lth_scale.distributed.pieces import Ranks

INTERVAL = 1.0  # seconds between two heartbeats
SILENT = 60.0  # seconds without a heartbeat after which a rank is considered dead
GRACE = 5.0  # seconds in which a failing rank may report its error itself
LAUNCHER_GONE = "or its launcher is gone"
COMMUNICATION = ("gloo", "NCCL", "TCPStore")  # words in errors that another rank causes
SAVE, STOP = 1, 2  # what a signal requests


@dataclass(frozen=True)
class Heartbeat:
    """What a rank last reported. reason: why it stops, or ""."""

    count: int = -1
    progress: int = -1
    host: str = ""
    reason: str = ""


class Watchdog(threading.Thread):
    """Sends this rank's heartbeat and progress every INTERVAL, and reads those of the others.

    Ends the process, with one line a node, if a rank fails, is silent for SILENT seconds, or if no
    rank makes progress for `timeout` seconds.
    """

    def __init__(self, rank: int, world_size: int, timeout: float):
        super().__init__(daemon=True)
        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        # a connection of its own: the default one may be waiting
        self.store = dist.PrefixStore("lth_scale.watch", compat.cloned(compat.default_store()))
        self.store.set_timeout(timedelta(seconds=SILENT))
        self.host, self.count, self.progress, self.reason = socket.gethostname(), 0, 0, ""
        self.is_done = False
        now = time.monotonic()
        self.last = [Heartbeat()] * world_size
        self.heard, self.advanced = [now] * world_size, now
        self.own_progress, self.own_advanced = 0, now
        self.last_healthy, self.grace = now, GRACE
        self._send()

    def _send(self) -> None:
        self.count += 1
        beat = f"{self.count} {self.progress} {self.host} {self.reason}"
        self.store.set(str(self.rank), beat)

    def _receive(self) -> None:
        now = time.monotonic()
        values = self.store.multi_get([str(rank) for rank in range(self.world_size)])
        for rank, value in enumerate(values):
            count, progress, host, reason = value.decode().split(" ", 3)
            beat = Heartbeat(int(count), int(progress), host, reason)
            if beat.count != self.last[rank].count:
                self.heard[rank] = now
            if beat.progress != self.last[rank].progress:
                self.advanced = now
            self.last[rank] = beat

    def run(self) -> None:
        """Watch until the work is done."""
        while not self.is_done:
            try:
                self._send()
                self._receive()
                self.grace = GRACE
            except RuntimeError:
                # the process that holds the store is gone; the ranks may still finish without it
                self.last[0] = replace(self.last[0], reason=LAUNCHER_GONE)
                self.grace = SILENT
            failures = self._check()
            if failures and not self.is_done:
                if message := self._message(failures):
                    print("error:", without_secrets(message), file=sys.stderr, flush=True)
                os._exit(1)  # the main thread may wait for ever
            time.sleep(INTERVAL)

    def _check(self) -> dict[int, str]:
        """Return what is wrong, by rank, once it is certain."""
        now = time.monotonic()
        if self.progress != self.own_progress:
            self.own_progress, self.own_advanced = self.progress, now
        if now - self.advanced > self.timeout:
            return self._failures(SILENT) or self._stuck()
        if not any(beat.reason for beat in self.last):
            self.last_healthy = now
            return self._failures(min(SILENT, self.timeout))
        # wait while this rank makes progress, or may be about to report an error itself
        is_certain = now - max(self.own_advanced, self.last_healthy) > self.grace
        return self._failures(SILENT) if is_certain else {}

    def _failures(self, silent: float) -> dict[int, str]:
        """Return the errors that ranks reported, else the ranks silent for `silent` seconds."""
        reported = {rank: beat.reason for rank, beat in enumerate(self.last) if beat.reason}
        now = time.monotonic()
        return reported or {
            rank: f"is gone: no sign of life for {now - heard:.0f} s"
            for rank, heard in enumerate(self.heard)
            if now - heard > silent and rank != self.rank
        }

    def _stuck(self) -> dict[int, str]:
        """Return the ranks that the others wait for: those with the least progress, or all."""
        progress = [beat.progress for beat in self.last]
        least, most = min(progress), max(progress)
        behind = [rank for rank, value in enumerate(progress) if value == least < most]
        seconds = time.monotonic() - self.advanced
        ranks = behind or range(self.world_size)
        return dict.fromkeys(ranks, f"made no progress for {seconds:.0f} s")

    def _message(self, failures: dict[int, str]) -> str:
        """Return the line to print, or "" if another rank of this node prints it."""
        ours = (rank for rank, beat in enumerate(self.last) if beat.host == self.host)
        if next((rank for rank in ours if rank not in failures), self.rank) != self.rank:
            return ""
        described = "; ".join(
            f"rank {rank} of {self.world_size} ({self.last[rank].host}) {reason}"
            for rank, reason in failures.items()
        )
        return f"{described}; all ranks stop: {AGAIN}"

    def explain(self, error: BaseException) -> str | None:
        """Report an error to the other ranks. If it came from one of them, return what to print."""
        RUNNING.clear()
        # the launcher sends SIGTERM when it sees another rank end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        text, failures = str(error), dict[int, str]()
        if isinstance(error, dist.DistError) or any(word in text for word in COMMUNICATION):
            self.is_done = True
            failures = self._wait_for_failures()
            if not failures and "imed out" in text:  # else this rank's own communication failed
                failures = self._failures(SILENT) or self._stuck()
        if failures:
            return self._message(failures)
        is_ours = isinstance(error, BadInput | Stopped)
        self._leave(text if is_ours else f"{type(error).__name__}: {text}")
        return None

    def _wait_for_failures(self) -> dict[int, str]:
        """Return what is wrong with the other ranks, waiting a while for them to report it."""
        until, failures = time.monotonic() + 2 * GRACE, dict[int, str]()
        while not failures and time.monotonic() < until:
            time.sleep(INTERVAL)
            try:
                self._send()
                self._receive()
                failures = self._failures(3 * INTERVAL)
            except RuntimeError:
                failures = {0: LAUNCHER_GONE}
        return failures

    def _leave(self, reason: str) -> None:
        """Report why this rank stops, after the first rank of its node, and stop watching."""
        self.is_done, self.reason = True, brief(without_secrets(reason), 1000) or "stops"
        first = min(rank for rank, beat in enumerate(self.last) if beat.host in ("", self.host))
        until = time.monotonic() + SILENCE
        with contextlib.suppress(RuntimeError):
            self._send()
            while first != self.rank and not self.last[first].reason and time.monotonic() < until:
                time.sleep(INTERVAL)
                self._receive()
                until = min(until, self.heard[first] + GRACE)


RUNNING: list[Watchdog] = []  # one at most


def start(accelerator: Accelerator, timeout: float) -> None:
    """Start watching the other ranks. Called by all ranks at once."""
    if accelerator.num_processes > 1:
        watchdog = Watchdog(accelerator.process_index, accelerator.num_processes, timeout)
        RUNNING[:] = [watchdog]
        accelerator.wait_for_everyone()
        watchdog.start()
        PROCESS.explain = watchdog.explain


def stop() -> None:
    """Stop watching: the work is done, and the other ranks may end."""
    for watchdog in RUNNING:
        watchdog.is_done = True
    RUNNING.clear()
    PROCESS.explain = None


class SignalHandler:
    """SIGUSR1 requests a checkpoint; SIGTERM, or the launcher's death, a checkpoint and a stop."""

    def __init__(self) -> None:
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self.request, self.launcher = 0, os.getppid() if launched else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.request = max(self.request, STOP if number == signal.SIGTERM else SAVE)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer SIGTERM to the next `poll`; outside, it ends the process, which loses nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        except BaseException:
            # with a watchdog, the error is reported first, even if the launcher ends all ranks
            if not RUNNING:
                signal.signal(signal.SIGTERM, before)
            raise
        signal.signal(signal.SIGTERM, before)

    def poll(self, ranks: Ranks) -> int:
        """Return 0, SAVE or STOP: the strongest request of any rank since the last call.

        Called by all ranks at once; they return the same. Counts as progress of this rank.
        """
        for watchdog in RUNNING:
            watchdog.progress += 1
        if self.launcher not in (None, os.getppid()):
            self.request = STOP
        # cleared before the ranks meet: a signal that comes meanwhile is for the next call
        request, self.request = self.request, 0
        return ranks.max(request)
