"""heal and heal_steps: a pruned voice learns from the voice that it was made of."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vits_prune.errors import InputError
from vits_prune.healing.batches import (
    MAX_TEXT_ONLY,
    Batch,
    TextOnlySentences,
    Window,
    draw_batch,
    draw_recordings,
    recordings_digest,
)
from vits_prune.healing.plan import (
    Clock,
    HealData,
    HealPlan,
    HealResult,
    HealRun,
    Judge,
    sentences_at,
)
from vits_prune.healing.storage import Checkpoints, StoredState, Tensors, TrainingStep, digest
from vits_prune.healing.student import LengthMatcher, check_recordings, parts_to_train
from vits_prune.healing.teacher import (
    SHARD,
    TeacherSpeech,
    TeacherUtterance,
    other_texts,
    training_texts,
)
from vits_prune.healing.training import (
    WARM_UP,
    NotFiniteError,
    Training,
    everywhere,
    make_accelerator,
    newest_checkpoint,
)
from vits_prune.pruning import PruneSpec, prune_steps
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.speak import Delivery
from vits_prune.threads import torch_threads
from vits_prune.voices.voice import Voice, without_masks

log = logging.getLogger(__name__)

_FORMAT, _MAX_THREADS = 2, 4096
"""Of what a step does: a checkpoint of another format is not continued."""
LENGTH_TEXTS = 64
"""Sentences on which a healed voice is made as long as the original: a second or two on a CPU."""


def heal(
    pruned: Voice,
    teacher: Voice,
    plan: HealPlan = HealPlan(),
    *,
    data: HealData = HealData(),
    run: HealRun = HealRun(),
    judge: Judge | None = None,
) -> HealResult:
    """Train a pruned voice on what the original says (self-distillation). No recordings are needed.

    Both voices get the same noise and the original's durations, so every stage has an exact
    target. Zeros stay zeros to the bit and removed channels stay removed. Only the parts that
    differ from the original's learn. Under `accelerate launch` all processes call this alike; each
    draws its own sentences, and the first one writes, judges and reports. On a CPU a healing that
    was stopped and resumed gives the bits of an uninterrupted one.

    `teacher` is the voice that `pruned` was made of. The judge scores checkpoints, in at most half
    of the minutes; without one the last is kept. If a loss or gradient was not finite, the result
    is the last good checkpoint, and `stopped` says why.

    Raises:
        InputError: the voices do not belong together, nothing is left to learn, the recordings
            have no decoder to teach, the checkpoints are of another healing, or the disk is full.
            What was learnt is in a checkpoint if the disk takes it.
    """
    if run.resume and run.folder is None:
        raise InputError("There is nothing to resume without a folder of checkpoints: give one.")
    pruned, teacher = without_masks(pruned), without_masks(teacher)
    healing = _Healing(pruned, teacher, plan, data, run, judge)
    with healing.resumed():
        return healing.train()


def heal_steps(
    voice: Voice,
    spec: PruneSpec,
    plan: HealPlan = HealPlan(),
    *,
    data: HealData = HealData(),
    run: HealRun = HealRun(),
    judge: Judge | None = None,
) -> Iterator[tuple[float, HealResult]]:
    """Prune gradually and heal after each step (Han et al. 2015, arXiv:1506.02626, section 3).

    Each step prunes the voice that was healed last. The original teaches every healing, and it is
    what calibrated methods aim at.

    Args:
        voice: the original.
        spec: its `steps` and `schedule` give the amounts.
        plan: of all healings together; pruning takes its own time.
        data: as for `heal`, `texts` only.
        run: as for `heal`; each healing has its own folder inside `folder`.
        judge: of the last healing.

    Yields:
        Amount and result of each step. Leave the loop to stop there.
    """
    place, count = run.path, len(spec.schedule_amounts())
    shared = HealData(data.texts, speech=_teacher_speech(voice, data.texts, plan, place))
    results: list[HealResult] = []

    def _healed(index: int, pruned: Voice) -> Voice:
        own = dataclasses.replace(run, folder=place and place / f"step-{index + 1}")
        scores = judge if index + 1 == count else None
        share = plan.share(index, count)
        results.append(heal(pruned, voice, share, data=shared, run=own, judge=scores))
        return results[-1].voice

    # Calibrated pruning rounds by the number of threads: another number gives another voice.
    first = Checkpoints(place / "step-1" / "checkpoints").newest() if place and run.resume else None
    steps = prune_steps(voice, spec, progress=run.progress, after_step=_healed)
    while True:
        with torch_threads(_threads_of(first, place)):  # not while the caller has control
            step = next(steps, None)
        if step is None:
            return
        yield step[0], results[-1]


def _threads_of(found: StoredState | None, folder: Path | None) -> int:
    """Return torch's threads of the run that wrote a checkpoint, those of now without one."""
    threads = found[1].get("threads") if found else torch.get_num_threads()
    if not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS:
        raise _unusable(folder)
    return threads


