"""Figures and verdicts from made-up pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vits_prune.measure.quality import (
    FAMILIES,
    METRICS,
    NO_DIFFERENCE,
    NO_FLOOR,
    TOO_FEW,
    columns,
    conclude,
)


def means(values):
    return [(float(value), 1.0) for value in values]


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(3.0, 0.3, 20)


def test_the_registry():
    assert {metric.family for metric in METRICS.values()} == set(FAMILIES)
    assert all(name == metric.name for name, metric in METRICS.items())


@pytest.mark.parametrize(
    ("name", "change", "verdict"),
    [
        ("dnsmos_ovrl", -0.5, "worse"),
        ("dnsmos_ovrl", 0.5, "better"),
        ("dnsmos_ovrl", -0.09, NO_DIFFERENCE),
        ("dnsmos_ovrl", 0.0, NO_DIFFERENCE),
        ("wer", 0.5, "worse"),
        ("wer", -0.5, "better"),
        ("lufs", 0.5, "higher"),
        ("lufs", -0.5, "lower"),
    ],
)
def test_a_difference_must_clear_the_floor(scores, name, change, verdict):
    """The other seeds move the mean by +0.1 and -0.03: the floor is 0.1 in both directions."""
    figure = conclude(
        METRICS[name],
        means(scores),
        means(scores + change),
        [means(scores + 0.1), means(scores - 0.03)],
    )
    assert figure.verdict == verdict
    assert figure.difference.value == pytest.approx(change)
    assert (figure.floor.low, figure.floor.high) == (pytest.approx(-0.1), pytest.approx(0.1))
    assert figure.floor.values == (pytest.approx(0.1), pytest.approx(-0.03))
    assert figure.original.value == pytest.approx(scores.mean())


def test_an_interval_that_reaches_into_the_floor_is_no_difference(scores):
    scattered = scores + np.random.default_rng(1).normal(-0.3, 1.0, 20)
    figure = conclude(
        METRICS["dnsmos_ovrl"], means(scores), means(scattered), [means(scores + 0.1)]
    )
    assert figure.difference.low < -0.1 < figure.difference.high
    assert figure.verdict == NO_DIFFERENCE


@pytest.mark.parametrize(
    ("distance", "verdict"),
    [(0.5, NO_DIFFERENCE), (1.0, NO_DIFFERENCE), (1.2, NO_DIFFERENCE), (1.3, "worse")],
)
def test_a_distance_must_pass_the_farthest_other_seed(distance, verdict):
    """Nearer than another seed is never called better."""
    spread = np.random.default_rng(0).normal(0, 0.01, 20)
    figure = conclude(
        METRICS["mcd_db"],
        None,
        means(spread + distance),
        [means(spread + 1.0), means(spread + 1.2)],
    )
    assert figure.verdict == verdict
    assert (figure.floor.low, figure.floor.high) == (
        pytest.approx(1.0, abs=0.01),
        pytest.approx(1.2, abs=0.01),
    )
    assert figure.difference.value == pytest.approx(distance - 1.2)
    assert figure.original is None


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.0, NO_DIFFERENCE), (1.04, NO_DIFFERENCE), (1.2, "higher"), (0.8, "lower")],
)
def test_a_shift_is_against_its_neutral_value(ratio, verdict):
    seconds = np.random.default_rng(0).uniform(1, 4, 20)
    pairs = [(ratio * s, s) for s in seconds]
    figure = conclude(METRICS["duration_ratio"], None, pairs, [[(0.95 * s, s) for s in seconds]])
    assert figure.verdict == verdict
    assert figure.pruned.value == pytest.approx(ratio)
    assert figure.difference.value == pytest.approx(ratio - 1)
    assert (figure.floor.low, figure.floor.high) == (pytest.approx(-0.05), pytest.approx(0.05))


def test_without_enough_to_say(scores):
    one = conclude(METRICS["cer"], means(scores[:1]), means(scores[:1] + 1), [means(scores[:1])])
    assert one.verdict == TOO_FEW
    for name in ("cer", "mcd_db", "duration_shift"):
        assert conclude(METRICS[name], means(scores), means(scores), []).verdict == NO_FLOOR
        assert conclude(METRICS[name], None, [(0.0, 0.0)], []) is None


@pytest.mark.parametrize("name", ["wer", "mcd_db", "duration_ratio"])
def test_rows_have_the_same_columns_whatever_is_known(scores, name):
    full = conclude(METRICS[name], means(scores), means(scores), [means(scores)])
    bare = conclude(METRICS[name], means(scores[:1]), means(scores[:1]), [])
    assert tuple(full.to_row()) == tuple(bare.to_row()) == columns(METRICS[name])
    assert json.loads(json.dumps(full.to_dict()))["metric"] == name
