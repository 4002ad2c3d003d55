"""The language of a voice, and random sentences for a language that has none at hand."""

from __future__ import annotations

import numpy as np

from vits_prune.errors import InputError
from vits_prune.voices.voice import Voice

_WHISPER_CODES = {"nb": "no", "zlm": "ms"}
"""Languages that Whisper has under another code than the standard's."""


def spoken_language(voice: Voice) -> str | None:
    """Return the language of a voice as Whisper names it ("en"), None if its tokenizer names none.

    Piper voices name their espeak-ng voice ("en-us"), hub checkpoints a language (MMS: ISO 639-3).
    """
    import langcodes

    if not voice.tokenizer.language:
        return None
    # "azj-script_latin", "en-gb-x-rp" and "cmn" become "az", "en" and "zh"
    tag = voice.tokenizer.language.split("_")[0].split("-script")[0]
    try:
        found = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)).language
    except langcodes.LanguageTagError:
        return None
    return _WHISPER_CODES.get(found, found) if found else None


def draw_texts(voice: Voice, count: int, seed: int) -> tuple[str, ...]:
    """Return sentences of random words, all letters of the voice being equally likely.

    Raises:
        InputError: the voice has no letters to draw from.
    """
    letters = voice.tokenizer.letters
    if not letters:
        raise InputError(
            f"{voice.name} has no single letters to draw sentences from: "
            "give texts to calibrate it on."
        )
    random = np.random.default_rng(seed)

    def word() -> str:
        return "".join(
            letters[i] for i in random.integers(len(letters), size=random.integers(2, 8))
        )

    return tuple(
        voice.tokenizer.spell(" ".join(word() for _ in range(random.integers(5, 12))))
        for _ in range(count)
    )
