"""Joules, where the machine shows a counter. Never an estimate."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from vits_prune import forks

POWERCAP = Path("/sys/class/powercap")
_STARTING = forks.Lock()


@dataclass(frozen=True)
class Energy:
    """Energy between two readings."""

    joules: float | None
    """None where no counter could be read."""
    method: str
    """Which counter and what it counts, or why there is none."""


class EnergyMeter:
    """Reads the machine's own energy counters: RAPL's packages for the processor, NVML for a voice on an NVIDIA GPU."""

    def __init__(self, device: str = "cpu", powercap: Path = POWERCAP) -> None:
        """Find the counters.

        Args:
            device: where the voice speaks, "cpu" or "cuda".
            powercap: where Linux shows RAPL.
        """
        self._gpu = _nvml() if device == "cuda" else None
        self._packages = [] if device == "cuda" else _packages(powercap)
        self._before = self._read()

    def restart(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def read(self) -> Energy:
        """Energy since the last restart."""
        now = self._read()
        if now is None or self._before is None:
            return Energy(None, "no energy counter can be read on this machine (neither RAPL under /sys/class/powercap nor NVML)")
        if self._gpu is not None:
            return Energy((now[0] - self._before[0]) / 1e3, "NVML: the whole GPU, other programs on it included")
        micro = sum((b - a) % (limit + 1) for a, b, (_, limit) in zip(self._before, now, self._packages, strict=True))
        return Energy(micro / 1e6, "RAPL: the whole processor package, other programs on it included")

    def _read(self) -> list[int] | None:
        """Microjoules by package, millijoules of the GPU; None where there is nothing to read."""
        if self._gpu is not None:
            import pynvml

            try:
                return [pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)]
            except pynvml.NVMLError:  # the driver has no counter
                return None
        try:
            return [int((package / "energy_uj").read_text()) for package, _ in self._packages] or None
        except (OSError, ValueError):  # the file is for root only
            return None


def _packages(powercap: Path) -> list[tuple[Path, int]]:
    """RAPL's packages with the value after which their counters start again; their parts, such as DRAM, are left out."""
    found = []
    for package in sorted(powercap.glob("intel-rapl:*")):
        try:
            if package.name.count(":") == 1 and (package / "name").read_text().startswith("package"):
                found.append((package, int((package / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return found


def _nvml() -> object | None:
    with _STARTING:
        return _nvml_device()


@functools.lru_cache(maxsize=1)
def _nvml_device() -> object | None:
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    except pynvml.NVMLError:  # no driver
        return None
