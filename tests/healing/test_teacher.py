from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.healing.conftest import TEXTS
from tests.pruning.conftest import KINDS
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice, speak
from vits_prune.healing import teacher
from vits_prune.healing.teacher import TeacherSpeech, decoder_context, training_texts
from vits_prune.synthesis.texts import load_calibration_texts, load_texts

FIELDS = [field.name for field in dataclasses.fields(teacher.TeacherUtterance)]


def equal(one, other):
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesson_is_what_the_voice_says_with_that_noise(families, kind):
    voice = families[kind]
    made = TeacherSpeech(voice, TEXTS, seed=5, segment=16).first(1)[0]
    said = speak(
        voice if not voice.speakers else voice.with_speaker(made.speaker), TEXTS[0], seed=5
    )
    assert made.ids.tolist() == list(said.sentences[0].ids)
    assert made.durations.tolist() == said.durations.tolist()
    assert made.frames == said.durations.sum()
    reach = decoder_context(voice.model.config) * voice.hop_length
    waveform = made.waveform[: len(said.waveform)].numpy()
    assert len(waveform) == len(said.waveform)
    inner = slice(reach, len(waveform) - reach)
    assert len(waveform[inner]) > 0
    np.testing.assert_allclose(waveform[inner], said.waveform[inner], atol=1e-5)


def test_they_are_the_same_every_time_and_in_any_portion(tiny):
    one, other = (TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16) for _ in range(2))
    one.first(3)
    one.first(20)
    other.first(20)
    assert len(one.first(20)) == 20
    assert all(equal(a, b) for a, b in zip(one.first(20), other.first(20), strict=True))
    assert not equal(one.first(1)[0], TeacherSpeech(tiny, TEXTS, seed=2, segment=16).first(1)[0])


def test_on_disk_they_are_read_again_and_what_is_damaged_is_made_anew(tiny, tmp_path):
    first = TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16, folder=tmp_path).first(20)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    times = [path.stat().st_mtime_ns for path in files]
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-3] + b"abc")
    again = TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16, folder=tmp_path).first(20)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert files[0].stat().st_mtime_ns == times[0]
    assert files[1].stat().st_mtime_ns != times[1]


def test_another_voice_text_or_seed_has_files_of_its_own(tiny, sparse, tmp_path):
    names = {
        TeacherSpeech(voice, texts, seed=seed, segment=segment).digest
        for voice, texts, seed, segment in (
            (tiny, TEXTS, 1, 16),
            (sparse, TEXTS, 1, 16),
            (tiny, TEXTS[:2], 1, 16),
            (tiny, TEXTS, 2, 16),
            (tiny, TEXTS, 1, 32),
        )
    }
    assert len(names) == 5


def test_what_the_voice_says_at_another_pace_is_another_lesson(tiny):
    names = {TeacherSpeech(tiny, TEXTS, seed=1, segment=16).content}
    for name in ("noise_scale", "speaking_rate", "noise_scale_duration"):
        other = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model))
        setattr(other.model, name, 0.9 * float(getattr(tiny.model, name)))
        names.add(TeacherSpeech(other, TEXTS, seed=1, segment=16).content)
    assert len(names) == 4


def test_a_full_disk_costs_no_more_than_making_them_anew(tiny, tmp_path, caplog):
    (tmp_path / "lessons").write_text("a file in the way")
    found = TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16, folder=tmp_path / "lessons")
    assert all(
        equal(a, b)
        for a, b in zip(
            found.first(20),
            TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16).first(20),
            strict=True,
        )
    )
    assert caplog.text.count("kept in memory alone") == 1
    found.tidy()


def test_other_lessons_go(tiny, tmp_path):
    TeacherSpeech(tiny, TEXTS, seed=1, segment=16, folder=tmp_path).first(1)
    ours = TeacherSpeech(tiny, TEXTS, seed=2, segment=16, folder=tmp_path)
    ours.first(1)
    (tmp_path / "mine").mkdir()
    ours.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ours.digest, "mine"])
    assert [path.name for path in (tmp_path / ours.digest).iterdir()] == [
        "lessons-0000.safetensors"
    ]


def test_no_more_are_held_than_memory_allows(tiny, monkeypatch):
    size = TeacherSpeech(tiny, TEXTS, seed=1, segment=16).first(1)[0].bytes
    monkeypatch.setattr(teacher, "MAX_SPEECH_BYTES", 3 * size)
    found = TeacherSpeech(tiny, TEXTS * 4, seed=1, segment=16)
    there = found.first(24)
    assert 1 <= len(there) < 24
    assert len(found) == len(there)
    assert sum(lesson.bytes for lesson in there) <= 3 * size


def test_every_second_sentence_is_the_chosen_speakers(families):
    voice = families["speakers"]
    found = TeacherSpeech(voice, TEXTS * 6, seed=0, segment=16).first(36)
    assert all(lesson.speaker == voice.speaker for lesson in found[::2])
    assert {lesson.speaker for lesson in found} == {0, 1, 2}
    own = TeacherSpeech(voice, TEXTS, seed=0, segment=16, speakers="own").first(6)
    assert {lesson.speaker for lesson in own} == {voice.speaker}


def test_texts_that_are_too_long_are_passed_over_and_counted(tiny, caplog):
    assert len(TeacherSpeech(tiny, ["a" * 300, "a short one"], seed=0, segment=16)) == 1
    assert "1 of 2 sentences have more than 400 symbols" in caplog.text
    with pytest.raises(InputError, match="more than 400 symbols: shorten them"):
        TeacherSpeech(tiny, ["a" * 300], seed=0, segment=16)


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
