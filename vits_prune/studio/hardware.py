"""ZeroGPU: run a generator in a process with a GPU where the Space has them, and right here elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def on_gpu(seconds: int) -> Callable[[F], F]:
    """`spaces.GPU(duration=seconds)` where the `spaces` package is installed, else nothing.

    On ZeroGPU the function runs in a forked worker: what it is given and what it returns must pickle, and what it remembers stays there.
    """
    try:
        import spaces
    except ImportError:
        return lambda function: function
    return spaces.GPU(duration=seconds)


def calls_are_limited() -> bool:
    """Whether what `on_gpu` decorates may run for so long only: on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
