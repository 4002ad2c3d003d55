"""The model card: what the hub reads of it, what it says, and that strangers' words stay words."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from vits_prune import HealPlan, InputError, PruneSpec, prune
from vits_prune.measure import measure_sparsity
from vits_prune.ship.card import CARD_MARK, CardFacts, Picture, Sample, model_card
from vits_prune.ship.card_figures import block, check_evidence, code, table, text, unlike
from vits_prune.ship.formats import export_voice
from vits_prune.voices.voice import Origin

HUB = Origin("hugging-face", "facebook/mms-tts-eng", "a" * 40, "cc-by-nc-4.0")
HOSTILE = (
    "</td>|`x`<script>alert(1)</script>\n---\nlicense: mit\n\n# [click](http://evil.example) "
    "www.evil.example ![x](http://a/b)\x1b[31m\u202e\"'"
)
SPEC = PruneSpec(method="magnitude", scope="local", amount=0.5)


def facts_of(voice, folder, format="dense", precision="fp32", **more):
    return CardFacts("me/small", voice, export_voice(voice, folder, format, precision), **more)


@pytest.fixture(scope="module")
def pruned(tiny):
    return prune(dataclasses.replace(tiny, origin=HUB), SPEC)


@pytest.fixture(scope="module")
def facts(tiny, pruned, tmp_path_factory):
    samples = (Sample("a short one", "samples/1-pruned.wav", "samples/1-original.wav"),)
    return facts_of(pruned, tmp_path_factory.mktemp("card") / "out", original=tiny, samples=samples)


def rendered(card):
    return (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL))
    )


def evidence_of(voice, value=0.03):
    figure = {
        "metric": "cer",
        "unit": "",
        "verdict": "no difference found",
        "floor": {"low": -0.01, "high": 0.01, "values": [0.01]},
        "margin": 0.05,
        "original": {"value": 0.02, "low": 0.01, "high": 0.03, "count": 2},
        "pruned": {"value": value, "low": 0.0, "high": 0.1, "count": 2},
        "difference": {"value": 0.01, "low": -0.02, "high": 0.04, "count": 2},
    }
    spread = {"median": 0.01, "low": 0.009, "high": 0.02}
    timed = {
        "stage_seconds": dict.fromkeys(("text", "durations", "flow", "decoder", "total"), spread),
        "real_time_factor": spread,
    }
    timed |= {"cpu_seconds_per_audio_second": spread, "dense_macs": 2e9}
    return {
        "reference": voice.origin.reference,
        "revision": voice.origin.revision,
        "speaker": voice.speaker,
        "recipe": json.loads(json.dumps(dict(voice.recipe))),
        "settings": {"recogniser": {"model": "tiny.en"}},
        "figures": {"cer": figure},
        "signature": "texts:2.ab|seeds:0",
        "sentences": [{"text": "Hoist the load to your left shoulder."}] * 2,
        "alarms": {"silence": 1},
        "latency": {
            "runs": 5,
            "threads": 2,
            "device": "cpu",
            "speed_up": spread,
            "original": {**timed, "sparse": []},
            "pruned": {**timed, "sparse": ["flow 1", "decoder stage 3"]},
        },
    }


def test_metadata_is_what_the_hub_reads(facts):
    data = ModelCard(model_card(facts)).data
    assert (data.license, data.base_model, data.language) == (
        "cc-by-nc-4.0",
        "facebook/mms-tts-eng",
        "en",
    )
    assert (data.pipeline_tag, data.library_name) == ("text-to-speech", "transformers")
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert {"vits", "pruning"} <= set(data.tags)


def test_what_it_says(facts):
    card = model_card(facts)
    assert (
        "[facebook/mms-tts-eng](https://huggingface.co/facebook/mms-tts-eng) at revision `"
        + "a" * 40
        in card
    )
    assert "--scope local --amount 0.5" in card
    assert 'load_voice("me/small")' in card
    assert 'VitsModel.from_pretrained("me/small")' in card
    assert (
        '<audio controls src="https://huggingface.co/me/small/resolve/main/samples/1-original.wav"></audio>'
        in card
    )
    assert f"| {measure_sparsity(facts.voice).weights():,} |" in card
    assert f"**{facts.export.bytes / 1e6:.2f}**" in card
    assert "forbids commercial use" in card
    assert "Nothing was measured" in card
    assert card.endswith(f"{CARD_MARK}\n")
    assert rendered(card).count("<table>") == 3


def test_plain_transformers_does_what_the_card_says(facts, monkeypatch):
    lines = re.search(r"```python\n(import torch.*?)```", model_card(facts), re.DOTALL)[1]
    found = {}
    exec(lines.replace("me/small", str(facts.export.folder)), found)
    assert found["waveform"].ndim == 1
    assert found["waveform"].numel() > 100


def test_evidence_becomes_tables_and_results(facts):
    card = model_card(dataclasses.replace(facts, evidence=evidence_of(facts.voice)))
    cells = ("character error rate", "0.02", "0.03", "+0.01 [-0.02, +0.04]", "-0.01 to 0.01")
    assert f"| {' | '.join(cells)} | 0.05 | no difference found |" in card
    assert "Signature: `texts:2.ab|seeds:0`" in card
    assert "2 held-out Harvard sentences" in card
    assert "| **all stages** (ms) | 10 (9 to 20) | 10 (9 to 20) |" in card
    assert "| what ran in sparse kernels | nothing | flow 1, decoder stage 3 |" in card
    assert "silence: 1 of 2" in card
    assert "character errors 0.02 before, 0.03 now" in card
    (result,) = ModelCard(card).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == (
        "cer",
        0.03,
        "harvard-sentences",
    )


def judged(voice, **verdicts):
    """Evidence with these metrics, by their verdicts; naturalness goes from 4 to 3."""
    evidence = evidence_of(voice)
    figure = evidence["figures"].pop("cer")
    values = {"original": {"value": 4.0}, "pruned": {"value": 3.0}}
    for name, verdict in verdicts.items():
        evidence["figures"][name] = {**figure, **values, "verdict": verdict}
    return evidence


def test_the_strictest_predictor_decides_and_says_what_it_is_deaf_to(facts):
    same = "no difference found"
    evidence = judged(facts.voice, cer=same, dnsmos_ovrl=same, distillmos="worse", visqol=same)
    evidence["claim"] = {"verdict": same}  # what the file itself claims is not read
    card = model_card(dataclasses.replace(facts, evidence=evidence))
    assert (
        "A difference from the original was found on 2 sentences (worse: naturalness by "
        "Distill-MOS; no difference found: words by character error rate, closeness by ViSQOL)."
        in card
    )
    short = "character errors 4 before, 3 now; Distill-MOS 4 before, 3 now"
    assert f"- **Measured**: {short}; beside the original: a difference\n" in card
    for name in ("Distill-MOS", "DNSMOS", "ViSQOL"):
        assert card.count(f"{name} judges ") == 1
    assert "Resemblyzer" not in card
    assert "Whether it is the same speaker is not measured." in card
    figures = ("cer", "dnsmos_ovrl", "log_mel_db")
    card = model_card(
        dataclasses.replace(facts, evidence=judged(facts.voice, **dict.fromkeys(figures, same)))
    )
    assert "No difference from the original was found on 2 sentences (" in card
    assert "DNSMOS (which hardly hears what pruning does) 4 before, 3 now" in card
    assert "- Naturalness is by DNSMOS only.\n- Closeness is by a spectral distance only." in card
    assert "More figures" not in card
    assert "Distill-MOS" not in card


def test_another_voice_is_beside_the_similarity_of_the_speaker(facts):
    evidence = judged(facts.voice, speaker_similarity="undecided")
    for given, shown in ((0.625, True), ("<b>", False), (None, False)):
        evidence["speaker_similarity_of_another_voice"] = given
        card = model_card(dataclasses.replace(facts, evidence=evidence))
        assert ("four semitones higher, has the speaker similarity 0.625." in card) == shown
    assert "Resemblyzer judges who speaks" in card


def test_evidence_of_an_older_version_claims_nothing(facts):
    same = "no difference found"
    evidence = judged(facts.voice, cer=same, dnsmos_ovrl=same, log_mel_db=same)
    for figure in evidence["figures"].values():
        del figure["margin"]
    del evidence["signature"]
    card = model_card(dataclasses.replace(facts, evidence=evidence))
    assert "is a difference from the original on 2 sentences (undecided: words by" in card
    assert "| no difference found |" not in card
    assert "An older version of vits_prune measured this" in card
    assert "Signature" not in card


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "one of the two has no signature"),
        (["", "texts:2.ab|seeds:0"], "one of the two has no signature"),
        (["texts:2.ab|seeds:1"], "differ in seeds (0 and 1)"),
        ([HOSTILE], "differ in "),
    ],
)
def test_figures_of_another_signature_say_so(facts, others, words):
    evidence = evidence_of(facts.voice)
    said = unlike(evidence, others)
    assert said.startswith("Do not compare it with the figures above")
    assert words in said.replace("\\", "")
    assert "<script" not in said
    assert unlike(evidence, [evidence["signature"]]) == ""
    assert unlike({"latency": {}}, others) == ""


def test_evidence_that_is_not_a_number_is_left_out(facts):
    for value in (float("nan"), float("inf"), "0.1", None, True, 10**400):
        card = model_card(dataclasses.replace(facts, evidence=evidence_of(facts.voice, value)))
        assert "character error rate |" not in card
        assert ModelCard(card).data.eval_results is None


def test_evidence_of_another_voice_is_refused(pruned):

    good = evidence_of(pruned)
    check_evidence(good, pruned)
    for evidence in ({**good, "recipe": {}}, {key: good[key] for key in good if key != "recipe"}):
        with pytest.raises(InputError, match="another recipe"):
            check_evidence(evidence, pruned)
    for nothing in ({}, {"figures": 1}, []):
        with pytest.raises(InputError, match=r"evaluate --json"):
            check_evidence(nothing, pruned)
    with pytest.raises(InputError, match="does not say which voice"):
        check_evidence({key: good[key] for key in good if key != "reference"}, pruned)
    for other in ({"reference": "facebook/mms-tts-deu"}, {"revision": "b" * 40}, {"speaker": 1}):
        with pytest.raises(InputError, match=r"another voice \(.*give its own file\.$"):
            check_evidence({**good, **other}, pruned)


@pytest.mark.parametrize("revision", [[], {"a": 1}, 3])
def test_a_revision_that_is_no_text_is_another_voices(pruned, revision):
    with pytest.raises(InputError, match="of another voice"):
        check_evidence({**evidence_of(pruned), "revision": revision}, pruned)


def test_evidence_names_both_voices(tiny, pruned):
    from vits_prune.study.evaluation import Settings, evaluate

    other = dataclasses.replace(tiny, origin=dataclasses.replace(HUB, reference="me/another"))
    same = dataclasses.replace(tiny, origin=HUB)
    for original, shipped in (
        (other, pruned),
        (same, dataclasses.replace(other, recipe=pruned.recipe)),
        (same, other),
    ):
        found = evaluate(
            original, shipped, ("a short one",), Settings(metrics=("rhythm",), noise_seeds=0)
        ).to_dict()
        check_evidence(found, shipped, original)
        with pytest.raises(InputError, match="another voice"):
            check_evidence(found, pruned if shipped.recipe else same)


def test_figures_of_weights_before_rounding_are_no_results(pruned, tmp_path):
    facts = facts_of(pruned, tmp_path / "out", precision="fp16")
    card = model_card(dataclasses.replace(facts, evidence=evidence_of(pruned)))
    assert ModelCard(card).data.eval_results is None
    assert "undecided (before its weights were rounded to fp16)" in card


def test_strangers_words_stay_words(tiny, tmp_path):
    origin = Origin("hugging-face", HOSTILE, HOSTILE, HOSTILE)
    recipe = {"pruned": [{"protect": [HOSTILE]}], HOSTILE: HOSTILE}
    voice = dataclasses.replace(
        tiny, name=HOSTILE, origin=origin, recipe=recipe, speakers=(HOSTILE,) * 2
    )
    evidence = evidence_of(voice)
    evidence |= {
        "settings": {"recogniser": {"model": HOSTILE}},
        "alarms": {HOSTILE: 1},
        "sentences": [{"text": HOSTILE}],
    }
    evidence["latency"] |= {"device": HOSTILE, "runs": HOSTILE}
    evidence["latency"]["pruned"]["sparse"] = [HOSTILE]
    evidence["figures"]["cer"]["verdict"] = HOSTILE
    evidence |= {"signature": f"texts:`{HOSTILE}`", "claim": {"verdict": HOSTILE}}
    plain = facts_of(tiny, tmp_path / "out")
    facts = dataclasses.replace(
        plain,
        voice=voice,
        evidence=evidence,
        samples=(Sample(HOSTILE, "samples/1-pruned.wav", None),),
        pictures=(Picture("healing.png", HOSTILE, "Drawn."),),
    )
    card = model_card(facts)
    page = rendered(card)
    assert not re.search(r"<(script|/td>\|)|\x1b|\u202e", page.replace("</td>\n", ""))
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {
        "https://arxiv.org/abs/2106.06103",
        "https://huggingface.co/me/small/resolve/main/samples/1-pruned.wav",
        "healing.png",
    }
    assert "://evil" not in re.sub(
        r"<code>.*?</code>", "", page
    )  # where a renderer would make links of its own
    assert not re.search(r"www\.evil", re.sub(r"<code>.*?</code>", "", page))
    assert page.count("<h1>") == 1
    data = ModelCard(card).data
    assert (data.license, data.base_model) == ("other", None)
    assert len(card) < 20_000


def test_markdown_of_strangers():
    page = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
    shown = page.render(table(["a", "b"], [[text(HOSTILE), code(HOSTILE)]] * 2))
    assert shown.count("<tr>") == 3
    assert shown.count("<td") == 4
    assert "<script" not in shown
    assert "<a " not in shown
    assert text("plain words, 2.5 (yes)") == r"plain words, 2.5 \(yes\)"
    assert code("``") == "`''`"
    assert code("") == "`?`"
    assert len(text("x" * 10_000)) <= 300
    with pytest.raises(ValueError, match="fence"):
        block(["```"])


@pytest.mark.parametrize(
    ("licence", "values"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Some Licence 1.0", {"license": "other", "license_name": "some-licence-1.0"}),
        ("other", {"license": "other"}),
        (None, {}),
    ],
)  # fmt: skip
def test_licence_is_carried_over(facts, licence, values):
    voice = dataclasses.replace(facts.voice, origin=dataclasses.replace(HUB, licence=licence))
    card = model_card(dataclasses.replace(facts, voice=voice))
    data = ModelCard(card).data.to_dict()
    assert {key: data[key] for key in ("license", "license_name") if key in data} == {
        key: values[key] for key in values if "link" not in key
    }
    assert ("all rights are reserved" in card) == (licence is None)


@pytest.mark.parametrize(
    ("format", "precision", "said"),
    [
        ("sparse", "fp32", "leaves the zeros out"),
        ("onnx", "int8", "python bench.py tiny.onnx --threads 1,2"),
        ("piper", "fp16", "python -m piper -m voice/tiny.onnx"),
    ],
)
def test_how_other_formats_are_used(pruned, tmp_path, format, precision, said):
    card = model_card(facts_of(pruned, tmp_path / "out", format=format, precision=precision))
    assert said in card
    assert ('load_voice("voice")' in card) == (format != "sparse")
    assert "VitsModel.from_pretrained" not in card
    data = ModelCard(card).data
    assert data.library_name == "vits_prune"
    assert ("onnx" in data.tags, "piper" in data.tags) == (
        format in ("onnx", "piper"),
        format == "piper",
    )
    assert f"export --voice pruned --format {format} --precision {precision}" in card


def test_conversion_of_an_unpruned_voice(tiny, tmp_path):
    voice = dataclasses.replace(tiny, origin=HUB)
    card = model_card(facts_of(voice, tmp_path / "out", format="onnx", precision="int8"))
    assert ModelCard(card).data.to_dict()["base_model_relation"] == "quantized"
    assert "The weights are those of the original." in card


def test_words_of_every_step(facts):
    plan = HealPlan(minutes=5, adversarial=True, precision="bf16")
    healed = {
        "plan": plan.to_dict(),
        "steps": 90,
        "of": 100,
        "lessons": 40,
        "trained": ["decoder", HOSTILE],
        "recordings": 3,
    }
    spec = PruneSpec(
        method="second_order",
        scope="sensitivity",
        amount=0.8,
        steps=3,
        texts=("one",),
        floor=0.1,
        parts=("decoder",),
    )
    voice = dataclasses.replace(
        facts.voice, recipe={"pruned": [spec.to_dict()], "healed": [healed]}
    )
    card = model_card(dataclasses.replace(facts, voice=voice))
    for words in (
        "second order, 80%, by sensitivity, decoder only, floor 10%, 3 steps",
        "Not pruned: `duration_predictor`",
        "1 text of its maker's",
        "What was pruned (decoder) was trained",
        "100 steps, 5 minutes, 40 sentences, batches of 4",
        "was kept, that of step 90.",
        "Discriminators",
        "bf16",
        "3 recordings",
        "--calibration-texts calibration-texts.txt",
    ):
        assert words in card
    assert "<script" not in card
