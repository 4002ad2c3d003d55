"""Healing on the page, without a browser, on a tiny voice."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import threading
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.nearly import nearly
from vits_prune import PARTS, HealPlan, PruneSpec, load_voice, speak
from vits_prune.errors import InputError
from vits_prune.healing import heal as heal_voice
from vits_prune.measure import predictors, utterances
from vits_prune.measure.predictors import INSTALL
from vits_prune.measure.quality import METRICS, Figure, Floor, Interval
from vits_prune.measure.waveform import Dnsmos
from vits_prune.progress import Cancelled, Progress
from vits_prune.studio import descriptions, evidence, heal_jobs, heal_stretch, plots, workbench
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.heal_stretch import Checkpoint, StepMade, Stretch, StretchEnd
from vits_prune.studio.request import FIRST, Order, Request, order_of
from vits_prune.study import judge
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.judge import CheckpointJudge, tuning_texts
from vits_prune.ui import page, stage
from vits_prune.ui.tabs import heal

PLAN = HealPlan(
    minutes=None, steps=6, lessons=6, batch=2, segment=16, learning_rate=2e-3, checkpoint_every=3
)
ENDLESS = dataclasses.replace(PLAN, steps=100_000, checkpoint_every=100_000)


def opinion(waveform, *_):
    return Dnsmos(*[3 + float(np.tanh(np.std(waveform)))] * 3)


@pytest.fixture(scope="module", autouse=True)
def bench(tiny):
    """A workbench whose only voice is the tiny one.

    Its noise has no words to recognise, and no naturalness to predict: its level stands for that.
    The optional predictors are not there.
    """
    with pytest.MonkeyPatch.context() as patch:
        bench = workbench.Workbench()
        patch.setattr(workbench, "bench", bench)
        patch.setattr(bench, "voice", lambda *_, **__: tiny)
        patch.setattr(judge, "JUDGED_FAMILIES", ("naturalness", "rhythm"))
        patch.setattr(
            predictors,
            "problem",
            lambda name: f"{name} is not installed: {INSTALL}." * (name in predictors.OPTIONAL),
        )
        patch.setattr(heal_jobs, "EVALUATIONS", 2)
        patch.setattr(utterances, "measure_dnsmos", opinion)
        yield bench
        heal_jobs.jobs.clear()


@pytest.fixture(scope="module")
def order(bench):
    """Half of the weights are gone."""
    spec = PruneSpec(scope="local", amount=0.5)
    request = Request("someone/tiny", "hi there you", spec, seed=2, timing="locked")
    return Order(request, PLAN, 1, "")


@pytest.fixture
def quick(monkeypatch):
    """Measure rhythm only: what is tested is not the choice of the best."""
    monkeypatch.setattr(judge, "JUDGED_FAMILIES", ("rhythm",))


def never(_presses=1):
    return False


def other(order, **changes):
    """The order of another healing, which nobody has asked for yet."""
    plan = dataclasses.replace(changes.pop("plan", PLAN), **changes)
    return dataclasses.replace(order, plan=plan, owner=os.urandom(8).hex())


def shown_by(order, pressed=never):
    return list(heal.heal(order, None, pressed))


def left_behind():
    return list(Path(heal_jobs.work.name).iterdir())


def samples(audio):
    value = audio if isinstance(audio, dict) else audio.value
    return soundfile.read(value["path"], dtype="int16")[0]


@pytest.fixture(scope="module")
def updates(order):
    """All updates of one healing that ran through."""
    return shown_by(order)


@pytest.fixture(scope="module")
def whole(order, tiny, bench):
    """The same by the library in one go, with the page's own measure."""
    said = tuning_texts(tiny, order.texts).texts
    reference = prepare_reference(tiny, said, judge.judging_settings(order.request.seed))
    measure = CheckpointJudge(reference, heal_jobs.EVALUATIONS)
    return heal_voice(bench.pruned(order.request), tiny, plan=PLAN, judge=measure).voice


def assert_same_weights(one, another):
    theirs = dict(another.model.named_parameters())
    assert all(tensor.equal(theirs[name]) for name, tensor in one.model.named_parameters())


