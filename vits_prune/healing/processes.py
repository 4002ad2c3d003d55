"""What the processes of one healing must know of each other, under `accelerate launch`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")


def is_main_process() -> bool:
    """Return whether this process, of several under `accelerate launch`, is the one that writes, measures and speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def agreed(accelerator: Accelerator, value: Value) -> Value:
    """The first process's value."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def everywhere(accelerator: Accelerator, value: Value) -> list[Value]:
    """The values of all processes."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])
