"""compare: both voices on one text, and everything measured in tables and in a report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.nearly import nearly
from vits_prune import InputError, PruneSpec, compare, measure_size, measure_sparsity, prune, speak
from vits_prune.progress import Progress
from vits_prune.pruning.layers import layers
from vits_prune.study.comparison import EMPTY, latency_table
from vits_prune.synthesis.speak import STAGES, Delivery

TEXT = "the birch canoe slid"
SPEC = PruneSpec(scope="local", amount=0.5)


@pytest.fixture(scope="module")
def comparison(tiny):
    return compare(tiny, prune(tiny, SPEC), TEXT, 3, runs=2)


def test_what_was_said(tiny, comparison):
    assert nearly(comparison.original.waveform, speak(tiny, TEXT, 3).waveform)
    assert nearly(comparison.pruned.waveform, speak(prune(tiny, SPEC), TEXT, 3).waveform)
    assert not nearly(comparison.original.waveform, comparison.pruned.waveform)


def test_locked_timing_and_delivery(tiny):
    pruned, delivery = prune(tiny, PruneSpec(amount=0.9)), Delivery(speaking_rate=0.5)
    found = compare(tiny, pruned, TEXT, 3, timing="locked", delivery=delivery, runs=1)
    assert np.array_equal(found.original.durations, found.pruned.durations)
    assert found.original.audio_seconds > speak(tiny, TEXT, 3).audio_seconds
    assert nearly(
        found.pruned.waveform,
        speak(
            pruned, TEXT, 3, timing=found.original, delivery=Delivery(speaking_rate=0.5)
        ).waveform,
    )


def test_the_four_tables(tiny, comparison):
    found = comparison.tables()
    assert list(found) == ["sparsity", "layers", "size", "latency"]
    assert len(found["sparsity"]) == 5
    assert len(found["layers"]) == len(layers(tiny))
    assert len(found["size"]) == 6
    assert len(found["latency"]) == len(STAGES) + 1 + 3 + 2 + 2
    for name, table in found.items():
        assert list(table.columns) == list(EMPTY[name].columns)
        assert table.to_csv(index=False).count("\n") == len(table) + 1


def test_the_tables_say_what_was_measured(tiny, comparison):
    found, sparsity, size = (
        comparison.tables(),
        measure_sparsity(prune(tiny, SPEC)),
        measure_size(prune(tiny, SPEC)),
    )
    whole = found["sparsity"].iloc[0]
    assert whole["part"] == "whole voice"
    assert (whole["weights"], whole["zeros before"], whole["zeros after"]) == (
        sparsity.weights(),
        measure_sparsity(tiny).zeros(),
        sparsity.zeros(),
    )
    assert whole["sparsity (%)"] == round(100 * sparsity.overall, 2)
    assert list(found["layers"]["zeros"]) == [row.zeros for row in sparsity.layers]
    by_name = found["size"].set_index("what")
    assert by_name.loc["file, sparse fp32, lossless (MB)", "pruned"] == round(
        size.sparse_fp32_bytes / 1e6, 3
    )
    assert "no smaller" in by_name.loc["file, dense fp32 (MB)", "in words"]
    assert "no smaller" in by_name.loc["memory, ready to speak (MB)", "in words"]
    assert "no smaller" not in by_name.loc["parameters that are not zero (M)", "in words"]
    latency = found["latency"].set_index("what")
    stage = latency.loc["decoder (ms)"]
    assert stage["original"] == pytest.approx(
        1e3 * comparison.latency.original.stage_seconds["decoder"].median, rel=1e-3
    )
    assert stage["pruned, lowest run"] <= stage["pruned"] <= stage["pruned, highest run"]
    assert latency.loc["multiply-accumulates, dense (G)", "pruned / original"] == 1
    assert latency.loc["multiply-accumulates with a non-zero weight (G)", "pruned / original"] < 0.6


def test_the_tables_tell_structure_from_zeros(tiny):
    from vits_prune.pruning import Shape
    from vits_prune.pruning.structured.cut import choose, cut

    smaller = cut(
        tiny,
        choose(
            tiny,
            Shape(
                decoder_width=0.25,
                branches=1,
                ffn_width=0.25,
                encoder_layers=1,
                flows=1,
                multiple=2,
            ),
        ),
    )
    found = compare(tiny, smaller, TEXT, 3, runs=1)
    assert json.loads(json.dumps(found.report(), allow_nan=False)) == found.report()
    tables = found.tables()
    size, latency = tables["size"].set_index("what"), tables["latency"].set_index("what")
    for what in ("parameters (M)", "file, dense fp32 (MB)", "memory, ready to speak (MB)"):
        assert size.loc[what, "pruned / original"] < 0.9
        assert "are gone" in size.loc[what, "in words"]
        assert "zero" not in size.loc[what, "in words"]
    macs = latency.loc["multiply-accumulates, dense (G)"]
    assert macs["pruned / original"] < 0.6
    assert "are gone" in macs["in words"]
    assert "zero" not in latency.loc["real-time factor (s per s of speech)", "in words"]
    assert len(tables["layers"]) == len(layers(smaller))


@pytest.mark.parametrize(
    ("ratios", "macs", "words"),
    [
        ((1.2, 1.1, 1.3), 0.8, "faster: 1.20"),
        ((1.01, 1.005, 1.02), 0.8, "not faster: 1.01"),
        ((1.2, 0.9, 1.4), 0.8, "not faster: 1.20"),
        ((1.6, 1.1, 1.9), 1.0, "not faster: 1.60"),
    ],
)
def test_speed_is_claimed_only_where_less_is_computed_and_every_run_was_faster(
    comparison, ratios, macs, words
):
    from dataclasses import replace

    from vits_prune.measure import Spread

    def taking(seconds, macs=1.0):
        stages = {
            **comparison.latency.original.stage_seconds,
            "total": Spread(seconds, seconds, seconds),
        }
        counted = round(macs * comparison.latency.original.dense_macs)
        return replace(comparison.latency.original, stage_seconds=stages, dense_macs=counted)

    table = latency_table(
        replace(
            comparison.latency,
            original=taking(ratios[0]),
            pruned=taking(1.0, macs),
            speed_up=Spread(*ratios),
        )
    )
    said = table.set_index("what").loc["real-time factor (s per s of speech)", "in words"]
    assert said.startswith(words)


def test_the_report(tiny, comparison):
    report = comparison.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {"voice", "text", "seed", "spec", "sparsity", "size", "latency"} <= set(report)
    assert (report["voice"], report["text"], report["seed"], report["timing"]) == (
        "tiny",
        TEXT,
        3,
        "own",
    )
    assert PruneSpec.from_dict(report["spec"]) == SPEC
    assert report["sparsity"]["overall"] == measure_sparsity(prune(tiny, SPEC)).overall
    assert report["sparsity"]["parts"] == measure_sparsity(prune(tiny, SPEC)).parts
    assert set(report["size"]) == {"original", "pruned"}
    assert report["size"]["pruned"]["dense_fp32_bytes"] == measure_size(tiny).dense_fp32_bytes
    assert (
        report["latency"]["original"]["stage_seconds"]["total"]["median"]
        == comparison.latency.original.stage_seconds["total"].median
    )
    assert report["audio"]["pruned"]["audio_seconds"] == comparison.pruned.audio_seconds


def test_a_voice_that_was_not_pruned_has_no_spec(tiny):
    assert compare(tiny, tiny, TEXT, runs=1).report()["spec"] is None


def test_seeds_of_other_kinds_are_json_able(tiny):
    found = compare(tiny, tiny, TEXT, np.int64(3), runs=1)
    assert json.loads(json.dumps(found.report()))["seed"] == 3


def test_as_text(comparison):
    shown = str(comparison)
    assert shown.startswith(f"tiny: {TEXT}")
    assert all(word in shown for word in ("whole voice", "dense fp32", "real-time factor"))


def test_steps_are_told_in_order(tiny):
    told = []
    progress = Progress(lambda what, share: told.append((what, share)))
    compare(tiny, tiny, "go. on. go", runs=2, progress=progress)
    shares = [round(share, 9) for _, share in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    assert {"counting zeros and bytes", "timing: run 1 of 2", "timing: run 2 of 2"} <= {
        what for what, _ in told
    }


def test_raising_in_on_step_cancels(tiny):
    class Cancelled(Exception):
        pass

    def stop(what, share):
        if share >= 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        compare(tiny, tiny, TEXT, progress=Progress(stop))


def test_bad_input(tiny):
    for options in (
        *({"timing": "mine"}, {"timing": None}, {"seed": -1}, {"seed": math.nan}, {"text": " "}),
        *({"runs": runs} for runs in (0, 1.5, True, 10**9)),
    ):
        with pytest.raises(InputError) as error:
            compare(**{"original": tiny, "pruned": tiny, "text": TEXT, "seed": 0, **options})
        assert "\n" not in str(error.value)
