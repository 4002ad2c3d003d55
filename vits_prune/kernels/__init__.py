"""Sparse kernels for CPUs: convolutions that skip zeros, wherever they are.

A voice's flow and decoder run with them where that is faster (see `engine`). They need numba;
without it everything runs dense.
"""

from __future__ import annotations

import functools
import importlib
import logging
import weakref
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import prune as torch_prune

from vits_prune.progress import SILENT, Progress
from vits_prune.threads import ForkSafeLock
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.kernels.engine import Choice, Engine

log = logging.getLogger(__name__)

KERNELS = ("auto", "dense", "sparse")
"""Kernels that can be asked for. "auto" takes, part by part, those that were measured to be faster
on this machine; what was not measured yet runs dense."""
DEFAULT_FRAMES = 300
_WORTH_IT = 500_000
"""Weights below which a voice is left to torch in "auto": its kernels are not what takes time."""

_engines: weakref.WeakKeyDictionary[torch.nn.Module, Engine] = weakref.WeakKeyDictionary()
_engines_lock = ForkSafeLock()


@functools.cache
def why_missing() -> str:
    """Return why this process has no sparse kernels; empty if it has."""
    try:
        importlib.import_module("numba")
        importlib.import_module("vits_prune.kernels.engine").try_out()
        return ""
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed"
    except Exception as error:  # of another version, or it cannot compile here
        first = str(error).strip().partition("\n")[0][:120]
        why = f"numba cannot compile them here ({type(error).__name__}: {first})"
    log.warning("There are no sparse kernels, everything runs dense: %s.", why)
    return why


def ready() -> bool:
    """Return whether kernels were compiled and measured in this process, so that nothing waits."""
    return bool(_measured)


_measured: list[bool] = []


def engine_of(voice: Voice, kernels: str = "auto") -> Engine | None:
    """Return what runs a voice's flow and decoder with sparse kernels.

    None for "dense", for a voice that is not on the CPU or not float32 or has masks of
    `torch.nn.utils.prune`, for a tiny one in "auto", and where numba is missing or fails.
    """
    model = voice.model
    if kernels == "dense" or (kernels == "auto" and not _worth_it(model)):
        return None
    if voice.device.type != "cpu" or model.dtype != torch.float32 or why_missing():
        return None
    if torch_prune.is_pruned(model):  # a mask may be newer than what the kernels packed
        return None
    from vits_prune.kernels.engine import Engine

    with _engines_lock:
        if model not in _engines:
            _engines[model] = Engine(model)
        return _engines[model]


def packed_bytes(voice: Voice) -> int:
    """Return what a voice's sparse kernels hold beside its weights: those that ran so far."""
    with _engines_lock:
        engine = _engines.get(voice.model)
    return engine.nbytes if engine else 0


def measure_kernels(voice: Voice, progress: Progress = SILENT) -> None:
    """Compile the kernels and time them against torch at this voice's shapes, unless that is known.

    It takes seconds, once for a machine and an architecture: voices pruned from this one by zeros
    share the result. Without it "auto" is "dense".
    """
    engine = engine_of(voice)
    if engine is not None:
        engine.measure(progress)
        _measured.append(True)


def chosen_kernels(voice: Voice, frames: int = DEFAULT_FRAMES) -> list[Choice]:
    """Return what "auto" takes for each part of a voice at this length; empty if not measured."""
    engine = engine_of(voice)
    return (engine.choices(frames) if engine else None) or []


def _worth_it(model: torch.nn.Module) -> bool:
    weights = sum(one.numel() for part in (model.flow, model.decoder) for one in part.parameters())
    return weights >= _WORTH_IT
