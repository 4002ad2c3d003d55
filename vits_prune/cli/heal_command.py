"""The command heal: train a pruned voice on the original's own speech; it can be resumed."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vits_prune.cli.options import (
    load,
    says_how_to_prune,
    spec_of,
    texts_in,
    typed_fields,
    typed_path,
)
from vits_prune.cli.terminal import ProgressLine, print_left_out
from vits_prune.errors import InputError
from vits_prune.files import names_in
from vits_prune.healing import (
    HealData,
    HealPlan,
    HealResult,
    HealRun,
    TrainingStep,
    heal,
    heal_steps,
)
from vits_prune.healing.plan import judging_seconds
from vits_prune.healing.storage import Curve, save_curve
from vits_prune.healing.student import check_recordings, parts_to_train
from vits_prune.healing.training import is_main_process
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec, Shape
from vits_prune.study.judge import CheckpointJudge, Judgement, JudgeSettings, judge_of
from vits_prune.study.signature import check_comparable
from vits_prune.voices.load import load_voice
from vits_prune.voices.voice import Voice

_ROW_EVERY = 10
_CURVE = "curve.csv"
_PLACES = {
    "--texts FILE": "sentences to learn from, one a line (default: built in, or random)",
    "--recordings FOLDER": "your own recordings too, with transcripts (metadata.csv)",
    "--workdir DIR": "folder of checkpoints and the original's speech (default: OUT-healing)",
}


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    parser = commands.add_parser(
        "heal",
        help="train a pruned voice back on the original's own speech",
        epilog="Several processes: torchrun --nproc_per_node 2 -m vits_prune heal ...",
        run=_heal,
    )
    parser.add_voice()
    words = "the voice to heal, a folder that `prune` wrote (or say below how to prune)"
    parser.add_flag("--pruned DIR", words)
    parser.add_spec(steps="--prune-steps")
    parser.add_fields(HealPlan)
    parser.add_fields(JudgeSettings, changes={"texts": {"flag": "--evaluation-texts"}})
    parser.add_flags(typed_path, _PLACES)
    parser.add_flag("--resume", "go on where this healing was stopped", bool)
    parser.add_out("folder for the healed voice")


def plan_of(options: Namespace) -> HealPlan:
    """Return the HealPlan that was typed; raise InputError if two values do not fit together."""
    given = typed_fields(options, HealPlan)
    if {"minutes", "steps"} <= given.keys():
        raise InputError("--minutes and --steps are two ways to say how long: give one of them.")
    if "steps" in given:
        given["minutes"] = None
    return HealPlan(**given)


def spec_to_heal(options: Namespace) -> PruneSpec | None:
    """Return the PruneSpec that was typed, None with --pruned; raise InputError without either."""
    if options.recordings is not None and not options.pruned:
        raise InputError("--recordings goes with --pruned: prune first, then heal.")
    if options.pruned:
        if idle := says_how_to_prune(options):
            raise InputError(f"--pruned names a voice that is pruned already: leave out {idle}.")
        return None
    how_much = (options.amount, options.prune_steps, options.pattern or None)
    if how_much == (None, None, None) and not typed_fields(options, Shape):
        raise InputError("There is nothing to heal: give --pruned, or --amount, such as 0.8.")
    return spec_of(options)


def _heal(options: Namespace) -> None:
    from vits_prune.voices.saved import check_save_place, save_voice

    plan, spec = plan_of(options), spec_to_heal(options)
    texts = None if options.texts is None else texts_in(options.texts)
    if not options.out.name:
        raise InputError(f"{options.out} has no name: give the name of a new folder with --out.")
    work = options.workdir or options.out.with_name(f"{options.out.name}-healing")
    if is_main_process():
        check_save_place(options.out)
        _check_work(work, options)
    voice = load(options)
    start = spec or _load_pruned(options, voice)
    data = HealData(texts, _recordings(options, plan, voice))
    judge = typed_judge(options, plan, voice, texts)
    if judge and is_main_process():
        healings = 1 if spec is None else len(spec.schedule_amounts())
        warn_of_measuring(plan.share(healings - 1, healings), judge.seconds)
    log = TrainingLog(work, options.resume, judge.signature if judge else "")
    try:
        healed = _run(log, plan, voice, start, data, judge)
    except KeyboardInterrupt:
        log.write()
        if is_main_process():
            print(f"\n{how_to_resume(work, log.step)}", file=sys.stderr)
        raise
    if is_main_process():
        saved = save_voice(healed.voice, options.out)
        log.finish(healed, judge.measured_on if judge else "")
        if healed.stopped:
            print(f"Stopped early: {healed.stopped}. This is the last good checkpoint.")
        done = "was healed for part of" if healed.stopped else "healed in"
        print(
            f"{healed.voice.name} {done} {healed.of} steps "
            f"on {healed.sentences} sentences ({', '.join(healed.trained)}); the voice of step "
            f"{healed.step} is saved to {saved}; the losses of all steps are in {work / _CURVE}"
        )
        if log.signature:
            print(f"Signature of the measured checkpoints: {log.signature}")


def _run(
    log: TrainingLog,
    plan: HealPlan,
    voice: Voice,
    start: Voice | PruneSpec,
    data: HealData,
    judge: CheckpointJudge | None,
) -> HealResult:
    """Heal a pruned voice, or prune as a PruneSpec says and heal after each step."""
    with ProgressLine(gently=True) as progress:
        log.progress = progress
        run = HealRun(log.folder, log.resume, observer=log.observe, progress=progress)
        if judge:
            judge = dataclasses.replace(judge, observer=log.judged, progress=progress)
        if not isinstance(start, PruneSpec):
            return _learnt(heal(start, voice, plan, data=data, run=run, judge=judge))
        results = heal_steps(voice, start, plan, data=data, run=run, judge=judge)
        for number, (amount, healed) in enumerate(results, 1):
            log.next_healing(_learnt(healed).of or 0)
            if is_main_process():
                print(f"Step {number}: amount {amount:.3g}, healed.")
        return healed


def _learnt(healed: HealResult) -> HealResult:
    """Return the result; raise InputError if the voice has learnt nothing."""
    if healed.step == 0:
        what = f"{healed.voice.name} is not healed ({healed.stopped or 'no step was made'})"
        raise InputError(f"{what}, and nothing is saved: give a lower --learning-rate.")
    return healed


def typed_judge(
    options: Namespace, plan: HealPlan, voice: Voice, texts: Sequence[str] | None
) -> CheckpointJudge | None:
    """Return the judge that was typed, None without evaluations; print what it leaves out.

    It measures the original once, which shows how long measuring takes.
    """
    given = typed_fields(options, JudgeSettings, {"texts": "evaluation_texts"})
    with ProgressLine() as progress:
        judge = judge_of(voice, texts, JudgeSettings(**given), seed=plan.seed, progress=progress)
    print_left_out(judge.unmeasured if judge else (), sys.stderr)
    return judge


def warn_of_measuring(plan: HealPlan, seconds: float) -> None:
    """Say so if measuring takes more seconds than its part of the plan's minutes."""
    if plan.steps is None and plan.minutes and seconds > judging_seconds(plan, seconds):
        print(
            f"Measuring takes about {seconds / 60:.1f} of {plan.minutes:.1f} minutes, and half of "
            "them are kept for training: fewer --evaluations or --evaluation-texts take less time.",
            flush=True,
        )


