"""The largest amount that keeps limits: of figures with a known knee, and of a tiny voice."""

from __future__ import annotations

import json
import math

import pytest

from vits_prune import InputError, PruneSpec
from vits_prune.measure import predictors
from vits_prune.measure.quality import METRICS, Figure, Interval
from vits_prune.progress import Progress
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.knee import (
    Limit,
    bisect,
    find_knee,
    last_before,
    likely_limits,
    parse_limit,
    prune_until_knee,
    seeds_for,
    usual_limits,
)

USUAL = usual_limits(("cer", "dnsmos_ovrl"))
TEXTS = ["the birch canoe slid", "on the smooth planks"]
CHEAP = Settings(metrics=("rhythm",), noise_seeds=0)


def figure(name, value, spread=0.0):
    interval = Interval(value, value - spread, value + spread, 20)
    return Figure(METRICS[name], None, interval, interval, None, None, "")


def falling(spread=0.0):
    """CER grows by 0.1 and DNSMOS falls by 0.25 from 0 to 1: the limits break at 0.2 and 0.4."""

    def measure(spec):
        return {
            "cer": figure("cer", 0.1 * spec.amount, spread),
            "dnsmos_ovrl": figure("dnsmos_ovrl", -0.25 * spec.amount, spread),
        }

    return measure


def test_the_knee_of_a_known_curve():
    spec, steps = bisect(PruneSpec(scope="local", amount=0.7), USUAL, falling())
    assert spec == PruneSpec(scope="local", amount=0.2)
    assert len(steps) <= math.ceil(math.log2(100))
    by_amount = {step.amount: step.kept for step in steps}
    assert by_amount[0.2]
    assert not by_amount[0.21]
    assert bisect(PruneSpec(), USUAL[1:], falling())[0].amount == 0.4
    assert bisect(PruneSpec(), [Limit("cer", 0.2)], falling())[0].amount == 0.99
    assert bisect(PruneSpec(), [Limit("cer", 0.0)], falling())[0].amount == 0.0
    assert bisect(PruneSpec(), USUAL, falling()) == bisect(PruneSpec(), USUAL, falling())


def test_strict_asks_the_whole_interval():
    spec, steps = bisect(PruneSpec(), USUAL[:1], falling(spread=0.005), strict=True)
    assert spec.amount == 0.15
    loose, steps = bisect(PruneSpec(), USUAL[:1], falling(spread=0.005))
    assert loose.amount == 0.2
    assert {step.amount: step.decisions[0].certain for step in steps}[0.2] is False
    assert steps[0].amount == 0.5
    assert steps[0].decisions[0].certain


def test_what_cannot_be_measured_keeps_no_limit():
    spec, steps = bisect(
        PruneSpec(), USUAL[:1], lambda spec: falling()(spec) if spec.amount < 0.07 else {}
    )
    assert spec.amount == 0.06
    assert steps[0].decisions[0].interval is None


def test_limits():
    assert parse_limit("cer=+0.02") == Limit("cer", 0.02)
    assert parse_limit(" dnsmos_ovrl = -.1 ") == Limit("dnsmos_ovrl", -0.1)
    assert Limit("duration_ratio", -0.1).keeps(0.1)
    assert not Limit("duration_ratio", 0.1).keeps(-0.11)
    for text in ("cer", "cer=", "cer=x", "cer=-0.02", "dnsmos_ovrl=0.1", "beauty=1", "cer=nan", ""):
        with pytest.raises(InputError):
            parse_limit(text)


def test_the_usual_limits_are_those_of_the_strictest_metrics():
    names = [limit.metric for limit in usual_limits(METRICS)]
    assert names == ["cer", "distillmos", "visqol"]
    assert [limit.metric for limit in USUAL] == ["cer", "dnsmos_ovrl"]
    assert [limit.metric for limit in usual_limits(("wer", "lufs"))] == []
    assert usual_limits() in (USUAL, usual_limits(METRICS))
    assert (seeds_for(USUAL), seeds_for(usual_limits(METRICS))) == (0, 1)


def test_the_likely_limits_load_no_predictor(monkeypatch):
    """The page names them before anything is measured."""
    usual = usual_limits()
    monkeypatch.setattr(predictors, "_load", lambda name: pytest.fail(f"{name} was loaded"))
    assert likely_limits() == usual


def test_a_similarity_is_limited_by_how_far_it_falls_short_of_another_seed(tiny):
    limit = Limit("visqol", -0.25)
    assert limit.keeps(-0.2)
    assert not limit.keeps(-0.3)
    assert limit.breaks({"visqol": 4.9, "visqol_difference": -0.3})
    assert not limit.breaks({"visqol": 0.1, "visqol_difference": 0.1})
    with pytest.raises(InputError, match=r"needs a noise floor|is not installed"):
        find_knee(
            tiny,
            limits=[limit],
            texts=TEXTS,
            settings=Settings(metrics=("closeness",), noise_seeds=0),
        )


