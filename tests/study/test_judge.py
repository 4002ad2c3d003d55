"""The judge of checkpoints: its sentences, what it cannot measure, and the checkpoint it keeps."""

from __future__ import annotations

import logging
import pickle

import pytest

import vits_prune
from tests.healing.conftest import QUICK, TEXTS, same_weights
from vits_prune import InputError, PruneSpec, prune
from vits_prune.healing.corpus import training_texts
from vits_prune.study import judge as module
from vits_prune.study.judge import CheckpointJudge, Judgement, judge_of, tuning_texts
from vits_prune.synthesis.texts import load_texts


@pytest.fixture(scope="module")
def pruned(tiny):
    return prune(tiny, PruneSpec(amount=0.5))


@pytest.fixture
def quick(monkeypatch):
    """Without a recogniser: a tiny voice's noise has no words."""
    monkeypatch.setattr(module, "METRICS", ("rhythm", "naturalness"))


@pytest.fixture
def german(monkeypatch):
    """Every voice speaks German."""
    for place in ("study.judge", "healing.corpus", "study.evaluation"):
        monkeypatch.setattr(f"vits_prune.{place}.spoken_language", lambda voice: "de")


def scored(monkeypatch, scores):
    monkeypatch.setattr(
        CheckpointJudge,
        "judgement",
        lambda self, step, voice, of: Judgement(step, of, {}, scores[step]),
    )


def test_english_is_judged_on_the_tuning_half(tiny):
    found = tuning_texts(tiny, 3, ["mine"])
    assert found.texts == load_texts(3, "tuning")
    assert found.words == "3 tuning sentences"


def test_other_languages_are_judged_on_own_texts_or_on_draws(tiny, german):
    assert tuning_texts(tiny, 2, [" ", *TEXTS]).texts == TEXTS[:2]
    drawn = tuning_texts(tiny, 4, None, seed=1)
    assert len(drawn.texts) == 4
    assert not set(drawn.texts) & set(training_texts(tiny, None, 20, 1)), (
        "none of them is learnt from"
    )
    assert "drawn" in drawn.words


@pytest.mark.parametrize("count", [0, -1, True, 2.5])
def test_a_number_of_sentences_out_of_range(tiny, count):
    with pytest.raises(InputError, match="whole number from 1"):
        tuning_texts(tiny, count)


def test_another_language_is_measured_as_far_as_can_be_and_the_rest_is_said(tiny, pruned, german):
    judge = judge_of(tiny, TEXTS, 2, 1)
    (why,) = judge.unmeasured
    assert "does not know the language 'de'" in why
    assert judge.reserve > 0
    assert set(judge.reference.listener.families) == {"naturalness", "rhythm"}
    judge = pickle.loads(pickle.dumps(judge))
    found = judge.judgement(6, pruned, 12)
    assert found.score >= 0
    assert set(found.changes()) == {"dnsmos_ovrl", "duration_ratio"}


def test_what_cannot_be_said_is_not_measured_and_why_is_said(tiny):
    judge = judge_of(tiny, None, 2, 1)
    assert judge.unmeasured == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_texts", lambda *_: ("🙂",))
        judge = judge_of(tiny, None, 2, 1)
    assert judge.reference is None
    assert judge.unmeasured[0].startswith(
        "Checkpoints are not measured, and the last one is kept: "
    )
    assert judge(12, tiny.with_weights({}, recipe={"healed": [{"of": 12}]})) is None


def test_python_keeps_the_best_checkpoint_by_default(tiny, pruned, quick, monkeypatch):
    scored(monkeypatch, {3: 4.0, 6: 1.0, 9: 2.0, 12: 3.0})
    healed = vits_prune.heal(pruned, tiny, TEXTS, QUICK, evaluation_texts=1)
    assert healed.recipe["healed"][0]["steps"] == 6
    *_, (_, healed) = vits_prune.heal_steps(
        tiny, PruneSpec(amount=0.5), QUICK, texts=TEXTS, evaluation_texts=1
    )
    assert healed.recipe["healed"][0]["steps"] == 6


def test_without_evaluations_the_last_checkpoint_is_kept(tiny, pruned):
    healed = vits_prune.heal(pruned, tiny, TEXTS, QUICK, evaluations=0)
    assert healed.recipe["healed"][0]["steps"] == 12
    assert same_weights(healed, pruned)


def test_python_is_warned_of_what_is_not_measured(tiny, pruned, german, monkeypatch, caplog):
    scored(monkeypatch, {3: 4.0, 6: 1.0, 9: 2.0, 12: 3.0})
    with caplog.at_level(logging.WARNING):
        healed = vits_prune.heal(pruned, tiny, TEXTS, QUICK, evaluation_texts=1)
    assert "does not know the language 'de'" in caplog.text
    assert healed.recipe["healed"][0]["steps"] == 6


def test_evaluations_out_of_range(tiny):
    with pytest.raises(InputError, match="whole number from 0"):
        judge_of(tiny, None, -1)
