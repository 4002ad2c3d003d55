"""How long dense and sparse kernels take on this machine: measured once, kept on disk."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

from vits_prune.errors import InputError
from vits_prune.files import read_json, write_json
from vits_prune.threads import ForkSafeLock

log = logging.getLogger(__name__)

MAX_ENTRIES, _MAX_BYTES = 5_000, 8 << 20
_FORMAT = 2
_lock = ForkSafeLock()
_known: dict[str, Times] = {}
_read_from: list[Path | None] = []


@dataclass(frozen=True)
class Times:
    """Seconds of a unit: dense, and sparse at two densities."""

    dense: float
    density: float
    seconds: float
    thin_density: float
    thin_seconds: float

    @property
    def sound(self) -> bool:
        """Whether a line can be drawn through them."""
        numbers = dataclasses.astuple(self)
        return all(math.isfinite(one) and one >= 0 for one in numbers) and (
            self.density > 1.5 * self.thin_density
        )

    def sparse(self, density: float) -> float:
        """Return the seconds of the sparse program at a density, by a line through both points."""
        slope = (self.seconds - self.thin_seconds) / (self.density - self.thin_density)
        return self.thin_seconds + max(0.0, slope) * (density - self.thin_density)


def path() -> Path | None:
    """Return the file, `vits_prune/kernels.json` in the user's folder for caches; None without."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return Path(base) / "vits_prune" / "kernels.json"


def find(key: str) -> Times | None:
    """Return what was measured under a key, by this process or an earlier one."""
    place = path()
    with _lock:
        if place not in _read_from:
            _read_from.append(place)
            for name, times in _read(place).items():
                _known.setdefault(name, times)
        return _known.get(key)


def known() -> dict[str, Times]:
    """Return what this process knows."""
    with _lock:
        return dict(_known)


def keep(key: str, times: Times, steady: bool = True) -> None:
    """Keep what was measured; on disk too if it was steady and the disk can be written."""
    place = path()
    with _lock:
        _known[key] = times
    if place is None or not steady:
        return
    entries = {**_read(place), key: times}
    kept = {name: dataclasses.astuple(one) for name, one in [*entries.items()][-MAX_ENTRIES:]}
    try:
        write_json(place, {"format": _FORMAT, "seconds": kept})
    except OSError as error:
        log.info("Kernel times are kept in memory alone: %s", error)


def _read(place: Path | None) -> dict[str, Times]:
    """Return what is in a file; nothing if there is none, or a damaged one."""
    try:
        content = read_json(place, max_bytes=_MAX_BYTES) if place else {}
        entries = content["seconds"] if content.get("format") == _FORMAT else {}
        found = {name: Times(*map(float, numbers)) for name, numbers in entries.items()}
    except (InputError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {name: times for name, times in found.items() if times.sound}
