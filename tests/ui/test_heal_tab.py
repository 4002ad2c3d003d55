"""The Heal tab's work without a browser, on a tiny voice: what is shown, what is kept, and what is left behind."""

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

from vits_prune import PARTS, HealPlan, PruneSpec, load_voice, speak
from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.healing import heal as heal_voice
from vits_prune.studio import workbench
from vits_prune.studio.jobs import Update
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.judge import CheckpointJudge, tuning_texts
from vits_prune.ui import heal, healed, healing, page
from vits_prune.ui.course import MAX_POINTS, course_value
from vits_prune.ui.healed import Healing
from vits_prune.ui.healing import Check, Ended, Order, Progress, Task

PLAN = HealPlan(
    minutes=None, steps=20, lessons=20, batch=2, segment=16, learning_rate=2e-3, checkpoint_every=4
)


@pytest.fixture
def request_deep(request_, monkeypatch):
    """A request that takes half of the weights, and no recogniser: a tiny voice's noise has no words."""
    monkeypatch.setattr(healed, "METRICS", ("naturalness", "rhythm"))
    monkeypatch.setattr(healed, "_healings", Bounded(1 << 30, healed._bytes))
    return dataclasses.replace(request_, spec=PruneSpec(amount=0.5))


@pytest.fixture
def order(request_deep):
    return Order(request_deep, PLAN, 2, "")


def never(_what="healing"):
    return False


def last_of(order, halted=never):
    """What the tab shows in the end, everything of it in the last update."""
    return list(heal.ordered_steps(order, None, halted))


def left_behind():
    return list(Path(healed._work.name).iterdir())


def heal_wholly(order, tiny):
    """The same by the library in one go, with the page's own measure."""
    request = order.request
    said = tuning_texts(tiny, order.texts).texts
    reference = prepare_reference(
        tiny, said, Settings(seed=request.seed, metrics=healed.METRICS, noise_seeds=0)
    )
    return heal_voice(
        workbench.bench.pruned(request),
        tiny,
        plan=order.plan,
        judge=CheckpointJudge(reference, healing.CHECKS),
    ).voice


def weights_of(voice):
    return dict(voice.model.named_parameters())


