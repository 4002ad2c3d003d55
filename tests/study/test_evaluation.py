"""A pair of real voices over two sentences, and the parts that need no predictor on a tiny one."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from vits_prune import InputError, PruneSpec, prune
from vits_prune.measure.quality import METRICS, NO_DIFFERENCE, NO_FLOOR
from vits_prune.measure.recognition import Recogniser
from vits_prune.study.evaluation import Settings, evaluate, evaluate_against, prepare_reference
from vits_prune.synthesis.texts import load_texts

TEXTS = ("Hop over the fence and plunge in.", "What joy there is in living.")


@pytest.fixture(scope="module")
def reference(joe):
    return prepare_reference(joe, TEXTS, Settings(seed=3, noise_seeds=1))


@pytest.fixture(scope="module")
def broken(reference, joe):
    return evaluate_against(reference, prune(joe, PruneSpec(scope="global", amount=0.5)))


def numbers(evaluation):
    """All but what differs from run to run."""
    found = evaluation.to_dict()
    del found["cost"]
    return json.dumps(found, sort_keys=True)


def test_a_broken_voice(broken):
    assert list(broken.figures) == [
        name for name in METRICS if name != "f0_rmse_cents"
    ]  # nothing is voiced any more
    assert list(broken.unmeasured) == ["f0_rmse_cents"]
    assert broken.to_row()["f0_rmse_cents"] is None
    verdicts = {name: figure.verdict for name, figure in broken.figures.items()}
    assert {
        verdicts[name]
        for name in ("wer", "cer", "dnsmos_ovrl", "mcd_db", "log_mel_db", "log_stft_magnitude")
    } == {"worse"}
    assert verdicts["lufs"] == "lower"
    assert broken.figures["wer"].original.value < 0.2 < 0.6 < broken.figures["wer"].pruned.value
    assert broken.alarms["silence"] == 2
    assert broken.alarms_of_original["silence"] == 0
    assert broken.recipe["pruned"][0]["amount"] == 0.5


def test_the_original_against_itself(reference, joe):
    found = evaluate_against(reference, joe)
    assert list(found.figures) == list(METRICS)
    assert {figure.verdict for figure in found.figures.values()} == {NO_DIFFERENCE}
    for name, figure in found.figures.items():
        if METRICS[name].kind == "voice":
            assert figure.difference.value == 0.0
            assert figure.original == figure.pruned
        else:
            assert figure.pruned.value == METRICS[name].neutral
    assert found.figures["mcd_db"].floor.low > 0.5


def test_two_runs_give_the_same_numbers(reference, broken, joe):
    """The Reference comes back from a pickle, as in another process; only times may differ."""
    again = evaluate_against(
        pickle.loads(pickle.dumps(reference)), prune(joe, PruneSpec(scope="global", amount=0.5))
    )
    assert numbers(again) == numbers(broken)
    varying = {"cpu_seconds_per_audio_second", "joules_per_audio_second"}
    rows = [{k: v for k, v in e.to_row().items() if k not in varying} for e in (again, broken)]
    assert rows[0] == rows[1]


def test_rows(broken):
    first = broken.rows()[0]
    assert first["text"] == TEXTS[0]
    assert "fence" in first["heard_original"]
    assert "silence" in first["alarms"]
    row = broken.to_row()
    assert row["wer"] == broken.figures["wer"].pruned.value
    assert row["mcd_db_difference_low"] == broken.figures["mcd_db"].difference.low
    assert row["alarms_not_a_number"] == 0
    assert row["texts"] == 2
    assert row["cpu_seconds_per_audio_second"] > 0
    assert all(isinstance(value, str | int | float | None) for value in row.values())


def test_closeness_needs_no_second_rendition_where_durations_are_kept(joe, monkeypatch):
    """A pruned decoder leaves durations alone: speaking again with locked timing would give the same samples."""
    settings = Settings(metrics=("closeness", "rhythm"), noise_seeds=0)
    reference = prepare_reference(joe, TEXTS[:1], settings)
    decoder = prune(joe, PruneSpec(scope="local", amount=0.5, parts=("decoder",)))
    from vits_prune.study import evaluation as module

    locked = []
    real = module.speak
    monkeypatch.setattr(
        module, "speak", lambda *args, **options: locked.append(options) or real(*args, **options)
    )
    found = evaluate_against(reference, decoder)
    assert locked == []
    assert found.figures["duration_drift"].pruned.value == 0.0
    assert found.figures["mcd_db"].pruned.value > 0.5
    assert found.figures["mcd_db"].verdict == NO_FLOOR
    evaluate_against(reference, prune(joe, PruneSpec(scope="local", amount=0.4)))
    assert len(locked) == 1


def test_a_language_that_the_recogniser_lacks(tiny, monkeypatch):
    told = []
    found = evaluate(
        tiny,
        tiny,
        ["the birch canoe slid", "on the smooth planks"],
        metrics=("intelligibility", "loudness"),
        recogniser=Recogniser(language="de"),
        noise_seeds=1,
        progress=lambda what, share: told.append(share),
    )
    assert "does not know the language 'de'" in found.unmeasured["intelligibility"]
    assert list(found.figures) == ["lufs"]
    assert found.to_row()["wer"] is None
    assert found.rows()[0]["heard_pruned"] is None
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 1.0


def test_voices_that_read_as_other_tokens(tiny, joe):
    found = evaluate(
        tiny, joe, ["the birch canoe slid"], metrics=("closeness", "rhythm"), noise_seeds=0
    )
    assert "cannot be sample-aligned" in found.unmeasured["closeness"]
    assert list(found.figures) == ["duration_ratio"]


def test_texts_that_cannot_be_said_are_left_out_with_a_note(tiny):
    found = evaluate(tiny, tiny, ["the birch", "🙂", ""], metrics=("loudness",), noise_seeds=0)
    assert found.texts == ("the birch",)
    assert found.notes[0].startswith("2 of 3 texts were left out")
    for texts in ([], ["🙂"]):
        with pytest.raises(InputError):
            evaluate(tiny, tiny, texts)


def test_raising_in_on_step_cancels(tiny):
    class Cancelled(Exception):
        pass

    def stop(what, share):
        raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(tiny, tiny, ["the birch"], progress=stop, metrics="loudness")


@pytest.mark.parametrize(
    "choices",
    [
        {"metrics": ("beauty",)},
        {"metrics": ()},
        {"noise_seeds": -1},
        {"noise_seeds": 17},
        {"noise_seeds": True},
        {"seed": -1},
    ],
)
def test_choices_out_of_range(choices):
    with pytest.raises(InputError):
        Settings(**choices)


def test_settings_are_values():
    assert Settings(metrics=("loudness", "naturalness")) == Settings(
        metrics=["naturalness", "loudness"]
    )
    assert hash(Settings()) == hash(dataclasses.replace(Settings()))
    assert Settings(seed=2**32 - 1, noise_seeds=2).other_seeds == (0, 1)
    assert len(load_texts()) == 20
