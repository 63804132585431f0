"""Signals that ask a training to save or to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from lth_scale.distributed.ranks import Ranks
from lth_scale.distributed.watchdog import WATCHES, progress

SAVE, STOP = 1, 2


class Requests:
    """SIGUSR1 asks a training to write a checkpoint, SIGTERM, and the launcher's death, to write one and stop."""

    def __init__(self) -> None:
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self.asked, self.parent = 0, os.getppid() if launched else None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = max(self.asked, STOP if number == signal.SIGTERM else SAVE)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """SIGTERM waits for the next `agreed`; outside it ends the process, and what is on disk is whole anyway."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        except BaseException:
            if (
                not WATCHES
            ):  # else there is something to say of it first, and a launcher that asks all to end
                signal.signal(signal.SIGTERM, before)
            raise
        signal.signal(signal.SIGTERM, before)

    def agreed(self, ranks: Ranks) -> int:
        """0, SAVE or STOP: the most that any rank was asked for, the same on all; call it on all ranks at once."""
        progress()
        if self.parent not in (None, os.getppid()):
            self.asked = STOP
        asked, self.asked = (
            self.asked,
            0,
        )  # before the ranks meet: a signal that comes meanwhile is for the next call
        return ranks.most(asked)
