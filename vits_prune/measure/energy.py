"""Joules, where the machine shows a counter. Never an estimate."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path

from vits_prune import forks
from vits_prune.synthesis.speak import Delivery, Speech, speak
from vits_prune.voices.voice import Voice

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
            return Energy(
                None,
                "no energy counter can be read on this machine (neither RAPL under /sys/class/powercap nor NVML)",
            )
        if self._gpu is not None:
            return Energy(
                (now[0] - self._before[0]) / 1e3,
                "NVML: the whole GPU, other programs on it included",
            )
        micro = sum(
            (b - a) % (limit + 1)
            for a, b, (_, limit) in zip(self._before, now, self._packages, strict=True)
        )
        return Energy(
            micro / 1e6, "RAPL: the whole processor package, other programs on it included"
        )

    def _read(self) -> list[int] | None:
        """Microjoules by package, millijoules of the GPU; None where there is nothing to read."""
        if self._gpu is not None:
            import pynvml

            try:
                return [pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)]
            except pynvml.NVMLError:  # the driver has no counter
                return None
        try:
            return [
                int((package / "energy_uj").read_text()) for package, _ in self._packages
            ] or None
        except (OSError, ValueError):  # the file is for root only
            return None


def _packages(powercap: Path) -> list[tuple[Path, int]]:
    """RAPL's packages with the value after which their counters start again; their parts, such as DRAM, are left out."""
    found = []
    for package in sorted(powercap.glob("intel-rapl:*")):
        try:
            if package.name.count(":") == 1 and (package / "name").read_text().startswith(
                "package"
            ):
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


@dataclass(frozen=True)
class Cost:
    """What speaking a set of texts took a voice. Times and joules differ from run to run."""

    audio_seconds: float
    """Length of all that was spoken."""
    cpu_seconds_per_audio_second: float
    """Processor seconds of this process, all threads together, per second of speech."""
    joules_per_audio_second: float | None
    """None where the machine shows no counter."""
    energy_method: str
    """Which counter, or why there is none."""


class CostMeter:
    """Speaks, and adds up what that takes and nothing else does.

    Where there are several texts the first does not count: it pays for what is loaded and compiled at first use.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._energy = EnergyMeter(voice.device.type)
        self._runs: list[tuple[float, float, float | None]] = []
        self._method = ""

    def speak(self, text: str, seed: int, delivery: Delivery) -> Speech:
        """What the voice says, with its own timing."""
        self._energy.restart()
        before = time.process_time()
        speech = speak(self._voice, text, seed, delivery)
        cpu, energy = time.process_time() - before, self._energy.read()
        self._runs.append((speech.audio_seconds, cpu, energy.joules))
        self._method = energy.method
        return speech

    def cost(self) -> Cost:
        """Of all that was spoken so far, at least one text."""
        counted = self._runs[1:] or self._runs
        audio, cpu = (sum(run[i] for run in counted) for i in (0, 1))
        joules = [run[2] for run in counted]
        per_second = None if None in joules else sum(joules) / audio
        return Cost(sum(run[0] for run in self._runs), cpu / audio, per_second, self._method)