def _unusable(folder: Path | None) -> InputError:
    return InputError(f"The checkpoints in {folder} cannot be used: start without resuming.")


def _teacher_speech(
    teacher: Voice, texts: Sequence[str] | None, plan: HealPlan, folder: Path | None
) -> TeacherSpeech:
    said = training_texts(teacher, texts, plan.lessons, plan.seed)
    place = folder and folder / "lessons"
    return TeacherSpeech(
        teacher, said, seed=plan.seed, segment=plan.segment, speakers=plan.speakers, folder=place
    )


class _Healing:
    """One call of heal."""

    def __init__(
        self,
        pruned: Voice,
        teacher: Voice,
        plan: HealPlan,
        data: HealData,
        run: HealRun,
        judge: Judge | None,
    ) -> None:
        trained = parts_to_train(pruned, teacher)
        if data.recordings:
            check_recordings(trained)
        self._plan, self._data, self._run, self._judge = plan, data, run, judge
        self._accelerator = make_accelerator(plan, run.cpu)
        self._home, device = pruned.device, self._accelerator.device
        self._main = self._accelerator.is_main_process
        self._pruned, self._teacher = pruned.to(device), teacher.to(device)
        self._window = Window.of(pruned, plan.segment)
        self._training = Training(
            self._pruned, self._teacher, trained, plan, self._window, self._accelerator
        )
        self._checkpoints = Checkpoints(run.path / "checkpoints") if run.path else None
        self._written = self._checkpoints if self._main else None
        self._speech = data.speech or _teacher_speech(self._teacher, data.texts, plan, run.path)
        self._text_only: TextOnlySentences | None = None
        if {"text_encoder", "duration_predictor"} & set(trained):
            sentences = [*self._speech.sentences, *self._others(MAX_TEXT_ONLY, plan.seed + 1)]
            self._text_only = TextOnlySentences(self._teacher, sentences, self._speech.speakers)
        read = self._text_only.sentences if self._text_only else ()
        facts = (_FORMAT, self._speech.content, read, self._teacher.speaker, plan.to_dict())
        self._owner = {
            "belongs": digest(self._pruned.model.state_dict(), *facts),
            "processes": self._accelerator.num_processes,
            "recordings": recordings_digest(data.recordings),
        }
        self._lengths: LengthMatcher | None = None
        self._noise_scale = Delivery().for_voice(teacher).noise_scale
        self._step, self._of, self._seconds, self._stopped = 0, plan.steps, 0.0, ""
        self._best: tuple[int, float | None, Voice] = (0, None, self._pruned)
        self._weights_whole, self._saved = True, -1
        """Whether the weights are those of a whole step, and the step of the newest checkpoint."""

    def _others(self, count: int, seed: int) -> list[tuple[int, ...]]:
        texts = other_texts(self._teacher, self._data.texts, count, seed)
        return sentence_ids(self._teacher, texts)

    # Resuming

    @contextlib.contextmanager
    def resumed(self) -> Iterator[None]:
        """Continue from the newest checkpoint if asked, with the first run's threads meanwhile."""
        found = None
        if self._run.resume and self._checkpoints:
            found = newest_checkpoint(self._accelerator, self._checkpoints)
            if found:
                self._checkpoints.require(found[1], self._owner)
        with torch_threads(_threads_of(found, self._run.path)):
            if "duration_predictor" in self._training.trained:
                sentences, seed = self._others(LENGTH_TEXTS, self._plan.seed), self._plan.seed
                self._lengths = LengthMatcher(self._teacher, sentences, seed)
            if found is not None:
                self._continue_from(*found)
            if self._written:
                if found is None:
                    self._written.clear()
                self._speech.tidy()
            yield

    def _continue_from(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        try:
            self._training.load(tensors)
            self._step, self._of = int(facts["step"]), int(facts["of"])
            self._seconds = float(facts["seconds"])
        except (KeyError, ValueError, TypeError) as error:
            raise _unusable(self._run.path) from error
        self._saved = self._step
        if best := self._checkpoints.best() if self._checkpoints else None:
            weights = {name: tensor.to(self._pruned.device) for name, tensor in best[0].items()}
            voice = self._pruned.with_weights(weights)
            self._best = (int(best[1]["step"]), float(best[1]["score"]), voice)
        else:
            self._best = (self._step, None, self._student())

    # Training

    def train(self) -> HealResult:
        """Make all steps that are left, and return the best voice."""
        clock = Clock(self._plan, self._judge.seconds if self._judge else 0.0)
        started, before = time.perf_counter(), self._seconds
        with self._saved_on_error():
            judged = self._written.scored() if self._judge and self._written else self._step
            # It may have been stopped while this was judged.
            if judged < self._step and self._is_checkpoint():
                self._score()
            while self._of is None or self._step < self._of:
                utterances, begun, at = self._utterances(clock), time.perf_counter(), self._step + 1
                try:
                    batch, self._weights_whole = self._batch(utterances), False
                    done = self._step / self._of if self._of else 0.0
                    losses = self._training.step(batch, done, min(1.0, at / WARM_UP))
                    self._step, self._weights_whole = at, True
                    took, known = time.perf_counter() - begun, self._of is not None
                    self._seconds = before + time.perf_counter() - started
                    changed = self._revise(clock, took, utterances)
                    due = self._is_checkpoint() or (changed and not known)
                    if due or changed:
                        self._training.check()
                except NotFiniteError as error:
                    self._stopped = f"{str(error)!r} was not finite at step {at}"
                    break
                if due or changed:
                    self._save()
                if due:
                    self._score()
                if self._run.observer and self._main:
                    self._run.observer(TrainingStep(self._step, self._of, losses, self._seconds))
        step, score, voice = self._best
        voice = voice.to(self._home)
        return HealResult.from_entry(voice, self._entry(step), score, self._seconds)

    def _revise(self, clock: Clock, took: float, utterances: Sequence[TeacherUtterance]) -> bool:
        """Ask the clock how many steps there are to be; return whether that is a new number."""
        before = self._of
        if before is None:
            of = clock.estimate(
                took,
                len(self._speech),
                lambda done: self._training.step(self._batch(utterances), done, learn=False),
            )
        else:
            of = clock.revise(took, self._step, before, self._seconds)
        if of is not None:
            self._of = everywhere(self._accelerator, of)[0]
        return self._of != before

    def _utterances(self, clock: Clock) -> Sequence[TeacherUtterance]:
        start, wanted = time.perf_counter(), sentences_at(self._step, len(self._speech))
        # The first process makes what is not on disk yet. The others read it, or make their own
        # where the disk is not shared.
        in_turn = self._step % SHARD == 0
        with self._accelerator.main_process_first() if in_turn else contextlib.nullcontext():
            found = self._speech.first(wanted)
        if self._step == 0:
            clock.sentence = (time.perf_counter() - start) / max(1, len(found))
        return found

    def _batch(self, utterances: Sequence[TeacherUtterance]) -> Batch:
        size, text = self._plan.batch, self._training.needs_text
        key = (self._plan.seed, self._step, self._accelerator.process_index)
        batch = draw_batch(utterances, size, key, self._window, text, self._noise_scale)
        if self._text_only:
            batch |= self._text_only.draw(size, key)
        if self._data.recordings:
            size = max(1, size // 2)
            batch |= draw_recordings(self._data.recordings, size, key, self._window)
            batch["recorded_speaker"] = torch.full((size,), self._teacher.speaker or 0)
        return batch

    # Checkpoints

    def _is_checkpoint(self) -> bool:
        planned = self._step == self._of or self._step % self._plan.checkpoint_every == 0
        return planned or (self._judge is not None and self._judge.wants(self._step, self._of))

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """Save the last whole step if anything ends the training, a cancellation included."""
        try:
            yield
        except BaseException:
            if self._weights_whole and self._saved != self._step:
                try:
                    self._save()
                except InputError as error:
                    log.warning("The last steps are lost: %s", error)
            raise

    def _student(self) -> Voice:
        """Return the student as it is now, its sentences as long as the teacher's."""
        voice = self._training.voice()
        return self._lengths.match(voice) if self._lengths else voice

    def _score(self) -> None:
        """Let the judge score the student, and keep it if it is the best so far."""
        voice, score, best = self._student(), None, self._best[1]
        if self._judge and self._main:
            score = self._judge.score(self._step, self._of, voice.to(self._home))
        if score is not None and math.isnan(score):
            score = math.inf
        if best is None or (score is not None and score <= best):
            self._best = (self._step, score, voice)
            if score is not None and self._written:
                weights = dict(voice.model.named_parameters())
                learnt = {name: weights[name] for name in self._training.weights}
                facts = {"score": score, "healed": self._entry(self._step)}
                self._written.save_best(self._step, learnt, facts)
        if self._judge and self._written:
            self._written.save_scored(self._step)

    def _save(self) -> None:
        if not self._written or self._of is None:
            return
        facts = {"of": self._of, "seconds": self._seconds, "healed": self._entry(self._step)}
        facts |= self._owner | {"threads": torch.get_num_threads()}
        self._written.save(self._step, self._training.state(), facts)
        self._saved = self._step

    def _entry(self, step: int) -> dict[str, Any]:
        """Return what the recipe of the voice of a step says about this healing, as JSON values."""
        sentences = sentences_at(max(0, step - 1), len(self._speech))
        entry = {"plan": self._plan.to_dict(), "steps": step, "of": self._of, "lessons": sentences}
        entry["trained"] = list(self._training.trained)
        if self._data.recordings:
            entry["recordings"] = len(self._data.recordings)
        if self._stopped:
            entry["stopped"] = self._stopped
        return entry
