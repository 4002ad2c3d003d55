from __future__ import annotations

import pickle

import pytest

from vits_prune.healing import Told
from vits_prune.healing.plan import is_check, score


def test_what_is_told_can_be_pickled_and_not_be_changed():
    told = Told(3, None, {"mel": 0.5, "total": 1.0}, 2.5)
    again = pickle.loads(pickle.dumps(told))
    assert again == told
    assert (again.step, again.of, dict(again.losses), again.seconds) == (
        3,
        None,
        {"mel": 0.5, "total": 1.0},
        2.5,
    )
    with pytest.raises(TypeError):
        again.losses["mel"] = 0.0


def test_what_is_told_does_not_change_with_what_it_was_made_of():
    losses = {"mel": 0.5}
    told = Told(1, 2, losses, 0.0)
    losses["mel"] = 0.0
    assert told.losses["mel"] == 0.5


@pytest.mark.parametrize(
    ("of", "checks", "found"),
    [
        (615, 4, [154, 308, 462, 615]),
        (20, 5, [4, 8, 12, 16, 20]),
        (378, 1, [378]),
        (3, 5, [1, 2, 3]),
        (10, 0, []),
        (1, 4, [1]),
    ],
)
def test_checks_lie_evenly_and_end_with_the_training(of, checks, found):
    assert [step for step in range(1, of + 1) if is_check(step, of, checks)] == found


def test_while_the_end_is_not_known_nothing_is_checked():
    assert not any(is_check(step, None, 4) for step in range(1, 20))


def test_a_score_counts_limits_and_no_improvement():
    limits = {"cer": 0.02, "dnsmos_ovrl": -0.1}
    assert score(
        {"cer": 0.03, "dnsmos_ovrl": -0.05, "duration_ratio": 9.0}, limits
    ) == pytest.approx(2.0)
    assert score({"cer": -0.5, "dnsmos_ovrl": 0.3}, limits) == 0.0
    assert score({"dnsmos_ovrl": -0.2}, limits) == pytest.approx(2.0)
    assert score({"duration_ratio": 1.0}, limits) is None


def test_a_vowel_more_or_less_does_not_choose_between_voices():
    limits = {"cer": 0.02, "dnsmos_ovrl": -0.1}
    assert (
        score({"cer": -0.021, "dnsmos_ovrl": 0.095}, limits)
        == score({"cer": 0.005, "dnsmos_ovrl": 0.063}, limits)
        == 0.0
    )
    assert score({"cer": 0.255}, limits) == pytest.approx(
        12.5
    )  # but three garbled sentences of ten do
    assert score({"cer": 0.02}, limits) == pytest.approx(1.0)


def test_what_is_no_number_is_the_worst_score():
    limits = {"cer": 0.02, "dnsmos_ovrl": -0.1}
    assert score({"cer": float("nan"), "dnsmos_ovrl": 0.0}, limits) == float("inf")
    assert score({"cer": float("inf")}, limits) == float("inf")