def test_the_last_update_shows_all_that_was_found(order, updates, whole):
    assert {name for update in updates for name in update} == set(heal.FILLS)
    shown, job = updates[-1], heal_jobs.recall(order)
    json.dumps(shown["heal_course"])
    names = {one["name"] for one in shown["heal_course"]["losses"]}
    assert names >= {"mel", "prior", "flow", "durations"}
    checks = {one["title"]: one["points"] for one in shown["heal_course"]["checks"]}
    assert [point[0] for point in checks["DNSMOS, overall"]] == [0, 3, 6]
    scores = {one.step: one.score for one in job.checkpoints if one.step}
    assert scores[job.kept] == min(scores.values())
    assert f"The voice of step {job.kept} of 6 is kept" in shown["heal_status"]
    assert [step for _, step in shown["heal_checkpoint"].choices] == [0, 3, 6]
    assert any("(kept)" in label for label, _ in shown["heal_checkpoint"].choices)
    assert "length of the speech" in shown["heal_table"]
    assert "original in DNSMOS there. Naturalness is by DNSMOS only" in shown["heal_course"]["hint"]
    rows = pd.read_csv(shown["heal_table_csv"].value["path"])
    assert list(rows["voice"]) == ["pruned", "healed"]
    assert rows["duration_ratio"].notna().all()
    assert set(rows["claim"]) <= {"a difference", "undecided"}, "words and closeness are missing"
    said = shown["heal_compared"]
    assert said.startswith("**Healed: ")
    assert "not measured: words, closeness" in said
    assert "DNSMOS judges a voice alone; it was trained on noisy calls" in said
    assert said.count("Resemblyzer==") == 1
    assert rows["signature"][0] in said
    curve = pd.read_csv(shown["heal_csv"].value["path"])
    assert set(curve["signature"].dropna()) == {job.signature}
    assert shown["heal_course"]["hint"].endswith(f"Signature: {job.signature}")
    assert list(curve["step"]) == sorted(curve["step"])
    assert curve["measured_dnsmos_ovrl"].count() == 3
    assert "measured_dnsmos_ovrl_low" in curve
    assert_same_weights(job.voice, whole)
    assert job.voice.recipe == whole.recipe
    assert left_behind() == []


def test_the_healed_voice_is_heard_and_saved(order, updates, tiny, tmp_path):
    job, request = heal_jobs.recall(order), order.request
    original = speak(tiny, request.text, request.seed)
    speech = speak(job.voice, request.text, request.seed, timing=original)
    at_best = heal.hear_checkpoint({"heal_key": order, "heal_checkpoint": job.kept})
    for heard in (updates[-1]["heal_healed"], at_best["heal_audio"]):
        assert nearly(samples(heard), speech.pcm16())
    with zipfile.ZipFile(heal.save({"heal_key": order})["heal_saved"].value["path"]) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    again = speak(load_voice(folder), "hi there you", 2).waveform
    assert nearly(again, speak(job.voice, "hi there you", 2).waveform)


def test_another_text_is_spoken_by_the_voice_that_is_healed_already(order, updates, tiny, bench):
    request = dataclasses.replace(order.request, text="you hi", timing="own")
    theirs = dataclasses.replace(order, request=request)
    again, job, found = shown_by(theirs), heal_jobs.recall(order), heal_jobs.recall(theirs)
    assert len(again) < len(updates)
    assert found.voice is job.voice
    assert [one.figures for one in found.checkpoints] == [one.figures for one in job.checkpoints]
    heard = [step for _, step in again[-1]["heal_checkpoint"].choices]
    assert heard == [0, found.kept], "others spoke what another visitor wrote"
    original = speak(tiny, "you hi", request.seed)
    for step, voice in ((0, bench.pruned(request)), (found.kept, found.voice)):
        audio = heal.hear_checkpoint({"heal_key": theirs, "heal_checkpoint": step})["heal_audio"]
        own = speak(voice, "you hi", request.seed, timing=original)
        assert nearly(samples(audio), own.pcm16())
    silent = next(one.step for one in job.checkpoints if one.step not in heard)
    with pytest.raises(InputError, match="Choose one of the checkpoints"):
        heal.hear_checkpoint({"heal_key": theirs, "heal_checkpoint": silent})
    assert shown_by(order)[-1]["heal_checkpoint"].choices == updates[-1]["heal_checkpoint"].choices


def test_in_stretches_it_is_the_same_to_the_bit(order, whole, monkeypatch):
    """As on ZeroGPU, where each stretch runs in a process: all that goes in and out is pickled."""
    stretches, train = [], heal_stretch.train

    def elsewhere(stretch, token):
        stretches.append(stretch)
        for found in train(pickle.loads(pickle.dumps(stretch)), token):
            yield pickle.loads(pickle.dumps(found))

    monkeypatch.setattr(heal_jobs, "calls_are_limited", lambda: True)
    monkeypatch.setattr(heal_stretch, "STRETCH_SECONDS", 0.0)
    monkeypatch.setattr(heal_stretch, "train", elsewhere)
    theirs = other(order)
    assert "Done" in shown_by(theirs)[-1]["heal_status"]
    assert [one.resume for one in stretches] == [False] + [True] * (PLAN.steps - 1)
    job = heal_jobs.recall(theirs)
    assert [one.step for one in job.checkpoints] == [0, 3, 6]
    assert_same_weights(job.voice, whole)


