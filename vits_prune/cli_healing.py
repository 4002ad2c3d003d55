"""What one run of the command heal shows, measures and writes while it trains."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli_progress import Progress
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.healing.curve import Curve
    from vits_prune.healing.progress import Told
    from vits_prune.study.judge import CheckpointJudge, Judgement
    from vits_prune.voices.voice import Voice

_ROW_EVERY = 10


class Session:
    """A run: its live line, its curve, and its evaluations.

    Args:
        options: what was typed; of them `evaluations`, `evaluation_texts` and `resume` are read.
        voice: the original, which is measured at once.
        work: folder that the curve is written to.
        texts: what the voice is healed on, None for built-in sentences or draws.

    Raises:
        InputError: the number of evaluations or of their texts is out of range.
    """

    def __init__(self, options: argparse.Namespace, voice: Voice, work: Path, texts: Sequence[str] | None = None) -> None:
        from vits_prune.healing.curve import Curve
        from vits_prune.study.judge import MOST_EVALUATIONS

        self.work = work
        self.step = 0
        """Steps done, those of earlier healings included where several follow each other."""
        self._before, self._seconds_before = 0, 0.0
        self.tell: Callable[[str, float], None] = lambda _what, _share: None
        self.curve: Curve = Curve(_ROW_EVERY)
        self.reserve = 0.0
        """Seconds that measuring takes, all evaluations together."""
        self._interrupted = False
        self.judge: CheckpointJudge | None = None
        if not 0 <= options.evaluations <= MOST_EVALUATIONS:
            raise InputError(f"--evaluations must be a whole number from 0 to {MOST_EVALUATIONS}, not {options.evaluations}.")
        if options.evaluations > 0:
            self._prepare_judge(options, voice, texts)

    def _prepare_judge(self, options: argparse.Namespace, voice: Voice, texts: Sequence[str] | None) -> None:
        """Measure the original once, and so how much of the minutes evaluations will take."""
        from vits_prune.study.judge import judge_of

        with Progress() as tell:
            judge = judge_of(voice, texts, options.evaluations, options.evaluation_texts, seed=options.seed, on_step=tell)
        for sentence in judge.unmeasured:
            print(sentence, file=sys.stderr, flush=True)
        self.reserve = judge.reserve
        self.judge = dataclasses.replace(judge, on_judgement=self.on_judgement, on_step=lambda what, share: self.tell(what, share))

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

    def on_judgement(self, found: Judgement, _voice: Voice) -> None:
        """Keep and show what was measured of a checkpoint."""
        if self.options.resume:
            self._go_on_from(self._before + found.step)  # a run that was stopped while it measured goes on with measuring
        changes = found.changes()
        self.curve.measured(self._before + found.step, {f"measured_{name}": round(value, 5) for name, value in changes.items()})
        self.write_curve()
        print(f"Step {found.step} of {found.of}: " + ", ".join(f"{name} {value:+.3f}" for name, value in changes.items()), flush=True)

    def write_curve(self) -> None:
        """The curve so far."""
        from vits_prune.healing.processes import is_main_process

        if self.curve.rows and is_main_process():
            self.curve.write(self.work / "curve.csv")

    def finish(self, healed: Voice, saved: Path) -> None:
        """Tell what was made, with the picture of its course."""
        from vits_prune.healing.curve import save_figure

        self.write_curve()
        done = healed.recipe["healed"][-1]
        if self.curve.rows:
            below = f": change from the original on {self.judge.measured_on} below" if self.judge else ""
            save_figure(self.curve.rows, f"{healed.name}, healed{below}", self.work / "curve.svg")
        if "stopped" in done:
            print(f"Stopped early: {done['stopped']}. This is the last good checkpoint.")
        words = "was to be healed" if "stopped" in done else "healed"
        print(f"{healed.name} {words} in {done['of']} steps on {done['lessons']} sentences ({', '.join(done['trained'])}); "
              f"the voice of step {done['steps']} is saved to {saved}; its course is in {self.work / 'curve.csv'}")  # fmt: skip
