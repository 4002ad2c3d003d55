"""Text to ids for Hugging Face checkpoints: those of VitsTokenizer, sentence by sentence."""

from __future__ import annotations

import json
import threading

import pytest
from transformers import VitsTokenizer

from tests.voices.hf_factory import LETTERS, PHONEMES, edit_json, make_checkpoint
from vits_prune.errors import InputError
from vits_prune.voices.espeak_library import use_installed_espeak
from vits_prune.voices.hf_text import HubTokenizer
from vits_prune.voices.sentences import split_sentences


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def make(**options):
        return make_checkpoint(tmp_path_factory.mktemp("tokenizer"), **options)

    return make


@pytest.fixture(scope="module")
def letters(make):
    return make()


def one(tokenizer, text):
    (sentence,) = tokenizer.sentences(text)
    return sentence


TEXTS = (
    "hello there",
    "Hello THERE, it's a well-known kid!",
    "  spaces  inside ",
    "naïve café 42",
    "a",
)


@pytest.mark.parametrize(
    "options",
    [{}, {"add_blank": False}, {"symbols": "k'zjy -abcdefghilmnopqrstuvwx"}],
    ids=["mms", "no-blank", "no-pad"],
)
def test_ids_of_plain_transformers(make, options):
    folder = make(**options)
    ours, plain = HubTokenizer.load(folder), VitsTokenizer.from_pretrained(folder)
    for text in TEXTS:
        sentence = one(ours, text)
        assert list(sentence.ids) == plain(text)["input_ids"], text
        assert len(sentence.tokens) == len(sentence.ids)


def test_pad_token_that_is_a_letter(make):
    """facebook/mms-tts-eng has pad_token "k", id 0, which also speaks."""
    folder = make(symbols="k'zjy -abcdefghilmnopqrstuvwx")
    edit_json(folder / "tokenizer_config.json", pad_token="k")
    text = "look like a duck"
    assert (
        list(one(HubTokenizer.load(folder), text).ids)
        == VitsTokenizer.from_pretrained(folder)(text)["input_ids"]
    )


def test_romanian_letters(make):
    folder = make(language="ron", symbols=LETTERS + "ţ")
    plain = VitsTokenizer.from_pretrained(folder)("ține")["input_ids"]
    sentence = one(HubTokenizer.load(folder), "ține")
    assert list(sentence.ids) == plain
    assert sentence.dropped == ()


def test_tokens_and_dropped(letters):
    sentence = one(HubTokenizer.load(letters), "Ça va, 42 ça?")
    assert "".join(sentence.tokens) == "a va  a"
    assert sentence.tokens[0] == ""
    assert sentence.dropped == ("ç", ",", "4", "2", "?")
    assert sentence.text == "Ça va, 42 ça?"


def test_nothing_to_say(letters):
    for text in ("12345", "東京", "... !", "- '", "<>"):
        for sentence in HubTokenizer.load(letters).sentences(text):
            assert (sentence.ids, sentence.tokens) == ((), ())


def test_empty_text_has_no_sentences(letters):
    tokenizer = HubTokenizer.load(letters)
    assert list(tokenizer.sentences("")) == list(tokenizer.sentences(" \n\t \n")) == []


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("symbols", [LETTERS, LETTERS + "<>"])
def test_special_words_and_broken_characters_stay_in_range(make, normalize, symbols):
    tokenizer = HubTokenizer.load(
        make(normalize=normalize, symbols=symbols), vocab_size=len(symbols)
    )
    for text in (
        "say <unk> and <pad> _ now",
        "<un<unk>k> x",
        "\ud800 lone \0 nul \x1b escape",
        "a" + "\u0301" * 50,
    ):
        for sentence in tokenizer.sentences(text):
            assert sentence.ids
            assert all(0 <= index < len(symbols) for index in sentence.ids)
            assert None not in sentence.tokens


def test_without_normalisation_capitals_are_named_not_unknown(make):
    folder = make(normalize=False)
    sentence = one(HubTokenizer.load(folder), "hello World")
    assert sentence.dropped == ("W",)
    assert "".join(sentence.tokens) == "hello orld"
    plain = VitsTokenizer.from_pretrained(folder)("hello world")["input_ids"]
    assert list(one(HubTokenizer.load(folder), "hello world").ids) == plain


