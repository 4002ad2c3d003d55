"""A pair of real voices over two sentences, and on a tiny voice what needs no predictor."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types

import pytest

from tests.nearly import nearly
from vits_prune import InputError, PruneSpec, prune
from vits_prune.caches import Bounded
from vits_prune.measure import predictors, recognition, waveform
from vits_prune.measure.predictors import PREDICTORS, absent
from vits_prune.measure.quality import FAMILIES, METRICS, NO_DIFFERENCE, NO_FLOOR, UNDECIDED
from vits_prune.measure.recognition import Recogniser
from vits_prune.progress import Progress
from vits_prune.study import evaluation as module
from vits_prune.study.evaluation import Settings, evaluate, evaluate_against, prepare_reference
from vits_prune.study.knee import Limit, check_measured
from vits_prune.study.signature import check_comparable

QUICK = Recogniser(beam_size=1)
MISSING = absent(FAMILIES)
MEASURABLE = [name for name, one in METRICS.items() if not {name, one.family} & set(MISSING)]
TEXTS = ("Hop over the fence and plunge in.", "What joy there is in living.")


@pytest.fixture(scope="module")
def reference(joe):
    return prepare_reference(joe, TEXTS, Settings(seed=3, noise_seeds=1, recogniser=QUICK))


@pytest.fixture(scope="module")
def broken(reference, joe):
    return evaluate_against(reference, prune(joe, PruneSpec(scope="global", amount=0.5)))


def numbers(evaluation):
    """All but what differs from run to run."""
    found = evaluation.to_dict()
    del found["cost"]
    return found


def test_a_broken_voice(broken):
    # Nothing is voiced any more.
    assert list(broken.figures) == [name for name in MEASURABLE if name != "f0_rmse_cents"]
    assert list(broken.unmeasured) == [*MISSING, "f0_rmse_cents"]
    verdicts = {name: figure.verdict for name, figure in broken.figures.items()}
    worse = ("wer", "cer", "dnsmos_ovrl", "mcd_db", "log_mel_db", "log_stft_magnitude")
    worse += tuple({"distillmos", "visqol", "speaker_similarity"} & set(MEASURABLE))
    assert {verdicts[name] for name in worse} == {"worse"}
    assert broken.claim.verdict == "a difference"
    assert verdicts["lufs"] == "lower"
    assert broken.figures["wer"].original.value < 0.2 < 0.6 < broken.figures["wer"].pruned.value
    assert broken.failures["silence"] == 2
    assert broken.failures_of_original["silence"] == 0
    assert broken.recipe["pruned"][0]["amount"] == 0.5


def test_rows(broken):
    first = broken.rows()[0]
    assert first["text"] == TEXTS[0]
    assert "fence" in first["heard_original"]
    assert "silence" in first["alarms"]
    row = broken.to_row()
    assert row["f0_rmse_cents"] is None
    assert row["wer"] == broken.figures["wer"].pruned.value
    assert row["mcd_db_difference_low"] == broken.figures["mcd_db"].difference.low
    assert row["alarms_not_a_number"] == 0
    assert row["texts"] == 2
    assert row["cpu_seconds_per_audio_second"] > 0
    assert all(isinstance(value, str | int | float | None) for value in row.values())


def test_the_original_against_itself_from_a_pickled_reference(reference, joe):
    """Pickled, as for another process, it finds no difference."""
    found = evaluate_against(pickle.loads(pickle.dumps(reference)), joe)
    assert list(found.figures) == MEASURABLE
    assert found.claim.verdict == NO_DIFFERENCE
    assert {figure.verdict for figure in found.figures.values()} == {NO_DIFFERENCE}
    for name, figure in found.figures.items():
        if METRICS[name].kind == "voice":
            assert nearly(figure.difference.value, 0.0, 1e-3)
            both = dataclasses.asdict(figure.original), dataclasses.asdict(figure.pruned)
            assert nearly(*both, 1e-3)
        else:
            same = 5.0 if name == "visqol" else METRICS[name].neutral
            assert nearly(figure.pruned.value, same, 1e-3)
    assert found.figures["mcd_db"].floor.low > 0.5


@pytest.mark.skipif("speaker" in MISSING, reason="an optional predictor is not installed")
def test_the_speaker_is_compared_with_another_sentence_and_another_voice(reference, joe):
    figure = evaluate_against(reference, joe).figures["speaker_similarity"]
    assert figure.original.value > 0.75 > reference.other_voice
    alone = prepare_reference(joe, TEXTS[:1], Settings(metrics=("speaker",), noise_seeds=0))
    assert "speaker_similarity" not in evaluate_against(alone, joe).figures


def test_the_signature_names_all_that_the_figures_depend_on(reference, broken):
    found = dict(pair.split(":", 1) for pair in reference.signature.split("|"))
    assert found["texts"].startswith("2.")
    assert found["seeds"] == "3+4"
    assert found["recogniser"] == "tiny.en.int8.beam1.en"
    assert {"faster-whisper", "swift-f0", "dnsmos", "bootstrap", "vits_prune"} <= set(found)
    assert broken.signature == broken.to_dict()["signature"] == reference.signature
    check_comparable(broken.signature, reference.signature)


def test_figures_of_other_texts_or_seeds_are_refused(tiny):
    quick = Settings(metrics=("rhythm",), noise_seeds=0)
    first = prepare_reference(tiny, ("the birch",), quick).signature
    for texts, changes in ((("the canoe",), {}), (("the birch",), {"seed": 1})):
        other = prepare_reference(tiny, texts, dataclasses.replace(quick, **changes)).signature
        what = "seeds" if changes else "texts"
        with pytest.raises(InputError, match=f"cannot be compared, they differ in {what}"):
            check_comparable(first, other)


def test_a_pickled_reference_gives_the_same_numbers(tiny):
    settings = Settings(metrics=("rhythm", "loudness"), noise_seeds=1)
    reference = prepare_reference(tiny, ("the birch",), settings)
    pruned = prune(tiny, PruneSpec(scope="local", amount=0.5))
    found = evaluate_against(reference, pruned)
    again = evaluate_against(pickle.loads(pickle.dumps(reference)), pruned)
    assert nearly(numbers(again), numbers(found))


def test_closeness_speaks_again_only_where_durations_differ(tiny, monkeypatch):
    settings = Settings(metrics=("closeness", "rhythm"), noise_seeds=0)
    reference = prepare_reference(tiny, ("the birch",), settings)
    spoken, real = [], module.speak
    monkeypatch.setattr(
        module, "speak", lambda *args, **options: spoken.append(1) or real(*args, **options)
    )
    spec = PruneSpec(scope="local", amount=0.5, parts=("decoder",))
    found = evaluate_against(reference, prune(tiny, spec))
    assert not spoken
    assert found.figures["duration_drift"].pruned.value == 0.0
    assert found.figures["mcd_db"].pruned.value > 0
    assert found.figures["mcd_db"].verdict == NO_FLOOR
    evaluate_against(reference, prune(tiny, PruneSpec(scope="local", amount=0.6)))
    assert len(spoken) == 1


def test_a_language_that_the_recogniser_lacks(tiny):
    fractions = []
    found = evaluate(
        tiny,
        tiny,
        ["the birch canoe slid", "on the smooth planks"],
        Settings(
            metrics=("intelligibility", "loudness"),
            recogniser=Recogniser(language="de"),
            noise_seeds=1,
        ),
        progress=Progress(lambda message, fraction: fractions.append(fraction)),
    )
    assert "does not know the language 'de'" in found.unmeasured["intelligibility"]
    assert list(found.figures) == ["lufs"]
    assert found.to_row()["wer"] is None
    assert found.rows()[0]["heard_pruned"] is None
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_voices_that_read_as_other_tokens(tiny, joe):
    settings = Settings(metrics=("closeness", "rhythm"), noise_seeds=0)
    found = evaluate(tiny, joe, ["the birch canoe slid"], settings)
    assert "cannot be sample-aligned" in found.unmeasured["closeness"]
    assert list(found.figures) == ["duration_ratio"]


def test_a_predictor_that_does_not_work_is_left_out_and_said(tiny, monkeypatch):
    monkeypatch.setattr(
        predictors,
        "problem",
        lambda name: f"{PREDICTORS[name].title} does not work." if name in PREDICTORS else "",
    )
    small = prune(tiny, PruneSpec(amount=0.3))
    metrics = ("naturalness", "speaker", "loudness")
    found = evaluate(tiny, small, ["hi there you", "you hi"], Settings(metrics=metrics))
    assert list(found.figures) == ["lufs"]
    assert found.unmeasured["naturalness"] == "Distill-MOS does not work. DNSMOS does not work."
    assert found.unmeasured["speaker"].endswith("Resemblyzer does not work.")
    assert found.claim.verdict == UNDECIDED
    assert "dnsmos" not in found.signature


@pytest.mark.parametrize(
    ("module", "lost", "left"),
    [
        ("swift_f0", "Pitch is not compared. SwiftF0", {"cer", "mcd_db", "lufs"}),
        ("pyloudnorm", "Loudness is not measured. pyloudnorm", {"cer", "mcd_db", "voicing_error"}),
        ("faster_whisper", "Words are not measured. The recogniser", {"mcd_db", "lufs"}),
    ],
)
def test_a_broken_package_of_the_requirements_costs_its_figures_and_no_more(
    tiny, monkeypatch, module, lost, left
):
    for where, name in ((waveform, "_detectors"), (recognition, "_models")):
        monkeypatch.setattr(where, name, Bounded(2, lambda _: 1))
    monkeypatch.setattr(predictors, "_loaded", Bounded(8, lambda _: 1))
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    settings = Settings(
        *(3, ("intelligibility", "closeness", "loudness"), Recogniser("tiny.en", "en")),
        noise_seeds=0,
    )
    reference = prepare_reference(tiny, ["hi there you"], settings)
    found = evaluate_against(reference, prune(tiny, PruneSpec(amount=0.3)))
    (said,) = (one for one in found.unmeasured.values() if one.startswith(lost))
    assert "does not work (" in said
    assert left <= set(found.figures)
    gone = {"swift_f0": "voicing_error", "pyloudnorm": "lufs", "faster_whisper": "cer"}[module]
    assert gone not in found.figures
    assert found.rows()[0][gone] is None
    assert ("swift-f0" in found.signature) == (module != "swift_f0")
    with pytest.raises(InputError, match=lost.partition(".")[0]):
        check_measured((Limit(gone, 0.1),), reference)


def test_texts_that_cannot_be_said_are_left_out_with_a_note(tiny):
    settings = Settings(metrics=("loudness",), noise_seeds=0)
    found = evaluate(tiny, tiny, ["the birch", "🙂", ""], settings)
    assert found.texts == ("the birch",)
    assert found.notes[0].startswith("2 of 3 texts were left out")
    for texts in ([], ["🙂"]):
        with pytest.raises(InputError):
            evaluate(tiny, tiny, texts)


def test_a_listener_that_raises_cancels(tiny):
    def stop(message, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, tiny, ["the birch"], Settings(metrics="loudness"), progress=Progress(stop))


def test_settings_are_values_within_range():
    assert Settings(metrics=("loudness", "naturalness")) == Settings(
        metrics=["naturalness", "loudness"]
    )
    assert hash(Settings()) == hash(dataclasses.replace(Settings()))
    assert Settings(seed=2**32 - 1, noise_seeds=2).other_seeds == (0, 1)
    for choices in (
        *({"metrics": ("beauty",)}, {"metrics": ()}),
        *({"noise_seeds": -1}, {"noise_seeds": 17}, {"noise_seeds": True}, {"seed": -1}),
    ):
        with pytest.raises(InputError):
            Settings(**choices)
