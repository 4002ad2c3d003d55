"""How long dense and sparse kernels take on this machine: measured once, kept on disk."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from vits_prune.errors import InputError
from vits_prune.files import read_json, write_json

log = logging.getLogger(__name__)

MAX_ENTRIES = 5_000
_FORMAT = 1
_lock = threading.Lock()
_known: dict[str, Times] = {}
_read_from: list[Path] = []


@dataclass(frozen=True)
class Times:
    """Seconds of a unit: dense, and sparse at two densities."""

    dense: float
    density: float
    seconds: float
    thin_density: float
    thin_seconds: float

    def sparse(self, density: float) -> float:
        """Return the seconds of the sparse program at a density, by a line through both points."""
        run = self.density - self.thin_density
        slope = (self.seconds - self.thin_seconds) / run if run > 0 else 0.0
        return self.thin_seconds + max(0.0, slope) * (density - self.thin_density)


def path() -> Path:
    """Return the file: `vits_prune/kernels.json` in the user's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vits_prune" / "kernels.json"


def find(key: str) -> Times | None:
    """Return what was measured under a key, by this process or an earlier one."""
    with _lock:
        _read()
        return _known.get(key)


def keep(key: str, times: Times) -> None:
    """Keep what was measured, on disk too where that can be written."""
    with _lock:
        _read()
        _known[key] = times
        entries = {name: dataclasses.astuple(one) for name, one in _known.items()}
        try:
            write_json(path(), {"format": _FORMAT, "seconds": entries})
        except OSError as error:
            log.info("Kernel times are kept in memory alone: %s", error)


def _read() -> None:
    if path() in _read_from:
        return
    _read_from.append(path())
    try:
        content = read_json(path())
        entries = content["seconds"] if content.get("format") == _FORMAT else {}
        for name, numbers in list(entries.items())[-MAX_ENTRIES:]:
            times = Times(*map(float, numbers))
            if all(math.isfinite(one) and one >= 0 for one in dataclasses.astuple(times)):
                _known.setdefault(name, times)
    except (OSError, InputError, ValueError, TypeError, KeyError, AttributeError):
        return  # none yet, or damaged: it is measured again
