"""The bounded, thread-safe caches behind the page: loaded voices, pruned voices, spoken originals.

A Request (a value) goes in, steps come out. Anything here may be forgotten at any time and is made again from the Request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vits_prune import forks
from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.forks import renew_in_forks
from vits_prune.measure import Size, Sparsity, measure_size, measure_sparsity
from vits_prune.progress import Progress
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.magnitude import sparsity_preview
from vits_prune.pruning.prune import prune_steps
from vits_prune.pruning.registry import METHODS
from vits_prune.studio.jobs import Doing, in_background
from vits_prune.synthesis.speak import (
    Delivery,
    Speech,
    checked_seed,
    checked_text,
    join,
    speak_sentences,
)
from vits_prune.voices.load import EMBEDDED, load_embedded
from vits_prune.voices.voice import Voice

MAX_REPOSITORY_BYTES = 1 << 30
"""Largest hub voice that a page fetches."""
MAX_UPLOAD_BYTES = 160 << 20
"""Largest Piper voice that a page takes."""
_VOICES_BYTES = 2 << 30
_PRUNED_BYTES = 512 << 20
_SPEECH_BYTES = 256 << 20
_CACHE_BYTES = 16 << 30
_UPLOADS = 16
_UPLOAD = "upload:"
_STEPS_BYTES = 1 << 30
"""Voices of all steps of a gradual pruning together."""
MAX_STEPS = 8
"""Most steps of gradual pruning that a visitor may ask for: each is pruned, and kept to be heard."""
MAX_PROTECTED = 100
"""Most protected layers that a visitor may name."""
MAX_TEXTS, MAX_TEXT = 60, 300
"""Most calibration sentences that a visitor may bring, and characters of each."""

Steps = tuple[tuple[float, Voice], ...]
"""(amount, pruned voice) after each step of gradual pruning; most often one."""


@dataclass(frozen=True)
class Request:
    """All that the page asks for, as a value."""

    reference: str
    """"joe", a hub id (with "@revision" if wanted), or what `Workbench.keep_upload` returned."""
    text: str
    spec: PruneSpec = field(default_factory=PruneSpec)
    seed: int = 0
    timing: str = "own"
    delivery: Delivery = field(default_factory=Delivery)
    speaker: str | None = None

    def checked(self, longest: int) -> Request:
        """Itself.

        Raises:
            InputError: something in it cannot be used, found without loading a voice.
        """
        if len(self.text) > longest:
            raise InputError(
                f"The text has {len(self.text):,} characters and the page speaks {longest:,} at most: shorten it."
            )
        checked_text(self.text)
        checked_seed(self.seed)
        if self.timing not in ("own", "locked"):
            raise InputError("Choose a timing: own or locked.")
        if max(self.spec.steps, len(self.spec.amounts)) > MAX_STEPS:
            raise InputError(
                f"Gradual pruning takes {MAX_STEPS} steps at most here: the command line takes more."
            )
        if len(self.spec.protect or ()) > MAX_PROTECTED:
            raise InputError(
                f"At most {MAX_PROTECTED} protected layers can be named here: name a beginning that several share."
            )
        if len(self.spec.texts) > MAX_TEXTS or any(
            len(text) > MAX_TEXT for text in self.spec.texts
        ):
            raise InputError(
                f"Calibration takes {MAX_TEXTS} sentences of {MAX_TEXT} characters at most here: the command line takes more."
            )
        return self


@dataclass(frozen=True)
class Spoken:
    """Both voices have spoken."""

    original: Speech
    pruned: Speech
    sparsity: tuple[Sparsity, Sparsity]


def _voice_bytes(voice: Voice) -> int:
    return sum(t.numel() * t.element_size() for t in voice.model.parameters())


def _steps_bytes(steps: Steps) -> int:
    """Bytes of the tensors of all steps; what they share counts once."""
    tensors = {
        t.data_ptr(): t.numel() * t.element_size()
        for _, voice in steps
        for t in voice.model.parameters()
    }
    return sum(tensors.values())


def _spoken_bytes(spoken: Spoken) -> int:
    return spoken.original.waveform.nbytes + spoken.pruned.waveform.nbytes


class Workbench:
    """Turns Requests into voices, speech and measures."""

    def __init__(self) -> None:
        self._gpu = False
        self._voices: Bounded[tuple[str, ...], Voice] = Bounded(_VOICES_BYTES, _voice_bytes)
        self._spoken: Bounded[tuple[Request, str], Spoken] = Bounded(_SPEECH_BYTES, _spoken_bytes)
        self._pruned: Bounded[tuple[Any, ...], Steps] = Bounded(_PRUNED_BYTES, _steps_bytes)
        self._calibrating = forks.Lock()
        self._originals: Bounded[tuple[Any, ...], Speech] = Bounded(
            _SPEECH_BYTES, lambda speech: speech.waveform.nbytes
        )
        self._sizes: Bounded[tuple[str, str], Size] = Bounded(256, lambda _: 1)
        self._uploads: Bounded[str, Path] = Bounded(_UPLOADS, lambda _: 1)
        self._temporary = tempfile.TemporaryDirectory(prefix="vits_prune-workbench-")
        self._folder = Path(self._temporary.name)
        self._quiet = threading.Condition()
        self._hearing = 0
        renew_in_forks(self)

    def after_fork(self) -> None:
        """In a forked process nobody waits to hear yet."""
        self._quiet, self._hearing = threading.Condition(), 0

    # Voices

    def use_gpu(self) -> None:
        """From now on, in this process, voices that are asked for go to the GPU where there is one."""
        self._gpu = True

    @property
    def device(self) -> str:
        """Where voices speak: "cpu" or "cuda"."""
        import torch

        return "cuda" if self._gpu and torch.cuda.is_available() else "cpu"

    def voice(
        self,
        reference: str,
        speaker: str | None = None,
        token: str | None = None,
        on_progress: Any = None,
        device: str | None = None,
    ) -> Voice:
        """The voice behind a reference that a visitor may name.

        Args:
            reference: "joe", a hub id, or an upload's key; never a path.
            speaker: index or name.
            token: the visitor's own access token. The server's own is never used.
            on_progress: told of a download as it goes, (bytes done, bytes in all).
            device: "cpu" where it must be there; None for where voices speak.

        Raises:
            InputError: there is no such voice, or it may not be loaded here.
        """
        if not reference:
            raise InputError(
                "Choose a voice: joe, or a Hugging Face model such as facebook/mms-tts-eng."
            )
        key = (reference, trace(token))
        voice = on_cpu = self._voices.get_or_make(
            (*key, "cpu"), lambda: self._load(reference, token, on_progress)
        )
        if (device or self.device) != "cpu":
            voice = self._voices.get_or_make((*key, self.device), lambda: on_cpu.to(self.device))
        return voice.with_speaker(speaker) if speaker not in (None, "") else voice

    def is_loaded(self, reference: str, token: str | None = None) -> bool:
        """Whether a voice is at hand without loading."""
        return self._voices.get((reference, trace(token), "cpu")) is not None

    def _load(self, reference: str, token: str | None, on_progress: Any) -> Voice:
        if reference == EMBEDDED:
            return load_embedded()
        if reference.startswith(_UPLOAD):
            return self._load_upload(reference)
        from vits_prune.voices.hub import load_hub, parse_repo_id, trim_cache

        repo_id, revision = parse_repo_id(reference)
        if not token:
            voice = load_hub(
                repo_id,
                revision=revision,
                token=False,
                max_bytes=MAX_REPOSITORY_BYTES,
                on_progress=on_progress,
            )
            if "SPACE_ID" in os.environ:  # elsewhere the cache is the user's own
                trim_cache(_CACHE_BYTES, keep=repo_id)
            return voice
        # What one visitor may read must not be found in the shared download cache by the next.
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            return load_hub(
                repo_id,
                revision=revision,
                token=token,
                max_bytes=MAX_REPOSITORY_BYTES,
                on_progress=on_progress,
                cache_dir=cache,
            )

    # Uploads

    def keep_upload(self, model: Path, config: Path) -> tuple[str, Voice]:
        """Check a visitor's Piper voice and keep a copy: (its reference, the voice).

        Raises:
            InputError: too large, or not a Piper voice.
        """
        if model.stat().st_size + config.stat().st_size > MAX_UPLOAD_BYTES:
            raise InputError(
                f"The two files are larger than {MAX_UPLOAD_BYTES >> 20} MB together: choose a smaller voice."
            )
        digest = _digest(model, config)
        folder = self._folder / digest
        folder.mkdir(exist_ok=True)
        _copy(model, folder / "voice.onnx")
        _copy(config, folder / "voice.onnx.json")
        reference = _UPLOAD + digest
        try:
            voice = self.voice(reference)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for forgotten in self._uploads.put(reference, folder):
            shutil.rmtree(forgotten, ignore_errors=True)
        return reference, voice

    def _load_upload(self, reference: str) -> Voice:
        from vits_prune.voices.onnx_load import load_piper

        digest = reference.removeprefix(_UPLOAD)
        folder = self._folder / digest
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not folder.is_dir():
            raise InputError(
                "This uploaded voice is no longer kept here: upload its two files again."
            )
        return load_piper(
            folder / "voice.onnx", folder / "voice.onnx.json", name="your voice", reference="upload"
        )

    # Work

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """While this is open somebody is waiting to hear: `let_hearing_pass` waits."""
        with self._quiet:
            self._hearing += 1
        try:
            yield
        finally:
            with self._quiet:
                self._hearing -= 1
                self._quiet.notify_all()

    def let_hearing_pass(self, longest_seconds: float = 60.0) -> None:
        """Wait until nobody is waiting to hear, between the runs of a measurement; not for ever."""
        with self._quiet:
            self._quiet.wait_for(lambda: self._hearing == 0, timeout=longest_seconds)

    def hear(self, request: Request, token: str | None = None) -> Iterator[Doing | Spoken]:
        """Prune, then speak with the original (once for all amounts) and the pruned voice; ends with Spoken."""
        yield Doing("loading the voice", 0.0)
        voice, start = self.voice(request.reference, request.speaker, token), 0.0
        pruned_voice = None
        for step in self.pruning(request, token):
            if isinstance(step, Doing):
                start = 0.8 * step.share
                yield Doing(step.what, start)
            else:
                pruned_voice = step[-1][1]
        half = start + 0.5 * (1 - start)
        original = self._originals.get(self._original_key(request, token))
        if original is None:
            pieces: list[Speech] = []
            yield from _speaking("original", voice, request, "own", pieces, (start, half))
            original = join(pieces)
            self._originals.put(self._original_key(request, token), original)
        pieces = []
        yield from _speaking(
            "pruned",
            pruned_voice,
            request,
            original if request.timing == "locked" else "own",
            pieces,
            (half, 1.0),
        )
        yield Spoken(
            original, join(pieces), (measure_sparsity(voice), measure_sparsity(pruned_voice))
        )

    def hear_step(
        self, request: Request, index: int, original: Speech, token: str | None = None
    ) -> Iterator[Doing | Speech]:
        """Speak with the voice of one step of gradual pruning, from 0, with the original's durations; ends with its Speech.

        Raises:
            InputError: there is no such step.
        """
        for step in self.pruning(request, token):
            if isinstance(step, Doing):
                yield step
        if not 0 <= index < len(step):
            raise InputError(f"This voice was pruned in {len(step)} steps: choose one of them.")
        pieces: list[Speech] = []
        yield from _speaking(
            f"step {index + 1}", step[index][1], request, original, pieces, (0.0, 1.0)
        )
        yield join(pieces)

    def remember(self, request: Request, spoken: Spoken, token: str | None = None) -> None:
        """Keep what was spoken for the steps that follow, and the original's speech for other amounts.

        Call it in the page's own process: what `hear` keeps in a ZeroGPU worker ends with the worker.
        """
        self._spoken.put((request, trace(token)), spoken)
        self._originals.put(self._original_key(request, token), spoken.original)

    def recall(self, request: Request, token: str | None = None) -> Spoken | None:
        """What was remembered for a request, None where it is forgotten."""
        return self._spoken.get((request, trace(token)))

    def pruning(self, request: Request, token: str | None = None) -> Iterator[Doing | Steps]:
        """Make the pruned voice of a request, told step by step where that takes long; ends with its Steps. Closing it cancels."""
        at_once = not listens(request.spec) and len(request.spec.schedule_amounts()) == 1
        if at_once or self._known(request, token) is not None:
            yield self.steps(request, token)
        else:
            yield from in_background(lambda tell: self.steps(request, token, progress=tell))

    def steps(
        self,
        request: Request,
        token: str | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Steps:
        """The pruned voices of a request, one a step; made on the CPU, one calibration at a time.

        Args:
            request: whose spec it is.
            token: the visitor's.
            progress: told how far it is; it may raise to cancel.
        """
        key = self._key(request, token)
        with self._turn(request, token, progress):
            steps = self._pruned.get_or_make(
                (*key, "cpu"),
                lambda: self._prune(request, token, progress),
                progress
                and functools.partial(
                    progress, "waiting for the same voice, which is being pruned", 0.0
                ),
            )
        if self.device == "cpu":
            return steps
        return self._pruned.get_or_make(
            (*key, self.device),
            lambda: tuple((amount, voice.to(self.device)) for amount, voice in steps),
        )

    def pruned(
        self,
        request: Request,
        token: str | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Voice:
        """The pruned voice of a request."""
        return self.steps(request, token, progress)[-1][1]

    def _original_key(self, request: Request, token: str | None) -> tuple[Any, ...]:
        return (
            request.reference,
            trace(token),
            request.speaker or None,
            request.text,
            request.seed,
            request.delivery,
        )

    def _key(self, request: Request, token: str | None) -> tuple[Any, ...]:
        return (request.reference, trace(token), request.speaker or None, request.spec)

    def _known(self, request: Request, token: str | None) -> Steps | None:
        return self._pruned.get((*self._key(request, token), "cpu"))

    @contextlib.contextmanager
    def _turn(
        self, request: Request, token: str | None, progress: Callable[[str, float], None] | None
    ) -> Iterator[None]:
        """Wait until no other calibration is under way, for a spec that needs one; `progress` may end the waiting."""
        if not listens(request.spec) or self._known(request, token) is not None:
            yield
            return
        while not self._calibrating.acquire(timeout=0.2):
            if progress:
                progress("waiting for another calibration to end", 0.0)
        try:
            yield
        finally:
            self._calibrating.release()

    def _prune(
        self, request: Request, token: str | None, progress: Callable[[str, float], None] | None
    ) -> Steps:
        voice, spec = (
            self.voice(request.reference, request.speaker, token, device="cpu"),
            request.spec,
        )
        if spec.amount == 0 and spec.shape is None:  # nothing to listen for
            recipe = {**voice.recipe, "pruned": [*voice.recipe.get("pruned", ()), spec.to_dict()]}
            return ((0.0, voice.with_weights({}, recipe=MappingProxyType(recipe))),)
        count, size = len(spec.schedule_amounts()), _voice_bytes(voice)
        if count > 1 and count * size > _STEPS_BYTES:
            raise InputError(
                f"{count} steps of this voice would take {count * size / 1e9:.1f} GB of the server: take fewer steps."
            )
        return tuple(prune_steps(voice, spec, progress=progress))

    def size(self, request: Request, token: str | None = None) -> tuple[Size, Size]:
        """Sizes of the original and the pruned voice."""
        voice = self.voice(request.reference, request.speaker, token)
        original = self._sizes.get_or_make(
            (request.reference, trace(token)), lambda: measure_size(voice)
        )
        return original, measure_size(self.pruned(request, token))

    def preview(
        self, reference: str, spec: PruneSpec, token: str | None = None
    ) -> dict[str, float] | None:
        """Sparsity that a spec would give, "overall" and by part, without pruning; None where only pruning can tell."""
        found = sparsity_preview(self.voice(reference, token=token), spec)
        return None if found is None else dict(found)


def listens(spec: PruneSpec) -> bool:
    """Whether pruning listens to the voice first, which takes seconds to minutes."""
    return METHODS[spec.method].calibrated or spec.scope == "sensitivity"


def _digest(*paths: Path) -> str:
    """SHA-256 of files one after the other, read piece by piece."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy a file. Whoever reads the target meanwhile has the old one, whole."""
    beside = target.with_name(f".{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def trace(token: str | None) -> str:
    """What stands for a visitor's token in a key: voices loaded with one are found only with the same one."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def _speaking(
    who: str,
    voice: Voice,
    request: Request,
    timing: Any,
    pieces: list[Speech],
    shares: tuple[float, float],
) -> Iterator[Doing]:
    """Speak sentence by sentence into `pieces`; a Doing before each, from the first share to the second."""
    told: list[str] = []
    sentences = speak_sentences(
        voice,
        request.text,
        request.seed,
        timing=timing,
        delivery=request.delivery,
        progress=Progress(lambda message, _fraction: told.append(message)),
    )
    first, last = shares
    yield Doing(f"speaking: {who}", first)
    for piece in sentences:
        pieces.append(piece)
        done, total = (int(word) for word in told[-1].split()[1::2])
        if done < total:
            yield Doing(
                f"speaking: {who}, sentence {done + 1} of {total}",
                first + (last - first) * done / total,
            )
