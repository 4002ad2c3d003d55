"""espeak-ng through ctypes against piper-tts, whose own espeak-ng tells how clauses end."""

from __future__ import annotations

import random
import threading

import piper.espeakbridge as bridge
import pytest
from piper.phonemize_espeak import ESPEAK_DATA_DIR

from vits_prune.errors import InputError
from vits_prune.voices.espeak_library import check_voice, clauses

TEXTS = [
    "The birch canoe slid on the smooth planks.",
    "Dr. Smith met Mr. Jones at 5 p.m. on St. John's St. in Washington D.C. yesterday.",
    "The U.S.A. won. U.K. lost! E.U.? Nobody knows.",
    "It costs $3.14, or €2.50: cheap; isn't it?",
    "On 12/03/2024 at 10:45, 1,234,567 people came...",
    '"Hello," she said. \'Go away!\' he replied. He said "No!" and left.',
    "“Smart quotes?” Yes — they work – mostly.",
    "Wait... what?! No way!!! Really???",
    "(An aside.) And then (another, smaller) one.",
    "e.g. this one, i.e. that one, etc. and so on.",
    "SHOUTING IS RUDE. NASA AND THE FBI.",
    "Visit https://example.com/path?x=1&y=2 or mail a.b@c.org.",
    "I love 🍕 and 😀! ❤️",
    "Mixed 日本語 and русский text.",
    "...",
    "?",
    "- dash",
    "a. b. c.",
    "A. B. C.",
    "Chapter IV.",
    "What?Yes.No!",
    "u.s.a.'s flag. The dog.'s",
    "Yes . No ! Maybe ?",
    "…and then… He left…",
    "¿Qué? ¡No!",
    "Hm..? Hm.., ok. Hm,. Ok",
    "One ,two ;three :four .five",
    "‘single’ ‘quotes.’ Done",
    "$5. €6. £7.",
    "5.",
    "a...b ...c",
    "'...'",
    'ok?" She said (quietly.) Bye',
    "x < y > z <b>bold</b> &amp; [mail]",
]
TEXTS += [
    "",
    " ",
    "\n",
    " lead and trail  ",
    "One\nline\n\nA paragraph\n\n\nThe end\n",
    "a.\n\nb?\n\nC!",
    "tab\tand.\u00a0nbsp. Ok",
    "soft\u00adhyphen.\u00ad X",
]
TEXTS += ["word " * 400, "word, " * 300 + "End.", "abc. def " * 120, "日本" * 700]
TEXTS += ["A. \u2028B.\u2003C. D", "مرحبا، كيف؟ 你好。你好！ नमस्ते। ok"]

FOREIGN = {
    "de": "Guten Tag, Herr Dr. Müller. Heinrich IV. war König; am 3. "
    "Mai kam er: ja! „Zitat“, sagte er... Heinrich IV.",
    "fr": "Bonjour, ça va ? Oui ! C’est l’été : chaud ; très chaud... "
    "« Citation », dit-il. Louis XIV. Fin",
    "es": "¿Cómo estás? ¡Muy bien! El Sr. García, de 45 años, vive aquí: en Madrid; sí...",
    "ru": "Привет, как дела? Хорошо! Это стоит 3,14 рубля; дорого: да. "
    "Т. е. так... «Цитата», — сказал он.",
    "cmn": "你好，世界。今天是2024年3月5日！你怎么样？我很好；谢谢：再见、朋友…… Hello 世界.",
    "vi": "Xin chào, bạn có khỏe không? Tôi khỏe! Giá là 3,14 đồng; đắt: vâng...",
    "hi": "नमस्ते, आप कैसे हैं? मैं ठीक हूँ। यह ३.१४ है; ठीक: हाँ! धन्यवाद॥ Hello",
    "uk": "Привіт, як справи? Добре! Це коштує 3,14; дорого: так. Бувай...",
    "pl": "Cześć, jak się masz? Dobrze! To kosztuje 3,14 zł; drogo: "
    "tak. Król Jan III. Sobieski. Dnia 5. maja.",
    "it": "Ciao, come stai? Bene! Costa 3,14 €; caro: sì. Il Sig. Rossi... «Ecco».",
    "pt-br": "Olá, tudo bem? Sim! Custa R$ 3,14; caro: sim. O Sr. João... “Pois”.",
    "nl": "Hallo, hoe gaat het? Goed! Het kost € 3,14; duur: ja. Dhr. Jansen... 's avonds. 5. mei",
    "sv": "Hej, hur mår du? Bra! Det kostar 3,14 kr; dyrt: ja. Kung Karl XII. Dog.",
    "cs": "Ahoj, jak se máš? Dobře! Stojí to 3,14 Kč; draho: ano. Karel IV. byl král. 5. května.",
    "tr": "Merhaba, nasılsın? İyiyim! Fiyatı 3,14 TL; pahalı: evet. II. Mehmed. 5. gün.",
    "fa": "سلام، حال شما چطور است؟ خوبم! قیمت ۳٫۱۴ است؛ گران: بله. می\u200cخواهم بروم.",
    "ar": "مرحبا، كيف حالك؟ أنا بخير! السعر 3.14؛ غالي: نعم. شكرا.",
    "hu": "Szia, hogy vagy? Jól! Ára 3,14 Ft; drága: igen. 2024. "
    "december 2., szerda. IV. Béla király.",
    "el": "Γεια σου, τι κάνεις; Καλά! Κοστίζει 3,14· ακριβό: ναι.",
    "hy": "Բարև, ինչպե՞ս ես։ Լավ։ Ահա՛։",
}
PIECES = [
    "Hi",
    "there",
    "5",
    "3.14",
    "IV",
    "a",
    "A",
    "Dr",
    "e.g",
    "U.S",
    "été",
    "ok",
    "😀",
    "...",
    "?!",
    *".,;:!?…—–-()[]^/\"'“”«»¿。？，",
]
PIECES += [" ", " ", " ", "  ", "\n", "\n\n", "\u00a0"]


