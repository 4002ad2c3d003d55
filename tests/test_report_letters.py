"""Texts and text files as people bring them; REPORTS.md says who brought which kind."""

from __future__ import annotations

import json
import unicodedata

import pytest

from tests.voices.hf_factory import LETTERS, make_checkpoint
from tests.voices.piper_factory import PHONEME_IDS, TINIEST, make_voice, settings
from vits_prune import InputError, load_voice
from vits_prune.synthesis.texts import read_text_file
from vits_prune.voices.sentences import for_espeak, split_sentences


def said(voice, text):
    return [
        tuple(token for token in one.tokens if token) for one in voice.tokenizer.sentences(text)
    ]


@pytest.fixture(scope="module")
def piper(tmp_path_factory):
    """A voice that reads espeak-ng's phonemes, all that English has."""
    path = make_voice(tmp_path_factory.mktemp("piper"), TINIEST)
    more = {phoneme: [39] for phoneme in "ˌɑɐɔɚɜɡɹɾʃʌʒθᵻ"}
    facts = settings(TINIEST, phoneme_id_map={**PHONEME_IDS, **more})
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    return load_voice(path)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Two voices that read letters, small ones and a dash: of transformers and of Piper."""
    path = make_voice(tmp_path_factory.mktemp("letters"), TINIEST)
    given = {"_": [0], "^": [1], "$": [2]} | {c: [3 + i] for i, c in enumerate(LETTERS[1:])}
    facts = settings(TINIEST, phoneme_type="text", phoneme_id_map=given)
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    return load_voice(make_checkpoint(path.parent / "tiny")), load_voice(path)


@pytest.mark.parametrize(
    ("typed", "usual"),
    [
        (unicodedata.normalize("NFD", "a naïve café"), "a naïve café"),
        ("ｈｅｌｌｏ　ｗｏｒｌｄ １２", "hello　world 12"),
        ("𝐡𝐞𝐥𝐥𝐨 ⓦⓞⓡⓛⓓ ①", "hello world 1"),
        ("Henry Ⅳ, ５％ of ３㎏", "Henry IV, 5% of 3kg"),
        ("donʼt, don`t, don´t", "don’t, don’t, don’t"),
        ("he\u00adllo wor\u2060ld \ufeffyou", "hello world you"),
        ("one\u2800two\u3164three", "one two three"),
        ("one\r\ntwo", "one\ntwo"),
    ],
)
def test_espeak_reads_what_was_meant(piper, typed, usual):
    assert said(piper, typed) == said(piper, usual)


@pytest.mark.parametrize(
    "text", ["x² № 5 ½", "می\u200cروم", "ㅋㅋ", "ำ", "你好！", "…", "a\u00a0b"]
)
def test_what_espeak_knows_stays(text):
    assert for_espeak(text) == unicodedata.normalize("NFC", text)


def test_numbers_that_espeak_passes_over_are_named(piper):
    [sentence] = piper.tokenizer.sentences("see ⑴ there")
    assert sentence.dropped == ("⑴",)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("and/or", "and or"),
        ("yes‒no", "yes-no"),
        ("one\u2800two\u3164three", "one two three"),
        ("co\u00adop\u2060er\ufeffate", "cooperate"),
        ("one\r\ntwo", "one two"),
        ("one\0two", "one two"),
        ("𝓱𝓮𝓵𝓵𝓸 ⓦ", "hello w"),
    ],
)
def test_characters_lose_no_words(letters, typed, read):
    for voice in letters:
        [*pieces] = voice.tokenizer.sentences(typed)
        tokens = [token for one in pieces for token in (*one.tokens, " ") if token not in "_^$"]
        assert "".join(tokens).strip() == read
        assert not any(one.dropped for one in pieces)


def test_capitals_of_a_voice_without_them_are_small(letters):
    _, piper = letters
    [sentence] = piper.tokenizer.sentences("HELLO Straße É")
    assert "".join(one for one in sentence.tokens if one not in "_^$") == "hello strasse e"
    assert sentence.dropped == ("\u0301",)


@pytest.mark.parametrize("text", ["አማርኛ ሰላም " * 60, "1995 2024 " * 60, "ｶﾀｶﾅ" * 100, "ᏣᎳᎩ " * 130])
def test_what_takes_long_to_say_is_cut_sooner(text):
    assert max(map(len, split_sentences(text))) <= 133


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_needs_no_mark(tmp_path, encoding):
    path = tmp_path / "texts.txt"
    path.write_bytes("“Größe zählt.”\r\nÇa va?\r\n".encode(encoding))
    assert read_text_file(path) == type(read_text_file(path))(("“Größe zählt.”", "Ça va?"), ())


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("こんにちは世界。", "shift-jis"),
        ("元気ですか。", "euc-jp"),
        ("你好世界。", "gb18030"),
        ("안녕하세요 세계.", "euc-kr"),
        ("Привет мир.", "cp1251"),
        ("Καλημέρα κόσμε.", "cp1253"),
        ("مرحبا بالعالم.", "cp1256"),
        ("שלום עולם.", "cp1255"),
        ("สวัสดีครับ", "tis-620"),
    ],
)
def test_other_scripts_are_not_read_as_windows_1252(tmp_path, text, encoding):
    path = tmp_path / "texts.txt"
    path.write_bytes(f"{text}\n".encode(encoding))
    with pytest.raises(InputError, match="neither UTF-8 nor Windows-1252: save it again"):
        read_text_file(path)


def test_an_end_of_file_of_dos_is_no_sentence(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\r\ntwo\r\n\x1a")
    assert read_text_file(path).texts == ("one", "two")
