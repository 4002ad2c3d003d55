"""The budget solver: limits as values, the search on tiny voices, what is told where nothing fits, and the command."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from vits_prune import InputError, PruneSpec, load_voice, measure_size, prune, speak
from vits_prune.cli.main import main
from vits_prune.measure.latency import Spread
from vits_prune.measure.statistics import Interval
from vits_prune.pruning.shape import Shape, sizes
from vits_prune.study.budget import Budget, Candidate, Solution, sentences_of, used
from vits_prune.study.budget_ladder import build_ladder
from vits_prune.study.budget_report import pareto_figure, save_solution
from vits_prune.study.budget_solver import (
    _megabytes,
    _Search,
    _Tried,
    fit_zeros,
    solve_budget,
    sparse_bytes,
)
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.knee import LIMITS, Limit
from vits_prune.voices.saved import save_voice

TEXTS, HELD_OUT = (
    ["the birch canoe slid", "glue the sheet"],
    ["on the smooth planks", "to the dark blue"],
)
QUALITY = (Limit("lufs", 60.0),)
"""Fast to measure, and kept by any voice that makes a sound."""


def candidate(time=0.5, mb=20.0, cer=0.0, stage="chosen", width=0.5):
    spec = PruneSpec(method="structured", shape=Shape(decoder_width=width))
    return Candidate(
        (spec,),
        stage,
        1,
        "dense",
        mb,
        Spread(time, time, time),
        0.4,
        {"cer": Interval(cer, None, None, 1)},
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"quality": LIMITS}, {"max_mb": 0}, {"max_mb": -1}, {"max_mb": math.nan}, {"max_mb": math.inf}, {"max_mb": "20"}, {"max_mb": True},
     {"max_latency_ratio": 0}, {"max_latency_ratio": 1}, {"max_latency_ratio": 1.5}, {"max_mb": 20, "quality": LIMITS[:1] * 2}],
)  # fmt: skip
def test_a_budget_that_is_none(fields):
    with pytest.raises(InputError) as refused:
        Budget(**fields)
    assert "\n" not in str(refused.value)


def test_what_a_candidate_uses_of_a_budget():
    budget = Budget(20, 0.5, (Limit("cer", 0.02),))
    assert budget.broken(candidate(cer=0.02)) == ()
    assert budget.broken(candidate(time=0.51, mb=21, cer=0.03)) == ("size", "latency", "cer")
    assert budget.damage(candidate(cer=0.01)) == 0.5
    assert budget.broken(Candidate((), "chosen", 1, "dense", 1.0, Spread(0.1, 0.1, 0.1), 1.0)) == (
        "cer",
    )  # not measured keeps nothing
    assert used(Limit("cer", 0.02), Interval(-0.1, None, None, 1)) == 0
    assert used(Limit("lufs", -2.0), Interval(1.0, None, None, 1)) == 0.5
    assert Budget(20).judged == LIMITS


def test_which_limits_cannot_be_had_together():
    budget = Budget(20, 0.5, (Limit("cer", 0.02),))
    fast, good = candidate(cer=0.3), candidate(time=0.7, cer=0.01, width=0.75)
    told = sentences_of(budget, fast, [fast, good, candidate(stage="cut")])
    assert told[0].startswith("None of the voices that were verified")
    assert (
        told[1]
        == "Of all that was tried nothing keeps at most 0.5 of the time and cer +0.02 together."
    )
    assert "With cer +0.02 the best was 0.70 of the time (structured, decoder width 75%)." in told
    assert (
        "With at most 0.5 of the time the best was cer +0.3 (structured, decoder width 50%)."
        in told
    )
    assert sentences_of(budget, fast, [fast])[1] == "Of all that was tried nothing keeps cer +0.02."
    assert sentences_of(budget, candidate(), [candidate()]) == (
        "All limits are kept by: structured, decoder width 50%.",
    )


def test_the_ladder(tiny):
    ladder = build_ladder(tiny, TEXTS[0])
    shapes = [one.shape for one in ladder.proposals]
    assert len(set(shapes)) == len(shapes) > 10
    for shape in shapes:
        sizes(tiny.model.config, shape)  # all can be cut
    whole = 4e-6 * measure_size(tiny).parameters
    assert all(0 < one.mb < whole for one in ladder.proposals)
    assert all(one.lost >= 0 for one in ladder.proposals)
    best = ladder.best(lambda one: one.mb < 0.9 * whole, 3)
    assert best == sorted(best, key=lambda one: one.lost)
    assert len({one.shape.decoder_width for one in best}) == len(best)


def test_hopeless_candidates_do_not_flatten_the_picture(tiny):
    budget = Budget(20, 0.5, (Limit("cer", 0.02),))
    chosen, hopeless = candidate(cer=0.01, stage="verified"), candidate(cer=5.0, time=0.4)
    figure = pareto_figure(
        Solution("x", budget, chosen, True, (), (chosen, hopeless), tiny, (1, 1), 0.0)
    )
    low, high = figure.axes[0].get_ylim()
    assert high < 0.2
    assert low < 0.01 < high
    assert {line.get_marker() for line in figure.axes[0].lines} >= {"o", "^"}


def test_megabytes_are_those_of_the_saved_file(tiny, tmp_path):
    (written,) = save_voice(tiny, tmp_path / "voice").glob("*.safetensors")
    assert _megabytes(tiny) == written.stat().st_size / 1e6
    assert _megabytes(tiny) > 4e-6 * measure_size(tiny).parameters


def test_more_are_verified_where_the_first_fail(tiny):
    """Those that kept all limits when they were chosen, until one keeps them on the held-out sentences too."""
    budget, settings = (
        Budget(1000.0, None, (Limit("lufs", 3.0),)),
        Settings(metrics=("loudness",), noise_seeds=0),
    )
    name, weight = "decoder.conv_post.weight", tiny.model.decoder.conv_post.weight.detach()
    voice, quiet = (
        tiny.with_weights({name: share * weight}) for share in (1e-2, 1e-3)
    )  # the tiny voice itself is clipped
    chosen_on, verified_on = (
        prepare_reference(voice, texts, settings) for texts in (TEXTS, HELD_OUT)
    )

    def chosen(lufs, one):
        return _Tried(
            dataclasses.replace(candidate(), quality={"lufs": Interval(lufs, None, None, 1)}), one
        )

    search = _Search(voice, budget, None, chosen_on, TEXTS[0])
    search.tried = [chosen(0.1 * i, voice if i == 3 else quiet) for i in range(6)] + [
        chosen(50.0, voice)
    ]
    found = search.verify(verified_on, lambda *_: None)
    verified = [one.candidate for one in search.tried if one.candidate.stage == "verified"]
    assert [budget.broken(one) for one in verified] == [("lufs",)] * 3 + [()]
    assert found.candidate is verified[-1]
    assert found.voice is voice
    assert [one.quality["lufs"].value for one in verified] == pytest.approx(
        [-20, -20, -20, 0], abs=2
    )
    assert all(
        0 < one.latency_ratio.low <= one.latency_ratio.median <= one.latency_ratio.high
        for one in verified
    )


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5])
def test_as_many_zeros_as_a_size_needs(tiny, share):
    most = share * sparse_bytes(tiny)
    found = fit_zeros(tiny, most)
    assert found.fits
    assert sparse_bytes(found.voice) == found.bytes <= most
    assert found.bytes >= 0.85 * most  # and not many more
    assert np.array_equal(
        speak(prune(tiny, found.spec), TEXTS[0]).waveform, speak(found.voice, TEXTS[0]).waveform
    )


def test_no_zeros_where_none_are_needed(tiny):
    found = fit_zeros(tiny, 1.01 * sparse_bytes(tiny))
    assert found.fits
    assert found.spec.amount < 0.02


def test_a_size_that_zeros_cannot_reach(tiny):
    assert not fit_zeros(tiny, 1000).fits


def test_less_time(tiny):
    shares = []
    found = solve_budget(
        tiny,
        Budget(None, 0.95, QUALITY),
        TEXTS,
        HELD_OUT,
        progress=lambda _, share: shares.append(share),
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert found.chosen.stage == "verified"
    assert found.chosen in found.tried
    assert found.kept == (found.budget.broken(found.chosen) == ())
    assert found.chosen.macs_ratio < 1
    assert [spec.method for spec in found.specs] == ["structured"]
    assert list(found.voice.recipe["pruned"]) == [spec.to_dict() for spec in found.specs]
    assert found.texts == (2, 2)


def test_fewer_bytes(tiny, tmp_path):
    most = 0.6 * measure_size(tiny).dense_fp32_bytes / 1e6
    found = solve_budget(tiny, Budget(most, None, QUALITY), TEXTS, HELD_OUT)
    assert found.kept
    assert found.chosen.mb <= most
    rebuilt = tiny
    for spec in found.specs:
        rebuilt = prune(rebuilt, spec)
    assert np.array_equal(speak(rebuilt, TEXTS[0]).waveform, speak(found.voice, TEXTS[0]).waveform)
    assert any(spec.method == "second_order" for one in found.tried for spec in one.specs)
    written = {path.name for path in save_solution(found, tmp_path / "out")}
    assert written >= {"voice", "budget.json", "tried.csv", "pareto.svg", "pareto.png"}
    assert ("voice.sparse.safetensors" in written) == (found.chosen.file == "sparse")
    with pytest.raises(InputError, match="not empty"):
        save_solution(found, tmp_path / "out")


def test_what_cannot_be_asked(tiny):
    for budget, texts, held_out in (
        (Budget(1000.0), TEXTS, HELD_OUT),
        (Budget(0.1, None, QUALITY), TEXTS, TEXTS),
        (Budget(0.1, None, QUALITY), [], HELD_OUT),
    ):
        with pytest.raises(InputError):
            solve_budget(tiny, budget, texts, held_out)


def test_cancelled(tiny):
    class Cancelled(Exception):
        pass

    def stop(_what, share):
        if share > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        solve_budget(tiny, Budget(None, 0.9, QUALITY), TEXTS, HELD_OUT, progress=stop)


def test_the_command(tiny_folder, tiny, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS + HELD_OUT))
    out = tmp_path / "out"
    most = 0.5 * measure_size(tiny).dense_fp32_bytes / 1e6
    line = [
        "budget",
        "--voice",
        str(tiny_folder),
        "--text-file",
        str(tmp_path / "texts.txt"),
        "--max-mb",
        str(most),
    ]
    assert main([*line, "--limit", "lufs=60", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "All limits are kept by" in shown
    assert "held-out sentences" in shown
    report = json.loads((out / "budget.json").read_text())
    assert report["kept"]
    assert report["chosen"]["mb"] <= most
    with (out / "tried.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["tried"])
    assert [row["what"] for row in rows if row["chosen"] == "True"] == [report["chosen"]["words"]]
    saved = load_voice(out / "voice")
    assert list(saved.recipe["pruned"]) == report["chosen"]["specs"]
    assert main([*line, "--limit", "lufs=60", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_command_where_nothing_fits(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS + HELD_OUT))
    line = [
        "budget",
        "--voice",
        str(tiny_folder),
        "--text-file",
        str(tmp_path / "texts.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*line, "--max-mb", "0.01", "--limit", "lufs=0"]) == 2
    said = capsys.readouterr()
    assert "nothing keeps at most 0.01 MB" in said.out
    assert "could not all be kept; the nearest voice is in" in said.err
    assert (tmp_path / "out" / "voice" / "vits_prune.json").exists()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ([], "limits the size or the latency"),
        (["--max-cer-points", "2"], "limits the size or the latency"),
        (["--max-mb", "0"], "size in MB"),
        (["--max-latency-ratio", "2"], "latency ratio"),
        (["--max-mb", "20", "--max-cer-points", "-1"], "limit of cer"),
        (["--max-mb", "20", "--max-dnsmos-loss", "-1"], "limit of dnsmos_ovrl"),
        (["--max-mb", "20", "--limit", "beauty=1"], "no metric"),
        (["--max-mb", "20", "--texts", "0"], "sentences"),
        (["--max-mb", "20", "--text-file", "one.txt"], "another to verify on"),
        (["--max-mb", "20", "--voice", "./nowhere"], "nowhere"),
        (["--max-mb", "1000"], "asks for nothing"),
    ],
)
def test_bad_input_is_one_sentence(more, word, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("only this one\n")
    assert main(["budget", "--voice", str(tiny_folder), "--out", "out", *more]) == 2
    said = capsys.readouterr()
    assert word in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()