def piper_clauses(text: str, voice: str) -> list[tuple[str, str, bool]]:
    bridge.initialize(str(ESPEAK_DATA_DIR))
    bridge.set_voice(voice)
    return bridge.get_phonemes(text)


def marks(text: str, voice: str) -> list[tuple[str, bool]]:
    return [(clause.mark, clause.ends_sentence) for clause in clauses(text, voice)]


def test_clauses_end_as_in_piper():
    for text in TEXTS:
        assert marks(text, "en-us") == [clause[1:] for clause in piper_clauses(text, "en-us")], text


def test_clauses_end_as_in_piper_in_other_languages():
    for voice, text in FOREIGN.items():
        words = (f"{part}." for part in text.split(" "))
        for part in [text, *text.split(". "), *words, *TEXTS[:12]]:
            assert marks(part, voice) == [clause[1:] for clause in piper_clauses(part, voice)], part


def test_clauses_end_as_in_piper_for_random_punctuation():
    draw = random.Random(0)
    for _ in range(600):
        voice = draw.choice(["en-us", "de", "hu", "fr", "cmn", "fa"])
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 14)))
        assert marks(text, voice) == [clause[1:] for clause in piper_clauses(text, voice)], (
            voice,
            text,
        )


def test_phonemes_are_those_of_piper_where_the_versions_agree():
    for text in (
        "The birch canoe slid on the smooth planks.",
        "Dr. Smith paid $3.14, not more; why? Because!",
        "a. B c",
    ):
        assert [clause.phonemes for clause in clauses(text, "en-us")] == [
            clause[0] for clause in piper_clauses(text, "en-us")
        ]


def test_has_been_is_said_as_piper_says_it():
    text = "It has been done. She HAS been away; what has been has been."
    for voice in ("en-us", "en-gb-x-rp", "en-029", "en-gb-scotland", "en"):
        assert [clause.phonemes for clause in clauses(text, voice)] == [
            clause[0] for clause in piper_clauses(text, voice)
        ]


GLIDES = [
    "The end of any area.",
    "We are copying the only idea, aren't we?",
    "Being there, I agree; he also buys it.",
]


def test_the_glide_between_vowels_is_written_as_piper_writes_it():
    for text in GLIDES:
        spoken = [clause.phonemes for clause in clauses(text, "en-us")]
        assert "ʲ" in "".join(spoken)
        assert spoken == [clause[0] for clause in piper_clauses(text, "en-us")]


def test_every_character_belongs_to_one_clause():
    for text in [*TEXTS, *FOREIGN.values()]:
        assert "".join(clause.text for clause in clauses(text, "en-us")) == text


def test_what_one_text_leaves_behind_does_not_reach_the_next():
    clean = clauses("Hello", "en-us")
    for before in ("Hi. A", "Hi there, B", "One. ", "...", "x.\n", "Hi. É"):
        clauses(before, "en-us")
        assert clauses("Hello", "en-us") == clean


def test_control_characters_are_blanks():
    # \x01 starts a command to espeak-ng, \0 ends its text, a lone surrogate has no UTF-8
    spoken = clauses("one \x01Vde two\x00three \ud800four", "en-us")
    assert "".join(c.phonemes for c in spoken) == "".join(
        c.phonemes for c in clauses("one  Vde two three  four", "en-us")
    )
    assert "fˈoːɹ" in spoken[-1].phonemes or "fˈɔːɹ" in spoken[-1].phonemes


UNKNOWN = ["xx", "", "../../etc/passwd", "gmw", "default", "a" * 80, "en us", None, 5, "no\0"]


def test_unknown_voices_are_refused():
    for voice in UNKNOWN:
        with pytest.raises(InputError, match=r"espeak-ng has no voice .*: check espeak.voice"):
            check_voice(voice)
    assert clauses("Hi", "en-us")[0].phonemes == "hˈaɪ"


def test_it_lives_beside_phonemizer_and_piper(monkeypatch: pytest.MonkeyPatch):
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    monkeypatch.setattr(EspeakWrapper, "_ESPEAK_LIBRARY", espeakng_loader.get_library_path())
    monkeypatch.setattr(EspeakWrapper, "data_path", espeakng_loader.get_data_path(), raising=False)
    other = EspeakWrapper()
    other.set_voice("de")
    bridge.initialize(str(ESPEAK_DATA_DIR))
    bridge.set_voice("fr")
    assert clauses("Hi there", "en-us")[0].phonemes == "hˈaɪ ðˈɛɹ"
    assert (
        other.text_to_phonemes("vier", tie=False).replace("_", "")
        == clauses("vier", "de")[0].phonemes
    )
    assert bridge.get_phonemes("oui")[0][0] == clauses("oui", "fr")[0].phonemes


def test_threads_take_turns():
    expected = {voice: clauses(FOREIGN[voice], voice) for voice in ("de", "fr", "es")}
    wrong: list[str] = []

    def read(voice: str) -> None:
        wrong.extend(voice for _ in range(20) if clauses(FOREIGN[voice], voice) != expected[voice])

    threads = [threading.Thread(target=read, args=(voice,)) for voice in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