def how_to_resume(work: Path, step: int) -> str:
    """Return what to say after Ctrl-C."""
    if not _has_checkpoints(work):
        return f"Stopped at step {step}, before the first checkpoint: start again without --resume."
    how = "Go on with the same command and --resume"
    return f"Stopped at step {step}. {how}; checkpoints are in {work}"


def _load_pruned(options: Namespace, voice: Voice) -> Voice:
    """Load the voice to heal, and see before anything is measured that it can learn."""
    pruned = load_voice(options.pruned, options.speaker)
    trained = parts_to_train(pruned, voice)
    if options.recordings is not None:
        check_recordings(trained)
    return pruned


def _recordings(options: Namespace, plan: HealPlan, voice: Voice) -> Sequence[Any]:
    """Read a user's recordings as latents and waveforms, if there are any."""
    if options.recordings is None:
        return ()
    from vits_prune.healing.recordings import RecordedPairs, open_recordings

    with ProgressLine() as progress:
        found, posterior = open_recordings(
            options.recordings, options.voice, voice, options.revision, progress=progress
        )
    if is_main_process():
        for one in found.skipped:
            print(f"Left out {one.name}: {one.reason}", file=sys.stderr)
        print(f"{len(found.usable)} recordings, {found.seconds / 60:.1f} minutes.")
    return RecordedPairs(found, posterior, voice, plan.seed)


