"""Sentences drawn from what a voice can say: all of it is said and nothing dropped."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice, speak
from vits_prune.voices.voice import draw_texts, spoken_language


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    place = tmp_path_factory.mktemp("languages")
    text_map = {"_": [0], "^": [1], "$": [2], " ": [3], "é": [4], "\u0301": [5]} | {
        letter: [8 + index] for index, letter in enumerate("abcdefghij")
    }
    found = {
        "hugging-face": load_voice(
            make_checkpoint(place / "hf", language="deu", symbols="_ 'abcdeäöü-.")
        ),
        "without a full stop": load_voice(
            make_checkpoint(place / "plain", language="deu", symbols="_ abcde")
        ),
        "with capitals": load_voice(
            make_checkpoint(place / "capitals", language="deu", symbols="_ aAbBcC.")
        ),
        "devanagari": load_voice(
            make_checkpoint(place / "hin", language="hin", symbols="_ कखगघािीुे्")
        ),
        "romanised": load_voice(
            make_checkpoint(place / "uroman", language="kor", is_uroman=True, symbols="_ 'abcdeß가")
        ),
        "phonemised": load_voice(make_checkpoint(place / "phonemes", phonemize=True)),
        "speakers": load_voice(
            make_checkpoint(place / "speakers", speakers=2, stochastic=False, language="deu")
        ),
        "piper": load_voice(piper_factory.make_voice(place, piper_factory.TINIEST, "espeak")),
    }
    path = piper_factory.make_voice(place, piper_factory.TINIEST, "text")
    changes = {"phoneme_type": "text", "phoneme_id_map": text_map}
    path.with_name(path.name + ".json").write_text(
        json.dumps(piper_factory.settings(piper_factory.TINIEST, **changes)), encoding="utf-8"
    )
    return found | {"piper text": load_voice(path)}


KINDS = [
    "hugging-face",
    "without a full stop",
    "with capitals",
    "devanagari",
    "romanised",
    "speakers",
    "piper",
    "piper text",
]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_drawn_can_be_said(voices, kind):
    drawn = draw_texts(voices[kind], 40, 3)
    assert len(drawn) == 40
    assert len(set(drawn)) == 40
    for text in drawn:
        sentences = list(voices[kind].tokenizer.sentences(text))
        assert len(sentences) == 1
        assert sentences[0].ids
        assert not sentences[0].dropped
    assert speak(voices[kind], drawn[0], 1).waveform.size


def test_the_same_seed_draws_the_same(voices):
    for voice in voices.values():
        assert draw_texts(voice, 5, 1) == draw_texts(voice, 5, 1) == draw_texts(voice, 9, 1)[:5]
        assert draw_texts(voice, 5, 1) != draw_texts(voice, 5, 2)


@pytest.mark.parametrize("kind", ["hugging-face", "devanagari", "piper", "piper text"])
def test_every_symbol_is_drawn_sooner_or_later(voices, kind):
    known, drawn = voices[kind].tokenizer.symbols, " ".join(draw_texts(voices[kind], 200, 0))
    missing = {
        symbol
        for symbol in known
        if len(symbol) == 1 and (symbol.isalpha() or symbol in "ािी\u0301")
    } - set(drawn)
    assert missing <= {"é"}


def test_languages(voices):
    languages = {kind: spoken_language(voice) for kind, voice in voices.items()}
    assert languages["hugging-face"] == "de"
    assert languages["phonemised"] == languages["piper"] == "en"
    assert languages["piper text"] is None


def test_nothing_to_draw_from(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "digits", language="deu", symbols="_ 0123456789"))
    with pytest.raises(InputError, match="no letters to draw from") as error:
        draw_texts(voice, 3, 0)
    assert str(error.value).endswith(".")


def named(**fields):
    return SimpleNamespace(tokenizer=SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("espeak_voice", "language"),
    [
        ("en-us", "en"),
        ("en-gb-x-rp", "en"),
        ("de", "de"),
        ("pt-br", "pt"),
        ("cmn", "zh"),
        ("nb", "no"),
        ("fr-fr", "fr"),
        ("!", None),
    ],
)
def test_the_language_of_piper_voices(espeak_voice, language):
    assert spoken_language(named(language=espeak_voice)) == language


@pytest.mark.parametrize(
    ("code", "language"),
    [("deu", "de"), ("cmn", "zh"), ("swh", "sw"), ("azj-script_latin", "az"), (None, None)],
)
def test_the_language_of_hub_voices(code, language):
    assert spoken_language(named(language=code)) == language


def test_the_language_of_real_voices(joe, tiny):
    assert spoken_language(joe) == "en"
    assert spoken_language(tiny) == "en"  # its files say "eng"
