"""What one run of the command heal shows, measures and writes while it trains."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli_progress import Progress
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.healing.curve import Curve
    from vits_prune.healing.progress import Told
    from vits_prune.voices.voice import Voice

MOST_EVALUATIONS = 1_000
_ROW_EVERY = 10


def main_process() -> bool:
    """Whether this is the one process of several, under `accelerate launch`, that writes and speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


class Session:
    """A run: its live line, its curve, and its evaluations.

    Args:
        options: what was typed; of them `evaluations`, `evaluation_texts` and `resume` are read.
        voice: the original, which is measured at once.
        work: folder that the curve is written to.

    Raises:
        InputError: the number of evaluations or of their texts is out of range.
    """

    def __init__(self, options: argparse.Namespace, voice: Voice, work: Path) -> None:
        from vits_prune.healing.curve import Curve

        self.options, self.voice, self.work = options, voice, work
        self.step = 0
        """Steps done, those of earlier healings included where several follow each other."""
        self._before, self._seconds_before = 0, 0.0
        self.tell: Callable[[str, float], None] = lambda _what, _share: None
        self.curve: Curve = Curve(_ROW_EVERY)
        self.reserve = 0.0
        """Seconds that measuring takes, all evaluations together."""
        self.evaluates = options.evaluations > 0 and main_process()
        self._interrupted = False
        self._reference: Any = None
        if not 0 <= options.evaluations <= MOST_EVALUATIONS:
            raise InputError(f"--evaluations must be a whole number from 0 to {MOST_EVALUATIONS}, not {options.evaluations}.")
        if self.evaluates:
            self._measure_original()

    def _measure_original(self) -> None:
        """Measure the original once, and so how much of the minutes evaluations will take."""
        from vits_prune.evaluation import Settings, evaluate_against, prepare_reference
        from vits_prune.measure.recognition import spoken_language
        from vits_prune.texts import load_texts

        if spoken_language(self.voice) != "en":
            self.evaluates = False  # there are no built-in sentences of its language
            return
        settings = Settings(metrics=("intelligibility", "naturalness", "rhythm"), noise_seeds=0)
        start = time.perf_counter()
        with Progress() as tell:
            self._reference = prepare_reference(
                self.voice,
                load_texts(self.options.evaluation_texts, "tuning"),
                settings,
                on_step=lambda what, share: tell(what, 0.5 * share),
            )
            middle = time.perf_counter()
            evaluate_against(self._reference, self.voice, on_step=lambda what, share: tell(what, 0.5 + 0.5 * share))
        end = time.perf_counter()
        self.reserve = end - start + self.options.evaluations * (end - middle)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Show the live line; Ctrl-C ends the work between two steps, so that its checkpoint is whole."""

        def _note(_signal: int, _frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt  # pressed twice: at once
            self._interrupted = True
            os.write(2, b"\nStopping after what is under way; press Ctrl-C once more to stop at once.\n")  # print may be under way itself

        def _say(what: str, share: float) -> None:
            if self._interrupted:
                raise KeyboardInterrupt  # while it is pruned or measured too
            tell(what, share)

        before = signal.getsignal(signal.SIGINT)
        with Progress() as tell:
            self.tell = _say
            with contextlib.suppress(ValueError):  # not the main thread: nobody presses Ctrl-C there
                signal.signal(signal.SIGINT, _note)
            try:
                yield
            finally:
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGINT, before)

    def on_step(self, told: Told) -> None:
        """Show how far it is, and keep the curve."""
        shift, of = self._before, None if told.of is None else told.of + self._before
        told = dataclasses.replace(told, step=told.step + shift, of=of, seconds=told.seconds + self._seconds_before)
        self._go_on_from(told.step - 1)
        self.step = told.step
        if self.curve.add(told) and told.step % (10 * _ROW_EVERY) == 0:
            self.write_curve()
        losses = " ".join(f"{name} {value:.3f}" for name, value in told.losses.items() if name != "total")
        self.tell(f"step {told.step} of {told.of or '?'}: {losses}", told.step / told.of if told.of else 0.0)
        if self._interrupted:
            raise KeyboardInterrupt

    def _go_on_from(self, step: int) -> None:
        """Read the rows of an earlier run up to a step, where this run has not made one and goes on from there."""
        if self.step or not step:
            return
        from vits_prune.healing.curve import Curve

        self.step, self.curve = step, Curve.read(self.work / "curve.csv", step, _ROW_EVERY)
        if self._before and self.curve.rows:
            self._seconds_before = float(self.curve.rows[-1].get("seconds", 0.0))

    def go_on(self, steps: int) -> None:
        """A healing is done and the next begins, behind so many steps in all."""
        self._before = steps
        self._seconds_before = float(next((row["seconds"] for row in reversed(self.curve.rows) if "seconds" in row), 0.0))

    def on_checkpoint(self, step: int, voice: Voice) -> float | None:
        """Measure the voice where it is time for it: how far it is from the original, in limits of the knee."""
        from vits_prune.healing.progress import is_check, score

        of = voice.recipe["healed"][-1]["of"]
        if not is_check(step, of, self.options.evaluations):
            return None
        from vits_prune.evaluation import evaluate_against
        from vits_prune.sweep.knee import LIMITS

        if self.options.resume:
            self._go_on_from(self._before + step)  # a run that was stopped while it measured goes on with measuring
        what = f"step {step}: measuring"
        figures = evaluate_against(self._reference, voice, on_step=lambda at, _share: self.tell(f"{what}: {at}", step / of)).figures
        limits = {limit.metric: limit.change for limit in LIMITS}
        changes = {name: figures[name].difference.value for name in (*limits, "duration_ratio") if name in figures}
        self.curve.measured(self._before + step, {f"measured_{name}": round(value, 5) for name, value in changes.items()})
        self.write_curve()
        print(f"Step {step} of {of}: " + ", ".join(f"{name} {value:+.3f}" for name, value in changes.items()), flush=True)
        return score(changes, limits)

    def write_curve(self) -> None:
        """The curve so far."""
        if self.curve.rows and main_process():
            self.curve.write(self.work / "curve.csv")

    def finish(self, healed: Voice, saved: Path) -> None:
        """Tell what was made, with the picture of its course."""
        from vits_prune.healing.curve import save_figure

        self.write_curve()
        done = healed.recipe["healed"][-1]
        if self.curve.rows:
            save_figure(
                self.curve.rows, f"{healed.name}, healed: change from the original on tuning sentences below", self.work / "curve.svg"
            )
        if "stopped" in done:
            print(f"Stopped early: {done['stopped']}. This is the last good checkpoint.")
        words = "was to be healed" if "stopped" in done else "healed"
        print(f"{healed.name} {words} in {done['of']} steps on {done['lessons']} sentences ({', '.join(done['trained'])}); "
              f"the voice of step {done['steps']} is saved to {saved}; its course is in {self.work / 'curve.csv'}")  # fmt: skip
