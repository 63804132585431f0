"""A watchdog over the other ranks: it ends this process if one of them fails, dies or hangs."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from accelerate import Accelerator

from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.exit_codes import PROCESS, SILENCE
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief
from lth_scale.distributed import compat

INTERVAL = 1.0  # seconds between two heartbeats
SILENT = 60.0  # seconds without a heartbeat after which a rank is considered dead
GRACE = 5.0  # seconds in which a failing rank may report its error itself
LAUNCHER_GONE = "or its launcher is gone"
COMMUNICATION = ("gloo", "NCCL", "TCPStore")  # words in errors that another rank causes


@dataclass(frozen=True)
class Heartbeat:
    """What a rank last reported. reason: why it stops, or ""."""

    count: int = -1
    progress: int = -1
    host: str = ""
    reason: str = ""

    def encode(self) -> str:
        """Return the value for the store."""
        return f"{self.count} {self.progress} {self.host} {self.reason}"

    @classmethod
    def decode(cls, value: bytes) -> "Heartbeat":
        """Return the heartbeat that was encoded as `value`."""
        count, progress, host, reason = value.decode().split(" ", 3)
        return cls(int(count), int(progress), host, reason)


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
        self.send()

    def send(self) -> None:
        """Send a heartbeat."""
        self.count += 1
        heartbeat = Heartbeat(self.count, self.progress, self.host, self.reason)
        self.store.set(str(self.rank), heartbeat.encode())

    def receive(self) -> None:
        """Read the last heartbeat of every rank."""
        now = time.monotonic()
        values = self.store.multi_get([str(rank) for rank in range(self.world_size)])
        for rank, value in enumerate(values):
            before, self.last[rank] = self.last[rank], Heartbeat.decode(value)
            if before.count != self.last[rank].count:
                self.heard[rank] = now
            if before.progress != self.last[rank].progress:
                self.advanced = now

    def run(self) -> None:
        """Watch until the work is done."""
        while not self.is_done:
            try:
                self.send()
                self.receive()
                self.grace = GRACE
            except RuntimeError:
                # the process that holds the store is gone; the ranks may still finish without it
                self.last[0] = replace(self.last[0], reason=LAUNCHER_GONE)
                self.grace = SILENT
            failures = self.check()
            if failures and not self.is_done:
                self.abort(failures)
            time.sleep(INTERVAL)

    def check(self) -> dict[int, str]:
        """Return what is wrong, by rank, once it is certain."""
        now = time.monotonic()
        if self.progress != self.own_progress:
            self.own_progress, self.own_advanced = self.progress, now
        if now - self.advanced > self.timeout:
            return self.failures(SILENT) or self.stuck()
        if not any(heartbeat.reason for heartbeat in self.last):
            self.last_healthy = now
            return self.failures(min(SILENT, self.timeout))
        # wait while this rank makes progress, or may be about to report an error itself
        is_certain = now - max(self.own_advanced, self.last_healthy) > self.grace
        return self.failures(SILENT) if is_certain else {}

    def failures(self, silent: float) -> dict[int, str]:
        """Return the errors that ranks reported, else the ranks silent for `silent` seconds."""
        reported = {rank: beat.reason for rank, beat in enumerate(self.last) if beat.reason}
        now = time.monotonic()
        return reported or {
            rank: f"is gone: no sign of life for {now - heard:.0f} s"
            for rank, heard in enumerate(self.heard)
            if now - heard > silent and rank != self.rank
        }

    def stuck(self) -> dict[int, str]:
        """Return the ranks that the others wait for: those with the least progress, or all."""
        progress = [heartbeat.progress for heartbeat in self.last]
        least, most = min(progress), max(progress)
        behind = [rank for rank, value in enumerate(progress) if value == least < most]
        seconds = time.monotonic() - self.advanced
        ranks = behind or range(self.world_size)
        return dict.fromkeys(ranks, f"made no progress for {seconds:.0f} s")

    def message(self, failures: dict[int, str]) -> str:
        """Return the line to print, or "" if another rank of this node prints it."""
        healthy = [
            rank
            for rank, heartbeat in enumerate(self.last)
            if heartbeat.host == self.host and rank not in failures
        ]
        if healthy and healthy[0] != self.rank:
            return ""
        described = "; ".join(
            f"rank {rank} of {self.world_size} ({self.last[rank].host}) {reason}"
            for rank, reason in failures.items()
        )
        return f"{described}; all ranks stop: {AGAIN}"

    def abort(self, failures: dict[int, str]) -> NoReturn:
        """Print the message and end this process, whose main thread may wait for ever."""
        if message := self.message(failures):
            print("error:", without_secrets(message), file=sys.stderr, flush=True)
        os._exit(1)

    def explain(self, error: BaseException) -> str | None:
        """Report an error to the other ranks. If it came from one of them, return what to print."""
        RUNNING.clear()
        # the launcher sends SIGTERM when it sees another rank end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        text = str(error)
        is_ours = isinstance(error, BadInput | Stopped)
        reason = text if is_ours else f"{type(error).__name__}: {text}"
        if not isinstance(error, dist.DistError) and not any(w in text for w in COMMUNICATION):
            self.leave(reason)
            return None
        self.is_done = True
        failures = self.wait_for_failures(2 * GRACE)
        if not failures and "imed out" not in text:  # this rank's own communication failed
            self.leave(reason)
            return None
        return self.message(failures or self.failures(SILENT) or self.stuck())

    def wait_for_failures(self, seconds: float) -> dict[int, str]:
        """Return what is wrong with the other ranks, waiting for up to `seconds`."""
        until, failures = time.monotonic() + seconds, dict[int, str]()
        while not failures and time.monotonic() < until:
            time.sleep(INTERVAL)
            try:
                self.send()
                self.receive()
                failures = self.failures(3 * INTERVAL)
            except RuntimeError:
                failures = {0: LAUNCHER_GONE}
        return failures

    def leave(self, reason: str) -> None:
        """Report why this rank stops, after the first rank of its node, and stop watching."""
        self.is_done, self.reason = True, brief(without_secrets(reason), 1000) or "stops"
        hosts = enumerate(heartbeat.host for heartbeat in self.last)
        first = min(rank for rank, host in hosts if host in ("", self.host))
        until = time.monotonic() + SILENCE
        with contextlib.suppress(RuntimeError):
            self.send()
            while first != self.rank and not self.last[first].reason and time.monotonic() < until:
                time.sleep(INTERVAL)
                self.receive()
                until = min(until, self.heard[first] + GRACE)


RUNNING: list[Watchdog] = []  # at most one


def start(accelerator: Accelerator, timeout: float) -> None:
    """Start watching the other ranks. Called by all ranks at once."""
    if accelerator.num_processes > 1:
        watchdog = Watchdog(accelerator.process_index, accelerator.num_processes, timeout)
        RUNNING[:] = [watchdog]
        accelerator.wait_for_everyone()
        watchdog.start()
        PROCESS.watcher = watchdog


def is_running() -> bool:
    """Return whether the other ranks are watched."""
    return bool(RUNNING)


def progress() -> None:
    """Record that the main thread has made progress."""
    for watchdog in RUNNING:
        watchdog.progress += 1


def stop() -> None:
    """Stop watching: the work is done, and the other ranks may end."""
    for watchdog in RUNNING:
        watchdog.is_done = True
    RUNNING.clear()
    PROCESS.watcher = None
