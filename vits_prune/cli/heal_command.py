"""The command heal: train a pruned voice on the original's own speech, within minutes or steps, resumable."""

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

from vits_prune.cli.options import Progress, add_spec, spec_of
from vits_prune.errors import InputError
from vits_prune.progress import Progress as WorkProgress

if TYPE_CHECKING:
    from vits_prune.healing.plan import HealData, HealPlan, HealResult, HealRun, TrainingStep
    from vits_prune.healing.training_curve import Curve
    from vits_prune.pruning import PruneSpec
    from vits_prune.study.judge import CheckpointJudge, Judgement
    from vits_prune.voices.voice import Voice


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    from vits_prune.cli import main as cli  # here, for cli imports this file

    # What describes a PruneSpec is taken over, but for --steps, which are steps of training here.
    parser = commands.add_parser(
        "heal",
        help="train a pruned voice back on the original's own speech",
        conflict_handler="resolve",
    )
    cli.add_voice(parser)
    parser.add_argument(
        "--pruned",
        metavar="DIR",
        help="the voice to heal, a folder that `prune` wrote (or say below how to prune)",
    )
    add_spec(parser)
    _add_plan(parser)
    parser.add_argument(
        "--prune-steps",
        metavar="N",
        help="without --pruned: prune in N steps, or to such amounts, and heal behind each",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="sentences to learn from, one a line (default: built in, or drawn)",
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="FOLDER",
        help="your own recordings besides, with transcripts (metadata.csv)",
    )
    parser.add_argument(
        "--evaluations",
        type=int,
        default=4,
        metavar="N",
        help="how often to measure quality (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluation-texts",
        type=int,
        default=10,
        metavar="N",
        help="on how many tuning sentences (default: %(default)s)",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="folder of lessons and checkpoints (default: beside --out, OUT-healing)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where this healing was stopped"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the healed voice"
    )
    parser.set_defaults(run=_heal)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="budget: wall clock, lessons and evaluations included (default: 15)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="budget: training steps, instead of minutes"
    )
    parser.add_argument(
        "--adversarial", action="store_true", help="let discriminators join in: for a GPU"
    )
    parser.add_argument(
        "--precision",
        default="no",
        help="no: float32; bf16: bfloat16 where it is safe (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of noise, sentences and batches (default: %(default)s)"
    )
    parser.add_argument(
        "--lessons", type=int, metavar="N", help="sentences that the original speaks (default: 400)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="sentences of a step, of each process (default: 4)"
    )
    parser.add_argument(
        "--learning-rate", type=float, metavar="RATE", help="the highest (default: 5e-4)"
    )
    parser.add_argument(
        "--joint",
        type=float,
        metavar="SHARE",
        help="share of the steps, at the end, with all parts in a row (default: 0.25)",
    )
    parser.add_argument(
        "--speakers",
        help="whose voices are learnt where there are several: all or own (default: all)",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, metavar="N", help="steps between checkpoints (default: 200)"
    )


def plan_of(options: argparse.Namespace) -> HealPlan:
    """The HealPlan that was typed.

    Raises:
        InputError: a value is out of range, or two do not fit together.
    """
    from vits_prune.healing.plan import HealPlan

    if options.minutes is not None and options.steps is not None:
        raise InputError("--minutes and --steps are two ways to say how long: give one of them.")
    names = ("lessons", "batch", "learning_rate", "joint", "speakers", "checkpoint_every")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    budget = {"minutes": None, "steps": options.steps} if options.steps is not None else {}
    budget |= {"minutes": options.minutes} if options.minutes is not None else {}
    return HealPlan(
        **budget,
        **given,
        seed=options.seed,
        adversarial=options.adversarial,
        precision=options.precision,
    )


