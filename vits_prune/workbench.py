"""The bounded, thread-safe caches behind the page: loaded voices, pruned voices, spoken originals.

A Request (a value) goes in, steps come out. Anything here may be forgotten at any time and is made again from the Request.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from vits_prune.errors import InputError
from vits_prune.measure import Size, Sparsity, measure_size, measure_sparsity
from vits_prune.pruning import PruneSpec, prune
from vits_prune.pruning.magnitude import sparsity_preview
from vits_prune.synthesis import Delivery, Speech, checked_seed, checked_text, join, speak_sentences
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

K = TypeVar("K")
V = TypeVar("V")


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
            raise InputError(f"The text has {len(self.text):,} characters and the page speaks {longest:,} at most: shorten it.")
        checked_text(self.text)
        checked_seed(self.seed)
        if self.timing not in ("own", "locked"):
            raise InputError("Choose a timing: own or locked.")
        return self


@dataclass(frozen=True)
class Spoken:
    """Both voices have spoken."""

    original: Speech
    pruned: Speech
    sparsity: tuple[Sparsity, Sparsity]


@dataclass(frozen=True)
class Doing:
    """A step is under way."""

    what: str
    share: float
    """How much is done, 0 to 1."""


class Bounded(Generic[K, V]):
    """A cache that forgets the least recently used once its values weigh more than the bound; the newest always stays."""

    def __init__(self, bound: float, weigh: Callable[[V], float]) -> None:
        self._bound, self._weigh = bound, weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, None where it was never made or is forgotten."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value, made once even where several threads ask for it at the same time."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                value = self.get(key)
                if value is None:
                    value = make()
                    self.put(key, value)
                return value
        finally:
            with self._lock:
                self._making.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All that is kept, the least recently used first."""
        with self._lock:
            return list(self._values.items())

    def put(self, key: K, value: V) -> list[V]:
        """Keep a value; the values forgotten for it."""
        forgotten = []
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and sum(map(self._weigh, self._values.values())) > self._bound:
                forgotten.append(self._values.popitem(last=False)[1])
        return forgotten


class Scratch:
    """Folders for files on their way to a visitor; the oldest are removed once there are many or they are large, all at the end."""

    def __init__(self, most: int = 200, most_bytes: int = 1 << 30) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="vits_prune-scratch-")
        self._folders: deque[Path] = deque()
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()

    def folder(self) -> Path:
        """A new empty folder."""
        made = Path(tempfile.mkdtemp(dir=self._root.name))
        with self._lock:
            while self._folders and (len(self._folders) >= self._most or sum(map(_folder_bytes, self._folders)) > self._most_bytes):
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)
            self._folders.append(made)
        return made


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _voice_bytes(voice: Voice) -> int:
    return sum(t.numel() * t.element_size() for t in voice.model.parameters())


def _spoken_bytes(spoken: Spoken) -> int:
    return spoken.original.waveform.nbytes + spoken.pruned.waveform.nbytes