def test_romanisation(make, monkeypatch):
    """Plain transformers reads uroman's tables, which takes seconds, at every call; we once."""
    tokenizer = HubTokenizer.load(make(is_uroman=True))
    text = "Привет 東京 hello"
    sentence = one(tokenizer, text)
    assert "".join(sentence.tokens) == "privet dongjing hello"
    built = []
    monkeypatch.setattr("uroman.Uroman", lambda *args: built.append(1))
    assert one(tokenizer, text) == sentence
    assert built == []


@pytest.mark.slow
def test_romanised_ids_of_plain_transformers(make):
    folder, text = make(is_uroman=True), "Привет 東京 hello"
    plain = VitsTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert list(one(HubTokenizer.load(folder), text).ids) == plain


def test_phonemes(make):
    folder = make(phonemize=True)
    tokenizer = HubTokenizer.load(folder)
    text = "Hello, Dr. Smith has 3 birch canoes!"
    sentence = one(tokenizer, text)
    assert "".join(sentence.tokens).startswith("həlˈoʊ, ")
    ours = tokenizer(text)[
        "input_ids"
    ]  # also makes phonemizer find the installed espeak-ng for the plain tokenizer
    assert list(sentence.ids) == VitsTokenizer.from_pretrained(folder)(text)["input_ids"] == ours
    assert sentence.dropped == ()
    # The two together are what the whole gives, less the blank that they share.
    ids = [s.ids for s in tokenizer.sentences("Good day. It rains.")]
    assert len(ids) == 2


def test_the_installed_espeak_is_used_whichever_way_the_tokenizer_is_called(make):
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper
    from phonemizer.phonemize import clear_backends_cache

    tokenizer = HubTokenizer.load(make(phonemize=True))
    EspeakWrapper.set_library("/nowhere/libespeak-ng.so")
    clear_backends_cache()
    assert len(tokenizer("hello")["input_ids"]) > 5
    assert EspeakWrapper.library() == espeakng_loader.get_library_path()
    EspeakWrapper.set_library("/nowhere/libespeak-ng.so")
    # It is read in a child process, which this one's settings do not reach.
    assert len(one(tokenizer, "hello").ids) > 5
    use_installed_espeak()


def test_phonemes_without_a_symbol_are_named(make):
    folder = make(phonemize=True, symbols=PHONEMES.replace("θ", ""))
    sentence = one(HubTokenizer.load(folder), "thin birch")
    assert sentence.dropped == ("θ",)
    assert "".join(sentence.tokens) == "ˈɪn bˈɜːtʃ"
    assert max(sentence.ids) < len(PHONEMES) - 1


def test_phonemes_from_many_threads(make):
    tokenizer = HubTokenizer.load(make(phonemize=True))
    texts = [f"{word} birch canoe" for word in ("one", "two", "three", "four", "five", "six")]
    alone = {text: one(tokenizer, text) for text in texts}
    together = {}
    threads = [
        threading.Thread(target=lambda t=text: together.update({t: one(tokenizer, t)}))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_call_gives_what_transformers_gives(letters):
    ours, plain = HubTokenizer.load(letters), VitsTokenizer.from_pretrained(letters)
    for options in ({"return_tensors": "pt"}, {}):
        assert {k: str(v) for k, v in ours("hello you", **options).items()} == {
            k: str(v) for k, v in plain("hello you", **options).items()
        }
    assert isinstance(ours.tokenizer, VitsTokenizer)


@pytest.mark.parametrize(
    "options",
    [{}, {"phonemize": True}, {"is_uroman": True}, {"normalize": False, "add_blank": False}],
)
def test_save_and_load(make, tmp_path, options):
    tokenizer = HubTokenizer.load(make(**options))
    tokenizer.save(str(tmp_path / "saved"))
    text = "hello there. and you"
    again = HubTokenizer.load(tmp_path / "saved", vocab_size=tokenizer.vocab_size)
    assert list(again.sentences(text)) == list(tokenizer.sentences(text))
    assert again.vocab_size == tokenizer.vocab_size
    ours = tokenizer("hello")["input_ids"]  # first: it finds espeak for transformers, too
    assert VitsTokenizer.from_pretrained(tmp_path / "saved")("hello")["input_ids"] == ours
    assert "/tmp" not in (tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8")


def test_hostile_vocabulary(make):
    folder = make()
    for vocab in (
        *({}, {"": 0}, {"a": -1, "b": 0}, {"a": 0, "b": 10**9}, {"a": "0"}, {"a": 0.0}),
        *({"a": True, "b": 0}, {"a": None}, {"a": 1}, {"x" * 100: 0}, {"\ud800": 0}),
    ):
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        with pytest.raises(InputError, match=r"vocab"):
            HubTokenizer.load(folder, vocab_size=38)


def test_hostile_settings(make):
    folder = make()
    settings = folder / "tokenizer_config.json"
    sound = settings.read_text(encoding="utf-8")
    for changes in (
        {"add_blank": "yes"},
        {"phonemize": 1},
        {"pad_token": ""},
        {"unk_token": {"content": ""}},
        {"unk_token": 7},
        {"added_tokens_decoder": {"5": {"content": ""}}},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"-1": {"content": "a"}}},
        {"added_tokens_decoder": {"99999999": {"content": "a"}}},
    ):
        settings.write_text(sound, encoding="utf-8")
        edit_json(settings, **changes)
        with pytest.raises(InputError):
            HubTokenizer.load(folder)


