"""The tables as HTML: digits, signs, words, and that nothing measured is lost."""

from __future__ import annotations

import dataclasses
import html
import re

import gradio as gr
import pandas as pd
import pytest

from vits_prune import PruneSpec, prune
from vits_prune.kernels.engine import Choice
from vits_prune.measure import (
    Latency,
    Spread,
    measure_size,
    measure_sparsity,
    predictors,
    utterances,
)
from vits_prune.measure.cost import VoiceLatency
from vits_prune.measure.predictors import INSTALL, PREDICTORS
from vits_prune.measure.quality import (
    METRICS,
    NO_DIFFERENCE,
    NO_FLOOR,
    UNDECIDED,
    Figure,
    Floor,
    Interval,
    claim,
)
from vits_prune.measure.waveform import Dnsmos
from vits_prune.progress import Progress
from vits_prune.studio import evidence, renditions
from vits_prune.studio.descriptions import LABELS, figure_words
from vits_prune.studio.rows import row_of
from vits_prune.study.comparison import latency_table, size_table, sparsity_table
from vits_prune.study.evaluation import Settings, evaluate
from vits_prune.synthesis.speak import STAGES, Delivery
from vits_prune.ui import stage, tables


def cells(page: str) -> dict[str, list[str]]:
    """Return the cells of each row by its name, without tags."""
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", page)
    return {
        name: [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", rest)]
        for name, rest in rows
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 MB"), (15546.208, "15,500 MB"), (999.6, "1,000 MB"), (62.18, "62.2 MB"),
        (9.999, "10.0 MB"), (0.00123, "0.00123 MB"), (-1.5, "−1.50 MB"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_separators_and_a_unit(value, words):
    assert tables.number(value, "MB") == words


@pytest.mark.parametrize(
    ("ratio", "claimed", "words", "kind"),
    [
        (0.7, True, "−30.0% smaller", "good"),
        (1.125, True, "+12.5% larger", "bad"),
        (1.0, False, "no smaller", "bad"),
    ],
)
def test_changes_have_a_sign_and_a_word(ratio, claimed, words, kind):
    row = tables.SIZE_ROWS["file, dense fp32 (MB)"]
    assert tables.change(ratio, row, claimed) == (words, kind)


def latency(seconds: float, spread: float = 0.01, macs: int = 10**9) -> VoiceLatency:
    def runs(value: float) -> Spread:
        return Spread(value, value * (1 - spread), value * (1 + spread))

    stages = {stage: runs(seconds) for stage in STAGES} | {"total": runs(seconds * len(STAGES))}
    how = {"first_sound_seconds": runs(seconds), "peak_memory_bytes": round(seconds * 1e9)}
    return VoiceLatency(stages, runs(seconds), runs(seconds), 1.0, macs, macs, **how)


def test_speed_is_claimed_only_where_the_runs_agree():
    fast = Latency(latency(0.2), latency(0.1, macs=5 * 10**8), Spread(2, 1.9, 2.1), 5, 1, "cpu")
    found = cells(tables.html("latency", latency_table(fast)))
    assert found["All stages"] == ["800 ms", "400 ms", "−50.0% faster"]
    assert found["Decoder"] == ["200 ms", "100 ms", "−50.0% faster"]
    assert found["Multiply-adds"] == ["1.00 G", "0.500 G", "−50.0% fewer"]
    assert found["First sound"] == ["200 ms", "100 ms", "−50.0% sooner"]
    assert found["Peak memory"] == ["200 MB", "100 MB", "−50.0% less"]
    same = Latency(latency(0.2), latency(0.199), Spread(1, 0.9, 1.1), 5, 1, "cpu")
    page = tables.html("latency", latency_table(same))
    assert cells(page)["All stages"][2] == cells(page)["Flow"][2] == "not faster"
    assert "Not faster: 1.01× the speed (run by run: 0.90 to 1.10); dense kernels" in page
    slow = Latency(latency(0.1), latency(0.2, macs=9 * 10**8), Spread(0.5, 0.5, 0.5), 5, 1, "cpu")
    assert cells(tables.html("latency", latency_table(slow)))["Flow"][2] == "+100% slower"


def test_the_kernels_of_each_part_are_shown_with_what_they_were_chosen_by():
    voices = []
    for seconds, density in ((0.2, 1.0), (0.1, 0.25)):
        sparse = Choice("flow 1", density, density < 1, 2e-3, density * 4e-3)
        dense = Choice("decoder stage 1", density, False, 1e-3, 2e-3)
        one = latency(seconds, macs=round(density * 10**9))
        voices.append(dataclasses.replace(one, sparse=("flow 1",), kernels=(sparse, dense)))
    found = Latency(*voices, Spread(2, 1.9, 2.1), 5, 1, "cpu")
    page = tables.html("latency", latency_table(found))
    assert cells(page)["Flow 1"] == ["2.00 ms", "1.00 ms", "−50.0% faster"]
    assert "sparse, as 25% of its weights are not zero: dense 2 ms" in page
    assert "dense, as 25% of its weights are not zero: sparse 2 ms" in page
    unmeasured = Latency(latency(0.2), latency(0.1), Spread(2, 1.9, 2.1), 5, 1, "cpu")
    assert "part by part" not in tables.html("latency", latency_table(unmeasured))


def test_every_row_of_the_frames_is_shown_and_none_waits_empty(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5))
    size = size_table(measure_size(tiny), measure_size(pruned))
    times = latency_table(Latency(latency(1), latency(1), Spread(1, 1, 1), 5, 1, "cpu"))
    assert set(size["what"]) == set(tables.SIZE_ROWS)
    assert set(times["what"]) == {*tables.LATENCY_ROWS, *tables.COSTS}
    page = tables.html("size", size)
    assert cells(page)["File, dense fp32"][2] == "no smaller"
    assert "only another format makes the file smaller" in page
    for name in ("sparsity", "size", "latency", "quality"):
        empty = cells(tables.html(name))
        assert empty
        assert all(cell == "–" for row in empty.values() for cell in row)


def test_sparsity_says_what_is_zero_and_what_is_gone(tiny):
    before = measure_sparsity(tiny)
    zeros = measure_sparsity(prune(tiny, PruneSpec(amount=0.5)))
    page = tables.html("sparsity", sparsity_table(before, zeros))
    assert cells(page)["Whole voice"][2] == "50.0% zero"
    assert f"{zeros.zeros():,} of {zeros.weights():,} weights are zero." in page
    gone = measure_sparsity(prune(tiny, PruneSpec("structured", amount=0.5)))
    page = tables.html("sparsity", sparsity_table(before, gone))
    share = 100 * (1 - gone.weights() / before.weights())
    assert f"{share:.1f}% gone" in cells(page)["Whole voice"][2]


def figure(name: str, values: tuple[float, float], floor: float, verdict: str) -> Figure:
    metric, (before, after) = METRICS[name], values
    known = Interval(before, before, before, 5)
    change = Interval(after - before, after - before - 0.01, after - before + 0.01, 5)
    distance = metric.kind == "distance"
    noise = Floor(floor if distance else -floor, floor, (floor,))
    own = None if distance else known
    here = Interval(after, after, after, 5)
    return Figure(metric, own, here, change, noise, metric.margin, verdict)


def test_verdicts_are_sentences():
    same = figure_words(figure("cer", (0.012, 0.012), 0.004, NO_DIFFERENCE))
    assert same == (
        "Words: 1.2 of 100 letters are misheard, as with the original; "
        "another seed changes it by 0.4, margin 1.0: no difference found."
    )
    worse = figure_words(figure("dnsmos_ovrl", (3.9, 3.2), 0.05, "worse"))
    assert worse == (
        "Naturalness by DNSMOS: 3.20 of 5 points predicted, 0.70 below the original; "
        "another seed changes it by 0.05, margin 0.10: worse."
    )
    assert figure_words(figure("distillmos", (4.2, 3.9), 0.05, "worse")).startswith(
        "Naturalness by Distill-MOS: 3.90 of 5 points predicted, 0.30 below the original;"
    )
    far = figure_words(figure("mcd_db", (0.0, 6.0), 1.6, "worse"))
    assert far == (
        "Closeness by mel-cepstral distortion: 6 dB away from the original; "
        "another seed of the original is 1.6 away, margin 0.5: worse."
    )
    unsure = figure_words(figure("wer", (0.1, 0.2), 0.05, UNDECIDED))
    assert "10.0 more than the original" in unsure
    assert unsure.endswith("margin 2.0: undecided.")


def test_a_similarity_says_what_the_original_gets():
    close = figure_words(figure("visqol", (4.7, 4.21), 4.7, "worse"))
    assert close == (
        "Closeness by ViSQOL: 4.21 of 5 points predicted; "
        "another seed of the original gets 4.70, margin 0.10: worse."
    )
    who = figure_words(figure("speaker_similarity", (0.88, 0.86), 0.01, NO_DIFFERENCE), 0.667)
    assert who == (
        "Speaker: similarity 0.86 of 1 to the original's next sentence (the original itself 0.88, "
        "another voice 0.67); another seed changes it by 0.01, margin 0.02: no difference found."
    )
    alone = dataclasses.replace(figure("visqol", (4.7, 4.2), 4.7, NO_FLOOR), floor=None)
    assert figure_words(alone) == (
        "Closeness by ViSQOL: 4.20 of 5 points predicted: no noise floor was measured."
    )


@pytest.fixture(scope="module")
def measured(tiny):
    """Return an Evaluation with these figures."""
    settings = Settings(metrics=("loudness",), noise_seeds=0)
    found = evaluate(tiny, tiny, ["hi there", "you"], settings)

    def with_figures(*figures, **more):
        named = {one.metric.name: one for one in figures}
        return dataclasses.replace(found, figures=named, **more)

    return with_figures


def test_the_claim_names_who_judged():
    def claimed(*figures):
        return claim({one.metric.name: one.verdict for one in figures}).sentence(2)

    words = figure("cer", (0.012, 0.012), 0.004, NO_DIFFERENCE)
    natural = figure("distillmos", (4.2, 3.9), 0.05, "worse")
    deaf = figure("dnsmos_ovrl", (3.9, 3.9), 0.05, NO_DIFFERENCE)
    close = figure("visqol", (4.7, 4.6), 4.7, UNDECIDED)
    assert claimed(words, natural, deaf, close) == (
        "A difference from the original was found on 2 sentences (worse: naturalness by "
        "Distill-MOS; no difference found: words by character error rate; undecided: closeness by "
        "ViSQOL)."
    )
    assert claimed(words, deaf) == (
        "It is undecided whether there is a difference from the original on 2 sentences (no "
        "difference found: words by character error rate, naturalness by DNSMOS; not measured: "
        "closeness)."
    )
    same = figure("log_mel_db", (1.0, 1.0), 1.0, NO_DIFFERENCE)
    assert claimed(words, deaf, same).startswith(
        "No difference from the original was found on 2 sentences (no difference found: words by"
    )


def test_the_quality_box_claims_first_and_says_what_it_does_not_hear(measured):
    figures = (
        figure("cer", (0.012, 0.02), 0.004, UNDECIDED),
        figure("distillmos", (4.2, 3.9), 0.05, "worse"),
        figure("visqol", (4.7, 4.21), 4.7, "worse"),
        figure("speaker_similarity", (0.88, 0.86), 0.01, NO_DIFFERENCE),
    )
    about = {"signature": "texts:2.abc|seeds:0+1", "other_voice": 0.67}
    about |= {"unmeasured": {"x": f"No x: {INSTALL}.", "y": f"No y: {INSTALL}."}}
    found = measured(*figures, notes=("Not trained on the language 'fr'.",), **about)
    shown = tables.shown("quality", found)
    page = html.unescape(shown["quality"])
    assert page.index(found.claim.sentence(2)) < page.index("<ul") < page.index("<table")
    rows = cells(page)
    assert rows["Distill-MOS, 1 to 5"] == ["4.20", "3.90", "−0.300 (−0.310 to −0.290)", "±0.0500"]
    assert rows["ViSQOL, 1 to 5"] == ["–", "4.21", "−0.490 (−0.500 to −0.480)", "4.70"]
    assert rows["Speaker, 0 to 1"][:2] == ["0.880", "0.860"]
    assert rows["DNSMOS, 1 to 5"] == ["–"] * 4
    assert "another voice 0.67" in page
    assert f"Distill-MOS judges a voice alone; {PREDICTORS['distillmos'].deaf}." in page
    assert "DNSMOS judges" not in page, "it was not used"
    assert page.count(INSTALL) == 1
    assert "No y: see above. Not trained on the language 'fr'." in page
    assert page.endswith("<p>Signature: texts:2.abc|seeds:0+1</p></div>")
    table = pd.read_csv(shown["quality_csv"].value["path"])
    assert set(table["signature"]) == {found.signature}
    assert set(table["claim"]) == {"a difference"}
    assert list(table["margin"]) == [one.metric.margin for one in figures]


def test_the_status_ends_with_the_claim_and_claims_nothing_that_was_not_measured(
    request_, monkeypatch
):
    monkeypatch.setattr(
        predictors, "problem", lambda name: f"No {name}: {INSTALL}." * (name in predictors.OPTIONAL)
    )
    monkeypatch.setattr(utterances, "measure_dnsmos", lambda *_: Dnsmos(3.0, 3.0, 3.0))
    monkeypatch.setattr(evidence, "FAMILIES", ("naturalness", "speaker"))
    (shown,) = tables.measure_quality({"asked": request_, "quality_texts": 2}, None, Progress())
    assert shown["status"] == (
        "Done. Quality: 2 held-out Harvard sentences. It is undecided whether there is a "
        "difference from the original on 2 sentences (not measured: words, closeness; no "
        "difference found: naturalness by DNSMOS)."
    )
    page = html.unescape(shown["quality"])
    assert "Naturalness is by DNSMOS only" in page
    assert "Whether it is the same speaker is not measured. No resemblyzer: see above." in page


def test_the_stage_claims_what_was_measured_and_nothing_else(request_, monkeypatch):
    monkeypatch.setattr(
        predictors, "problem", lambda name: f"No {name}: {INSTALL}." * (name in predictors.OPTIONAL)
    )
    monkeypatch.setattr(utterances, "measure_dnsmos", lambda *_: Dnsmos(3.0, 3.0, 3.0))
    monkeypatch.setattr(evidence, "FAMILIES", ("naturalness", "loudness"))
    asked = dataclasses.replace(request_, seed=71)  # no other test measured it

    def words(request):
        row_of(request).add(request.spec.amount, renditions.hear(request, None))
        shown = stage.claim({"asked": request}, None)["stage"]
        (said,) = (one for one in shown["points"] if one["amount"] == request.spec.amount)
        return said["words"]

    assert words(asked).endswith("dB from the original (mean of its mel bands).")
    list(evidence.measure_points(asked, None, [asked.spec], 6, ("naturalness",)))
    assert "difference" not in words(asked), "not all of a claim was measured"
    for texts in (3, 2):
        list(tables.measure_quality({"asked": asked, "quality_texts": texts}, None, Progress()))
    claimed = "It is undecided whether there is a difference from the original on 3 sentences"
    assert claimed in words(asked), "the larger of the two"
    assert words(asked).endswith("no difference found: naturalness by DNSMOS).")
    first = next(stage.measure({"asked": asked}, None, Progress()))
    assert any(claimed in one["words"] for one in first["stage"]["points"])
    for same in ({"text": "you there"}, {"seed": 72}, {"timing": "own"}):
        assert claimed in words(dataclasses.replace(asked, **same)), same
    for another in (
        {"spec": dataclasses.replace(asked.spec, amount=0.4)},
        {"delivery": Delivery(speaking_rate=1.5)},
    ):
        assert "difference" not in words(dataclasses.replace(asked, **another)), another
    assert stage.claim({"asked": None}, None) == {"stage": gr.skip()}


@pytest.mark.skipif(
    any(one.version is None for one in PREDICTORS.values()),
    reason="an optional predictor is not installed",
)
@pytest.mark.slow
def test_every_predictor_that_is_here_has_its_row(request_, monkeypatch):
    monkeypatch.setattr(evidence, "FAMILIES", evidence.FAMILIES[1:])  # noise has no words
    short = ("hi there you", "there you hi"), "two short texts"
    monkeypatch.setattr(evidence, "measuring_texts", lambda *_: short)
    (shown,) = tables.measure_quality({"asked": request_, "quality_texts": 2}, None, Progress())
    rows, page = cells(shown["quality"]), html.unescape(shown["quality"])
    for name in ("distillmos", "dnsmos_ovrl", "visqol", "speaker_similarity"):
        assert "–" not in rows[LABELS[name][0]][1:], name
    assert "naturalness by Distill-MOS" in shown["status"]
    assert "closeness by ViSQOL" in shown["status"]
    assert "|resemblyzer:" in page
    assert INSTALL not in page