class Workbench:
    """Turns Requests into voices, speech and measures."""

    def __init__(self) -> None:
        self._gpu = False
        self._voices: Bounded[tuple[str, ...], Voice] = Bounded(_VOICES_BYTES, _voice_bytes)
        self._spoken: Bounded[tuple[Request, str], Spoken] = Bounded(_SPEECH_BYTES, _spoken_bytes)
        self._pruned: Bounded[tuple[Any, ...], Voice] = Bounded(_PRUNED_BYTES, _voice_bytes)
        self._originals: Bounded[tuple[Any, ...], Speech] = Bounded(_SPEECH_BYTES, lambda speech: speech.waveform.nbytes)
        self._sizes: Bounded[tuple[str, str], Size] = Bounded(256, lambda _: 1)
        self._uploads: Bounded[str, Path] = Bounded(_UPLOADS, lambda _: 1)
        self._temporary = tempfile.TemporaryDirectory(prefix="vits_prune-workbench-")
        self._folder = Path(self._temporary.name)
        self._quiet = threading.Condition()
        self._hearing = 0

    # Voices

    def use_gpu(self) -> None:
        """From now on, in this process, voices that are asked for go to the GPU where there is one."""
        self._gpu = True

    @property
    def device(self) -> str:
        """Where voices speak: "cpu" or "cuda"."""
        import torch

        return "cuda" if self._gpu and torch.cuda.is_available() else "cpu"

    def voice(self, reference: str, speaker: str | None = None, token: str | None = None, on_progress: Any = None) -> Voice:
        """The voice behind a reference that a visitor may name.

        Args:
            reference: "joe", a hub id, or an upload's key; never a path.
            speaker: index or name.
            token: the visitor's own access token. The server's own is never used.
            on_progress: told of a download as it goes, (bytes done, bytes in all).

        Raises:
            InputError: there is no such voice, or it may not be loaded here.
        """
        if not reference:
            raise InputError("Choose a voice: joe, or a Hugging Face model such as facebook/mms-tts-eng.")
        key = (reference, trace(token))
        voice = self._voices.get_or_make((*key, "cpu"), lambda: self._load(reference, token, on_progress))
        if self.device != "cpu":
            on_cpu = voice
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
            voice = load_hub(repo_id, revision=revision, token=False, max_bytes=MAX_REPOSITORY_BYTES, on_progress=on_progress)
            if "SPACE_ID" in os.environ:  # elsewhere the cache is the user's own
                trim_cache(_CACHE_BYTES, keep=repo_id)
            return voice
        # What one visitor may read must not be found in the shared download cache by the next.
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            return load_hub(
                repo_id, revision=revision, token=token, max_bytes=MAX_REPOSITORY_BYTES, on_progress=on_progress, cache_dir=cache
            )

    # Uploads

    def keep_upload(self, model: Path, config: Path) -> tuple[str, Voice]:
        """Check a visitor's Piper voice and keep a copy: (its reference, the voice).

        Raises:
            InputError: too large, or not a Piper voice.
        """
        if model.stat().st_size + config.stat().st_size > MAX_UPLOAD_BYTES:
            raise InputError(f"The two files are larger than {MAX_UPLOAD_BYTES >> 20} MB together: choose a smaller voice.")
        digest = hashlib.sha256(model.read_bytes() + config.read_bytes()).hexdigest()
        folder = self._folder / digest
        folder.mkdir(exist_ok=True)
        shutil.copyfile(model, folder / "voice.onnx")
        shutil.copyfile(config, folder / "voice.onnx.json")
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
        from vits_prune.voices.piper import load_piper

        digest = reference.removeprefix(_UPLOAD)
        folder = self._folder / digest
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not folder.is_dir():
            raise InputError("This uploaded voice is no longer kept here: upload its two files again.")
        return load_piper(folder / "voice.onnx", folder / "voice.onnx.json", name="your voice", reference="upload")

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
        """Speak with the original (once for all amounts) and the pruned voice; ends with Spoken."""
        yield Doing("loading the voice", 0.0)
        voice = self.voice(request.reference, request.speaker, token)
        key = (request.reference, trace(token), voice.speaker, request.text, request.seed, request.delivery)
        original = self._originals.get(key)
        if original is None:
            pieces: list[Speech] = []
            yield from _speaking("original", voice, request, "own", pieces, 0.0)
            original = join(pieces)
            self._originals.put(key, original)
        pruned_voice = self.pruned(request, token)
        pieces = []
        yield from _speaking("pruned", pruned_voice, request, original if request.timing == "locked" else "own", pieces, 0.5)
        yield Spoken(original, join(pieces), (measure_sparsity(voice), measure_sparsity(pruned_voice)))

    def remember(self, request: Request, spoken: Spoken, token: str | None = None) -> None:
        """Keep what was spoken for the steps that follow."""
        self._spoken.put((request, trace(token)), spoken)

    def recall(self, request: Request, token: str | None = None) -> Spoken | None:
        """What was remembered for a request, None where it is forgotten."""
        return self._spoken.get((request, trace(token)))

    def pruned(self, request: Request, token: str | None = None) -> Voice:
        """The pruned voice of a request."""
        voice = self.voice(request.reference, request.speaker, token)
        key = (request.reference, trace(token), self.device, voice.speaker, request.spec)
        return self._pruned.get_or_make(key, lambda: prune(voice, request.spec))

    def size(self, request: Request, token: str | None = None) -> tuple[Size, Size]:
        """Sizes of the original and the pruned voice."""
        voice = self.voice(request.reference, request.speaker, token)
        original = self._sizes.get_or_make((request.reference, trace(token)), lambda: measure_size(voice))
        return original, measure_size(self.pruned(request, token))

    def preview(self, reference: str, spec: PruneSpec, token: str | None = None) -> dict[str, float] | None:
        """Sparsity that a spec would give, "overall" and by part, without pruning; None where only pruning can tell."""
        found = sparsity_preview(self.voice(reference, token=token), spec)
        return None if found is None else dict(found)


def trace(token: str | None) -> str:
    """What stands for a visitor's token in a key: voices loaded with one are found only with the same one."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def _speaking(who: str, voice: Voice, request: Request, timing: Any, pieces: list[Speech], share: float) -> Iterator[Doing]:
    """Speak sentence by sentence into `pieces`; a Doing before each."""
    told: list[tuple[int, int]] = []
    sentences = speak_sentences(
        voice, request.text, request.seed, timing=timing, delivery=request.delivery, on_sentence=lambda *at: told.append(at)
    )
    yield Doing(f"speaking: {who}", share)
    for piece in sentences:
        pieces.append(piece)
        done, total = told[-1]
        if done + 1 < total:
            yield Doing(f"speaking: {who}, sentence {done + 2} of {total}", share + 0.5 * (done + 1) / total)
