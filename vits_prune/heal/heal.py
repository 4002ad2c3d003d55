"""heal: a pruned Voice learns from the voice it was made of, and becomes another Voice."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from vits_prune.errors import InputError
from vits_prune.heal.batches import Batch, Clip, Window, draw_batch, draw_clips
from vits_prune.heal.budget import Pace, lessons_at
from vits_prune.heal.checkpoints import Checkpoints
from vits_prune.heal.corpus import corpus
from vits_prune.heal.lessons import SHARD, Lessons
from vits_prune.heal.plan import HealPlan
from vits_prune.heal.reach import decoder_reach, flow_reach
from vits_prune.heal.storage import digest
from vits_prune.heal.training import WARM_UP, NotFiniteError, Training
from vits_prune.synthesis import Delivery
from vits_prune.voices.voice import PARTS, Voice

if TYPE_CHECKING:
    from accelerate import Accelerator

_SAME = {
    "vocab_size": "vocabulary",
    "flow_size": "size of the flow",
    "hidden_size": "size of the hidden states",
    "num_speakers": "number of speakers",
    "speaker_embedding_size": "size of the speakers' embeddings",
    "use_stochastic_duration_prediction": "kind of duration predictor",
}


@dataclass(frozen=True)
class Told:
    """How far a healing is."""

    step: int
    """Steps done."""
    of: int | None
    """Steps in all; None while minutes are being turned into steps."""
    losses: Mapping[str, float]
    """Of the last step, by name, and their weighted sum as "total"."""
    seconds: float
    """Since healing began, of all its runs."""


OnStep = Callable[[Told], None]
"""Called after each step; it may raise to stop, and a checkpoint is written before what it raised goes on."""
OnCheckpoint = Callable[[int, Voice], "float | None"]
"""Called at each checkpoint with the step and the voice; may answer with a score, the lower the better, by which the best is kept."""


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
        resume: go on from the newest checkpoint in `folder`, where there is one. On a CPU the result is that of one uninterrupted run.
        recordings: real speech besides, (latents [flow_size, frames], waveform [frames * hop]) each.
        lessons: the teacher's, where they are shared among several healings (then `texts` is not read).
        on_step, on_checkpoint: as OnStep and OnCheckpoint say.
        reserve: seconds of the plan's minutes that the callbacks need.
        cpu: stay on the CPU where there is a GPU.

    Returns:
        the voice with the best score, or the last one where no scores were given. Its recipe tells how it was made, and why it was stopped
        if a loss was no finite number: then it is that of the last good checkpoint.

    Raises:
        InputError: the two do not belong together, nothing is left to learn, a checkpoint belongs to another healing, or the disk is full.
    """
    plan = plan or HealPlan()
    check_pair(pruned, teacher)
    trained = parts_to_train(pruned, teacher)
    if resume and folder is None:
        raise InputError("There is nothing to resume without a folder of checkpoints: give the folder of the healing that was stopped.")
    run = _Run(pruned, teacher, plan, trained, _accelerator(plan, cpu), None if folder is None else Path(folder), recordings)
    with run.resumed(resume):
        if lessons is None:
            lessons = run.lessons(texts)
        return run.train(lessons, reserve, on_step, on_checkpoint)


def check_pair(pruned: Voice, teacher: Voice) -> None:
    """Whether the teacher can teach: parts may have been removed, but what goes in and comes out must be the same.

    Raises:
        InputError: it is not.
    """
    ours, theirs = pruned.model.config, teacher.model.config
    facts = {words: (getattr(ours, name), getattr(theirs, name)) for name, words in _SAME.items()}
    facts |= {"sampling rate": (pruned.sampling_rate, teacher.sampling_rate), "hop length": (pruned.hop_length, teacher.hop_length)}
    for what, (mine, other) in facts.items():
        if mine != other:
            raise InputError(
                f"{teacher.name} cannot teach this voice: its {what} is {other}, the pruned voice's is {mine}. "
                "Give the voice it was pruned from."
            )


