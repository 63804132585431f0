"""What a rank has to know of the world outside its training: that another rank is gone or hangs, or a signal came."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from accelerate import Accelerator

from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.exit_codes import EXPLAINERS, SILENCE
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import brief

BEAT = 1.0  # seconds between two signs of life
SILENT = 60.0  # seconds after which a rank without any is gone
GRACE = 5.0  # seconds in which a rank that fails may say so itself


class Watch(threading.Thread):
    """Tells the other ranks each second that this one lives and how far it is, and hears the same of them.

    Stops the process, with one line a node, where a rank has failed, has been silent for SILENT seconds, or where no
    rank has moved for `patience` seconds.
    """

    def __init__(self, rank: int, world: int, patience: float):
        super().__init__(daemon=True)
        self.rank, self.world, self.patience = rank, world, patience
        store: Any = (
            dist.distributed_c10d._get_default_store()
        )  # its connection may be busy waiting
        self.store = dist.PrefixStore("lth_scale.watch", store.clone())
        self.store.set_timeout(timedelta(seconds=SILENT))
        self.beat, self.progress, self.reason, self.over = 0, 0, "", False
        now = time.monotonic()
        self.seen: list[list[str]] = [["", "", "", ""]] * world
        self.heard, self.moved, self.failed = [now] * world, now, now
        self.own, self.advanced, self.grace = 0, now, GRACE
        self.tell()

    def tell(self) -> None:
        """Give a sign of life."""
        self.beat += 1
        value = f"{self.beat} {self.progress} {socket.gethostname()} {self.reason}"
        self.store.set(str(self.rank), value)

    def look(self) -> None:
        """Hear what the others said last."""
        now = time.monotonic()
        for rank, text in enumerate(
            self.store.multi_get([str(rank) for rank in range(self.world)])
        ):
            before, self.seen[rank] = self.seen[rank], text.decode().split(" ", 3)
            if before[0] != self.seen[rank][0]:
                self.heard[rank] = now
            if before[1] != self.seen[rank][1]:
                self.moved = now

    def culprits(self, silent: float, stuck: bool = False) -> dict[int, str]:
        """What is wrong, by rank: its own words, else that it is silent, else (`stuck`) that the others wait for it."""
        now = time.monotonic()
        words = {rank: seen[3] for rank, seen in enumerate(self.seen) if seen[3]}
        words = words or {
            rank: f"is gone: no sign of life for {now - heard:.0f} s"
            for rank, heard in enumerate(self.heard)
            if now - heard > silent and rank != self.rank
        }
        if words or not stuck:
            return words
        steps = [int(seen[1]) for seen in self.seen]
        last = [
            rank for rank, step in enumerate(steps) if step == min(steps) < max(steps)
        ] or range(self.world)
        return dict.fromkeys(last, f"has not moved for {now - self.moved:.0f} s")

    def line(self, culprits: dict[int, str]) -> str:
        """The message, or nothing where another rank of this node says it."""
        host = socket.gethostname()
        alive = [
            rank
            for rank in range(self.world)
            if rank not in culprits and self.seen[rank][2] == host
        ]
        if alive and alive[0] != self.rank:
            return ""
        what = "; ".join(
            f"rank {rank} of {self.world} ({self.seen[rank][2]}) {why}"
            for rank, why in culprits.items()
        )
        return f"{what}; all ranks stop: {AGAIN}"

    def run(self) -> None:
        """Until the work is over."""
        while not self.over:
            try:
                self.tell()
                self.look()
                self.grace = GRACE
            except (
                RuntimeError
            ):  # the store went with the process that held it; the ranks may still do without
                self.seen[0], self.grace = [*self.seen[0][:3], "or its launcher is gone"], SILENT
            culprits = self.verdict()
            if culprits and not self.over:
                self.stop(culprits)
            time.sleep(BEAT)

    def verdict(self) -> dict[int, str]:
        """What is wrong, by rank, once it is certain."""
        now = time.monotonic()
        if self.progress != self.own:
            self.own, self.advanced = self.progress, now
        if now - self.moved > self.patience:
            return self.culprits(SILENT, stuck=True)
        if any(
            seen[3] for seen in self.seen
        ):  # a rank that still advances, or is about to say why not, is let be
            return (
                self.culprits(SILENT) if now - max(self.advanced, self.failed) > self.grace else {}
            )
        self.failed = now
        return self.culprits(min(SILENT, self.patience))

    def stop(self, culprits: dict[int, str]) -> NoReturn:
        """Say it and end this process; its main thread may wait for ever."""
        said = self.line(culprits)
        if said:
            print("error:", without_secrets(said), file=sys.stderr, flush=True)
        os._exit(1)

    def leave(self, reason: str) -> None:
        """Say to the others why this rank goes, and watch no more; the first rank of the node goes first."""
        self.over, self.reason = True, brief(without_secrets(reason), 1000) or "stops"
        first = min(
            rank for rank in range(self.world) if self.seen[rank][2] in ("", socket.gethostname())
        )
        until = time.monotonic() + SILENCE
        with contextlib.suppress(RuntimeError):
            self.tell()
            while first != self.rank and not self.seen[first][3] and time.monotonic() < until:
                time.sleep(BEAT)
                self.look()
                until = min(until, self.heard[first] + GRACE)


WATCHES: list[Watch] = []  # at most one


def begin(accelerator: Accelerator, patience: float) -> None:
    """Watch the other ranks, from the moment that all are here."""
    if accelerator.num_processes > 1:
        WATCHES[:] = [Watch(accelerator.process_index, accelerator.num_processes, patience)]
        accelerator.wait_for_everyone()
        WATCHES[0].start()
        EXPLAINERS[:] = [explain]


def progress() -> None:
    """Note that the main thread has done something."""
    for watch in WATCHES:
        watch.progress += 1


def end() -> None:
    """The work is done; the others may leave when they like."""
    for watch in WATCHES:
        watch.over = True
    WATCHES.clear()
    EXPLAINERS.clear()


def explain(problem: BaseException) -> str | None:
    """Tell the other ranks of an error; where it comes from one of them, what to say of that, else None."""
    if not WATCHES:
        return None
    watch, text = WATCHES.pop(), str(problem)
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a launcher that has seen another rank end may send it
    of_others = isinstance(problem, dist.DistError) or any(
        word in text for word in ("gloo", "NCCL", "TCPStore")
    )
    if not of_others:
        watch.leave(
            text if isinstance(problem, BadInput | Stopped) else f"{type(problem).__name__}: {text}"
        )
        return None
    watch.over = True
    waited = time.monotonic()
    culprits: dict[int, str] = {}
    while not culprits and time.monotonic() - waited < 2 * GRACE:
        time.sleep(BEAT)
        try:
            watch.tell()
            watch.look()
            culprits = watch.culprits(3 * BEAT)
        except RuntimeError:
            culprits = {0: "or its launcher is gone"}
    if not culprits and "imed out" not in text:  # it was this rank's own
        watch.leave(f"{type(problem).__name__}: {text}")
        return None
    return watch.line(culprits or watch.culprits(SILENT, stuck=True))