def _check_work(work: Path, options: Namespace) -> None:
    """Raise InputError if the working folder cannot be used."""
    there = names_in(work)
    known = {"lessons", "checkpoints", _CURVE, "curve.svg"}
    known |= {f"step-{number}" for number in range(1, 100)}
    wrong = ""
    if work.exists() and not work.is_dir():
        wrong = "is a file: give a folder for checkpoints with --workdir."
    elif options.resume and not there & {"checkpoints", "step-1"}:
        wrong = "has nothing to resume: leave out --resume, or name another --workdir."
    elif not options.resume and _has_checkpoints(work):
        wrong = "holds the checkpoints of a healing: give --resume, or another --workdir."
    elif there - known:
        wrong = "holds other files: give a new or empty folder with --workdir."
    elif work.resolve().is_relative_to(options.out.resolve()):
        wrong = f"lies in {options.out}, which is replaced as a whole: give another --workdir."
    if wrong:
        raise InputError(f"{work} {wrong}")
    if options.resume:
        Curve.read(work / _CURVE)


def _has_checkpoints(work: Path) -> bool:
    return any(work.rglob("checkpoint-*.safetensors"))


class TrainingLog:
    """Shows the steps of one healing, or of several in a row, and writes them to curve.csv.

    Args:
        resume: whether rows of an earlier run are kept.
        signature: of what is measured.
        progress: shows the steps; it may raise to end the work.

    Raises:
        InputError: the earlier run measured otherwise, so its best checkpoint cannot be compared.
    """

    def __init__(
        self,
        folder: Path,
        resume: bool = False,
        signature: str = "",
        progress: Progress = SILENT,
    ) -> None:
        self.folder, self.resume, self.progress = folder, resume, progress
        self.signature, self.curve = signature, Curve(_ROW_EVERY, signature)
        before = Curve.read(folder / _CURVE).signature if resume else ""
        try:
            if before and signature:
                check_comparable(before, signature)
        except InputError as error:
            what = f"The checkpoints in {folder} were measured otherwise"
            raise InputError(f"{what}: give another --workdir without --resume. {error}") from error
        self.step = 0
        """Steps that are done, those of earlier healings included."""
        self._earlier_steps, self._earlier_seconds = 0, 0.0

    def observe(self, made: TrainingStep) -> None:
        """Count a training step in and show it."""
        made = dataclasses.replace(
            made,
            step=made.step + self._earlier_steps,
            of=None if made.of is None else made.of + self._earlier_steps,
            seconds=made.seconds + self._earlier_seconds,
        )
        self._continue_from(made.step - 1)
        self.step = made.step
        if self.curve.add(made) and made.step % (10 * _ROW_EVERY) == 0:
            self.write()
        losses = (f"{name} {value:.3f}" for name, value in made.losses.items() if name != "total")
        message = f"step {made.step} of {made.of or '?'}: {' '.join(losses)}"
        self.progress.report(message, made.step / made.of if made.of else 0.0)

    def judged(self, found: Judgement, _voice: Voice) -> None:
        """Add what was measured of a checkpoint, and print it."""
        step = self._earlier_steps + found.step
        if self.resume:
            self._continue_from(step)  # a run that was stopped while it measured measures again
        changes = found.changes()
        self.curve.measured(step, {f"measured_{name}": round(n, 5) for name, n in changes.items()})
        self.write()
        shown = ", ".join(f"{name} {change:+.3f}" for name, change in changes.items())
        print(f"Step {found.step} of {found.of}: {shown}", flush=True)

    def next_healing(self, steps: int) -> None:
        """Begin another healing, after one of so many steps."""
        self._earlier_steps += steps
        seconds = (row["seconds"] for row in reversed(self.curve.rows) if "seconds" in row)
        self._earlier_seconds = float(next(seconds, 0.0))

    def write(self) -> None:
        """Write the rows so far; of several processes only the first does."""
        if self.curve.rows and is_main_process():
            self.curve.write(self.folder / _CURVE)

    def finish(self, healed: HealResult, measured_on: str) -> None:
        """Write the rows, and a picture of them; `measured_on` says on which sentences."""
        self.write()
        title = f"{healed.voice.name}, healed"
        if measured_on:
            title += f": change from the original on {measured_on} below"
        if self.curve.rows:
            save_curve(self.curve.rows, title, self.folder / "curve.svg")

    def _continue_from(self, step: int) -> None:
        """Read the rows of an earlier run up to a step, if this run has made none itself."""
        if self.step or not step:
            return
        self.step, self.curve = step, Curve.read(self.folder / _CURVE, step, _ROW_EVERY)
        self.curve.signature = self.signature or self.curve.signature
        if self._earlier_steps and self.curve.rows:
            self._earlier_seconds = float(self.curve.rows[-1].get("seconds", 0.0))
