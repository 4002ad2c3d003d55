from __future__ import annotations

import pytest

from tests.healing.conftest import TEXTS
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice
from vits_prune.healing.corpus import training_texts
from vits_prune.synthesis.texts import load_calibration_texts, load_texts


def test_built_in_sentences_and_new_ones_of_their_words(tiny):
    texts = training_texts(tiny, None, 300, 1)
    assert len(texts) == 300
    assert set(load_calibration_texts()) <= set(texts)
    assert texts == training_texts(tiny, None, 300, 1)
    assert texts != training_texts(tiny, None, 300, 2)
    assert not set(texts) & set(load_texts(None, "all")), (
        "what quality is measured on is not learnt"
    )


def test_fewer_than_there_are(tiny):
    assert len(training_texts(tiny, None, 7, 0)) == 7


def test_a_users_sentences_are_all_there_and_their_words_make_more(tiny):
    texts = training_texts(tiny, TEXTS, 50, 0)
    assert len(texts) == 50
    assert set(TEXTS) <= set(texts)
    words = {word for text in TEXTS for word in text.split()}
    assert all(word in words for text in texts for word in text.rstrip(".").split())


def test_few_words_are_not_shuffled(tiny):
    assert sorted(training_texts(tiny, ["one two", "three"], 50, 0)) == ["one two", "three"]


def test_another_language_is_drawn_from_the_vocabulary(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "de", language="deu"))
    texts = training_texts(voice, None, 30, 3)
    assert len(set(texts)) == 30
    assert not set(texts) & set(load_calibration_texts())


def test_what_has_no_blanks_between_words_is_not_put_together_anew(tiny):
    thai = [
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 " * 30,
        "\u4f60\u597d \u4e16\u754c",
        "[[h\u0259l\u02c8o\u028a a b]] c",
    ]
    assert sorted(training_texts(tiny, thai, 50, 0)) == sorted(thai)
    texts = training_texts(tiny, [*TEXTS, *thai], 50, 0)
    assert len(texts) == 50
    assert all("[[" not in text and text.isascii() for text in set(texts) - set(thai))


def test_texts_that_are_left_out_are_counted(tiny, caplog):
    training_texts(tiny, TEXTS, 2, 0)
    assert f"{len(TEXTS) - 2} of {len(TEXTS)} texts are left out" in caplog.text
    caplog.clear()
    training_texts(tiny, None, 2, 0)
    training_texts(tiny, TEXTS, 20, 0)
    assert caplog.text == "", "built-in ones are nobody's"


def test_no_text_is_refused(tiny):
    with pytest.raises(InputError, match="no texts to learn from"):
        training_texts(tiny, ["", " "], 10, 0)
