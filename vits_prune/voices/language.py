"""The language that a voice speaks, and what it could be told to say where nobody gave a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np

from vits_prune.errors import InputError
from vits_prune.voices.voice import Voice

_WHISPERS = {"nb": "no", "zlm": "ms"}
"""Languages that Whisper has under another code than the standard's."""


def spoken_language(voice: Voice) -> str | None:
    """The language of a voice as Whisper names it ("en"), None where its tokenizer does not say.

    Piper voices name their espeak-ng voice ("en-us"); hub checkpoints a language (MMS: ISO 639-3, "deu"), or have phonemes, which
    transformers' tokenizer makes for US English only.
    """
    import langcodes

    tokenizer = voice.tokenizer
    inner = getattr(tokenizer, "tokenizer", None)
    named = getattr(tokenizer, "espeak_voice", None)
    if named is None and inner is not None:
        named = "en" if getattr(inner, "phonemize", False) else getattr(inner, "language", None)
    if not named:
        return None
    try:  # "azj-script_latin", "en-gb-x-rp" and "cmn" become "az", "en" and "zh"
        found = langcodes.Language.get(
            langcodes.standardize_tag(named.split("_")[0].split("-script")[0], macro=True)
        ).language
        return _WHISPERS.get(found, found)
    except langcodes.LanguageTagError:
        return None


def draw_texts(voice: Voice, count: int, seed: int) -> tuple[str, ...]:
    """Sentences of random words of the symbols that a voice knows: for a language of which there are no sentences at hand.

    A voice that reads phonemes is given phonemes (Piper's `[[...]]`), one that reads characters its characters, each as likely as another.

    Args:
        voice: who is to say them.
        count: how many.
        seed: of the draws.

    Raises:
        InputError: the voice has no letters to draw from.
    """
    symbols, wrap = _symbols(voice)
    if not symbols:
        raise InputError(
            f"{voice.name} has no single letters to draw sentences from: give texts to calibrate it on."
        )
    random = np.random.default_rng(seed)
    return tuple(
        wrap(" ".join(_word(symbols, random) for _ in range(random.integers(5, 12))))
        for _ in range(count)
    )


def _word(symbols: list[str], random: np.random.Generator) -> str:
    return "".join(symbols[i] for i in random.integers(len(symbols), size=random.integers(2, 8)))


def _symbols(voice: Voice) -> tuple[list[str], Callable[[str], str]]:
    """The letters, marks and phonemes of a voice in a fixed order, and how a text of them is written."""
    tokenizer = voice.tokenizer
    known = getattr(tokenizer, "phoneme_ids", None)
    if known is not None:
        spoken = sorted(symbol for symbol in known if _speakable(symbol))
        if tokenizer.phoneme_type == "espeak":
            return spoken, lambda text: f"[[{text}]]"
        spoken = [
            symbol for symbol in spoken if unicodedata.is_normalized("NFD", symbol)
        ]  # what is written is taken apart so
    else:
        inner = tokenizer.tokenizer
        known = inner.get_vocab()
        spoken = sorted(
            symbol
            for symbol in known
            if _speakable(symbol) and (symbol.isascii() or not inner.is_uroman)
        )
    return spoken, lambda text: f"{text}." if "." in known else text


def _speakable(symbol: str) -> bool:
    return len(symbol) == 1 and unicodedata.category(symbol)[0] in "LM"
