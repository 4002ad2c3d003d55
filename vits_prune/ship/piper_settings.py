"""The files beside a Piper voice's .onnx: its .json for the Piper runtime, tokens.txt for sherpa-onnx."""

from __future__ import annotations

import unicodedata
from typing import Any

from vits_prune.errors import InputError
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.piper_text import PiperTokenizer
from vits_prune.voices.voice import Voice

_BLANK, _BEGIN, _END = "_", "^", "$"
_MOST_DROPPED = 0.01
"""Share of espeak-ng's phonemes, in running English, that a voice may have no symbol for and still be called fitting."""


def piper_settings(voice: Voice) -> dict[str, Any]:
    """The contents of the .json; what a Piper voice's own said of its language, data set and quality is said again.

    Raises:
        InputError: the Piper runtime cannot read text to this voice; the sentence says why.
    """
    config = voice.model.config
    about = getattr(voice.tokenizer, "about", {})
    return {
        "audio": {
            "sample_rate": voice.sampling_rate,
            "quality": "custom",
            **about.get("audio", {}),
        },
        **_reading(voice),
        "inference": {
            "noise_scale": float(voice.model.noise_scale),
            "length_scale": round(1 / float(voice.model.speaking_rate), 12),
            "noise_w": float(voice.model.noise_scale_duration),
        },
        "phoneme_map": {},
        "num_symbols": config.vocab_size,
        "num_speakers": config.num_speakers,
        "speaker_id_map": {name: index for index, name in enumerate(voice.speakers)},
        "default_speaker_id": voice.speaker or 0,
        "hop_length": voice.hop_length,
        "language": about.get("language") or {"code": _language(voice)},
        "dataset": about.get("dataset", voice.name),
        "piper_version": about.get("piper_version", "1.0.0"),
    }


def _reading(voice: Voice) -> dict[str, Any]:
    """How text becomes ids."""
    tokenizer = voice.tokenizer
    if isinstance(tokenizer, PiperTokenizer):
        reading: dict[str, Any] = {
            "phoneme_type": tokenizer.phoneme_type,
            "espeak": {"voice": tokenizer.espeak_voice or ""},
            "phoneme_id_map": {
                phoneme: list(ids) for phoneme, ids in tokenizer.phoneme_ids.items()
            },
        }
        if tokenizer.vowel_clusters:
            reading["vowel_clusters"] = sorted(map(list, tokenizer.vowel_clusters))
        return reading
    if not isinstance(tokenizer, HubTokenizer):
        raise InputError(
            f"{voice.name} reads text in a way that Piper does not know: export it as onnx."
        )
    inner = tokenizer.tokenizer
    if not inner.add_blank:
        raise InputError(
            f"{voice.name} puts no blank between its symbols, which Piper always does: export it as onnx."
        )
    if inner.is_uroman:
        raise InputError(
            f"{voice.name} reads romanised text, and the Piper runtime does not romanise: export it as onnx."
        )
    ids = {
        symbol: index
        for symbol, index in inner.encoder.items()
        if len(symbol) == 1 and index < tokenizer.vocab_size
    }
    return _phonemes(voice, ids) if inner.phonemize else _characters(voice, ids)


def _id_map(ids: dict[str, int]) -> dict[str, list[int]]:
    """The symbols as Piper wants them. `^ _ p _ p _ $` with nothing for ^ and $ is what VitsTokenizer makes of p p: _ p _ p _."""
    symbols = {
        symbol: [index] for symbol, index in ids.items() if symbol not in (_BLANK, _BEGIN, _END)
    }
    return {_BLANK: [0], _BEGIN: [], _END: [], **symbols}


