"""Figures and verdicts from made-up pairs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import bootstrap

from vits_prune.measure.quality import (
    FAMILIES,
    METRICS,
    NO_DIFFERENCE,
    NO_FLOOR,
    NOT_MEASURED,
    TOO_FEW,
    UNDECIDED,
    Interval,
    bootstrap_difference,
    bootstrap_ratio,
    claim,
    columns,
    conclude,
    strictest,
)


def bootstrap_mean(values):
    return bootstrap_ratio([(float(value), 1.0) for value in values])


@pytest.fixture
def errors():
    """Errors and words of 25 sentences."""
    generator = np.random.default_rng(5)
    words = generator.integers(4, 14, 25)
    return [(float(generator.binomial(n, 0.2)), float(n)) for n in words]


def ends_by_scipy(statistic, *samples):
    result = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    )
    return result.confidence_interval


def test_a_ratio_agrees_with_scipy(errors):
    found = bootstrap_ratio(errors, seed=3)
    above, below = np.array(errors).T
    expected = ends_by_scipy(lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), above, below)
    width = expected.high - expected.low
    assert found.value == pytest.approx(above.sum() / below.sum())
    assert found.count == 25
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)


def test_a_difference_is_paired(errors):
    """The difficulty of a sentence cancels: the interval is narrower than that of either ratio."""
    worse = [(above + (i % 5 == 0), below) for i, (above, below) in enumerate(errors)]
    found = bootstrap_difference(errors, worse, seed=3)
    a, n = np.array(errors).T
    b, _ = np.array(worse).T
    expected = ends_by_scipy(
        lambda a, b, n, axis: (b.sum(axis=axis) - a.sum(axis=axis)) / n.sum(axis=axis), a, b, n
    )
    width = expected.high - expected.low
    assert found.value == pytest.approx(5 / n.sum())
    assert found.low == pytest.approx(expected.low, abs=0.08 * width)
    assert found.high == pytest.approx(expected.high, abs=0.08 * width)
    alone = bootstrap_ratio(errors, seed=3)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)


def test_a_mean_covers_the_truth_as_often_as_it_says():
    """95% nominal; the percentile bootstrap of 30 values is known to fall a little short."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        found = bootstrap_mean(generator.normal(2.0, 1.0, 30))
        inside += found.low <= 2.0 <= found.high
    assert 0.89 <= inside / 300 <= 0.98


def test_the_seed_decides(errors):
    assert bootstrap_ratio(errors, 1) == bootstrap_ratio(errors, 1)
    assert bootstrap_ratio(errors, 1) != bootstrap_ratio(errors, 2)
    assert bootstrap_ratio(errors, 1).value == bootstrap_ratio(errors, 2).value


def test_sentences_that_could_not_be_measured_count_for_nothing(errors):
    gaps = [*errors, (0.0, 0.0), (0.0, 0.0)]
    found = bootstrap_ratio(gaps)
    assert found.value == bootstrap_ratio(errors).value
    assert found.count == 25
    assert bootstrap_difference(gaps, [*errors, (1.0, 1.0), (0.0, 0.0)]).count == 25
    sparse = bootstrap_ratio(
        [(1.0, 2.0), (0.0, 0.0), (1.0, 4.0)]
    )  # some resamples draw only the one that has nothing
    assert sparse.low == 0.25
    assert sparse.high == 0.5


def test_too_little_for_an_interval():
    assert bootstrap_mean([]) is None
    assert bootstrap_ratio([(0.0, 0.0)]) is None
    assert bootstrap_difference([(1.0, 1.0)], [(0.0, 0.0)]) is None
    assert bootstrap_mean([4.0]) == Interval(4.0, None, None, 1)


def test_no_spread_is_an_interval_of_one_point():
    assert bootstrap_mean([0.1] * 7) == Interval(
        pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 7
    )
    same = [(1.0, 3.0), (2.0, 7.0), (0.0, 5.0)]
    assert bootstrap_difference(same, same) == Interval(0.0, 0.0, 0.0, 3)


