"""The command heal: train a pruned voice on the original's own speech, within minutes or steps, resumable."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli_progress import Progress
from vits_prune.cli_spec import add_spec, spec_of
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.heal.curve import Curve
    from vits_prune.heal.heal import Told
    from vits_prune.heal.plan import HealPlan
    from vits_prune.voices.voice import Voice

_ROW_EVERY = 10
_LIMITS_AS_BAD = {"cer": 0.02, "dnsmos_ovrl": -0.1}
"""Changes that count as equally bad when the best checkpoint is chosen: the usual limits of `knee`."""


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    from vits_prune import cli  # here, for cli imports this file

    # What describes a PruneSpec is taken over, but for --steps, which are steps of training here.
    parser = commands.add_parser("heal", help="train a pruned voice back on the original's own speech", conflict_handler="resolve")
    cli._add_voice(parser)
    parser.add_argument("--pruned", metavar="DIR", help="the voice to heal, a folder that `prune` wrote (or say below how to prune)")
    add_spec(parser)
    _add_plan(parser)
    parser.add_argument("--prune-steps", metavar="N", help="without --pruned: prune in N steps, or to such amounts, and heal behind each")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="sentences to learn from, one a line (default: built in, or drawn)")
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="your own recordings besides, with transcripts (metadata.csv)")
    parser.add_argument("--evaluations", type=int, default=4, metavar="N", help="how often to measure quality (default: %(default)s)")
    parser.add_argument(
        "--evaluation-texts",
        type=int,
        default=10,
        metavar="N",
        help="on how many tuning sentences (default: %(default)s)",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="folder of lessons and checkpoints (default: beside --out, OUT-healing)"
    )
    parser.add_argument("--resume", action="store_true", help="go on where this healing was stopped")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the healed voice")
    parser.set_defaults(run=_heal)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, metavar="M", help="budget: wall clock, lessons and evaluations included (default: 15)")
    parser.add_argument("--steps", type=int, metavar="N", help="budget: training steps, instead of minutes")
    parser.add_argument("--adversarial", action="store_true", help="let discriminators join in: for a GPU")
    parser.add_argument("--precision", default="no", help="no: float32; bf16: bfloat16 where it is safe (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise, sentences and batches (default: %(default)s)")
    parser.add_argument("--lessons", type=int, metavar="N", help="sentences that the original speaks (default: 400)")
    parser.add_argument("--batch", type=int, metavar="N", help="sentences of a step, of each process (default: 4)")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest (default: 5e-4)")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="steps between checkpoints (default: 200)")


def plan_of(options: argparse.Namespace) -> HealPlan:
    """The HealPlan that was typed.

    Raises:
        InputError: a value is out of range, or two do not fit together.
    """
    from vits_prune.heal.plan import HealPlan

    if options.minutes is not None and options.steps is not None:
        raise InputError("--minutes and --steps are two ways to say how long: give one of them.")
    names = ("lessons", "batch", "learning_rate", "checkpoint_every")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    budget = {"minutes": None, "steps": options.steps} if options.steps is not None else {}
    budget |= {"minutes": options.minutes} if options.minutes is not None else {}
    return HealPlan(**budget, **given, seed=options.seed, adversarial=options.adversarial, precision=options.precision)


def _heal(options: argparse.Namespace) -> None:
    from vits_prune import cli
    from vits_prune.cli_prune import _check_out
    from vits_prune.texts import read_text_file
    from vits_prune.voices.saved import save_voice

    plan, spec = plan_of(options), _typed_spec(options)
    texts = None if options.texts is None else read_text_file(options.texts).texts
    work = options.workdir or options.out.with_name(f"{options.out.name}-healing")
    if _main_process():
        _check_out(options.out, False)
        _check_work(work, options.resume)
    voice = cli._load(options)
    pruned = None if spec else _load_pruned(options)
    session = _Session(options, plan, voice, work)
    clips = session.recordings(options.recordings)
    try:
        healed = _run(session, voice, pruned, spec, texts, clips)
    except KeyboardInterrupt:
        session.write_curve()
        if _main_process():
            print(f"\nStopped at step {session.step}. Go on with the same command and --resume; checkpoints are in {work}", file=sys.stderr)
        raise
    if _main_process():
        saved = save_voice(healed, options.out)
        session.finish(healed, saved)


def _run(session: _Session, voice: Voice, pruned: Voice | None, spec: Any, texts: Sequence[str] | None, clips: Sequence[Any]) -> Voice:
    """The healed voice, pruned before where a spec says how."""
    from vits_prune.heal import heal, heal_steps

    common = {"texts": texts, "folder": session.work, "resume": session.options.resume, "reserve": session.reserve}
    with session.telling():
        common |= {"on_step": session.on_step, "on_checkpoint": session.on_checkpoint if session.evaluates else None}
        if pruned is not None:
            return heal(pruned, voice, plan=session.plan, recordings=clips, **common)
        if clips:
            raise InputError("--recordings goes with --pruned: prune first, then heal.")
        healed = voice
        for number, step in enumerate(heal_steps(voice, spec, session.plan, on_prune=session.tell, **common), 1):
            amount, healed = step
            session.next_part()
            if _main_process():
                print(f"Step {number}: amount {amount:.3g}, healed.")
        return healed


class _Session:
    """What one run of the command shows, measures and writes."""

    def __init__(self, options: argparse.Namespace, plan: HealPlan, voice: Voice, work: Path) -> None:
        from vits_prune.heal.curve import Curve

        self.options, self.plan, self.voice, self.work = options, plan, voice, work
        self.step, self.tell = 0, lambda _what, _share: None
        self.curve: Curve = Curve(_ROW_EVERY)
        self._interrupted = False
        self._reference: Any = None
        self._next_evaluation = 0.0
        self.reserve = 0.0
        self.evaluates = options.evaluations > 0 and _main_process()
        if not 0 <= options.evaluations <= 1_000:
            raise InputError(f"--evaluations must be a whole number from 0 to 1000, not {options.evaluations}.")
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

    def recordings(self, folder: Path | None) -> Sequence[Any]:
        """A user's recordings as latents and waveforms.

        Raises:
            InputError: there are none, or the voice has lost the encoder that reads them.
        """
        if folder is None:
            return ()
        from vits_prune.heal.recordings import open_recordings, pairs

        found, posterior = open_recordings(folder, self.options.voice, self.voice)
        if _main_process():
            for one in found.skipped:
                print(f"Left out {one.name}: {one.reason}", file=sys.stderr)
            print(f"{len(found.clips)} recordings, {found.seconds / 60:.1f} minutes.")
        return pairs(found, posterior, self.voice, self.plan.seed)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Show the live line; Ctrl-C ends the training between two steps, so that its checkpoint is whole."""

        def note(_signal: int, _frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt  # pressed twice: at once
            self._interrupted = True

        before = signal.getsignal(signal.SIGINT)
        with Progress() as tell:
            self.tell = tell
            with contextlib.suppress(ValueError):  # not the main thread: nobody presses Ctrl-C there
                signal.signal(signal.SIGINT, note)
            try:
                yield
            finally:
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGINT, before)

    def on_step(self, told: Told) -> None:
        """Show how far it is, and keep the curve."""
        if self.step == 0 and told.step > 1:  # it goes on
            from vits_prune.heal.curve import Curve

            self.curve = Curve.read(self.work / "curve.csv", told.step - 1, _ROW_EVERY)
        self.step = told.step
        if self.curve.add(told) and told.step % (10 * _ROW_EVERY) == 0:
            self.write_curve()
        losses = " ".join(f"{name} {value:.3f}" for name, value in told.losses.items() if name != "total")
        self.tell(f"step {told.step} of {told.of or '?'}: {losses}", told.step / told.of if told.of else 0.0)
        if self._interrupted:
            raise KeyboardInterrupt

    def on_checkpoint(self, step: int, voice: Voice) -> float | None:
        """Measure the voice, where it is time for it: how far it is from the original, in limits."""
        of = self._of(voice)
        if step < of and (not self.options.evaluations or step / of < self._next_evaluation):
            return None
        from vits_prune.evaluation import evaluate_against

        self._next_evaluation = step / of + 1 / max(1, self.options.evaluations)
        self.tell(f"step {step}: measuring", step / of)
        figures = evaluate_against(self._reference, voice).figures
        changes = {name: figures[name].difference.value for name in (*_LIMITS_AS_BAD, "duration_ratio") if name in figures}
        self.curve.measured(step, {f"measured_{name}": round(value, 5) for name, value in changes.items()})
        self.write_curve()
        print(f"Step {step} of {of}: " + ", ".join(f"{name} {value:+.3f}" for name, value in changes.items()), flush=True)
        return sum(max(0.0, changes[name] / limit) for name, limit in _LIMITS_AS_BAD.items() if name in changes)

    @staticmethod
    def _of(voice: Voice) -> int:
        done = voice.recipe["healed"][-1]
        return max(1, done["of"] or done["steps"])

    def next_part(self) -> None:
        """Another healing begins, of a further step of gradual pruning."""
        self._next_evaluation = 0.0

    def write_curve(self) -> None:
        """The curve so far."""
        if self.curve.rows and _main_process():
            self.curve.write(self.work / "curve.csv")

    def finish(self, healed: Voice, saved: Path) -> None:
        """Tell what was made, with the picture of its course."""
        from vits_prune.heal.curve import save_figure

        self.write_curve()
        done = healed.recipe["healed"][-1]
        if self.curve.rows:
            save_figure(
                self.curve.rows, f"{healed.name}, healed: change from the original on tuning sentences below", self.work / "curve.svg"
            )
        if "stopped" in done:
            print(f"Stopped early: {done['stopped']}. This is the last good checkpoint.")
        print(f"{healed.name} healed in {done['of']} steps on {done['lessons']} sentences ({', '.join(done['trained'])}); "
              f"the voice of step {done['steps']} is saved to {saved}; its course is in {self.work / 'curve.csv'}")  # fmt: skip


