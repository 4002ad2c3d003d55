"""How many threads torch computes with. Sums, and so the last bits of a result, depend on it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from vits_prune.errors import InputError


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch so many threads inside the block, and as many as before after it.

    The number belongs to the process: everything that computes meanwhile gets it. So it changes in
    the main thread only, as in a script, a notebook or the command line.

    Raises:
        InputError: it would have to change, and this is not the main thread.
    """
    import torch

    before = torch.get_num_threads()
    if count == before:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise InputError(
            f"This was begun with {count} threads of torch and there are {before} now: "
            f"call torch.set_num_threads({count}) first, or run it in the main thread."
        )
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