def _heal(options: argparse.Namespace) -> None:
    from vits_prune.cli import main as cli
    from vits_prune.cli.prune_command import _check_out
    from vits_prune.healing.plan import HealData, HealRun
    from vits_prune.healing.training import is_main_process
    from vits_prune.synthesis.texts import read_text_file
    from vits_prune.voices.saved import save_voice

    plan, spec = plan_of(options), _typed_spec(options)
    texts = None if options.texts is None else read_text_file(options.texts).texts
    if not options.out.name:
        raise InputError(f"{options.out} has no name: give the name of a new folder with --out.")
    work = options.workdir or options.out.with_name(f"{options.out.name}-healing")
    if is_main_process():
        _check_out(options.out, False)
        _check_work(work, options.resume)
        if work.resolve().is_relative_to(options.out.resolve()):
            raise InputError(
                f"{work} lies in {options.out}, which the healed voice replaces as a whole: give another --workdir."
            )
    voice = cli.load(options)
    pruned = None if spec else _load_pruned(options, voice)
    clips = _recordings(options, plan, voice)
    session = Session(options, voice, work, texts)
    if is_main_process():
        _tell_of_reserve(plan, session, 1 if spec is None else len(spec.schedule_amounts()))
    try:
        healed = _run(
            session,
            plan,
            voice,
            spec if pruned is None else pruned,
            HealData(texts, clips),
            HealRun(work, options.resume),
        )
    except KeyboardInterrupt:
        session.write_curve()
        if is_main_process():
            print(f"\n{_stopped(session)}", file=sys.stderr)
        raise
    if is_main_process():
        saved = save_voice(healed.voice, options.out)
        session.finish(healed, saved)


def _run(
    session: Session,
    plan: HealPlan,
    voice: Voice,
    start: Voice | PruneSpec,
    data: HealData,
    run: HealRun,
) -> HealResult:
    """The healed voice; `start` is the pruned one, or says how to prune."""
    from vits_prune.healing import heal, heal_steps
    from vits_prune.healing.training import is_main_process
    from vits_prune.pruning import PruneSpec

    judge, steps = session.judge, 0
    with session.telling():
        progress = WorkProgress.of(session.tell)
        run = dataclasses.replace(run, observer=session.on_step, progress=progress)
        if not isinstance(start, PruneSpec):
            return _learnt(heal(start, voice, plan, data=data, run=run, judge=judge))
        for number, (amount, healed) in enumerate(
            heal_steps(voice, start, plan, data=data, run=run, judge=judge), 1
        ):
            steps += _learnt(healed).of or 0
            session.go_on(steps)
            if is_main_process():
                print(f"Step {number}: amount {amount:.3g}, healed.")
        return healed


def _learnt(healed: HealResult) -> HealResult:
    """The result, if the voice has learnt anything.

    Raises:
        InputError: it has not.
    """
    if healed.step == 0:
        raise InputError(
            f"{healed.voice.name} is not healed, for {healed.stopped or 'no step was made'}, and nothing is saved: "
            "give a lower --learning-rate, or prune anew if the pruned voice itself is broken."
        )
    return healed


def _tell_of_reserve(plan: HealPlan, session: Session, healings: int) -> None:
    """Say so where measuring takes more than its part of the minutes."""
    from vits_prune.healing.clock import judging_seconds

    last = plan.share(healings - 1, healings)
    if plan.steps is None and session.reserve > judging_seconds(last, session.reserve):
        print(
            f"Measuring takes about {session.reserve / 60:.1f} of {last.minutes:.1f} minutes: half of them are kept for training, and all "
            "takes longer than you said. Fewer --evaluations or --evaluation-texts take less.",
            flush=True,
        )


def _stopped(session: Session) -> str:
    """What to tell who pressed Ctrl-C."""
    if not any(session.work.rglob("checkpoint-*.safetensors")):
        return f"Stopped at step {session.step}, before the first checkpoint: start again without --resume."
    return f"Stopped at step {session.step}. Go on with the same command and --resume; checkpoints are in {session.work}"


def _recordings(options: argparse.Namespace, plan: HealPlan, voice: Voice) -> Sequence[Any]:
    """A user's recordings as latents and waveforms, none where none were given.

    Raises:
        InputError: none can be used, or the voice has lost the encoder that reads them.
    """
    if options.recordings is None:
        return ()
    from vits_prune.healing.recordings import open_recordings, pairs
    from vits_prune.healing.training import is_main_process

    with Progress() as tell:
        found, posterior = open_recordings(
            options.recordings, options.voice, voice, revision=options.revision,
            on_clip=lambda done, of: tell("reading recordings", done / max(1, of)),
        )  # fmt: skip
    if is_main_process():
        for one in found.skipped:
            print(f"Left out {one.name}: {one.reason}", file=sys.stderr)
        print(f"{len(found.clips)} recordings, {found.seconds / 60:.1f} minutes.")
    return pairs(found, posterior, voice, plan.seed)