def _typed_spec(options: argparse.Namespace) -> Any:
    """The PruneSpec that was typed, None with --pruned.

    Raises:
        InputError: both were given, or neither.
    """
    told = options.amount is not None or options.prune_steps is not None or options.pattern
    told = told or any(getattr(options, name, None) is not None for name in _levers())
    if options.pruned:
        if told:
            raise InputError("--pruned names a voice that is pruned already: leave out --amount and what else says how to prune.")
        return None
    if not told:
        raise InputError(
            "There is nothing to heal: name a pruned voice with --pruned, or say how to prune, such as --method second_order --amount 0.8."
        )
    return spec_of(argparse.Namespace(**{**vars(options), "steps": options.prune_steps}))


def _levers() -> tuple[str, ...]:
    from vits_prune.pruning.structure import Shape

    return tuple(field.name for field in dataclasses.fields(Shape))


def _load_pruned(options: argparse.Namespace) -> Voice:
    from vits_prune.voices.load import load_voice

    return load_voice(options.pruned, options.speaker)


def _check_work(work: Path, resume: bool) -> None:
    """Tell of a working folder that cannot be used before the work begins."""
    if work.exists() and not work.is_dir():
        raise InputError(f"{work} is a file: give a folder for lessons and checkpoints with --workdir.")
    if resume and not any((work / one).is_dir() for one in ("checkpoints", "step-1")):
        raise InputError(
            f"There is nothing to resume in {work}: leave out --resume, or name the --workdir of the healing that was stopped."
        )
    there = {path.name for path in work.iterdir()} if work.is_dir() else set()
    known = {"lessons", "checkpoints", "curve.csv", "curve.svg", ".curve.csv.part"} | {f"step-{i}" for i in range(1, 100)}
    if there - known:
        raise InputError(f"{work} holds other files: give a new or empty folder with --workdir.")


def _main_process() -> bool:
    """Whether this is the one process of several, under `accelerate launch`, that writes and speaks to the user."""
    return os.environ.get("RANK", "0") == "0"
