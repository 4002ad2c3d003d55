"""Write the .json of a Piper voice's .onnx for Piper, and its tokens.txt for sherpa-onnx."""

from __future__ import annotations

from typing import Any

from vits_prune.errors import InputError
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.piper_text import PiperTokenizer
from vits_prune.voices.voice import Voice

_BLANK, _BEGIN, _END = "_", "^", "$"
_MOST_DROPPED = 0.01
"""Share of espeak-ng's phonemes, in running English, that a fitting voice may lack symbols for."""


def piper_settings(voice: Voice) -> dict[str, Any]:
    """Return the contents of the .json, with what a Piper voice's own .json states.

    Raises:
        InputError: the Piper runtime cannot read text to this voice.
    """
    config, own = voice.model.config, voice.tokenizer.piper_settings()
    if own["phoneme_type"] == "espeak":
        symbols = {symbol: list(ids) for symbol, ids in voice.tokenizer.symbols.items()}
        if own["phoneme_id_map"] != symbols:  # made for the export, not the voice's own
            _require_symbols(voice, own)
    return {
        "audio": {"sample_rate": voice.sampling_rate, "quality": "custom", **own.get("audio", {})},
        "phoneme_type": own["phoneme_type"],
        "espeak": own.get("espeak", {"voice": ""}),
        "phoneme_id_map": own["phoneme_id_map"],
        **({"vowel_clusters": own["vowel_clusters"]} if "vowel_clusters" in own else {}),
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
        "language": own.get("language") or {"code": _language(voice)},
        "dataset": own.get("dataset", voice.name),
        "piper_version": own.get("piper_version", "1.0.0"),
    }


def _require_symbols(voice: Voice, reading: dict[str, Any]) -> None:
    """Raise InputError if a voice lacks symbols for many phonemes of running English."""
    said = dropped = 0
    reader = PiperTokenizer(reading)
    for text in load_texts(20):
        for sentence in reader.sentences(text):
            said += len(sentence.ids) // 2
            dropped += len(sentence.dropped)
    if dropped > _MOST_DROPPED * said:
        what = f"{voice.name} lacks symbols for many of espeak-ng's phonemes, which Piper reads"
        raise InputError(f"{what}: export it as onnx.")


def _language(voice: Voice) -> str:
    """ "en_US" of "en-us"; what the tokenizer says if it is no such tag."""
    import langcodes

    named = voice.tokenizer.language
    try:
        return langcodes.standardize_tag(named or "und").replace("-", "_")
    except langcodes.LanguageTagError:
        return str(named)[:20]


def tokens_file(settings: dict[str, Any]) -> str:
    """Return tokens.txt for sherpa-onnx, a symbol and its id on each line.

    For a voice of phonemes sherpa-onnx wants an id for each of `^ _ $`: begin and end are one more
    blank if the voice has none. A voice of characters has those apart (see `sherpa_facts`), and
    sherpa-onnx reads its text in lower case.
    """
    ids = settings["phoneme_id_map"]
    apart = (_BLANK, _BEGIN, _END) if settings["phoneme_type"] == "text" else ()
    return "".join(
        f"{symbol} {(ids[symbol] or ids[_BLANK])[0]}\n"
        for symbol in ids
        if symbol not in apart and (symbol == " " or len(symbol) == len(symbol.strip()) == 1)
    )


def sherpa_facts(voice: Voice, settings: dict[str, Any]) -> dict[str, str]:
    """Return what sherpa-onnx reads in the ONNX file's metadata."""
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
    if settings["phoneme_type"] == "text":
        # It puts the ids together itself: begin, blank, each character with a blank after it, end.
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
