"""The built-in sentences and a user's own."""

from __future__ import annotations

import pytest

from vits_prune import InputError
from vits_prune.synthesis.texts import MAX_TEXT_FILE_BYTES, load_texts, read_text_file


def test_the_halves_are_fixed_and_share_nothing():
    tuning, held_out = load_texts(None, "tuning"), load_texts(None, "held-out")
    assert len(tuning) == len(held_out) == 30
    assert len({*tuning, *held_out}) == 60
    assert tuning[0] == "The birch canoe slid on the smooth planks."
    assert held_out[-1] == "Both lost their lives in the raging storm."
    assert load_texts(None, "all") == tuning + held_out
    assert load_texts() == held_out[:20]
    assert load_texts(40, "all") == (tuning + held_out)[:40]


def test_the_sentences_cover_the_sounds_of_english(joe):
    """Every vowel and consonant of American English as espeak-ng writes it is said in each half."""
    consonants, vowels = (
        "p b t d k ɡ f v θ ð s z ʃ h m n ŋ l ɹ w j ʒ",
        "i ɪ ɛ æ ɑ ɔ ʊ u ʌ ə ɚ e o a",
    )
    missing_allowed = {"ʒ"}  # alone outside d͡ʒ it is rare
    for half in ("tuning", "held-out"):
        spoken = {
            symbol
            for text in load_texts(None, half)
            for s in joe.tokenizer.sentences(text)
            for t in s.tokens
            for symbol in t
        }
        assert {*consonants.split(), *vowels.split()} - missing_allowed <= spoken


@pytest.mark.parametrize(
    ("count", "half"),
    [(0, "tuning"), (31, "held-out"), (61, "all"), (True, "all"), (2.0, "all"), (5, "third")],
)
def test_what_is_not_there_is_refused(count, half):
    with pytest.raises(InputError):
        load_texts(count, half)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_and_empty_lines(tmp_path, encoding):
    path = tmp_path / "texts.txt"
    path.write_bytes("\n  Größe zählt.\r\n\r\n   \nÇa va?  \n".encode(encoding))
    found = read_text_file(path)
    assert found.texts == ("Größe zählt.", "Ça va?")
    assert found.notes == ()


def test_big_endian_utf_16(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xfe\xff" + "Größe".encode("utf-16-be"))
    assert read_text_file(path).texts == ("Größe",)


def test_fewer_than_asked_for_is_said(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("One.\nTwo.\nThree.\n", encoding="utf-8")
    assert read_text_file(path, 2) == type(read_text_file(path))(("One.", "Two."), ())
    found = read_text_file(path, 5)
    assert found.texts == ("One.", "Two.", "Three.")
    assert "fewer than the 5" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no sentence"),
        (b"\xef\xbb\xbf \n\t\n", "no sentence"),
        (b"\x89PNG\0\0\0", "not a text file"),
        (b"\xff\xfeodd", "begins as utf-16"),
        (b"Fine.\n" + b"a" * 5001, "Line 2"),
        (b"a\n" * 1001, "1,001 sentences"),
        (b"a" * (MAX_TEXT_FILE_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, content, says):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_text_file(path)


@pytest.mark.parametrize("path", ["nowhere.txt", ".", "a\0b"])
def test_no_file(path):
    with pytest.raises(InputError, match="cannot be read"):
        read_text_file(path)
