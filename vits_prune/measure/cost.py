"""What speaking takes: processor seconds and joules per second of speech."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from vits_prune.measure.energy import EnergyMeter
from vits_prune.synthesis import Delivery, Speech, speak
from vits_prune.voices.voice import Voice


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
        speech = speak(self._voice, text, seed, **dataclasses.asdict(delivery))
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