def test_the_healed_voice_goes_on_the_stage_and_comes_off_again(order, updates, bench):
    job, said = heal_jobs.recall(order), dataclasses.replace(order.request, text="you hi", seed=3)
    assert heal.take_over({"heal_key": order})["amount"] == 0.5
    with pytest.raises(InputError, match="Nothing is healed yet"):
        heal.take_over({"heal_key": None})
    values = {**FIRST, "voice": "someone/tiny", "text": "you hi", "seed": 3, "heal_key": order}
    *_, shown = stage.speak({**values, "ticket": "h1"}, None, Progress())
    asked = shown["asked"]
    assert (asked.text, asked.seed, asked.spec) == (said.text, said.seed, said.spec)
    assert bench.pruned(asked) is not bench.pruned(said)
    own = speak(job.voice, "you hi", 3, timing=speak(bench.voice(), "you hi", 3))
    assert nearly(samples(shown["stage"]["points"][0]["sound"]), own.pcm16())
    assert shown["stage"]["healed"]
    assert shown["stage"]["amounts"] == ()
    assert [one["amount"] for one in shown["stage"]["points"]] == [0.5]
    assert shown["stage"]["points"][0]["words"].startswith("Healed after pruning.")
    assert "heal(pruned, voice, HealPlan(" in shown["python"]
    assert shown["command"].startswith(
        "python -m vits_prune heal --voice someone/tiny --scope local"
    )
    assert not list(stage.fill_row({"asked": asked, "status": ""}, None, Progress()))[-1]["stage"][
        "amounts"
    ]
    *_, plain = stage.speak(
        {**values, "amount": 0.5, "scope": "local", "ticket": "p2"}, None, Progress()
    )
    assert not plain["stage"]["healed"]
    assert plain["stage"]["original"] != shown["stage"]["original"], "rows of their own"
    (sound,) = (one for one in plain["stage"]["points"] if one["amount"] == 0.5)
    assert not nearly(samples(sound["sound"]), own.pcm16())


def test_the_stage_claims_of_a_healed_voice_what_was_measured_of_it(order, updates, monkeypatch):
    monkeypatch.setattr(evidence, "FAMILIES", ("naturalness", "rhythm"))
    healed = heal_jobs.staged(order, order.request)
    words = evidence.claim_words(healed, None)
    assert words
    assert f"Healed: {words}" in updates[-1]["heal_compared"]
    job = heal_jobs.recall(order)
    recipe = {**job.voice.recipe, "healed": []}
    again = job.voice.with_weights({}, recipe=recipe)
    monkeypatch.setattr(workbench.bench, "pruned", lambda *_: again)
    assert evidence.claim_words(healed, None) == "", "another voice, healed to the same order"


# Stopped


def test_stopped_it_keeps_the_best_so_far_and_measures_it(order, quick):
    long = other(order, steps=1_000, checkpoint_every=5)

    def pressed(presses):
        job = heal_jobs.jobs.get(long.key)
        return presses == 1 and job is not None and job.step >= 7

    shown = shown_by(long, pressed)[-1]
    job = heal_jobs.recall(long)
    assert 7 <= job.step < 1_000
    assert f"stopped by hand at step {job.step}" in shown["heal_status"]
    assert job.voice.recipe["healed"][-1]["steps"] == job.kept
    assert "Before and after healing" in shown["heal_table"]
    assert left_behind() == []


def test_stopped_before_anything_was_measured_the_newest_is_kept(order, quick):
    long = other(order, plan=ENDLESS)

    def pressed(_presses):
        return (job := heal_jobs.jobs.get(long.key)) is not None and job.step > 3

    shown = shown_by(long, pressed)
    job = heal_jobs.recall(long)
    assert job.kept == job.step > 3
    done = job.voice.recipe["healed"][-1]
    assert (done["plan"], done["steps"], done["of"]) == (long.plan.to_dict(), job.kept, 100_000)
    assert done["trained"] == list(PARTS)
    assert "without measuring" in shown[-1]["heal_status"]


def test_stopped_before_it_began_it_says_so(order):
    shown = shown_by(other(order), lambda _presses: True)
    assert shown[-1] == {"heal_status": "Stopped before healing began."}
    assert left_behind() == []


