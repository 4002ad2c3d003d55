"""heal: a pruned Voice learns from the voice it was made of, and becomes another Voice."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.healing.batches import Batch, Clip, Window, clips_digest, draw_batch, draw_clips
from vits_prune.healing.budget import Pace, Watch, lessons_at
from vits_prune.healing.checkpoints import Checkpoints
from vits_prune.healing.corpus import corpus, other_texts
from vits_prune.healing.kept import healed_recipe
from vits_prune.healing.lengths import Lengths
from vits_prune.healing.lessons import SHARD, Lessons
from vits_prune.healing.pair import check_recordings, parts_to_train
from vits_prune.healing.plan import HealPlan
from vits_prune.healing.processes import agreed, everywhere
from vits_prune.healing.progress import OnCheckpoint, OnStep, Told, is_check
from vits_prune.healing.reach import decoder_reach, flow_reach
from vits_prune.healing.readings import MOST, Readings
from vits_prune.healing.storage import digest
from vits_prune.healing.training import WARM_UP, NotFiniteError, Training, make_accelerator
from vits_prune.pruning.calibration import sentence_ids
from vits_prune.synthesis import Delivery
from vits_prune.threads import torch_threads
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

_RECIPE = 2
"""Of what a step does: checkpoints of another are not gone on from."""
MOST_THREADS = 4096
_LEVELLED_ON = 64
"""Sentences, none of them learnt from, on which a healed voice is made as long as the original: a second or two on two cores."""


def heal(
    pruned: Voice,
    teacher: Voice,
    texts: Sequence[str] | None = None,
    plan: HealPlan | None = None,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    recordings: Sequence[Clip] = (),
    lessons: Lessons | None = None,
    on_step: OnStep | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    checks: int = 0,
    reserve: float = 0.0,
    cpu: bool = False,
) -> Voice:
    """Train a pruned voice on what the original says (self-distillation): no recordings are needed.

    Both have the same noise and the original's durations, so that every stage has an exact target. Zeros of the pruned voice stay zeros to
    the bit, and what was removed stays removed. Only parts that differ from the original's learn. Under `accelerate launch` all processes
    call this alike, each with sentences of its own; the first one alone writes and calls back.

    Args:
        pruned: what to heal; it stays as it is.
        teacher: the voice it was made of.
        texts: what the teacher says; None for built-in sentences, or draws from the vocabulary.
        plan: how long and how; None for HealPlan().
        folder: where lessons and checkpoints are kept; None for no checkpoints.
        resume: go on from the newest checkpoint in `folder`, where there is one. On a CPU the result is that of one uninterrupted run:
            torch has the number of threads of the first run meanwhile, which only the main thread may change.
        recordings: real speech besides, (latents [flow_size, frames], waveform [frames * hop]) each.
        lessons: the teacher's, where they are shared among several healings, of the same texts.
        on_step, on_checkpoint: as OnStep and OnCheckpoint say.
        checks: so many checkpoints besides the plan's, evenly over the training: those for which `is_check` says so.
        reserve: seconds of the plan's minutes that the callbacks need; half of the minutes are for training in any case.
        cpu: stay on the CPU where there is a GPU.

    Returns:
        the voice with the best score, or the last one where no scores were given. Its recipe tells how it was made, and why it was stopped
        if a loss or a gradient was no finite number: then it is that of the last good checkpoint, of step 0 where there was none yet.

    Raises:
        InputError: the two do not belong together, nothing is left to learn, recordings have no decoder to teach, a checkpoint is of
            another healing or other recordings, or the disk is full. What was learnt until then is in a checkpoint if the disk takes it.
    """
    plan = plan or HealPlan()
    if resume and folder is None:
        raise InputError("There is nothing to resume without a folder of checkpoints: give the folder of the healing that was stopped.")
    trained = parts_to_train(pruned, teacher)
    if recordings:
        check_recordings(trained)
    run = _Run(pruned, teacher, trained, plan, make_accelerator(plan, cpu), None if folder is None else Path(folder), recordings)
    lessons = run.lessons(texts) if lessons is None else lessons
    with run.resumed(resume, texts, lessons):
        return run.train(lessons, _Callbacks(on_step, on_checkpoint, checks, reserve))


@dataclass(frozen=True)
class _Callbacks:
    """Who is told, when, and how long that takes; see `heal`."""

    on_step: OnStep | None
    on_checkpoint: OnCheckpoint | None
    checks: int
    reserve: float


class _Run:
    """One call of heal."""

    def __init__(
        self,
        pruned: Voice,
        teacher: Voice,
        trained: Sequence[str],
        plan: HealPlan,
        accelerator: Accelerator,
        folder: Path | None,
        recordings: Sequence[Clip],
    ) -> None:
        self._home, self._plan, self._accelerator, self._folder = pruned.device, plan, accelerator, folder
        self._pruned, self._teacher = pruned.to(accelerator.device), teacher.to(accelerator.device)
        config = pruned.model.config
        self._window = Window(plan.segment, decoder_reach(config), flow_reach(config), pruned.hop_length)
        self._training = Training(self._pruned, trained, plan, self._window, accelerator)
        self._recordings, self._heard = recordings, clips_digest(recordings)
        self._checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
        self._belongs = ""
        self._step, self._of = 0, plan.steps
        self._seconds = 0.0
        self._kept: tuple[int, float | None, Voice] = (0, None, self._pruned)
        self._lengths: Lengths | None = None
        self._readings: Readings | None = None
        self._stopped = ""
        self._between, self._written = True, -1
        """Whether it is between two steps, so that the weights are those of a step; and the step of the newest checkpoint."""

    @property
    def _main(self) -> bool:
        return self._accelerator.is_main_process

    @contextlib.contextmanager
    def resumed(self, resume: bool, texts: Sequence[str] | None, lessons: Lessons) -> Iterator[None]:
        """Take up the newest checkpoint if asked; meanwhile torch has the number of threads that the first run had."""
        self._readings = self._readings_of(texts, lessons)
        read = self._readings.sentences if self._readings else ()
        parts = (_RECIPE, lessons.content, read, self._teacher.speaker, self._plan.to_dict())
        self._belongs = digest(self._pruned.model.state_dict(), *parts)
        found = self._newest() if resume else None
        with torch_threads(torch.get_num_threads() if found is None else self._checked(found[1])):
            self._lengths = self._lengths_of(texts)
            if found is not None:
                self._take_up(*found)
            elif self._checkpoints and self._main:
                self._checkpoints.clear()
            if self._checkpoints and self._main:
                self._checkpoints.tidy()
                lessons.tidy()
            yield

    def _newest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest checkpoint, the same in all processes."""
        found, damaged = None, None
        try:
            found = self._checkpoints.newest() if self._checkpoints else None
        except DamagedFileError as error:  # raised below: the other processes wait for the answer of this one
            damaged = error
        if len(set(everywhere(self._accelerator, str(damaged or (found and found[1].get("step")))))) > 1:
            raise InputError(
                f"Not every process finds the same newest checkpoint in {self._folder}: give a folder on a disk that all machines share."
            )
        if damaged is not None:
            raise damaged
        return found

    def _checked(self, facts: Mapping[str, Any]) -> int:
        """The number of threads of the run that wrote a checkpoint, which must be of this healing."""
        if facts.get("recordings", "") != self._heard:
            raise InputError(
                f"The checkpoints in {self._checkpoints.folder} were made with other recordings: give the very recordings that the healing "
                "began with, or another folder."
            )
        if facts.get("belongs") != self._belongs or facts.get("processes") != self._accelerator.num_processes:
            raise InputError(
                f"The checkpoints in {self._checkpoints.folder} belong to another healing (voice, speaker, texts, plan or number of "
                "processes): give the same options, or another folder."
            )
        threads = facts.get("threads")
        if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise self._useless()
        return threads

    def _useless(self) -> InputError:
        return InputError(f"The checkpoints in {self._checkpoints.folder} cannot be used: start without resuming.")

    def _take_up(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        try:
            self._training.load(tensors)
        except (KeyError, ValueError) as error:
            raise self._useless() from error
        try:
            self._step, self._of, self._seconds = int(facts["step"]), int(facts["of"]), float(facts["seconds"])
            self._written = self._step
        except (KeyError, ValueError, TypeError) as error:
            raise self._useless() from error
        best = self._checkpoints.best()
        if best is not None:
            voice = self._pruned.with_weights({name: tensor.to(self._pruned.device) for name, tensor in best[0].items()})
            self._kept = (int(best[1]["step"]), float(best[1]["score"]), voice)
        else:
            self._kept = (self._step, None, self._voice({}))

    def lessons(self, texts: Sequence[str] | None) -> Lessons:
        """The teacher's lessons, kept in the folder."""
        plan = self._plan
        said = corpus(self._teacher, texts, plan.lessons, plan.seed)
        where = None if self._folder is None else self._folder / "lessons"
        return Lessons(self._teacher, said, seed=plan.seed, segment=plan.segment, speakers=plan.speakers, folder=where)

    def _lengths_of(self, texts: Sequence[str] | None) -> Lengths | None:
        """What durations are levelled by, where they learn."""
        if "duration_predictor" not in self._training.trained:
            return None
        others = other_texts(self._teacher, texts, _LEVELLED_ON, self._plan.seed)
        return Lengths(self._teacher, sentence_ids(self._teacher, others), self._plan.seed)

    def _readings_of(self, texts: Sequence[str] | None, lessons: Lessons) -> Readings | None:
        """What is read besides what is said, where there are parts that learn from it."""
        if not {"text_encoder", "duration_predictor"} & set(self._training.trained):
            return None
        others = sentence_ids(self._teacher, other_texts(self._teacher, texts, MOST, self._plan.seed + 1))
        return Readings(self._teacher, [*lessons.sentences, *others], lessons.spoken_by)

    def _voice(self, recipe: Mapping[str, Any]) -> Voice:
        """The student as it is now, in sentences as long as the teacher's."""
        voice = self._training.voice(recipe)
        return voice.with_weights(self._lengths.level(voice)) if self._lengths else voice

    def train(self, lessons: Lessons, callbacks: _Callbacks) -> Voice:
        """All steps that are left."""
        started, before = time.perf_counter(), self._seconds
        pace, watch = Pace(self._plan, callbacks.reserve), Watch(self._plan, callbacks.reserve)
        with self._saved_on_error(lessons):
            if self._unscored(callbacks):
                self._score(callbacks.on_checkpoint, len(lessons))
            while self._of is None or self._step < self._of:
                there, after = self._lessons(lessons, pace), time.perf_counter()
                at = self._step + 1
                try:
                    losses = self._learn(self._batch(there))
                    took, known = time.perf_counter() - after, self._of is not None
                    if not known and pace.took(took):
                        steps = pace.steps(len(lessons), functools.partial(self._rehearse, there))
                        self._of = agreed(self._accelerator, steps)
                    self._seconds = before + time.perf_counter() - started
                    cut = known and watch.took(took, self._of) and self._shortened(watch)
                    due = (not known and self._of is not None) or self._is_checkpoint(callbacks.checks)
                    if due or cut:
                        self._training.check()
                except NotFiniteError as error:
                    self._stopped = f"{str(error)!r} was no finite number at step {at}"
                    break
                if due or cut:
                    self._save(len(lessons))
                if due:
                    self._score(callbacks.on_checkpoint, len(lessons))
                if callbacks.on_step and self._main:
                    callbacks.on_step(Told(self._step, self._of, losses, self._seconds))
        return self._result(len(lessons))

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step."""
        self._between = False
        losses = self._training.step(batch, self._step / self._of if self._of else 0.0, min(1.0, (self._step + 1) / WARM_UP))
        self._step += 1
        self._between = True
        return losses

    def _rehearse(self, lessons: Sequence[Any], done: float) -> None:
        """The work of a step as it will be when a share of the training is over; nothing is learnt."""
        self._training.step(self._batch(lessons), done, learn=False)

    def _shortened(self, watch: Watch) -> bool:
        """Let there be fewer steps where the minutes are too few for all of them; whether that was so."""
        before = self._of
        self._of = agreed(self._accelerator, watch.steps(self._step, before, self._seconds))
        return self._of < before

    @contextlib.contextmanager
    def _saved_on_error(self, lessons: Lessons) -> Iterator[None]:
        """Whatever ends the training, cancelling included: the last whole step is in a checkpoint, if the disk takes it."""
        try:
            yield
        except BaseException:
            if self._between and self._written != self._step:
                try:
                    self._save(len(lessons))
                except InputError as error:
                    log.warning("The last steps are lost: %s", error)
            raise

    def _unscored(self, callbacks: _Callbacks) -> bool:
        """Whether the healing was stopped between the checkpoint that it goes on from and its measurement."""
        if not callbacks.on_checkpoint or not self._checkpoints or not self._main or self._step == 0:
            return False
        return self._is_checkpoint(callbacks.checks) and self._checkpoints.scored() < self._step

    def _is_checkpoint(self, checks: int) -> bool:
        return self._step == self._of or self._step % self._plan.checkpoint_every == 0 or is_check(self._step, self._of, checks)

    def _lessons(self, lessons: Lessons, pace: Pace) -> Sequence[Any]:
        start, wanted = time.perf_counter(), lessons_at(self._step, len(lessons))
        # The first process makes what is not on disk yet; the others read it, or make their own where the disk is not shared.
        with self._accelerator.main_process_first() if self._step % SHARD == 0 else contextlib.nullcontext():
            there = lessons.first(wanted)
        if self._step == 0:
            pace.lessons_took(time.perf_counter() - start, len(there))
        return there

    def _batch(self, lessons: Sequence[Any]) -> Batch:
        plan, key = self._plan, (self._plan.seed, self._step, self._accelerator.process_index)
        scale = Delivery().for_voice(self._teacher).noise_scale
        batch = draw_batch(lessons, plan.batch, key, self._window, text=self._training.needs_text, noise_scale=scale)
        if self._readings:
            batch |= self._readings.draw(plan.batch, key)
        if self._recordings:
            size = max(1, plan.batch // 2)
            batch |= draw_clips(self._recordings, size, key, self._window)
            batch["recorded_speaker"] = torch.full((size,), self._teacher.speaker or 0)
        return batch

    def _score(self, on_checkpoint: OnCheckpoint | None, lessons: int) -> None:
        """Let a checkpoint be measured, and keep it if it is the best."""
        voice = self._voice(self._recipe(self._step, lessons))
        score = on_checkpoint(self._step, voice.to(self._home)) if on_checkpoint and self._main else None
        if score is not None and math.isnan(score):
            score = math.inf
        _, best, _ = self._kept
        if score is None and best is None:
            self._kept = (self._step, None, voice)
        elif score is not None and (best is None or score <= best):
            self._kept = (self._step, score, voice)
            if self._checkpoints and self._main:
                weights = dict(voice.model.named_parameters())
                facts = {"score": score, "healed": self._done(self._step, lessons)}
                self._checkpoints.save_best(self._step, {name: weights[name] for name in self._training.weights}, facts)
        if on_checkpoint and self._checkpoints and self._main:
            self._checkpoints.save_scored(self._step)

    def _save(self, lessons: int) -> None:
        if self._checkpoints and self._main and self._of is not None:
            facts = {"of": self._of, "seconds": self._seconds, "threads": torch.get_num_threads(), "belongs": self._belongs}
            facts |= {"processes": self._accelerator.num_processes, "recordings": self._heard, "healed": self._done(self._step, lessons)}
            self._checkpoints.save(self._step, self._training.state(), facts)
            self._written = self._step

    def _done(self, step: int, lessons: int) -> dict[str, Any]:
        """What the recipe says of the voice of a step."""
        done: dict[str, Any] = {
            "plan": self._plan.to_dict(),
            "steps": step,
            "of": self._of,
            "lessons": lessons_at(max(0, step - 1), lessons),
            "trained": list(self._training.trained),
        }
        if self._recordings:
            done["recordings"] = len(self._recordings)
        if self._stopped:
            done["stopped"] = self._stopped
        return done

    def _recipe(self, step: int, lessons: int) -> Mapping[str, Any]:
        return healed_recipe(self._pruned, self._done(step, lessons))

    def _result(self, lessons: int) -> Voice:
        step, _, voice = self._kept
        return dataclasses.replace(voice, recipe=self._recipe(step, lessons)).to(self._home)
