"""Which words of a text a limit of length cut off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.voices.hf_factory import make_checkpoint
from tests.voices.piper_factory import TINIEST, make_voice
from vits_prune import compare, load_voice, speak
from vits_prune.cli.main import main
from vits_prune.measure.utterances import rhythm_failures
from vits_prune.study.comparison import what_was_lost
from vits_prune.synthesis import inference
from vits_prune.synthesis import speak as speaking
from vits_prune.synthesis.speak import Delivery, Speech, SpokenSentence, predict_rhythm


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A voice of 1,000 samples a second, so that a minute of it is soon spoken."""
    voice = load_voice(make_checkpoint(tmp_path_factory.mktemp("slow") / "tiny"))
    return dataclasses.replace(voice, sampling_rate=1_000)


@pytest.fixture
def even(monkeypatch):
    """Let every token take e**6 frames, so that a minute of `slow` ends in the tenth token."""

    def durations(model, hidden, *_):
        return torch.full((1, 1, hidden.shape[2]), 6.0)

    monkeypatch.setattr(inference, "log_durations", durations)


def sentence(text: str, tokens: list[str], spoken: int) -> SpokenSentence:
    """Return a sentence of which the first tokens have a frame each."""
    frames = np.array([1] * spoken + [0] * (len(tokens) - spoken))
    return SpokenSentence(text, tuple(tokens), frames, ())


@pytest.mark.parametrize(
    ("text", "tokens", "spoken", "lost"),
    [
        ("go on now", [*"go on now"], 9, ""),
        ("go on now", [*"go on now"], 6, "now"),
        ("go on now", [*"go on now"], 5, "now"),
        ("go on now", [*"go on now"], 4, "on now"),
        ("go on now", [*"go on now"], 0, "go on now"),
        ("go on now", ["", "g", "", "o", "", " ", "", *"on now"], 9, "now"),
        ("— Go, on… now!", [*"go, on now!"], 6, "now!"),
        ("a 1,000 men", [*"ə θaʊzənd mɛn"], 9, "men"),
        # Joined words: three of four are taken for spoken once two of three are.
        ("in the end no", [*"ɪnðɪ ɛnd noʊ"], 8, "end no"),
        ("字词句。", ["", "字", "", "词", "", "句"], 4, "句。"),
        ("字词句。", [*"tsɹ̩ tsʰɹ̩ tɕyː"], 11, "句。"),
    ],
)
def test_the_words_without_a_frame_are_named(text, tokens, spoken, lost):
    assert sentence(text, tokens, spoken).unspoken == lost


def test_a_sentence_that_reaches_the_limit_says_what_was_lost(slow, even):
    speech = speak(slow, "go on now then. go. one two three")
    assert speech.cut_short
    assert speech.unspoken == ("now then.", "two three")


def test_what_comes_after_the_longest_speech_is_lost_whole(slow, even, monkeypatch):
    monkeypatch.setattr(speaking, "MAX_SPEECH_SECONDS", 60.0)
    assert speak(slow, "go on now then. go. no").unspoken == ("now then.", "go.", "no")


def test_words_of_phonemes_are_found_in_the_text(tmp_path, monkeypatch):
    voice = load_voice(make_voice(tmp_path, TINIEST))
    text = "the morning was grey and boats lay still near harbours"
    [found] = voice.tokenizer.sentences(text)
    whole = SpokenSentence(found.text, found.tokens, np.ones(len(found.ids), int), found.ids)
    words = text.split()
    cuts = {
        dataclasses.replace(
            whole, durations=(np.arange(len(found.ids)) < count).astype(int)
        ).unspoken
        for count in range(len(found.ids) + 1)
    }
    assert cuts == {" ".join(words[start:]) for start in range(len(words) + 1)}


@pytest.mark.parametrize("rate", [0.25, 0.5, 2.0])
def test_slow_speech_may_last_longer(slow, monkeypatch, rate):
    def durations(model, hidden, *_):  # fifty seconds at the voice's own rate
        return torch.full((1, 1, hidden.shape[2]), np.log(50 * 62.5 / hidden.shape[2]))

    monkeypatch.setattr(inference, "log_durations", durations)
    speech = predict_rhythm(slow, "the birch canoe", delivery=Delivery(speaking_rate=rate))
    assert not speech.cut_short
    assert speech.durations.sum() == pytest.approx(50 * 62.5 / rate, rel=0.02)


def said(*lost: str, cut: bool = False) -> Speech:
    sentences = tuple(sentence(f"so {one}", [*f"so {one}"], 3) for one in lost)
    return Speech(np.zeros(9, np.float32), 100, np.ones(9, int), 1, {}, sentences, (), cut)


def test_the_pruned_voice_is_blamed_alone_only_where_the_original_was_whole():
    ran_away = "The pruned voice's durations ran away: a sentence was cut at the longest speech."
    longer = "A sentence is longer than the longest speech and was cut: write shorter ones."
    whole, one, two = said(), said("it goes", cut=True), said("it", "we go", cut=True)
    assert list(what_was_lost(whole, whole)) == []
    assert list(what_was_lost(whole, one)) == [
        ran_away,
        "The pruned voice did not say “it goes”.",
    ]
    assert list(what_was_lost(one, whole)) == [longer, "The original did not say “it goes”."]
    assert list(what_was_lost(one, one)) == [longer, "Neither voice said “it goes”."]
    assert list(what_was_lost(one, two)) == [
        longer,
        "The original did not say “it goes”.",
        "The pruned voice did not say “it”, “we go”.",
    ]
    long = said(*["word " * 30] * 5, cut=True)
    [_, words] = what_was_lost(long, long)
    shown = f"“{'word ' * 12}…”"
    assert words == f"Neither voice said {shown}, {shown}, {shown} and 2 more."


def test_a_runaway_says_what_was_lost():
    [failure] = rhythm_failures(1.2, True, ["it goes"])
    length = "1.20 times the original's time"
    assert failure.detail == f"{length}, ended at the limit: “it goes” not said"


def test_a_comparison_says_it_as_text_as_json_and_on_the_command_line(
    slow, even, monkeypatch, capsys, tmp_path
):
    found = compare(slow, slow, "go on now then", runs=1)
    assert "Neither voice said “now then”." in str(found)
    audio = found.report()["audio"]
    assert audio["original"]["unspoken"] == audio["pruned"]["unspoken"] == ["now then"]
    monkeypatch.setattr("vits_prune.cli.prune_commands.load", lambda options: slow)
    line = ["compare", "--voice", "x", "--text", "go on now then", "--runs", "1", "--amount", "0.1"]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    assert "Neither voice said “now then”." in capsys.readouterr().out
