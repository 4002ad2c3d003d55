"""Simulated listeners are understood, and CSVs of blind tests come back as they were written."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from scipy.stats import binom

from vits_prune import InputError, PruneSpec
from vits_prune.cli.main import main
from vits_prune.study.listening import (
    Posterior,
    Preference,
    hearing,
    name_of,
    share_of,
    share_right,
)
from vits_prune.study.listening_store import (
    COLUMNS,
    Setup,
    Trial,
    checked_listener,
    pool,
    read_trials,
    result_of,
    write_trials,
)

ROW = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def listen(hears, rng, trials=24):
    """What a listener answers who is right at an amount with probability `hears(amount)`."""
    posterior, answers = Posterior(ROW), []
    for _ in range(trials):
        amount = posterior.next_amount()
        answers.append((amount, bool(rng.random() < hears(amount))))
        posterior = posterior.after(*answers[-1])
    return hearing("L1 global", answers, ROW)


def weibull(threshold, slope=3.0, lapse=0.02):
    return lambda amount: float(share_right(amount, threshold, slope, lapse))


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_the_threshold_lies_within_its_interval_and_is_not_biased(threshold):
    rng, runs = np.random.default_rng(7), 100
    found = [listen(weibull(threshold), rng).posterior.threshold() for _ in range(runs)]
    covered = sum(one.low <= threshold <= one.high for one in found)
    assert covered >= binom.ppf(0.01, runs, 0.95), "95 of 100, less the noise of a hundred runs"
    assert np.median([one.value for one in found]) == pytest.approx(threshold, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("slope", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2, 0.4])
def test_the_interval_holds_the_threshold_in_95_of_100_tests(threshold, slope):
    rng, runs = np.random.default_rng(11), 500
    found = [listen(weibull(threshold, slope), rng).posterior.threshold() for _ in range(runs)]
    covered = sum(one.low <= threshold <= one.high for one in found) / runs
    print(f"threshold {threshold}, slope {slope}: {covered:.3f} of {runs}")
    assert covered >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / runs)


def test_more_trials_make_the_interval_narrower():
    widths = []
    for trials in (20, 40):
        rng = np.random.default_rng(3)
        found = [listen(weibull(0.17), rng, trials).posterior.threshold() for _ in range(20)]
        widths.append(np.mean([one.high - one.low for one in found]))
    assert widths[1] < 0.7 * widths[0]


def test_who_guesses_is_not_told_that_he_hears():
    rng = np.random.default_rng(5)
    found = [listen(lambda _: 0.5, rng).sentence() for _ in range(100)]
    assert sum("You hear L1" in sentence for sentence in found) <= 5
    assert sum("did not reliably hear L1 global up to 90%" in sentence for sentence in found) >= 80


def test_who_hears_all_or_nothing_or_gave_few_answers_reads_so():
    rng = np.random.default_rng(0)
    assert "at every amount, from the first, 2%, on" in listen(lambda _: 1.0, rng).sentence()
    deaf = listen(lambda _: 0.0, rng)
    assert "did not reliably" in deaf.sentence()
    assert "not heard up to 90%" in deaf.range_words()
    few = listen(weibull(0.2), rng, trials=11)
    assert few.sentence().startswith("11 answers are too few")
    heard = listen(weibull(0.17, 6), np.random.default_rng(1), trials=40)
    assert heard.sentence().startswith("You hear L1 global from 1")
    assert "% on (95%: " in heard.sentence()
    late = listen(weibull(0.6), np.random.default_rng(4))
    assert "cannot tell this from guessing" in late.sentence()
    assert "beyond 90%" in late.sentence()


def test_the_curve_starts_at_chance_rises_and_lies_within_its_band():
    rows = np.array(listen(weibull(0.2), np.random.default_rng(2), 40).posterior.curve())
    amount, mean, low, high = rows.T
    assert (amount[0], amount[-1]) == (0.0, 0.9)
    np.testing.assert_allclose(rows[0, 1:], 0.5, atol=1e-6)
    assert (np.diff(mean) >= -1e-9).all()
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()


def test_the_psychometric_function_is_three_quarters_at_the_threshold():
    np.testing.assert_allclose(share_right(0.3, 0.3, np.array([1, 4]), np.array([0, 0.06])), 0.75)
    assert share_right(0.0, 0.3, 2.0, 0.0) == 0.5


def test_shares_and_p_are_those_of_the_textbook():
    share = share_of(14, 20)
    assert (share.low, share.high) == pytest.approx((0.4810, 0.8545), abs=1e-4)  # Wilson 1927
    assert share_of(0, 0)[2:] == (0.0, 1.0)
    found = Preference(("one", "two"), share)
    assert found.p == pytest.approx(2 * 60460 / 2**20)  # both tails of the binomial, by hand
    assert found.sentence() == (
        "You chose one over two in 14 of 20 trials, 70% (95%: 48 to 85%), p = 0.12: "
        "chance alone explains that."
    )
    other = Preference(("one", "two"), share_of(2, 24)).sentence()
    assert other.startswith("You chose two over one in 22 of 24 trials")
    assert other.endswith("p < 0.001: you prefer it.")
    assert "no answer" in Preference(("one", "two"), share_of(0, 0)).sentence()


def test_names_are_those_of_a_listener():
    assert name_of(PruneSpec()) == "L1 global"
    assert name_of(PruneSpec("second_order", "local", 0.75), amount=True) == (
        "second order 75% local"
    )


# Files


def trials(listener="ann", count=24, threshold=0.17, seed=0):
    """A whole ABX test."""
    found, answers = listen(weibull(threshold), np.random.default_rng(seed), count), []
    setup = Setup(
        *("abx", f"test{seed}", listener, "joe", "main", "", 3, "{}"), 7, count, ROW, "0.1"
    )
    for amount, share in found.shares.items():
        answers += [(amount, True)] * share.hits + [(amount, False)] * (share.of - share.hits)
    side, text = ("original", "A"), '=cmd()|"a",\n\'=b'
    return [
        Trial(setup, i + 1, text, PruneSpec(amount=amount), None, *side, "BA"[right], 2.5)
        for i, (amount, right) in enumerate(answers)
    ]


def preferences(listener="ann", first=9, of=10, swapped=False):
    setup = Setup(*("preference", f"pref{listener}", listener, "joe", "", "", 3, "{}"), 7, of, ())
    one, two = PruneSpec(scope="local", amount=0.5), PruneSpec("second_order", amount=0.75)
    sides, answers = ("AB", "BA")[swapped], (two, one) if swapped else (one, two)
    return [
        Trial(setup, i + 1, "Hi.", *answers, "first", "", sides[i >= first], 1.25)
        for i in range(of)
    ]


def test_trials_come_back_as_they_were_written(tmp_path):
    path, written = tmp_path / "a.csv", trials() + preferences()
    write_trials(written, path)
    assert read_trials(path) == written
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["text"].startswith("'="), "a spreadsheet does not run it"
    assert (rows[0]["method"], rows[0]["scope"]) == ("magnitude", "global")
    assert {row["correct"] for row in rows} == {"0", "1", ""}


def test_listeners_are_pooled_and_what_comes_twice_counts_once():
    ann, bob = trials("ann", seed=1), trials("bob", seed=2, threshold=0.3)
    (abx,) = pool([*ann, *bob, *ann])
    assert list(abx.by_listener) == ["ann", "bob"]
    assert abx.pooled.trials == 48
    low, high = sorted(one.posterior.threshold().value for one in abx.by_listener.values())
    assert low < abx.pooled.posterior.threshold().value < high
    both = [*preferences("ann", 9, 10), *preferences("bob", 8, 10, swapped=True)]
    (found,) = pool(both)
    assert found.pooled.share[:2] == (17, 20), "bob had the two settings the other way round"
    assert found.by_listener["bob"].share[:2] == (8, 10)
    assert result_of(both[10:]).share[:2] == (2, 10)


def test_the_command_prints_and_writes(tmp_path, capsys):
    write_trials(trials("ann", seed=1), tmp_path / "a.csv")
    write_trials([*trials("bob", seed=2), *preferences("bob")], tmp_path / "b.csv")
    files = [str(tmp_path / f"{name}.csv") for name in "ab"]
    without = ["listen", "--no-predictors", "--merge", *files]
    assert main([*without, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for words in ("joe: L1 global", "ann", "bob", "all together", "heard from", "90% (95%: 60 to"):
        assert words in printed
    assert "L1 50% local over second order 75% global" in printed
    assert len(read_trials(tmp_path / "out" / "merged.csv")) == 58
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("merged.csv", "listening.svg", "listening.png"),
    }
    assert main([*without, str(tmp_path / "out" / "merged.csv")]) == 0
    assert capsys.readouterr().out in printed


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "nan"},
        {"amount": "0.99"},
        {"amounts": "[NaN]"},
        {"amounts": "7"},
        {"spec": '{"amount": 1e999}'},
        {"spec": "[" * 100_000},
        {"spec": '{"amount": 0}', "amount": "0"},
        {"answer": "=A"},
        {"seconds": "inf"},
        {"seed": "9" * 5_000},
        {"listener": "=HYPERLINK()"},
        {"voice": "\x1b[2J"},
        {"kind": "?"},
        {"matched": ""},
        {"matched": "2"},
        {"other": "{}"},
        {"trial": ""},
    ],
)
def test_a_row_that_cannot_be_is_refused_in_a_sentence(tmp_path, capsys, change):
    path = tmp_path / "a.csv"
    write_trials(trials()[:2], path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows([rows[0], rows[1] | change])
    assert main(["listen", "--merge", str(path)]) == 2
    said = capsys.readouterr().err
    assert "a.csv" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b"\x00" * 64, b"x" * (17 << 20), b'"' + b"y" * 200_000],
)
def test_a_file_that_is_no_test_is_refused(tmp_path, content):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.csv .*: give the CSV"):
        read_trials(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_trials(tmp_path)


def test_tests_with_and_without_matched_loudness_are_not_pooled(tmp_path):
    bare = [
        dataclasses.replace(one, setup=dataclasses.replace(one.setup, matched=False))
        for one in trials("bob", seed=2)
    ]
    path = tmp_path / "a.csv"
    write_trials([*trials("ann", seed=1), *bare], path)
    groups = pool(read_trials(path))
    assert [group.name for group in groups] == ["L1 global", "L1 global, loudness not matched"]
    assert [list(group.by_listener) for group in groups] == [["ann"], ["bob"]]


def test_a_file_from_before_loudness_could_be_chosen_reads_as_matched(tmp_path):
    path, written = tmp_path / "a.csv", trials()
    write_trials(written, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        names = [name for name in COLUMNS if name != "matched"]
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    assert read_trials(path) == written


def test_names_of_listeners_are_checked():
    assert checked_listener(" ann_2 ") == "ann_2"
    for name in ("", "=1", "a" * 41, None, "a b"):
        with pytest.raises(InputError, match="letters"):
            checked_listener(name)