def parts_to_train(pruned: Voice, teacher: Voice) -> tuple[str, ...]:
    """The parts that differ from the teacher's; with the text encoder the durations, which are read off what it makes.

    Raises:
        InputError: none does.
    """
    differing = {part for part in PARTS if not _equal(pruned.parts()[part], teacher.parts()[part])}
    if not differing:
        raise InputError(f"{pruned.name} has the very weights of the voice that is to teach it: there is nothing to heal. Prune it first.")
    if "text_encoder" in differing:
        differing.add("duration_predictor")
    return tuple(part for part in PARTS if part in differing)


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].shape == theirs[name].shape and torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine
    )


def _accelerator(plan: HealPlan, cpu: bool) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Accelerate remembers the first choice of a process for good: an earlier healing may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=PartialState._shared_state.get("num_processes", 1) == 1)
    return Accelerator(cpu=cpu, mixed_precision=plan.precision)


class _Run:
    """One call of heal."""

    def __init__(
        self,
        pruned: Voice,
        teacher: Voice,
        plan: HealPlan,
        trained: tuple[str, ...],
        accelerator: Accelerator,
        folder: Path | None,
        recordings: Sequence[Clip],
    ) -> None:
        self._home, self._plan, self._accelerator, self._folder = pruned.device, plan, accelerator, folder
        self._pruned, self._teacher = pruned.to(accelerator.device), teacher.to(accelerator.device)
        config = pruned.model.config
        self._window = Window(plan.segment, decoder_reach(config), flow_reach(config), pruned.hop_length)
        self._training = Training(self._pruned, trained, plan, self._window, accelerator)
        self._recordings = recordings
        self._checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
        self._belongs = digest(pruned.model.state_dict(), digest(teacher.model.state_dict()), plan.to_dict(), len(recordings))
        self._step, self._of = 0, plan.steps
        self._seconds = 0.0
        self._kept: tuple[int, float | None, Voice] = (0, None, self._pruned)
        self._stopped = ""

    @property
    def _main(self) -> bool:
        return self._accelerator.is_main_process

    @contextlib.contextmanager
    def resumed(self, resume: bool) -> Iterator[None]:
        """Take up the newest checkpoint if asked; meanwhile torch has the number of threads that the first run had."""
        threads = torch.get_num_threads()
        try:
            found = self._checkpoints.newest() if self._checkpoints and resume else None
            if found is not None:
                torch.set_num_threads(self._take_up(*found))
            elif self._checkpoints and self._main:
                self._checkpoints.clear()
            yield
        finally:
            torch.set_num_threads(threads)

    def _take_up(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> int:
        """The number of threads of the run that wrote a checkpoint."""
        if facts.get("belongs") != self._belongs or facts.get("processes") != self._accelerator.num_processes:
            raise InputError(
                f"The checkpoints in {self._checkpoints.folder} belong to another healing (voice, plan or number of processes): "
                "give the same options, or another folder."
            )
        try:
            self._training.load(tensors)
            self._step, self._of = int(facts["step"]), facts["of"]
            self._seconds, threads = float(facts["seconds"]), int(facts["threads"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"The checkpoints in {self._checkpoints.folder} cannot be used: start without resuming.") from error
        best = self._checkpoints.best()
        if best is not None:
            voice = self._pruned.with_weights({name: tensor.to(self._pruned.device) for name, tensor in best[0].items()})
            self._kept = (int(best[1]["step"]), float(best[1]["score"]), voice)
        else:
            self._kept = (self._step, None, self._training.voice({}))
        return threads

    def lessons(self, texts: Sequence[str] | None) -> Lessons:
        """The teacher's lessons, kept in the folder."""
        plan = self._plan
        said = corpus(self._teacher, texts, plan.lessons, plan.seed)
        where = None if self._folder is None else self._folder / "lessons"
        return Lessons(self._teacher, said, seed=plan.seed, segment=plan.segment, speakers=plan.speakers, folder=where)

    def train(self, lessons: Lessons, reserve: float, on_step: OnStep | None, on_checkpoint: OnCheckpoint | None) -> Voice:
        """All steps that are left."""
        started, before = time.perf_counter(), self._seconds
        pace = Pace(self._plan, reserve)
        while self._of is None or self._step < self._of:
            there = self._lessons(lessons, pace)
            after = time.perf_counter()
            batch = self._batch(there)
            try:
                losses = self._training.step(batch, self._step / self._of if self._of else 0.0, min(1.0, (self._step + 1) / WARM_UP))
            except NotFiniteError as error:
                self._stopped = f"the loss {str(error)!r} was no finite number at step {self._step + 1}"
                break
            self._step += 1
            fixed = self._of is None and pace.took(time.perf_counter() - after)
            if fixed:
                self._of = self._agreed(pace.steps(len(lessons), lambda done, batch=batch: self._training.step(batch, done, learn=False)))
            self._seconds = before + time.perf_counter() - started
            if fixed or self._step == self._of or self._step % self._plan.checkpoint_every == 0:
                self._checkpoint(on_checkpoint, len(lessons))
            if on_step and self._main:
                self._tell(on_step, losses)
        return self._result(len(lessons))

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
        if self._recordings:
            size = max(1, plan.batch // 2)
            batch |= draw_clips(self._recordings, size, key, self._window)
            batch["recorded_speaker"] = torch.full((size,), self._teacher.speaker or 0)
        return batch

    def _agreed(self, steps: int) -> int:
        """The first process's number."""
        if self._accelerator.num_processes == 1:
            return steps
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([steps])[0]

    def _tell(self, on_step: OnStep, losses: Mapping[str, float]) -> None:
        try:
            on_step(Told(self._step, self._of, MappingProxyType(dict(losses)), self._seconds))
        except BaseException:
            self._save()
            raise

    def _checkpoint(self, on_checkpoint: OnCheckpoint | None, lessons: int) -> None:
        voice = self._training.voice(self._recipe(lessons))
        self._save()
        score = on_checkpoint(self._step, voice.to(self._home)) if on_checkpoint and self._main else None
        _, best, _ = self._kept
        if score is None and best is None:
            self._kept = (self._step, None, voice)
        elif score is not None and (best is None or score <= best):
            self._kept = (self._step, score, voice)
            if self._checkpoints and self._main:
                weights = dict(voice.model.named_parameters())
                self._checkpoints.save_best(self._step, {name: weights[name] for name in self._training.weights}, score)

    def _save(self) -> None:
        if self._checkpoints and self._main and self._of is not None:
            facts = {"of": self._of, "seconds": self._seconds, "threads": torch.get_num_threads(), "belongs": self._belongs}
            facts |= {"processes": self._accelerator.num_processes, "plan": self._plan.to_dict()}
            self._checkpoints.save(self._step, self._training.state(), facts)

    def _recipe(self, lessons: int) -> Mapping[str, Any]:
        done: dict[str, Any] = {
            "plan": self._plan.to_dict(),
            "steps": self._step,
            "of": self._of,
            "lessons": lessons_at(max(0, self._step - 1), lessons),
            "trained": list(self._training.trained),
        }
        if self._recordings:
            done["recordings"] = len(self._recordings)
        if self._stopped:
            done["stopped"] = self._stopped
        return MappingProxyType({**self._pruned.recipe, "healed": [*self._pruned.recipe.get("healed", ()), done]})

    def _result(self, lessons: int) -> Voice:
        step, _, voice = self._kept
        stopped, self._step = self._step, step
        recipe = self._recipe(lessons)
        self._step = stopped
        return dataclasses.replace(voice, recipe=recipe).to(self._home)
