"""Predictors beside the listeners of blind tests: the same sounds, ranks, and what is refused."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from vits_prune import PruneSpec
from vits_prune.cli.main import main
from vits_prune.measure import predictors
from vits_prune.study.listening import share_of
from vits_prune.study.listening_predictors import COMPARED, Agreement, Condition, measure_agreement
from vits_prune.study.listening_store import Setup, Trial, write_trials

AMOUNTS = (0.1, 0.5, 0.9)
SETUP = Setup("abx", "test1", "ann", "joe", "", "", 3, "{}", 7, 20, AMOUNTS, "0.1")


@pytest.fixture
def setup(tiny_folder):
    return dataclasses.replace(SETUP, voice=str(tiny_folder))


@pytest.fixture
def cheap(monkeypatch):
    """Without the optional predictors, which take time to load."""
    monkeypatch.setattr(predictors, "_loaded", type(predictors._loaded)(8, lambda _: 1))

    def opened(name):
        return predictors._Loaded(problem="" if name == "dnsmos" else f"No {name}.")

    monkeypatch.setattr(predictors, "_open", opened)


def heard(setup, amount, right, of, text="a short one"):
    """Trials at an amount, as many of them right as asked for."""
    spec = PruneSpec(amount=amount)
    return [
        Trial(setup, i + 1, text, spec, None, "original", "A", "AB"[i >= right], 2.0)
        for i in range(of)
    ]


def ladder(setup, of=(2, 3, 4)):
    return [one for amount, right in zip(AMOUNTS, of, strict=True)
            for one in heard(setup, amount, right, 4)]  # fmt: skip


def condition(amount, right, **changes):
    return Condition(PruneSpec(amount=amount), 0, "{}", ("a",), share_of(right, 10), changes)


def test_what_was_heard_is_measured(setup, cheap):
    other = dataclasses.replace(setup, test="test2", seed=4, delivery='{"noise_scale": 0.1}')
    trials = [*ladder(setup), *heard(setup, 0.1, 0, 2, "on the planks"), *heard(other, 0.5, 1, 1)]
    found = measure_agreement(trials)
    assert found.problem == ""
    assert [(one.spec.amount, one.seed, one.share[:2]) for one in found.conditions] == [
        (0.1, 3, (2, 6)),
        (0.5, 3, (3, 4)),
        (0.5, 4, (1, 1)),
        (0.9, 3, (4, 4)),
    ]
    assert found.conditions[0].texts == ("a short one", "on the planks")
    assert list(found.conditions[0].changes) == ["dnsmos", "log_mel_db", "mcd_db"]
    distances = [one.changes["log_mel_db"] for one in found.conditions if one.seed == 3]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert found.correlation("log_mel_db").conditions == 4
    first, second = found.conditions[1].signature, found.conditions[2].signature
    assert "seeds:3|" in first
    assert "seeds:4|" in second
    assert first.endswith("timing:original|levels:matched")


@pytest.mark.skipif(
    any(one.version is None for one in predictors.PREDICTORS.values()),
    reason="an optional predictor is not installed",
)
def test_every_predictor_that_is_installed_is_asked(setup):
    text = "rice is often served in round bowls on the smooth planks"
    trials = [one for amount in AMOUNTS for one in heard(setup, amount, 1, 2, text)]
    found = measure_agreement(trials)
    for one in found.conditions:
        assert list(one.changes) == list(COMPARED)
        assert -4 <= one.changes["visqol"] < 0
        assert -2 <= one.changes["resemblyzer"] < 0
        assert "|distillmos:0.9." in one.signature


def test_ranks_are_those_of_the_listeners():
    found = Agreement(
        SETUP,
        "L1 global",
        (
            condition(0.1, 5, distillmos=-0.1, visqol=-0.3, log_mel_db=1.0, dnsmos=0.0),
            condition(0.5, 7, distillmos=-0.2, visqol=-0.2, log_mel_db=4.0, dnsmos=0.0),
            condition(0.7, 8, distillmos=-0.4, visqol=-0.1, log_mel_db=3.0, dnsmos=0.0),
            condition(0.9, 9, distillmos=-0.9, log_mel_db=9.0, dnsmos=0.0),
        ),
    )
    assert found.correlation("distillmos").rho == pytest.approx(1)
    assert found.correlation("distillmos").conditions == 4
    assert found.correlation("visqol").rho == pytest.approx(-1)
    assert found.correlation("visqol").conditions == 3
    assert found.correlation("log_mel_db").rho == pytest.approx(0.8)  # 1 - 6*2/(4*15), by hand
    assert (found.correlation("dnsmos").rho, found.correlation("dnsmos").conditions) == (None, 4)
    assert found.correlation("resemblyzer").conditions == 0
    few = dataclasses.replace(found, conditions=found.conditions[:2])
    assert few.correlation("distillmos").rho is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"voice": "./upload.onnx"}, "There is no file or folder './upload.onnx'"),
        ({"voice": "no voice at all"}, "is no model of the Hugging Face hub"),
        ({"speaker": "nobody"}, "one speaker only"),
        ({"delivery": "[" * 100_000}, "is no delivery"),
        ({"delivery": "7"}, "is no delivery"),
        ({"delivery": '{"loudness": 9}'}, "is no delivery"),
        ({"delivery": '{"noise_scale": 9}'}, "0 to 2"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(setup, cheap, changed, words):
    found = measure_agreement(ladder(dataclasses.replace(setup, **changed)))
    assert found.problem.startswith("Predictors cannot be compared with these listeners: ")
    assert words in found.problem
    assert "\n" not in found.problem
    assert found.conditions == ()


def test_fewer_than_three_amounts_are_not_measured(setup):
    found = measure_agreement(heard(setup, 0.1, 1, 9) + heard(setup, 0.5, 1, 9))
    assert found.problem.endswith("from 3 amounts on, and this test has 2.")


def test_the_command_prints_correlations_and_writes_conditions(setup, cheap, tmp_path, capsys):
    gone = dataclasses.replace(setup, voice="./upload.onnx")
    write_trials([*ladder(setup), *ladder(gone)], tmp_path / "a.csv")
    typed = ["listen", "--merge", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out")]
    assert main(typed) == 0
    printed = capsys.readouterr().out
    assert "L1 global: do predictors agree with the listeners?" in printed
    assert "There is no file or folder './upload.onnx'" in printed
    assert "3 conditions are few" in printed
    (line,) = [one for one in printed.splitlines() if "log-mel distance" in one]
    assert line.split()[-2:] == ["+1.00", "3"]
    assert "Naturalness is by DNSMOS only" in printed
    with (tmp_path / "out" / "predictors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["amount"], row["right"], row["trials"]) for row in rows] == [
        ("0.1", "2", "4"),
        ("0.5", "3", "4"),
        ("0.9", "4", "4"),
    ]
    assert {f"{name}_change" for name in COMPARED} <= set(rows[0])
    assert rows[0]["visqol_change"] == ""
    assert float(rows[0]["log_mel_db_change"]) > 0
    assert main([*typed[:3], "--no-predictors"]) == 0
    assert "predictors" not in capsys.readouterr().out
