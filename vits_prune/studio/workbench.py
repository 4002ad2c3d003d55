"""The bounded, thread-safe caches behind the page: loaded voices, pruned voices, speech.

Anything here may be forgotten at any time, and is made again from the Request.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from vits_prune.caches import Bounded, Scratch
from vits_prune.errors import InputError
from vits_prune.files import replaced_folder
from vits_prune.kernels import packed_bytes, ready
from vits_prune.measure import Size, Sparsity, measure_size, measure_sparsity
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec, prune_steps
from vits_prune.pruning.spec import METHODS
from vits_prune.studio.request import Order, Request
from vits_prune.synthesis.speak import Speech, predict_rhythm, speak
from vits_prune.threads import WaitingLine, renew_in_forks
from vits_prune.voices.load import EMBEDDED, load_embedded, load_hub
from vits_prune.voices.voice import Voice

MAX_REPOSITORY_BYTES = 1 << 30
"""Largest hub voice that a page fetches."""
MAX_UPLOAD_BYTES = 160 << 20
"""Largest Piper voice that a page takes."""
_VOICES_BYTES = 2 << 30
_PRUNED_BYTES = 512 << 20
_SPEECH_BYTES = 256 << 20
_DOWNLOADS_BYTES = 16 << 30
_HEALED_BYTES = 256 << 20
_STEPS_BYTES = 1 << 30
"""Voices of all steps of a gradual pruning together."""
_UPLOAD = "upload:"

Steps = tuple[tuple[float, Voice], ...]
"""(amount, pruned voice) after each step of gradual pruning; most often one."""


@dataclass(frozen=True)
class Spoken:
    """What both voices said, and the sparsity of both."""

    original: Speech
    pruned: Speech
    sparsity: tuple[Sparsity, Sparsity]

    @property
    def aligned(self) -> bool:
        """Whether one can switch between the two at the same position."""
        same = len(self.original.waveform) == len(self.pruned.waveform)
        return same and bool((self.original.durations == self.pruned.durations).all())


def voice_bytes(*voices: Voice) -> int:
    """Return the bytes of voices, packed kernels included; what they share counts once."""
    tensors = (tensor for voice in voices for tensor in voice.model.parameters())
    packed = {voice.model: packed_bytes(voice) for voice in voices}
    shared = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(shared.values()) + sum(packed.values())


class Workbench:
    """Turn Requests into voices, speech and measurements.

    Args:
        folder: where uploads are kept; None for a temporary one.
        voices_bytes: how much the loaded voices may take together.
        uploads: how many uploaded voices are kept.
    """

    def __init__(
        self, folder: Path | None = None, voices_bytes: int = _VOICES_BYTES, uploads: int = 16
    ) -> None:
        self._gpu = False
        self._voices: Bounded[tuple[str, ...], Voice] = Bounded(voices_bytes, voice_bytes)
        self._pruned: Bounded[tuple[Any, ...], Steps] = Bounded(
            _PRUNED_BYTES, lambda steps: voice_bytes(*(voice for _, voice in steps))
        )
        self._healed: Bounded[Order, Voice] = Bounded(_HEALED_BYTES, voice_bytes)
        self._spoken: Bounded[tuple[Request, str], Spoken] = Bounded(
            _SPEECH_BYTES, lambda one: one.original.waveform.nbytes + one.pruned.waveform.nbytes
        )
        self._originals: Bounded[tuple[Any, ...], Speech] = Bounded(
            _SPEECH_BYTES, lambda speech: speech.waveform.nbytes
        )
        self._sizes: Bounded[tuple[str, str], Size] = Bounded(256, lambda _: 1)
        self._uploads: Bounded[str, Path] = Bounded(uploads, lambda _: 1)
        self._calibrating, self._loading = WaitingLine(), WaitingLine(width=2)
        self._temporary = tempfile.TemporaryDirectory(prefix="vits_prune-workbench-")
        self._folder = folder or Path(self._temporary.name)
        self._quiet, self._listeners = threading.Condition(), 0
        renew_in_forks(self)

    def after_fork(self) -> None:
        """Begin anew in a forked process: nobody waits to hear yet."""
        self._quiet, self._listeners = threading.Condition(), 0

    # Voices

    def use_gpu(self) -> None:
        """Send voices to the GPU, where there is one, from now on in this process."""
        self._gpu = True

    @property
    def device(self) -> str:
        """Where voices speak: "cpu" or "cuda"."""
        return "cuda" if self._gpu and torch.cuda.is_available() else "cpu"

    def voice(
        self,
        reference: str,
        speaker: str | None = None,
        token: str | None = None,
        progress: Progress = SILENT,
        device: str | None = None,
    ) -> Voice:
        """Return the voice behind a reference that a visitor may name.

        Args:
            reference: "joe", a hub id, or an upload's key; never a path.
            speaker: index or name.
            token: the visitor's own access token. The server's own is never used.
            progress: gets the progress of a download.
            device: "cpu" where it must be there; None for where voices speak.

        Raises:
            InputError: there is no such voice, or it may not be loaded here.
        """
        if not reference:
            example = "facebook/mms-tts-eng"
            raise InputError(f"Choose a voice: joe, or a Hugging Face model such as {example}.")
        key, where = (reference, trace(token)), device or self.device

        def waiting() -> None:
            progress.report("waiting for the same voice", 0.0)

        voice = on_cpu = self._voices.get_or_make(
            (*key, "cpu"), lambda: self._load(reference, token, progress), waiting
        )
        if where != "cpu":
            voice = self._voices.get_or_make((*key, where), lambda: on_cpu.to(where), waiting)
        return voice.with_speaker(speaker) if speaker not in (None, "") else voice

    def voice_of(
        self,
        request: Request,
        token: str | None = None,
        device: str | None = None,
        progress: Progress = SILENT,
    ) -> Voice:
        """Return the voice that a request names, with its speaker."""
        return self.voice(request.reference, request.speaker, token, progress, device)

    def is_loaded(self, reference: str, token: str | None = None) -> bool:
        """Return whether a voice is there without loading."""
        return self._voices.get((reference, trace(token), "cpu")) is not None

    def _load(self, reference: str, token: str | None, progress: Progress) -> Voice:
        if reference == EMBEDDED:
            return load_embedded()
        with self._loading.turn(progress, "waiting to load the voice"):
            return self._fetch(reference, token, progress)

    def _fetch(self, reference: str, token: str | None, progress: Progress) -> Voice:
        if reference.startswith(_UPLOAD):
            return self._load_upload(reference)
        from vits_prune.voices.hub import parse_repo_id, trim_cache

        repo_id, revision = parse_repo_id(reference)
        # What one visitor may read must not be found in the shared download cache by the next.
        private = tempfile.TemporaryDirectory(dir=self._folder) if token else None
        with private or contextlib.nullcontext() as cache:
            voice = load_hub(
                repo_id,
                revision=revision,
                token=token or False,
                max_bytes=MAX_REPOSITORY_BYTES,
                progress=progress,
                cache_dir=cache,
            )
        if not token and "SPACE_ID" in os.environ:  # elsewhere the cache is the user's own
            trim_cache(_DOWNLOADS_BYTES, keep=repo_id)
        return voice

    # Uploads

    def keep_upload(self, model: Path, config: Path) -> tuple[str, Voice]:
        """Check a visitor's Piper voice and keep a copy; return its reference and the voice.

        Raises:
            InputError: too large, or not a Piper voice.
        """
        if model.stat().st_size + config.stat().st_size > MAX_UPLOAD_BYTES:
            most = f"{MAX_UPLOAD_BYTES >> 20} MB"
            raise InputError(
                f"The two files are larger than {most} together: choose a smaller voice."
            )
        digest = _digest(model, config)
        folder = self._folder / digest
        if not folder.is_dir():
            try:
                with replaced_folder(folder) as copy:
                    shutil.copyfile(model, copy / "voice.onnx")
                    shutil.copyfile(config, copy / "voice.onnx.json")
            except OSError as error:
                what = f"This server could not keep the files ({error.strerror or error})"
                raise InputError(f"{what}: try again later.") from error
        reference = _UPLOAD + digest
        try:
            voice = self.voice(reference)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        for forgotten in self._uploads.put(reference, folder):
            shutil.rmtree(forgotten, ignore_errors=True)
        return reference, voice

    def forget_uploads(self) -> None:
        """Remove the files of all uploaded voices."""
        for _, folder in self._uploads.items():
            shutil.rmtree(folder, ignore_errors=True)
        self._uploads.clear()

    def _load_upload(self, reference: str) -> Voice:
        from vits_prune.voices.onnx_load import load_piper

        digest = reference.removeprefix(_UPLOAD)
        folder = self._folder / digest
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not folder.is_dir():
            raise InputError("This voice is no longer kept here: upload its two files again.")
        files = folder / "voice.onnx", folder / "voice.onnx.json"
        return load_piper(*files, name="your voice", reference="upload")

    # Pruning

    def keep_healed(self, order: Order, voice: Voice) -> None:
        """Let Requests for this healing have its voice."""
        self._healed.put(order, voice)

    def steps(
        self, request: Request, token: str | None = None, progress: Progress = SILENT
    ) -> Steps:
        """Prune on the CPU, one calibration at a time; return the voice of each step.

        Raises:
            InputError: it cannot be pruned so, or a healed voice is asked for and forgotten.
        """
        if request.healed:
            healed = self._healed.get(request.healed)
            if healed is None:
                raise InputError("This healing is no longer kept here: press Heal again.")
            return ((request.spec.amount, healed.to(self.device)),)
        key = (request.reference, trace(token), request.speaker or None, request.spec)
        on_cpu = (*key, "cpu")
        needed = listens(request.spec) and not self._pruned.get(on_cpu)
        turn = self._calibrating.turn(progress, "waiting for another calibration to end")
        with turn if needed else contextlib.nullcontext():
            steps = self._pruned.get_or_make(
                on_cpu,
                lambda: self._prune(request, token, progress),
                lambda: progress.report("waiting for the same voice, which is being pruned", 0.0),
            )
        device = self.device
        if device == "cpu":
            return steps
        return self._pruned.get_or_make(
            (*key, device), lambda: tuple((amount, voice.to(device)) for amount, voice in steps)
        )

    def pruned(
        self, request: Request, token: str | None = None, progress: Progress = SILENT
    ) -> Voice:
        """Return the pruned voice of a request."""
        return self.steps(request, token, progress)[-1][1]

    def _prune(self, request: Request, token: str | None, progress: Progress) -> Steps:
        loading, spec = progress.part(0.0, 0.1), request.spec
        voice = self.voice_of(request, token, "cpu", loading)
        if spec.idle:  # nothing to listen for
            recipe = {**voice.recipe, "pruned": [*voice.recipe.get("pruned", ()), spec.to_dict()]}
            return ((0.0, voice.with_weights({}, recipe=MappingProxyType(recipe))),)
        count, size = len(spec.schedule_amounts()), voice_bytes(voice)
        if count > 1 and count * size > _STEPS_BYTES:
            raise InputError(
                f"{count} steps of this voice would take {count * size / 1e9:.1f} GB: take fewer."
            )
        return tuple(prune_steps(voice, spec, progress=progress))

    # Speech

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Note that somebody is waiting to hear while this is open: `let_hearing_pass` waits."""
        with self._quiet:
            self._listeners += 1
        try:
            yield
        finally:
            with self._quiet:
                self._listeners -= 1
                self._quiet.notify_all()

    def let_hearing_pass(self, longest_seconds: float = 60.0) -> None:
        """Wait until nobody is waiting to hear, between the runs of a measurement."""
        with self._quiet:
            self._quiet.wait_for(lambda: self._listeners == 0, timeout=longest_seconds)

    def hear_pruned(
        self, request: Request, token: str | None = None, progress: Progress = SILENT
    ) -> Speech:
        """Prune and let the pruned voice speak: of the original only the durations are needed."""
        progress.report("loading the voice", 0.0)
        voice = self.voice_of(request, token, progress=progress.part(0.0, 0.1))
        slow = listens(request.spec) or len(request.spec.schedule_amounts()) > 1
        spoken = 0.9 if slow else 0.2
        pruned = self.pruned(request, token, progress.part(0.1, spoken))
        timing: Any = "own"
        if request.timing == "locked":
            timing = self._originals.get(_original_key(request, token)) or predict_rhythm(
                voice, request.text, request.seed, request.delivery
            )
        return say(pruned, request, timing, progress.part(spoken, 1.0, "pruned: "))

    def hear(
        self,
        request: Request,
        token: str | None = None,
        progress: Progress = SILENT,
        pruned: Speech | None = None,
    ) -> Spoken:
        """Let both voices speak: the original once for all amounts.

        Args:
            request: what they say.
            token: the visitor's.
            progress: may raise to cancel.
            pruned: what the pruned voice said, where it has spoken already.
        """
        pruned = pruned or self.hear_pruned(request, token, progress.part(0.0, 0.6))
        original = self.original(request, token, progress.part(0.6, 1.0, "original: "))
        voices = self.voice_of(request, token), self.pruned(request, token)
        before, after = map(measure_sparsity, voices)
        return Spoken(original, pruned, (before, after))

    def original(
        self, request: Request, token: str | None = None, progress: Progress = SILENT
    ) -> Speech:
        """Let the original speak, once for all amounts."""
        return self._originals.get_or_make(
            _original_key(request, token),
            lambda: say(self.voice_of(request, token), request, "own", progress),
            lambda: progress.report("waiting for another run", 0.0),
        )

    def remember(self, request: Request, spoken: Spoken, token: str | None = None) -> None:
        """Keep what was spoken; in the page's own process, as a ZeroGPU worker's caches end."""
        self._spoken.put((request, trace(token)), spoken)
        self._originals.put(_original_key(request, token), spoken.original)

    def recall(self, request: Request, token: str | None = None) -> Spoken | None:
        """Return what was remembered for a request, None where it is forgotten."""
        return self._spoken.get((request, trace(token)))

    def size(self, request: Request, token: str | None = None) -> tuple[Size, Size]:
        """Return the sizes of the original and the pruned voice."""
        key, voice = (request.reference, trace(token)), self.voice_of(request, token)
        original = self._sizes.get_or_make(key, lambda: measure_size(voice))
        return original, measure_size(self.pruned(request, token))


def listens(spec: PruneSpec) -> bool:
    """Return whether pruning listens to the voice first, which takes seconds to minutes."""
    return METHODS[spec.method].calibrated or spec.scope == "sensitivity"


def trace(token: str | None) -> str:
    """Return what stands for a visitor's token in a key: a digest, empty for none."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def _original_key(request: Request, token: str | None) -> tuple[Any, ...]:
    said = (request.text, request.seed, request.delivery, request.kernels)
    return (request.reference, trace(token), request.speaker or None, *said)


def say(
    voice: Voice, request: Request, timing: Literal["own"] | Speech, progress: Progress
) -> Speech:
    """Speak the text of a request."""
    kernels = "dense" if request.kernels == "auto" and not ready() else request.kernels
    how: dict[str, Any] = {"timing": timing, "kernels": kernels, "progress": progress}
    return speak(voice, request.text, request.seed, request.delivery, **how)


def _digest(*paths: Path) -> str:
    """Return the SHA-256 of files one after the other, read piece by piece."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


bench = Workbench()
"""The page's own."""
scratch = Scratch()
"""Files on their way to a visitor."""