def test_a_tiny_voice(tiny):
    told, local = [], PruneSpec(scope="local")
    reference = prepare_reference(tiny, TEXTS, CHEAP)
    limits = [Limit("duration_ratio", 0.05)]
    knee = find_knee(
        tiny,
        local,
        limits,
        reference=reference,
        progress=Progress(lambda message, fraction: told.append(fraction)),
    )
    assert told == sorted(told)
    assert knee.texts == 2
    assert {step.amount: step.kept for step in knee.trials}.get(knee.amount, True)
    assert all(abs(step.decisions[0].interval.value) <= 0.05 for step in knee.trials if step.kept)
    assert any(abs(step.decisions[0].interval.value) > 0.05 for step in knee.trials)
    assert json.loads(json.dumps(knee.to_dict()))["amount"] == knee.amount
    assert {row["signature"] for row in knee.rows()} == {reference.signature}
    assert [row["amount"] for row in knee.rows()] == sorted(step.amount for step in knee.trials)
    again = find_knee(tiny, local, limits, texts=TEXTS)
    assert (again.spec, again.trials) == (knee.spec, knee.trials)
    with pytest.raises(InputError, match="without loudness"):
        find_knee(tiny, limits=[Limit("lufs", 1.0)], reference=reference)


def test_limits_that_say_nothing(tiny):
    for limits in ((), (Limit("cer", 0.1), Limit("cer", 0.2))):
        with pytest.raises(InputError):
            find_knee(tiny, limits=limits, texts=["the birch"])


def test_a_row_beyond_a_limit():
    assert not Limit("cer", 0.02).breaks({"cer": 0.5, "cer_difference": 0.02})
    assert Limit("cer", 0.02).breaks({"cer": 0.0, "cer_difference": 0.021})
    assert Limit("dnsmos_ovrl", -0.1).breaks({"dnsmos_ovrl_difference": -0.11})
    assert not Limit("mcd_db", 4.0).breaks(
        {"mcd_db": 3.9}
    )  # a distance is held to the limit itself
    assert Limit("mcd_db", 4.0).breaks({"mcd_db": 4.1, "mcd_db_difference": 0.0})
    for row in ({}, {"cer": 0.1}, {"cer_difference": None}):
        assert Limit("cer", 0.02).breaks(row)


def test_the_knee_of_a_measured_curve_lies_before_the_first_break():
    def knee(*values):
        return last_before(
            [{"i": i, "cer_difference": value} for i, value in enumerate(values)],
            Limit("cer", 0.02).breaks,
        )

    assert knee(0.0, 0.01, 0.03, 0.0)["i"] == 1  # what comes good again later does not count
    assert knee(0.0, None, 0.0)["i"] == 0
    assert knee(0.0, 0.01) is None
    assert knee(0.5, 0.0) is None
    assert knee() is None


def test_a_knee_with_protected_layers(tiny):
    limits = [Limit("duration_drift", 1e6)]
    base = PruneSpec(method="random", protect=("duration_predictor",))
    knee = find_knee(tiny, base, limits, texts=TEXTS)
    assert knee.spec.protect == ("duration_predictor",)
    assert knee.spec.method == "random"
    # What is not protected is not enough for every amount: more breaks the limits.
    assert 0.5 < knee.amount < 0.99
    with pytest.raises(InputError, match="pattern"):
        find_knee(tiny, PruneSpec(pattern="2:4", amount=0.5), limits, texts=TEXTS)
    with pytest.raises(InputError, match="no layer"):  # every amount is refused: the reason stays
        find_knee(tiny, PruneSpec(protect=("mouth",)), limits, texts=TEXTS)


def test_gradual_pruning_stops_where_a_limit_breaks(tiny):
    reference, kept = prepare_reference(tiny, TEXTS, CHEAP), []
    spec = PruneSpec(amounts=(0.05, 0.5, 0.95), amount=0.95)
    loose = prune_until_knee(tiny, spec, reference, [Limit("duration_drift", 1e6)])
    drifts = [step.decisions[0].interval.value for step in loose.steps]
    assert loose.amount == 0.95
    between = (drifts[0] + drifts[1]) / 2
    shares = []
    found = prune_until_knee(
        tiny,
        spec,
        reference,
        [Limit("duration_drift", between)],
        on_voice=lambda number, _: kept.append(number),
        progress=Progress(lambda message, fraction: shares.append(fraction)),
    )
    assert ([step.kept for step in found.steps], found.amount, kept) == (
        [True, False],
        0.05,
        [1, 2],
    )
    assert found.voice.recipe["pruned"][-1]["amount"] == 0.05
    assert shares[-1] == 1.0
    nothing = prune_until_knee(tiny, spec, reference, [Limit("duration_drift", 0.0)])
    assert (nothing.voice, nothing.amount, len(nothing.steps)) == (None, 0.0, 1)
    for wrong in ((PruneSpec(), [Limit("duration_drift", 1.0)]), (spec, [Limit("lufs", 1.0)])):
        with pytest.raises(InputError):
            prune_until_knee(tiny, wrong[0], reference, wrong[1])