def test_whoever_leaves_leaves_no_work_and_no_files(order, quick):
    long, messages = other(order, plan=ENDLESS), []
    progress = Progress(
        lambda message, _: messages.append(message),
        lambda: any(message.startswith("step") for message in messages),
    )
    with pytest.raises(Cancelled):
        list(heal.heal(long, None, never, progress))
    with heal_stretch.one_at_a_time.turn():  # given back at the end of the work
        pass
    assert left_behind() == []
    with pytest.raises(InputError, match="still being healed"):
        heal.save({"heal_key": long})


def test_one_voice_trains_at_a_time(order, quick):
    theirs, going, found = other(order, steps=2), threading.Event(), []

    def listen(message, _fraction):
        if "waiting for another" in message:
            going.set()

    def run():
        found.extend(heal_jobs.heal(theirs, None, never, Progress(listen)))

    thread = threading.Thread(target=run)
    with heal_stretch.one_at_a_time.turn():
        thread.start()
        assert going.wait(60)
    thread.join(300)
    assert found[-1].complete


# What goes wrong


def test_no_more_gpu_time_keeps_what_there_is(order, quick, monkeypatch):
    train, calls = heal_stretch.train, []

    def refused(stretch, token):
        calls.append(stretch)
        if len(calls) == 2:
            raise gr.Error("You have no GPU time left.")
        yield from train(dataclasses.replace(stretch, seconds=0.0), token)

    monkeypatch.setattr(heal_stretch, "train", refused)
    monkeypatch.setattr(heal_jobs, "calls_are_limited", lambda: True)
    long = other(order, plan=ENDLESS)
    shown = shown_by(long)[-1]
    assert "It ended early: You have no GPU time left." in shown["heal_status"]
    assert heal_jobs.recall(long).voice is not None


def test_a_full_disk_loses_nothing(order, quick, monkeypatch):
    train = heal_stretch.train

    def filling(stretch, token):
        (stretch.folder / "checkpoints" / "best.safetensors" / "in the way").mkdir(parents=True)
        yield from train(stretch, token)

    monkeypatch.setattr(heal_stretch, "train", filling)
    monkeypatch.setattr(judge, "JUDGED_FAMILIES", ("naturalness",))  # there is a best
    shown = shown_by(other(order, steps=4, checkpoint_every=2))[-1]
    assert "The voice of step 2 of 4 is kept" in shown["heal_status"]
    assert "best.safetensors could not be written" in shown["heal_status"]


@pytest.fixture
def stretch(order, tiny, tmp_path):
    settings = Settings(metrics=("rhythm",), noise_seeds=0)
    measure = CheckpointJudge(prepare_reference(tiny, ["hi there"], settings), 5)
    folder = tmp_path / "work" / "stretch"
    folder.mkdir(parents=True)
    return Stretch(order.request, PLAN, folder, measure, speak(tiny, order.request.text), None)


def test_a_stretch_that_fails_ends_with_why(stretch):
    (stretch.folder / "checkpoints").write_text("in the way")
    found = list(heal_stretch.train(stretch, None))
    assert isinstance(found[-1], StretchEnd)
    assert "could not be written" in found[-1].why
    assert not any(isinstance(one, Checkpoint) for one in found)
    assert any(isinstance(one, StepMade) for one in found)


def test_the_thread_that_trains_holds_its_folder(stretch, monkeypatch):
    """Its visitor is gone and the next healing begins while it still writes a checkpoint."""
    inside, go_on, held = threading.Event(), threading.Event(), []

    def train(*_args, **_named):
        inside.set()
        assert go_on.wait(60)
        heal_stretch.remove_left(stretch.folder.parent)
        held.append(stretch.folder.is_dir())
        raise InputError("enough.")

    monkeypatch.setattr(heal_stretch, "heal", train)
    run = heal_stretch.train(stretch, None)
    try:
        next(run)
        assert inside.wait(60)
        run.close()
    finally:
        go_on.set()
    with heal_stretch.one_at_a_time.turn():
        assert held == [True]


