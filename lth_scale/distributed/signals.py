"""Signals that ask a training to save a checkpoint or to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from lth_scale.distributed import watchdog
from lth_scale.distributed.ranks import Ranks

SAVE, STOP = 1, 2


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
            if not watchdog.is_running():
                signal.signal(signal.SIGTERM, before)
            raise
        signal.signal(signal.SIGTERM, before)

    def poll(self, ranks: Ranks) -> int:
        """Return 0, SAVE or STOP: the strongest request of any rank since the last call.

        Called by all ranks at once; they return the same.
        """
        watchdog.progress()
        if self.launcher not in (None, os.getppid()):
            self.request = STOP
        # cleared before the ranks meet: a signal that comes meanwhile is for the next call
        request, self.request = self.request, 0
        return ranks.max(request)