def test_it_heals_and_shows_what_became_of_it(order, tiny, tmp_path):
    updates = last_of(order)
    assert {name for update in updates for name in update} == set(heal.SHOWN)
    shown = updates[-1]
    json.dumps(shown["heal_course"])
    assert {one["name"] for one in shown["heal_course"]["losses"]} >= {
        "mel",
        "prior",
        "flow",
        "durations",
    }
    (dnsmos,) = [one for one in shown["heal_course"]["checks"] if one["title"] == "DNSMOS, overall"]
    assert [point[0] for point in dnsmos["points"]] == [0, 4, 8, 12, 16, 20]
    found = healed.recall(order)
    scores = {check.step: check.score for check in found.checks if check.step}
    assert scores[found.kept] == min(scores.values())
    assert f"The voice of step {found.kept} of 20 is kept" in shown["heal_status"]
    assert [value for _, value in shown["heal_checkpoint"].choices] == [0, 4, 8, 12, 16, 20]
    assert any("(kept)" in label for label, _ in shown["heal_checkpoint"].choices)
    table = shown["heal_table"].value
    assert "length of the speech" in str(table)
    rows = pd.read_csv(shown["heal_table_csv"].value["path"])
    assert list(rows["voice"]) == ["pruned", "healed"]
    assert rows["duration_ratio"].notna().all()
    curve = pd.read_csv(shown["heal_csv"].value["path"])
    assert list(curve["step"]) == sorted(curve["step"])
    assert curve["measured_dnsmos_ovrl"].count() == 6
    whole = heal_wholly(order, tiny)
    assert all(
        tensor.equal(weights_of(whole)[name]) for name, tensor in weights_of(found.voice).items()
    )
    assert found.voice.recipe == whole.recipe
    assert left_behind() == []

    original = speak(tiny, order.request.text, order.request.seed)
    speech = speak(found.voice, order.request.text, order.request.seed, timing=original)
    np.testing.assert_array_equal(
        soundfile.read(shown["heal_healed"].value["path"], dtype="int16")[0], speech.pcm16()
    )
    at_best = heal.checkpoint_steps(order, found.kept)["heal_audio"]
    np.testing.assert_array_equal(
        soundfile.read(at_best.value["path"], dtype="int16")[0], speech.pcm16()
    )
    with zipfile.ZipFile(heal.healed_folder(order)) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    np.testing.assert_array_equal(
        speak(load_voice(folder), "hi there you", 2).waveform,
        speak(found.voice, "hi there you", 2).waveform,
    )

    other = dataclasses.replace(
        order, request=dataclasses.replace(order.request, text="you hi", timing="own")
    )
    again = last_of(other)
    assert len(again) < len(updates)
    theirs = healed.recall(other)
    assert theirs.voice is found.voice, "what was healed is spoken with, not healed again"
    assert [check.figures for check in theirs.checks] == [check.figures for check in found.checks]
    assert [value for _, value in again[-1]["heal_checkpoint"].choices] == [0, found.kept], (
        "others said what another visitor wrote"
    )
    original = speak(tiny, "you hi", order.request.seed)
    for step, voice in ((0, workbench.bench.pruned(order.request)), (found.kept, found.voice)):
        heard = heal.checkpoint_steps(other, step)["heal_audio"].value["path"]
        own = speak(voice, "you hi", order.request.seed, timing=original)
        np.testing.assert_array_equal(soundfile.read(heard, dtype="int16")[0], own.pcm16())
    with pytest.raises(InputError, match="Choose one of the checkpoints"):
        heal.checkpoint_steps(
            other, next(check.step for check in found.checks if check.step not in (0, found.kept))
        )
    assert healed.recall(order) is found


def test_in_stretches_it_is_the_same_to_the_bit(order, tiny, monkeypatch):
    """As on ZeroGPU, where each stretch runs in a process of its own: all that goes in and comes out is pickled."""
    stretches, train = [], healing.training_steps

    def elsewhere(task, token):
        stretches.append(task)
        for found in train(pickle.loads(pickle.dumps(task)), token):
            yield pickle.loads(pickle.dumps(found))

    monkeypatch.setattr(healed, "calls_are_limited", lambda: True)
    monkeypatch.setattr(healing, "STRETCH_SECONDS", 0.0)
    monkeypatch.setattr(healing, "training_steps", elsewhere)
    updates = last_of(order)
    assert len(stretches) == PLAN.steps
    assert [task.resume for task in stretches] == [False] + [True] * (PLAN.steps - 1)
    found, whole = healed.recall(order), heal_wholly(order, tiny)
    assert [check.step for check in found.checks] == [0, 4, 8, 12, 16, 20]
    assert all(
        tensor.equal(weights_of(whole)[name]) for name, tensor in weights_of(found.voice).items()
    )
    assert "Done" in updates[-1]["heal_status"]


def halting_at(step, order):
    """Whether it is to stop, from a step on."""
    return lambda what: (
        what == "healing"
        and (found := healed._healings.get(order.key)) is not None
        and len(found.checks) > step
    )


def test_stopped_it_keeps_the_best_so_far_and_goes_on_to_measure(order):
    long = dataclasses.replace(
        order, plan=dataclasses.replace(PLAN, steps=200, checkpoint_every=40)
    )
    shown = last_of(long, halting_at(1, long))[-1]
    found = healed.recall(long)
    assert 40 <= found.step < 200
    assert found.kept == 40
    assert f"stopped by hand at step {found.step}" in shown["heal_status"]
    assert found.voice.recipe["healed"][-1]["steps"] == 40
    assert shown["heal_table"].visible
    assert left_behind() == []