def _phonemes(voice: Voice, ids: dict[str, int]) -> dict[str, Any]:
    """A voice of espeak-ng's phonemes, which transformers' tokenizer makes for US English."""
    reading = {
        "phoneme_type": "espeak",
        "espeak": {"voice": "en-us"},
        "phoneme_id_map": _id_map(ids),
    }
    said = dropped = 0
    reader = PiperTokenizer(reading)
    for text in load_texts(20):
        for sentence in reader.sentences(text):
            said += len(sentence.ids) // 2
            dropped += len(sentence.dropped)
    if dropped > _MOST_DROPPED * said:
        raise InputError(
            f"{voice.name} lacks symbols for many of espeak-ng's phonemes, which Piper reads: export it as onnx."
        )
    return reading


def _characters(voice: Voice, ids: dict[str, int]) -> dict[str, Any]:
    """A voice of characters. Piper takes a text apart by Unicode's NFD and keeps its case."""
    composed = [symbol for symbol in ids if unicodedata.normalize("NFD", symbol) != symbol]
    if composed:
        few = " ".join(composed[:5])
        raise InputError(
            f"{voice.name} has letters that Piper takes apart ({few}): export it as onnx."
        )
    if voice.tokenizer.tokenizer.normalize:
        ids = {
            **{symbol.upper(): index for symbol, index in ids.items() if len(symbol.upper()) == 1},
            **ids,
        }
    return {"phoneme_type": "text", "espeak": {"voice": ""}, "phoneme_id_map": _id_map(ids)}


def _language(voice: Voice) -> str:
    """ "en_US" of "en-us"; what the tokenizer says where it is no such tag."""
    import langcodes

    inner = getattr(voice.tokenizer, "tokenizer", None)
    named = getattr(voice.tokenizer, "espeak_voice", None) or (
        "en-us" if getattr(inner, "phonemize", False) else getattr(inner, "language", "")
    )
    try:
        return langcodes.standardize_tag(named or "und").replace("-", "_")
    except langcodes.LanguageTagError:
        return str(named)[:20]


def tokens_file(settings: dict[str, Any]) -> str:
    """tokens.txt for sherpa-onnx, a symbol and its id a line.

    For a voice of phonemes sherpa-onnx wants an id for each of `^ _ $`: where the voice has none for begin and end they are one more blank.
    A voice of characters has those apart (see `sherpa_facts`); sherpa-onnx reads its text in lower case.
    """
    symbols = {
        symbol: ids or settings["phoneme_id_map"][_BLANK]
        for symbol, ids in settings["phoneme_id_map"].items()
    }
    if settings["phoneme_type"] == "text":
        symbols = {
            symbol: ids for symbol, ids in symbols.items() if symbol not in (_BLANK, _BEGIN, _END)
        }
    readable = (
        symbol for symbol in symbols if symbol == " " or len(symbol) == len(symbol.strip()) == 1
    )
    return "".join(f"{symbol} {symbols[symbol][0]}\n" for symbol in readable)


def sherpa_facts(voice: Voice, settings: dict[str, Any]) -> dict[str, str]:
    """What sherpa-onnx reads in the ONNX file's metadata."""
    language = settings["language"]
    facts = {
        "model_type": "vits",
        "comment": "piper",
        "language": language.get("name_english") or language.get("code", "und"),
        "voice": settings["espeak"]["voice"],
        "has_espeak": str(int(settings["phoneme_type"] == "espeak")),
        "n_speakers": str(voice.model.config.num_speakers),
        "sample_rate": str(voice.sampling_rate),
    }
    if (
        settings["phoneme_type"] == "text"
    ):  # it puts the ids together itself: begin, a blank, each character with a blank after it, end
        ids = settings["phoneme_id_map"]
        ends = {"bos_id": ids[_BEGIN], "eos_id": ids[_END]}
        both = all(ends.values())
        facts |= {
            "frontend": "characters",
            "add_blank": "1",
            "blank_id": str(ids[_BLANK][0]),
            "use_eos_bos": str(int(both)),
        }
        facts |= {name: str(given[0]) for name, given in ends.items()} if both else {}
    return facts