def _typed_spec(options: argparse.Namespace) -> PruneSpec | None:
    """The PruneSpec that was typed, None with --pruned.

    Raises:
        InputError: both were given, or neither.
    """
    if options.recordings is not None and not options.pruned:
        raise InputError("--recordings goes with --pruned: prune first, then heal.")
    told = options.amount is not None or options.prune_steps is not None or options.pattern
    told = told or any(getattr(options, name, None) is not None for name in _levers())
    if options.pruned:
        idle = _says_how_to_prune(options)
        if idle:
            raise InputError(
                f"--pruned names a voice that is pruned already: leave out {idle}, which says how to prune."
            )
        return None
    if not told:
        raise InputError(
            "There is nothing to heal: name a pruned voice with --pruned, or say how to prune, such as --method second_order --amount 0.8."
        )
    return spec_of(argparse.Namespace(**{**vars(options), "steps": options.prune_steps}))


def _says_how_to_prune(options: argparse.Namespace) -> str:
    """The first option that was typed of those that describe a PruneSpec, empty where none was."""
    described = argparse.ArgumentParser(add_help=False)
    add_spec(described)
    defaults = {
        action.dest: action.default for action in described._actions if action.dest != "steps"
    }  # here: of training
    names = (
        name
        for name, default in {**defaults, "prune_steps": None}.items()
        if getattr(options, name) != default
    )
    return next((f"--{name.replace('_', '-')}" for name in names), "")


def _levers() -> tuple[str, ...]:
    from vits_prune.pruning.shape import Shape

    return tuple(field.name for field in dataclasses.fields(Shape))


def _load_pruned(options: argparse.Namespace, voice: Voice) -> Voice:
    """The voice to heal.

    Raises:
        InputError: it cannot be opened, was not made of `voice`, or has nothing to learn.
    """
    from vits_prune.healing.student import check_recordings, parts_to_train
    from vits_prune.voices.load import load_voice

    pruned = load_voice(options.pruned, options.speaker)
    trained = parts_to_train(pruned, voice)  # said here, before the original is measured
    if options.recordings is not None:
        check_recordings(trained)
    return pruned