def test_stopped_before_anything_was_measured_the_newest_is_kept(order):
    long = dataclasses.replace(
        order, plan=dataclasses.replace(PLAN, steps=100_000, checkpoint_every=100_000)
    )
    shown = last_of(
        long, lambda _what: (found := healed._healings.get(long.key)) is not None and found.step > 3
    )
    found = healed.recall(long)
    assert found.kept == found.step > 3
    done = found.voice.recipe["healed"][-1]
    assert (done["plan"], done["steps"], done["of"]) == (long.plan.to_dict(), found.kept, 100_000)
    assert done["trained"] == list(PARTS)
    assert "without measuring" in shown[-1]["heal_status"]


def test_stopped_before_it_began_it_says_so(order):
    shown = last_of(order, lambda _what: True)
    assert shown[-1] == {"heal_status": "Stopped before healing began."}
    assert left_behind() == []


def test_whoever_leaves_leaves_no_work_and_no_files(order):
    long = dataclasses.replace(
        order, plan=dataclasses.replace(PLAN, steps=100_000, checkpoint_every=100_000)
    )
    run = heal.ordered_steps(long, None, never)
    for update in run:
        if "step" in update.get("heal_status", ""):
            break
    run.close()
    with healing._training:  # given back at the end of the work
        pass
    assert left_behind() == []
    with pytest.raises(InputError, match="still being healed"):
        heal.healed_folder(long)


def test_one_healing_at_a_time(order, request_deep):
    told, going = [], threading.Event()
    assert healing._training.acquire()

    def run():
        for step in healed.healing_steps(order, None, never):
            told.append(step)
            if isinstance(step, Update) and "waiting for another" in step.message:
                going.set()

    other = threading.Thread(target=run)
    try:
        other.start()
        assert going.wait(60)
    finally:
        healing._training.release()
        other.join(300)
    assert isinstance(told[-1], Healing)
    assert told[-1].complete


def test_no_gpu_any_more_keeps_what_there_is(order, monkeypatch):
    train, calls = healing.training_steps, []

    def refused(task, token):
        calls.append(task)
        if len(calls) == 2:
            raise gr.Error("You have no GPU time left.")
        yield from train(dataclasses.replace(task, seconds=0.2), token)

    monkeypatch.setattr(healing, "training_steps", refused)
    monkeypatch.setattr(healed, "calls_are_limited", lambda: True)
    long = dataclasses.replace(
        order, plan=dataclasses.replace(PLAN, steps=100_000, checkpoint_every=2)
    )
    shown = last_of(long)[-1]
    assert "It ended early: You have no GPU time left." in shown["heal_status"]
    assert healed.recall(long).voice is not None


def test_a_disk_that_takes_no_more_loses_nothing(order, monkeypatch):
    train = healing.training_steps

    def filling(task, token):
        (task.folder / "checkpoints" / "best.safetensors" / "in the way").mkdir(parents=True)
        yield from train(task, token)

    monkeypatch.setattr(healing, "training_steps", filling)
    shown = last_of(order)[-1]
    assert "The voice of step 4 of 20 is kept" in shown["heal_status"]
    assert "best.safetensors could not be written" in shown["heal_status"]


def task_of(order):
    """A task whose preparation is done."""
    request = order.request
    voice = workbench.bench.voice(request.reference)
    judge = CheckpointJudge(
        prepare_reference(voice, ["hi there"], Settings(metrics=("rhythm",), noise_seeds=0)),
        healing.CHECKS,
    )
    pruned = workbench.bench.pruned(request)
    return next(
        step
        for step in healed.in_background(
            lambda tell: healed._prepared(Healing(order), judge, voice, pruned, tell)
        )
        if isinstance(step, Task)
    )


def test_what_comes_out_of_a_stretch_ends_with_why(order):
    task = task_of(order)
    (task.folder / "checkpoints").write_text("in the way")
    found = list(healing.training_steps(task, None))
    assert isinstance(found[-1], Ended)
    assert "could not be written" in found[-1].why
    assert not any(isinstance(one, Check) for one in found)
    assert any(isinstance(one, Progress) for one in found)