def test_settings_that_name_files_or_code_change_nothing(make):
    folder = make()
    expected = one(HubTokenizer.load(folder), "hello").ids
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        vocab_file="/etc/passwd",
        tokenizer_file="/etc/passwd",
        fast_tokenizer_files=["x"],
        chat_template="{{ 1 / 0 }}",
        extra_special_tokens={"a": "h"},
        name_or_path="/root",
        tokenizer_class="EvilTokenizer",
    )
    assert one(HubTokenizer.load(folder), "hello").ids == expected


SPLIT = [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    (
        "Dr. Smith paid 3.14 U.S. dollars, e.g. this. Next.",
        ["Dr. Smith paid 3.14 U.S. dollars, e.g. this.", "Next."],
    ),
    ("J. R. R. Tolkien wrote.", ["J. R. R. Tolkien wrote."]),
    ("Really?! Yes... ok… fine", ["Really?!", "Yes...", "ok…", "fine"]),
    ('"Good." She left.', ['"Good."', "She left."]),
    ("a\nb\r\n\r\nc", ["a", "b", "c"]),
    ("visit example.com now", ["visit example.com now"]),
    ("1. First. 2. Second.", ["1. First.", "2. Second."]),
    ("私は。あなたは！「はい。」そう", ["私は。", "あなたは！", "「はい。」", "そう"]),
    ("नमस्ते। आप कैसे हैं॥ ठीक", ["नमस्ते।", "आप कैसे हैं॥", "ठीक"]),
    ("ما اسمك؟ اسمي علي۔ نعم", ["ما اسمك؟", "اسمي علي۔", "نعم"]),
    ("Բարև։ Ինչպես", ["Բարև։", "Ինչպես"]),
    ("ကောင်း\u104b ဟုတ်", ["ကောင်း\u104b", "ဟုတ်"]),
    ("សួស្តី\u17d4 បាទ\u17d5 ទេ", ["សួស្តី\u17d4", "បាទ\u17d5", "ទេ"]),
    ("", []),
    (" . ", ["."]),
]


def test_split_sentences():
    for text, expected in SPLIT:
        assert split_sentences(text) == expected


def test_long_sentences_are_cut_and_nothing_is_lost():
    for text in (
        *("word, " * 300, "word " * 300, "a" * 1000, "字" * 1000, "字字字，" * 300),
        *("a\u0301" * 600, "\u0301" * 900, "x" * 399 + ". y"),
    ):
        for limit in (400, 50, 1):
            pieces = split_sentences(text, limit)
            assert max(map(len, pieces)) <= limit
            assert "".join("".join(pieces).split()) == "".join(text.split())


def test_cuts_fall_at_clauses_then_spaces_then_between_characters():
    assert all(piece.endswith(",") for piece in split_sentences("one two, " * 100, 100))
    assert all(
        piece.split() == ["word"] * len(piece.split())
        for piece in split_sentences("word " * 200, 99)
    )
    assert not any(piece.startswith("\u0301") for piece in split_sentences("a\u0301" * 300, 99))


def test_texts_that_invite_a_long_look_back():
    """Else a text of initials would take time that grows with its square."""
    for text in (
        *("J. " * 20_000, "no. " * 20_000, "x" * 50_000 + ". y", "1" * 50_000 + ". y"),
        ". " * 20_000,
    ):
        pieces = split_sentences(text)
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert max(map(len, pieces)) <= 400
