"""The judge of checkpoints: on which sentences, how it scores, and what healing keeps by it."""

from __future__ import annotations

import logging
import pickle

import pytest

import vits_prune
from tests.healing.conftest import (  # noqa: F401 (fixtures)
    DATA,
    QUICK,
    TEXTS,
    little_text,
    same_weights,
    sparse,
    tiny,
    tiny_folder,
)
from vits_prune import InputError, PruneSpec
from vits_prune.healing.teacher import training_texts
from vits_prune.study import judge as module
from vits_prune.study.judge import (
    CheckpointJudge,
    Judgement,
    JudgeSettings,
    judge_of,
    score_of,
    tuning_texts,
)
from vits_prune.study.knee import usual_limits
from vits_prune.synthesis.texts import load_texts

ONE_TEXT = JudgeSettings(texts=1)


@pytest.fixture
def quick(monkeypatch):
    """Without a recogniser: a tiny voice's noise has no words."""
    monkeypatch.setattr(module, "JUDGED_FAMILIES", ("rhythm", "naturalness"))


@pytest.fixture
def german(monkeypatch):
    """Every voice speaks German."""
    for place in ("study.judge", "healing.teacher", "study.evaluation"):
        monkeypatch.setattr(f"vits_prune.{place}.spoken_language", lambda voice: "de")


@pytest.fixture
def scored(monkeypatch):
    """Scores by step, without measuring."""
    scores = {2: 4.0, 4: 1.0, 6: 2.0, 8: 3.0}
    monkeypatch.setattr(
        CheckpointJudge,
        "judgement",
        lambda self, step, voice, of: Judgement(step, of, {}, scores[step]),
    )


def test_evaluations_lie_evenly_and_end_with_the_training():
    for of, count, found in (
        (615, 4, [154, 308, 462, 615]),
        (20, 5, [4, 8, 12, 16, 20]),
        (378, 1, [378]),
        (3, 5, [1, 2, 3]),
        (10, 0, []),
        (1, 4, [1]),
    ):
        assert [
            step for step in range(1, of + 1) if CheckpointJudge(None, count).wants(step, of)
        ] == found
    assert not any(CheckpointJudge(None, 4).wants(step, None) for step in range(1, 20))


def test_a_score_counts_limits_and_no_improvement():
    for changes, score in (
        ({"cer": 0.03, "dnsmos_ovrl": -0.05, "duration_ratio": 9.0}, 2.0),
        ({"cer": -0.5, "dnsmos_ovrl": 0.3}, 0.0),
        ({"dnsmos_ovrl": -0.2}, 2.0),
        ({"duration_ratio": 1.0}, None),
        # Where Distill-MOS was measured, DNSMOS does not count.
        ({"distillmos": -0.2, "dnsmos_ovrl": 0.0, "visqol": -0.125}, 2.5),
        ({"visqol": 0.3}, 0.0),
        # A vowel more or less does not choose between voices, three garbled sentences do.
        ({"cer": -0.021, "dnsmos_ovrl": 0.095}, 0.0),
        ({"cer": 0.005, "dnsmos_ovrl": 0.063}, 0.0),
        ({"cer": 0.255}, 12.5),
        ({"cer": 0.02}, 1.0),
        ({"cer": float("nan"), "dnsmos_ovrl": 0.0}, float("inf")),
        ({"cer": float("inf")}, float("inf")),
    ):
        assert score_of(changes) == (None if score is None else pytest.approx(score))


def test_english_is_judged_on_the_tuning_half(tiny):  # noqa: F811
    found = tuning_texts(tiny, 3, ["mine"])
    assert found.texts == load_texts(3, "tuning")
    assert found.words == "3 tuning sentences"


def test_other_languages_are_judged_on_own_texts_or_random_ones(tiny, german):  # noqa: F811
    assert tuning_texts(tiny, 2, [" ", *TEXTS]).texts == TEXTS[:2]
    drawn = tuning_texts(tiny, 4, None, seed=1)
    assert len(drawn.texts) == 4
    learnt = training_texts(tiny, None, 20, 1)
    assert not set(drawn.texts) & set(learnt), "none of them is learnt from"
    assert "drawn" in drawn.words


def test_numbers_out_of_range_are_refused(tiny):  # noqa: F811
    for count in (0, -1, True, 2.5):
        with pytest.raises(InputError, match="whole number from 1"):
            tuning_texts(tiny, count)
        with pytest.raises(InputError, match="whole number from 1"):
            JudgeSettings(texts=count)
    for count in (-1, 1_001, True, 2.5):
        with pytest.raises(InputError, match="whole number from 0 to 1000"):
            JudgeSettings(count)


def test_another_language_is_measured_as_far_as_possible(tiny, sparse, german):  # noqa: F811
    judge = judge_of(tiny, TEXTS, JudgeSettings(2, 1))
    assert any("does not know the language 'de'" in why for why in judge.unmeasured)
    assert judge.seconds > 0
    assert set(judge.reference.listener.families) == {"naturalness", "closeness", "rhythm"}
    judge = pickle.loads(pickle.dumps(judge))
    found = judge.judgement(6, sparse, 12)
    assert found.score >= 0
    judged = {limit.metric for limit in usual_limits()} - {"cer"}
    assert set(found.changes()) == {*judged, "duration_ratio"}


def test_a_voice_that_cannot_be_measured_has_a_judge_who_says_why(tiny, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "load_texts", lambda *_: ("🙂",))
    judge = judge_of(tiny, None, JudgeSettings(2, 1))
    assert judge.reference is None
    (why,) = judge.unmeasured
    assert why.startswith("Checkpoints are not measured, and the last one is kept: ")
    assert judge.score(12, 12, tiny) is None
    with pytest.raises(InputError, match="was not measured"):
        judge.judgement(12, tiny)


def test_python_keeps_the_best_checkpoint_by_default(tiny, sparse, quick, scored):  # noqa: F811
    healed = vits_prune.heal(sparse, tiny, QUICK, data=DATA, judge=ONE_TEXT)
    assert (healed.step, healed.score) == (4, 1.0)
    spec = PruneSpec(amount=0.5)
    *_, (_, healed) = vits_prune.heal_steps(tiny, spec, QUICK, data=DATA, judge=ONE_TEXT)
    assert healed.step == 4


def test_without_a_judge_the_last_checkpoint_is_kept(tiny, sparse):  # noqa: F811
    for judge in (None, JudgeSettings(evaluations=0)):
        healed = vits_prune.heal(sparse, tiny, QUICK, data=DATA, judge=judge)
        assert (healed.step, healed.score) == (8, None)
    assert same_weights(healed.voice, sparse)


def test_python_is_warned_of_what_is_not_measured(tiny, sparse, german, scored, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING):
        healed = vits_prune.heal(sparse, tiny, QUICK, data=DATA, judge=ONE_TEXT)
    assert "does not know the language 'de'" in caplog.text
    assert healed.step == 4