@pytest.mark.parametrize(
    "values",
    [
        (0, 4, False),
        (31, 4, False),
        (None, 4, False),
        (True, 4, False),
        (5, 1, False),
        (5, 21, False),
        (5, None, False),
    ],
)
def test_what_is_out_of_range_gets_a_sentence(request_deep, values):
    with pytest.raises(InputError, match=r"^Give [^\n]+\.$"):
        heal.order_of(request_deep, None, *values)


def test_the_plan_follows_the_minutes(request_deep):
    short, long = (
        heal.order_of(request_deep, None, minutes, 4, adversarial).plan
        for minutes, adversarial in ((0.5, False), (30, True))
    )
    assert (short.minutes, short.seed, short.adversarial) == (0.5, 2, False)
    assert long.adversarial
    assert short.lessons < long.lessons
    assert short.checkpoint_every < long.checkpoint_every


def test_nothing_pruned_gets_a_sentence(request_deep):
    order = Order(dataclasses.replace(request_deep, spec=PruneSpec(amount=0.0)), PLAN, 2, "")
    with pytest.raises(InputError, match=r"Nothing is pruned yet[^\n]+\.$"):
        last_of(order)


def test_a_voice_too_large_gets_a_sentence(order, monkeypatch):
    monkeypatch.setattr(healing, "MAX_PARAMETERS", 10)
    with pytest.raises(InputError, match=r"the page heals at most[^\n]+\.$"):
        last_of(order)


@pytest.mark.parametrize("step", [3, None, True, "4"])
def test_a_checkpoint_that_is_none_gets_a_sentence(order, step):
    with pytest.raises(InputError, match="no longer kept"):
        heal.checkpoint_steps(order, step)
    healed._healings.put(order.key, Healing(order))
    with pytest.raises(InputError, match="Choose one of the checkpoints"):
        heal.checkpoint_steps(order, step)


def test_nothing_healed_has_no_folder():
    with pytest.raises(InputError, match="Nothing is healed yet"):
        heal.healed_folder(None)
    with pytest.raises(InputError, match="no longer kept"):
        heal.checkpoint_steps(None, 0)


def test_a_long_course_is_thinned_and_keeps_its_end():
    rows = [
        {"step": 5 * i, "seconds": 1.0, "mel": 1.0, "total": 2.0, "nothing": 0.0}
        for i in range(1, 1_002)
    ]
    value = course_value(rows, [], 5_005, None, "")
    (line,) = value["losses"]
    assert line["name"] == "mel"
    assert len(line["points"]) <= MAX_POINTS + 1
    assert line["points"][-1] == [5_005, 1.0]


def test_the_page_heals_in_a_line_of_its_own():
    demo = page.build()
    lines = {one.concurrency_id: one.concurrency_limit for one in demo.fns.values()}
    assert lines["heal"] == 1


def test_a_folder_that_somebody_may_still_write_to_stays(tmp_path):
    for name in ("held", "left"):
        (tmp_path / name).mkdir()
    with healing.holding(tmp_path / "held"):
        healing.remove_left(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["held"]
    healing.remove_left(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_worker_may_still_write_to_stays(tmp_path, monkeypatch):
    """A worker of ZeroGPU is another process, which ends some time after its visitor has gone."""
    monkeypatch.setattr(healing, "calls_are_limited", lambda: True)
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    os.utime(tmp_path / "old", (0, 0))
    healing.remove_left(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_thread_that_trains_holds_its_folder(order, monkeypatch):
    """Its visitor has gone, and the next one's healing begins: the thread may be in the middle of a checkpoint."""
    task = task_of(order)
    inside, go_on, held = threading.Event(), threading.Event(), []

    def train(*_args, **_named):
        inside.set()
        assert go_on.wait(60)
        healing.remove_left(task.folder.parent)
        held.append(task.folder.is_dir())
        raise InputError("enough.")

    monkeypatch.setattr(healing, "heal", train)
    run = healing.training_steps(task, None)
    try:
        next(run)
        assert inside.wait(60)
        run.close()
    finally:
        go_on.set()
    with healing._training:
        assert held == [True]
