"""A process group that an earlier attempt's keys cannot disturb."""

import os
import threading
import time
import uuid
from datetime import timedelta
from itertools import count

import torch.distributed as dist

from lth_scale.distributed import compat

KEY = "lth_scale.attempt"


def init_process_group(backend: str, timeout: timedelta) -> None:
    """Start the process group of a launcher whose store outlives the attempts.

    The keys of a failed attempt stay in the store (pytorch/pytorch#135712), and a rank that starts
    early would connect to addresses of the last attempt. So rank 0 names its attempt, repeatedly
    until every rank is connected, and all keys have that name as a prefix.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _connect(world_size, timeout)
    connected = threading.Event()
    name = _announce(store, connected) if rank == 0 else _next_attempt(store, timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    connected.set()


def _connect(world_size: int, timeout: timedelta) -> dist.TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # the launcher starts its store before the ranks
    soon = min(timeout, timedelta(minutes=1))
    store = dist.TCPStore(address, port, world_size, False, soon)
    store.set_timeout(timeout)
    return store


def _announce(store: dist.TCPStore, connected: threading.Event) -> str:
    """Set the name of a new attempt every 0.1 s, in a thread, until `connected`."""
    name = uuid.uuid4().hex
    own = compat.cloned(store)  # the main thread's connection will be waiting

    def repeat() -> None:
        for number in count():
            own.set(KEY, f"{name} {number}")
            if connected.wait(0.1):
                return

    threading.Thread(target=repeat, daemon=True).start()
    return name


def _next_attempt(store: dist.TCPStore, timeout: timedelta) -> str:
    """Return the name that rank 0 sets from now on."""
    before, until = store.get(KEY), time.monotonic() + timeout.total_seconds()
    while (announced := store.get(KEY)) == before:
        if time.monotonic() > until:
            raise RuntimeError("rank 0 did not start")
        time.sleep(0.05)
    return announced.decode().split()[0]