@pytest.mark.parametrize("pairs", [[(float("nan"), 1.0)], [(1.0, float("inf"))], [(1.0, -1.0)]])
def test_what_is_not_a_number_is_refused(pairs):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_ratio(pairs)


def test_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="same sentences"):
        bootstrap_difference([(1.0, 1.0)], [])


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


def test_an_interval_that_reaches_into_the_floor_decides_nothing(scores):
    scattered = scores + np.random.default_rng(1).normal(-0.3, 1.0, 20)
    figure = conclude(
        METRICS["dnsmos_ovrl"], means(scores), means(scattered), [means(scores + 0.1)]
    )
    assert figure.difference.low < -0.1 < figure.difference.high
    assert figure.verdict == UNDECIDED


def test_a_small_floor_does_not_make_a_small_margin(scores):
    """0.06 less than the original: more than another seed does, and less than matters."""
    noise = np.random.default_rng(1).normal(0, 0.02, 20)
    noise -= noise.mean()
    moved, seed = means(scores - 0.06 + noise), [means(scores + 0.001)]
    assert conclude(METRICS["distillmos"], means(scores), moved, seed).verdict == "worse"
    scattered = means(scores - 0.02 + 5 * noise)
    figure = conclude(METRICS["distillmos"], means(scores), scattered, seed)
    assert figure.margin == 0.1
    assert figure.difference.low < -0.001
    assert figure.verdict == NO_DIFFERENCE
    wide = [means(scores - 0.4)]
    assert conclude(METRICS["distillmos"], means(scores), scattered, wide).margin == (
        pytest.approx(0.4)
    )


def test_no_difference_is_rarely_claimed_of_a_difference_as_large_as_the_margin():
    """Two one-sided tests of 2.5% each; percentile bootstraps of 20 sentences are a bit narrow."""
    generator, claimed, rounds = np.random.default_rng(3), 0, 400
    for _ in range(rounds):
        scores = generator.normal(4.0, 0.3, 20)
        pruned = scores - 0.1 + generator.normal(0, 0.1, 20)
        figure = conclude(METRICS["distillmos"], means(scores), means(pruned), [means(scores)])
        claimed += figure.verdict == NO_DIFFERENCE
    assert claimed / rounds < 0.06


@pytest.mark.parametrize(
    ("value", "verdict"), [(4.9, NO_DIFFERENCE), (4.65, NO_DIFFERENCE), (4.5, "worse")]
)
def test_a_similarity_falls_short_of_the_farthest_other_seed(value, verdict):
    spread = np.random.default_rng(0).normal(0, 0.01, 20)
    pairs, others = means(value + spread), [means(4.8 + spread[::-1]), means(4.65 - spread)]
    figure = conclude(METRICS["visqol"], None, pairs, others)
    assert figure.verdict == verdict
    assert (figure.floor.low, figure.floor.high) == (
        pytest.approx(4.65, abs=0.01),
        pytest.approx(4.8, abs=0.01),
    )
    assert figure.difference.value == pytest.approx(value - 4.65, abs=0.01)


def figures(**verdicts):
    return {name: SimpleNamespace(verdict=verdict) for name, verdict in verdicts.items()}


def test_a_claim_is_that_of_the_strictest_metrics():
    same = dict.fromkeys(("cer", "dnsmos_ovrl", "log_mel_db"), NO_DIFFERENCE)
    assert claim(same).verdict == NO_DIFFERENCE
    assert claim(same | {"distillmos": "worse"}).verdict == "a difference"
    assert claim(same | {"visqol": UNDECIDED}).verdict == UNDECIDED
    found = claim({"cer": NO_DIFFERENCE, "distillmos": NO_DIFFERENCE})
    assert found.verdict == UNDECIDED
    assert found.sentence(1) == (
        "It is undecided whether there is a difference from the original on 1 sentence (no "
        "difference found: words by character error rate, naturalness by Distill-MOS; "
        f"{NOT_MEASURED}: closeness)."
    )
    assert strictest(("cer", "dnsmos_ovrl", "distillmos", "mcd_db")) == {
        "words": "cer",
        "naturalness": "distillmos",
    }


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
