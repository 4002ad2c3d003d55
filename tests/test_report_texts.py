"""What people type in many scripts, each as REPORTS.md has it; the rest is in test_reports.py."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest

from tests.voices.hf_factory import LETTERS, make_checkpoint
from tests.voices.piper_factory import TINIEST, make_voice, settings
from vits_prune import InputError, load_voice, speak
from vits_prune.voices.espeak import clauses, phonemise
from vits_prune.voices.sentences import for_espeak

HEBREW, THAI = "אבגדהוזחטיכךלמםנןסעפףצץקרשת", "กขคงจดตนบปมยรลวสหอะาิีึืุูเแโไใ่้"
PERSIAN, ARABIC = "ابپتجدرزسشفقکگلمنوهیآ", "ابتجدرزسشعفقكلمنهويىءآأةًٌٍَُِّْ"


@pytest.fixture
def reads(tmp_path):
    """Return a call: what a voice of these characters reads of a text, and what it names."""

    def read(symbols: str, text: str, **more) -> tuple[str, tuple[str, ...]]:
        voice = load_voice(make_checkpoint(tmp_path / "voice", symbols=f"_ {symbols}", **more))
        [sentence] = voice.tokenizer.sentences(text)
        return "".join(sentence.tokens), sentence.dropped

    return read


def phonemes(text: str, voice: str) -> str:
    return " ".join(clause.phonemes for clause in clauses(for_espeak(text), voice))


@pytest.mark.parametrize(
    ("symbols", "typed", "read"),
    [
        # Soft hyphens, spaces of no width, marks of direction
        (LETTERS[2:], "pre\u00adrequi\u200bsites\u2060 \u202bnow\u202c\ufeff", "prerequisites now"),
        ("אברםש", "\u200fאברם\u200e", "אברם"),
        # Joiners: Hindi, Persian; Arabic's lengthened lines; variants of emoji are no letters
        ("".join(map(chr, range(0x905, 0x950))), "स्\u200dथान", "स्थान"),
        (PERSIAN, "می\u200cآید", "میآید"),
        (ARABIC, "جميـــل", "جميل"),
        # Arabic's keyboard for Persian and the reverse; Kurdish; forms of presentation
        (PERSIAN, "يك كتاب قەوە", "یک کتاب قهوه"),
        (ARABIC, "یک کتاب", "يك كتاب"),
        (ARABIC, "ﻣﺮﺳﺎ ﻻ", "مرسا لا"),
        # Hebrew: points in either form, the hyphen, the apostrophe
        (f"{HEBREW}\u05b8\u05b9\u05c1", "שָׁלוֹם \ufb2aלום", "שָׁלוֹם שׁלום"),
        (f"{HEBREW}-'\"", "צ׳ק ארץ־ישראל צה״ל", "צ'ק ארץ-ישראל צה\"ל"),
        # Thai's vowel am in one or two characters, with the tone on any side
        (f"{THAI}ำ", "สีดํา น้ํา นํ้า น้ำ", "สีดำ น้ำ น้ำ น้ำ"),
        (f"{THAI}\u0e4d", "สีดำ น้ำ", "สีดํา น้ํา"),
        # Yoruba's lines below for dots below, with tones
        ("abeẹgkoọrsṣ\u0300\u0301", "e\u0329gbe\u0329 s\u0329 o\u0331\u0300ro\u0329\u0300",
         "ẹgbẹ ṣ ọ̀rọ̀"),
        # Turkish's capital i; three letters that look like the Vietnamese D
        ("abçdegğhıijklmnoöprsştuüvyz", "İstanbul Çalışkan İPEK", "istanbul çalışkan ipek"),
        ("abcdđeghiklmnopqrstuvxyàẵ", "Đà Ðà ƉÀ đà ðà ɖà", "đà đà đà đà đà đà"),
        # The schwa is Latin, turned or Cyrillic; a sigma that ends a word
        ("abcdeəfgh", "ə ǝ ә Ə Ǝ Ә", "ə ə ə ə ə ə"),
        ("αβγδεηθικλμνοπρστυφχψωάέήίόύώ", "Όλος ο κόσμος", "όλοσ ο κόσμοσ"),
        # Punctuation that parts words without a space
        ("abcdefghijklmnopqrstuvwxyz", "and/or well—so yes,no a…b", "and or well so yes no a b"),
    ],
)  # fmt: skip
def test_what_is_typed_is_read(reads, symbols, typed, read):
    assert reads(symbols, typed) == (read, ())


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_vietnamese_letters_with_two_marks_are_read(reads, form):
    words = "trả lời phỏng vấn trong nước bộ trưởng ngoại giao dỡ bỏ lệnh cấm"
    letters = "".join(sorted({*words} - {" "}))
    assert reads(letters, unicodedata.normalize(form, words)) == (words, ())


def test_numbers_that_a_voice_of_letters_lacks_are_named(reads):
    read, dropped = reads(LETTERS[2:], "it's currently 70.3 inside")
    assert read.split() == ["it's", "currently", "inside"]
    assert set("70.3") == set(dropped)


def test_korean_is_romanised(reads):
    letters = "abcdefghijklmnopqrstuvwxyz-"
    assert reads(letters, "안녕하세요 ㅠ동 앞만", is_uroman=True) == (
        "annyeonghaseyo yudong apman",
        (),
    )


def test_a_script_that_the_voice_has_not_is_refused(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "nan", language="nan"))
    with pytest.raises(InputError, match="cannot speak any of this text"):
        speak(voice, "客家話")


def test_a_letter_with_the_id_of_the_blank_is_read(tmp_path):
    # MMS's English has k = 0, its Kabyle | = 0, which stands between all letters too.
    voice = load_voice(make_checkpoint(tmp_path / "k", symbols="k _ehlo"))
    [sentence] = voice.tokenizer.sentences("ok")
    assert sentence.ids == (0, 6, 0, 0, 0)


@pytest.mark.parametrize(
    ("typed", "plain", "voice"),
    [
        ("pre\u200brequi\u00adsites gen\u200eerally", "prerequisites generally", "en-us"),
        ("I \u2764\ufe0f it \u2714\ufe0f", "I \u2764 it \u2714", "en-us"),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", "rainbow flag", "en-us"),
        ("स्\u200dथान", "स्थान", "hi"),
        ("දෙපාර්ත ක\u0dca\u200dරමය", "දෙපාර්ත ක\u0dcaරමය", "si"),
        ("अवन\u094d\u200dया", "अवन\u094dया", "mr"),
        ("അവന\u0d4d\u200d വന്നു", "അവൻ വന്നു", "ml"),
        ("می\u200cخواهم", "میخواهم", "fa"),
        ("ארץ־ישראל", "ארץ-ישראל", "he"),
        ("(جميـــلا)", "جميلا", "ar"),
    ],
)
def test_espeak_stumbles_over_nothing_invisible(typed, plain, voice):
    assert phonemes(typed, voice) == phonemes(plain, voice)


def test_words_of_a_woman_at_a_computer_stay_one_emoji():
    assert phonemes("\U0001f469\u200d\U0001f4bb", "en-us") == phonemes(
        "woman technologist", "en-us"
    )


def test_spaces_of_no_width_part_words_where_there_are_no_others():
    assert phonemes("ฉัน\u200bไป", "th") == phonemes("ฉัน ไป", "th")


def test_flags_of_other_languages_are_not_said(tmp_path):
    assert "(" not in phonemise("안녕 friend")
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST, espeak={"voice": "it"})
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    [sentence] = load_voice(path).tokenizer.sentences("L'assistente vocale di Way")
    assert not {*"()"} & {*sentence.tokens, *sentence.dropped}


def test_tones_of_vietnamese_that_the_voice_lacks_are_named(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST, espeak={"voice": "vi"})
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    voice = load_voice(path)
    [sentence] = voice.tokenizer.sentences("Trăm năm trong cõi người ta")
    assert any(one.isdigit() for one in sentence.dropped)
    assert np.isfinite(speak(voice, "Trăm năm trong cõi người ta").waveform).all()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith paid 3.14 dollars at example.com. Thanks!", 2),
        ("He left the U.S. in 1990. Then, e.g. at 9:30 a.m. he came.", 2),
        ("There are fruits:\nApple\nBanana", 3),
        ("ሰላም። ከመይ ኣለኻ፧ የቐንየለይ።", 3),
        ("she is still… Anna is watching, but…", 2),
    ],
)
def test_sentences_end_where_readers_end_them(tmp_path, text, sentences):
    voice = load_voice(make_checkpoint(tmp_path / "voice"))
    assert len(list(voice.tokenizer.sentences(text))) == sentences