def _check_work(work: Path, resume: bool) -> None:
    """Tell of a working folder that cannot be used before the work begins."""
    if work.exists() and not work.is_dir():
        raise InputError(
            f"{work} is a file: give a folder for lessons and checkpoints with --workdir."
        )
    if resume and not any((work / one).is_dir() for one in ("checkpoints", "step-1")):
        raise InputError(
            f"There is nothing to resume in {work}: leave out --resume, or name the --workdir of the healing that was stopped."
        )
    if not resume and work.is_dir() and any(work.rglob("checkpoint-*.safetensors")):
        raise InputError(
            f"{work} holds the checkpoints of a healing, which would be lost: go on with it by --resume, or give another --workdir."
        )
    if resume:
        from vits_prune.healing.training_curve import Curve

        Curve.read(work / "curve.csv")
    there = {path.name for path in work.iterdir()} if work.is_dir() else set()
    known = {"lessons", "checkpoints", "curve.csv", "curve.svg", ".curve.csv.part"} | {
        f"step-{i}" for i in range(1, 100)
    }
    if there - known:
        raise InputError(f"{work} holds other files: give a new or empty folder with --workdir.")


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

    def __init__(
        self,
        options: argparse.Namespace,
        voice: Voice,
        work: Path,
        texts: Sequence[str] | None = None,
    ) -> None:
        from vits_prune.healing.training_curve import Curve
        from vits_prune.study.judge import MAX_EVALUATIONS

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
        if not 0 <= options.evaluations <= MAX_EVALUATIONS:
            raise InputError(
                f"--evaluations must be a whole number from 0 to {MAX_EVALUATIONS}, not {options.evaluations}."
            )
        if options.evaluations > 0:
            self._prepare_judge(options, voice, texts)

    def _prepare_judge(
        self, options: argparse.Namespace, voice: Voice, texts: Sequence[str] | None
    ) -> None:
        """Measure the original once, and so how much of the minutes evaluations will take."""
        from vits_prune.study.judge import JudgeSettings, judge_of

        with Progress() as tell:
            judge = judge_of(
                voice,
                texts,
                JudgeSettings(options.evaluations, options.evaluation_texts),
                seed=options.seed,
                progress=WorkProgress.of(tell),
            )
        for sentence in judge.unmeasured:
            print(sentence, file=sys.stderr, flush=True)
        self.reserve = judge.seconds
        self.judge = dataclasses.replace(
            judge,
            observer=self.on_judgement,
            progress=WorkProgress(lambda what, share: self.tell(what, share)),
        )

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Show the live line; Ctrl-C ends the work between two steps, so that its checkpoint is whole."""

        def _note(_signal: int, _frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt  # pressed twice: at once
            self._interrupted = True
            os.write(
                2, b"\nStopping after what is under way; press Ctrl-C once more to stop at once.\n"
            )  # print may be under way itself

        def _say(what: str, share: float) -> None:
            if self._interrupted:
                raise KeyboardInterrupt  # while it is pruned or measured too
            tell(what, share)

        before = signal.getsignal(signal.SIGINT)
        with Progress() as tell:
            self.tell = _say
            with contextlib.suppress(
                ValueError
            ):  # not the main thread: nobody presses Ctrl-C there
                signal.signal(signal.SIGINT, _note)
            try:
                yield
            finally:
                with contextlib.suppress(ValueError):
                    signal.signal(signal.SIGINT, before)

    def on_step(self, told: TrainingStep) -> None:
        """Show how far it is, and keep the curve."""
        shift, of = self._before, None if told.of is None else told.of + self._before
        told = dataclasses.replace(
            told, step=told.step + shift, of=of, seconds=told.seconds + self._seconds_before
        )
        self._go_on_from(told.step - 1)
        self.step = told.step
        if self.curve.add(told) and told.step % (10 * _ROW_EVERY) == 0:
            self.write_curve()
        losses = " ".join(
            f"{name} {value:.3f}" for name, value in told.losses.items() if name != "total"
        )
        self.tell(
            f"step {told.step} of {told.of or '?'}: {losses}",
            told.step / told.of if told.of else 0.0,
        )
        if self._interrupted:
            raise KeyboardInterrupt

    def _go_on_from(self, step: int) -> None:
        """Read the rows of an earlier run up to a step, where this run has not made one and goes on from there."""
        if self.step or not step:
            return
        from vits_prune.healing.training_curve import Curve

        self.step, self.curve = step, Curve.read(self.work / "curve.csv", step, _ROW_EVERY)
        if self._before and self.curve.rows:
            self._seconds_before = float(self.curve.rows[-1].get("seconds", 0.0))

    def go_on(self, steps: int) -> None:
        """A healing is done and the next begins, behind so many steps in all."""
        self._before = steps
        self._seconds_before = float(
            next((row["seconds"] for row in reversed(self.curve.rows) if "seconds" in row), 0.0)
        )

    def on_judgement(self, found: Judgement, _voice: Voice) -> None:
        """Keep and show what was measured of a checkpoint."""
        if self.options.resume:
            self._go_on_from(
                self._before + found.step
            )  # a run that was stopped while it measured goes on with measuring
        changes = found.changes()
        self.curve.measured(
            self._before + found.step,
            {f"measured_{name}": round(value, 5) for name, value in changes.items()},
        )
        self.write_curve()
        print(
            f"Step {found.step} of {found.of}: "
            + ", ".join(f"{name} {value:+.3f}" for name, value in changes.items()),
            flush=True,
        )

    def write_curve(self) -> None:
        """The curve so far."""
        from vits_prune.healing.training import is_main_process

        if self.curve.rows and is_main_process():
            self.curve.write(self.work / "curve.csv")

    def finish(self, healed: HealResult, saved: Path) -> None:
        """Tell what was made, with the picture of its course."""
        from vits_prune.healing.training_curve import save_figure

        self.write_curve()
        name = healed.voice.name
        if self.curve.rows:
            below = (
                f": change from the original on {self.judge.measured_on} below"
                if self.judge
                else ""
            )
            save_figure(self.curve.rows, f"{name}, healed{below}", self.work / "curve.svg")
        if healed.stopped:
            print(f"Stopped early: {healed.stopped}. This is the last good checkpoint.")
        words = "was to be healed" if healed.stopped else "healed"
        print(f"{name} {words} in {healed.of} steps on {healed.sentences} sentences ({', '.join(healed.trained)}); "
              f"the voice of step {healed.step} is saved to {saved}; its course is in {self.work / 'curve.csv'}")  # fmt: skip