def test_only_folders_that_nobody_writes_to_are_removed(tmp_path, monkeypatch):
    for name in ("held", "left"):
        (tmp_path / name).mkdir()
    with heal_stretch.holding(tmp_path / "held"):
        heal_stretch.remove_left(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["held"]
    os.utime(tmp_path / "held", (0, 0))
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(heal_stretch, "calls_are_limited", lambda: True)
    heal_stretch.remove_left(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"], "a worker may still write to it"


# The controls


def chosen(minutes=5, texts=4, adversarial=False):
    return {"heal_minutes": minutes, "heal_texts": texts, "heal_adversarial": adversarial}


def test_the_plan_follows_the_minutes(order):
    short, long = (
        order_of(order.request, "", chosen(minutes, adversarial=adversarial)).plan
        for minutes, adversarial in ((0.5, False), (30, True))
    )
    assert (short.minutes, short.seed, short.adversarial) == (0.5, 2, False)
    assert long.adversarial
    assert short.lessons < long.lessons
    assert short.checkpoint_every < long.checkpoint_every


def test_what_cannot_be_healed_gets_a_sentence(order, monkeypatch):
    for minutes, texts in ((0, 4), (31, 4), (None, 4), (True, 4), (5, 1), (5, 21), (5, None)):
        with pytest.raises(InputError, match=r"^Give [^\n]+\.$"):
            order_of(order.request, "", chosen(minutes, texts))
    whole = dataclasses.replace(order.request, spec=PruneSpec(amount=0.0))
    with pytest.raises(InputError, match=r"Nothing is pruned yet[^\n]+\.$"):
        shown_by(dataclasses.replace(order, request=whole))
    monkeypatch.setattr(descriptions, "MAX_PARAMETERS", 10)
    with pytest.raises(InputError, match=r"the page heals at most[^\n]+\.$"):
        shown_by(other(order))


def test_what_cannot_be_heard_or_saved_gets_a_sentence(order):
    fresh = other(order)
    for step in (3, None, True, "4"):
        with pytest.raises(InputError, match="no longer kept"):
            heal.hear_checkpoint({"heal_key": fresh, "heal_checkpoint": step})
    heal_jobs.jobs.put(fresh.key, HealJob(fresh))
    for step in (3, None, True, "4"):
        with pytest.raises(InputError, match="Choose one of the checkpoints"):
            heal.hear_checkpoint({"heal_key": fresh, "heal_checkpoint": step})
    with pytest.raises(InputError, match="no longer kept"):
        heal.hear_checkpoint({"heal_key": None, "heal_checkpoint": 0})
    with pytest.raises(InputError, match="Nothing is healed yet"):
        heal.save({"heal_key": None})


def test_a_long_course_is_thinned_and_keeps_its_end(order):
    row = {"seconds": 1.0, "mel": 1.0, "total": 2.0, "nothing": 0.0}
    job = HealJob(order, rows=[{"step": 5 * i, **row} for i in range(1, 1_002)])
    (line,) = plots.course_value(job, "")["losses"]
    assert line["name"] == "mel"
    assert len(line["points"]) <= plots.COURSE_POINTS + 1
    assert line["points"][-1] == [5_005, 1.0]


def test_the_course_shows_the_strictest_predictors(order):
    def figure(name, value, own=None, floor=None):
        known = Interval(own, own, own, 6) if own else None
        here = Interval(value, value - 0.1, value + 0.1, 6)
        return Figure(METRICS[name], known, here, None, floor, None, "worse")

    figures = {
        "cer": figure("cer", 0.1, 0.02),
        "distillmos": figure("distillmos", 3.9, 4.3),
        "dnsmos_ovrl": figure("dnsmos_ovrl", 3.9, 3.9),
        "visqol": figure("visqol", 4.2, floor=Floor(4.6, 4.7, (4.6, 4.7))),
        "log_mel_db": figure("log_mel_db", 6.0, floor=Floor(1.0, 2.0, (1.0, 2.0))),
        "duration_ratio": figure("duration_ratio", 1.1),
    }
    job = HealJob(order, checkpoints=[Checkpoint(0, 6, figures, 2.0, None)])
    checks = {one["title"]: one["original"] for one in plots.course_value(job, "")["checks"]}
    assert checks == {
        "character error rate": 0.02,
        "Distill-MOS": 4.3,
        "ViSQOL": 4.6,
        "duration ratio": 1.0,
    }
    hint = heal._found(job)["heal_course"]["hint"]
    by = "character error rate, Distill-MOS and ViSQOL"
    assert f"closest to the original in {by} there." in hint
    assert heal._original(figures["visqol"]) == "4.60 (another seed)"
    assert heal._original(figures["log_mel_db"]) == "2.00 (another seed)"


def test_the_page_heals_one_voice_at_a_time_and_pushes_two():
    lanes = {one.concurrency_id: one.concurrency_limit for one in page.build().fns.values()}
    assert (lanes["heal"], lanes["ship_compare"], lanes["ship_push"]) == (1, 1, 2)
