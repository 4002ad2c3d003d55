"""heal from its arguments to its result: what learns, what is kept, and how it resumes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import vits_prune
from tests.healing.conftest import (
    DATA,
    QUICK,
    SCORES,
    SMALLER,
    TEXTS,
    Scores,
    Stop,
    same_weights,
    stopped_at,
    stopping,
)
from tests.pruning.conftest import KINDS
from vits_prune import HealPlan, InputError, PruneSpec, load_voice, measure_sparsity, prune, speak
from vits_prune.errors import DamagedFileError
from vits_prune.healing import HealData, HealRun, best, heal, heal_steps
from vits_prune.healing.storage import Checkpoints
from vits_prune.healing.student import masks
from vits_prune.healing.teacher import TeacherSpeech, training_texts
from vits_prune.voices.saved import save_voice


def learns(teacher, pruned, steps=50):
    losses = []
    healed = heal(
        pruned,
        teacher,
        dataclasses.replace(QUICK, steps=steps, joint=0.0),
        data=DATA,
        run=HealRun(observer=lambda one: losses.append(one.losses["total"])),
    ).voice
    assert len(losses) == steps
    assert statistics.fmean(losses[-10:]) < 0.97 * statistics.fmean(losses[:10])
    weights = dict(healed.model.named_parameters())
    assert all(bool((weights[name][mask == 0] == 0).all()) for name, mask in masks(pruned).items())
    shapes = [[p.shape for p in voice.model.parameters()] for voice in (healed, pruned)]
    assert shapes[0] == shapes[1]
    assert speak(healed, "a short one").audio_seconds > 0


SPECS = {"sparse": PruneSpec(amount=0.5), "smaller": PruneSpec(method="structured", shape=SMALLER)}


def test_it_learns_and_what_was_pruned_stays_pruned(families, tiny, smaller):
    learns(families["speakers"], prune(families["speakers"], SPECS["sparse"]), steps=30)
    learns(tiny, smaller, steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", SPECS)
def test_all_voices_learn(families, kind, spec):
    learns(families[kind], prune(families[kind], SPECS[spec]))


def test_only_what_differs_learns(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("decoder",)))
    result = heal(pruned, tiny, dataclasses.replace(QUICK, steps=2), data=DATA)
    assert {name.partition(".")[0] for name in same_weights(result.voice, tiny)} == {"decoder"}
    assert result.trained == ("decoder",)
    before = dict(pruned.model.named_parameters())
    assert all(
        tensor is before[name]
        for name, tensor in result.voice.model.named_parameters()
        if not name.startswith("decoder.")
    )


def test_the_result_is_the_best_checkpoint(whole, sparse):
    result = whole.result
    assert (result.step, result.of, result.score, result.stopped) == (3, 8, 1.0, "")
    assert (result.sentences, result.recordings) == (16, 0)
    assert result.trained == ("text_encoder", "duration_predictor", "flow", "decoder")
    assert result.seconds == whole.steps[-1].seconds > 0
    assert [(one.step, one.of) for one in whole.steps] == [(step, 8) for step in range(1, 9)]
    assert all(one.losses["total"] > 0 for one in whole.steps)
    names = sorted(path.name for path in (whole.folder / "checkpoints").iterdir())
    assert names == [
        "best.safetensors",
        "checkpoint-00000006.safetensors",
        "checkpoint-00000008.safetensors",
        "scored.safetensors",
    ]
    kept = best(whole.folder, sparse)
    assert same_weights(kept.voice, result.voice) == []
    assert kept.voice.recipe == result.voice.recipe
    assert (kept.step, kept.of, kept.score) == (3, 8, 1.0)


def test_the_recipe_is_saved_with_the_voice(whole, sparse, tmp_path):
    healed = whole.result.voice
    again = load_voice(save_voice(healed, tmp_path / "healed"))
    (entry,) = again.recipe["healed"]
    assert HealPlan.from_dict(entry.pop("plan")) == QUICK
    assert entry == {
        "steps": 3,
        "of": 8,
        "lessons": 16,
        "trained": ["text_encoder", "duration_predictor", "flow", "decoder"],
    }
    assert again.recipe["pruned"] == sparse.recipe["pruned"]
    assert speak(again, TEXTS[0]).waveform.tolist() == speak(healed, TEXTS[0]).waveform.tolist()


def test_another_seed_is_another_voice(tiny, sparse, last):
    other = heal(sparse, tiny, dataclasses.replace(QUICK, seed=1), data=DATA)
    assert same_weights(last.voice, other.voice)


def test_a_judge_wants_checkpoints_and_changes_nothing_else(tiny, sparse, last):
    judged = []
    judge = Scores(judged.append, wanted=(2, 4))
    result = heal(sparse, tiny, QUICK, data=DATA, judge=judge)
    assert judged == [2, 3, 4, 6, 8]
    assert same_weights(result.voice, last.voice) == []
    assert (result.step, result.score) == (8, None)


def test_a_score_that_is_nan_is_never_the_best(tiny, sparse):
    scores = {3: 1.0, 4: float("nan")}
    plan = dataclasses.replace(QUICK, steps=4)
    assert heal(sparse, tiny, plan, data=DATA, judge=Scores(scores.get)).step == 3


# Resuming


@pytest.mark.parametrize(
    "changes", [{}, {"adversarial": True, "adversarial_width": 0.04}], ids=["plain", "adversarial"]
)
def test_stopped_and_resumed_it_is_the_same_to_the_bit(tiny, sparse, last, tmp_path, changes):
    plan = dataclasses.replace(QUICK, **changes)
    expected = heal(sparse, tiny, plan, data=DATA) if changes else last
    stopped_at(5, sparse, tiny, tmp_path, plan)
    steps = []
    run = HealRun(tmp_path, resume=True, observer=steps.append)
    resumed = heal(sparse, tiny, plan, data=DATA, run=run)
    assert [one.step for one in steps] == [6, 7, 8]
    assert same_weights(expected.voice, resumed.voice) == []
    assert resumed.voice.recipe == expected.voice.recipe


def test_a_damaged_checkpoint_is_passed_over(tiny, sparse, last, tmp_path):
    stopped_at(5, sparse, tiny, tmp_path)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    steps = []
    run = HealRun(tmp_path, resume=True, observer=steps.append)
    resumed = heal(sparse, tiny, QUICK, data=DATA, run=run)
    assert steps[0].step == 4
    assert same_weights(last.voice, resumed.voice) == []


def test_damaged_checkpoints_are_refused_and_stay(tiny, sparse, whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "work")
    folder = tmp_path / "work" / "checkpoints"
    content = {path: path.read_bytes() for path in folder.iterdir()}
    for names, words in (("checkpoint-", "are damaged"), ("best", "best.* is damaged")):
        for path, data in content.items():
            path.write_bytes(data[:-100] if path.name.startswith(names) else data)
        there = {path: path.read_bytes() for path in content}
        with pytest.raises(DamagedFileError, match=words):
            heal(sparse, tiny, QUICK, data=DATA, run=HealRun(tmp_path / "work", resume=True))
        assert {path: path.read_bytes() for path in folder.iterdir()} == there


def test_the_best_survives_a_resumed_run(tiny, sparse, whole, tmp_path):
    stopped_at(4, sparse, tiny, tmp_path, judge=Scores(SCORES.get))
    run = HealRun(tmp_path, resume=True)
    healed = heal(sparse, tiny, QUICK, data=DATA, run=run, judge=Scores(SCORES.get))
    assert healed.step == 3
    assert same_weights(healed.voice, whole.result.voice) == []
    assert Checkpoints(tmp_path / "checkpoints").best()[1]["score"] == 1.0


@pytest.mark.parametrize(("at", "wanted"), [(6, ()), (4, (4,))])
def test_a_checkpoint_is_judged_again_if_the_judge_was_stopped(tiny, sparse, tmp_path, at, wanted):
    scores, judged = {3: 3.0, 4: 2.0, 6: 1.0, 8: 4.0}, []

    def stopped(step):
        if step == at:
            raise Stop
        return scores[step]

    def score(step):
        judged.append(step)
        return scores[step]

    run = HealRun(tmp_path)
    with pytest.raises(Stop):
        heal(sparse, tiny, QUICK, data=DATA, run=run, judge=Scores(stopped, wanted))
    run = HealRun(tmp_path, resume=True)
    resumed = heal(sparse, tiny, QUICK, data=DATA, run=run, judge=Scores(score, wanted))
    assert judged == [step for step in sorted({3, 6, 8, *wanted}) if step >= at]
    assert (resumed.step, resumed.score) == (6, 1.0)


def test_minutes_become_steps_once_and_for_all(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, steps=None, minutes=0.05)
    seen = []

    def until_known(one):
        seen.append(one)
        if one.of is not None:
            raise Stop

    for resume in (False, True):
        run = HealRun(tmp_path, resume, observer=until_known)
        with pytest.raises(Stop):
            heal(sparse, tiny, plan, data=DATA, run=run)
    first = next(one for one in seen if one.of is not None)
    assert seen[0].of is None
    assert (seen[-1].step, seen[-1].of) == (first.step + 1, first.of)


def test_torch_has_the_threads_of_the_first_run(tiny, sparse, tmp_path):
    before, seen = torch.get_num_threads(), []

    def observe(one):
        seen.append(torch.get_num_threads())
        if one.step == 2:
            raise Stop

    plan = dataclasses.replace(QUICK, steps=3)
    try:
        torch.set_num_threads(1)
        with pytest.raises(Stop):
            heal(sparse, tiny, plan, data=DATA, run=HealRun(tmp_path, observer=observe))
        torch.set_num_threads(2)
        heal(sparse, tiny, plan, data=DATA, run=HealRun(tmp_path, True, observer=observe))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]


def test_a_checkpoint_of_another_healing_is_refused(tiny, sparse, smaller, families, tmp_path):
    stopped_at(1, sparse, tiny, tmp_path / "work")
    run, another = HealRun(tmp_path / "work", resume=True), "belong to another healing"
    for pruned, plan, texts in (
        (sparse, dataclasses.replace(QUICK, seed=5), TEXTS),
        (smaller, QUICK, TEXTS),
        (sparse, QUICK, TEXTS[:3]),
        (sparse, QUICK, None),
    ):
        with pytest.raises(InputError, match=another):
            heal(pruned, tiny, plan, data=HealData(texts), run=run)
    with pytest.raises(InputError, match="nothing to resume without a folder"):
        heal(sparse, tiny, QUICK, data=DATA, run=HealRun(resume=True))
    crowd = families["speakers"]
    pruned = prune(crowd, PruneSpec(amount=0.5))
    stopped_at(1, pruned, crowd, tmp_path / "crowd")
    run = HealRun(tmp_path / "crowd", resume=True)
    with pytest.raises(InputError, match=another):
        heal(pruned.with_speaker(0), crowd.with_speaker(0), QUICK, data=DATA, run=run)


def test_other_text_only_sentences_are_another_healing(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, lessons=3)
    stopped_at(1, sparse, tiny, tmp_path, plan)
    said = training_texts(tiny, TEXTS, 3, plan.seed)
    others = tuple(text if text in said else f"{text} and more" for text in TEXTS)
    assert training_texts(tiny, others, 3, plan.seed) == said
    with pytest.raises(InputError, match="belong to another healing"):
        heal(sparse, tiny, plan, data=HealData(others), run=HealRun(tmp_path, resume=True))


def test_unfinished_files_are_removed(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, steps=2)
    stopped_at(1, sparse, tiny, tmp_path, plan)
    for name in (".checkpoint-00000009.safetensors.abcd1234.part", "mine"):
        (tmp_path / "checkpoints" / name).write_text("half")
    heal(sparse, tiny, plan, data=DATA, run=HealRun(tmp_path, resume=True))
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert not [name for name in names if name.startswith(".")]
    assert "mine" in names


def test_the_newest_checkpoint_and_why_it_ended(tiny, sparse, smaller, tmp_path):
    assert best(tmp_path, sparse) is None
    stopped_at(4, sparse, tiny, tmp_path)
    kept = best(str(tmp_path), sparse, stopped="by hand")
    assert (kept.step, kept.of, kept.score, kept.stopped) == (4, 8, None, "by hand")
    assert kept.voice.recipe["healed"][-1]["plan"] == QUICK.to_dict()
    assert kept.voice.recipe["pruned"] == sparse.recipe["pruned"]
    assert same_weights(kept.voice, sparse)
    with pytest.raises(InputError, match="give the pruned voice that was healed"):
        best(tmp_path, smaller)


# What can go wrong


def test_a_full_disk_loses_nothing(tiny, sparse, last, tmp_path):
    in_the_way = tmp_path / "checkpoints" / "checkpoint-00000006.safetensors"
    (in_the_way / "of the sixth").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint-00000006\.safetensors could not be written"):
        heal(sparse, tiny, QUICK, data=DATA, run=HealRun(tmp_path))
    shutil.rmtree(in_the_way)
    assert Checkpoints(tmp_path / "checkpoints").newest()[1]["step"] == 3
    resumed = heal(sparse, tiny, QUICK, data=DATA, run=HealRun(tmp_path, resume=True))
    assert same_weights(last.voice, resumed.voice) == []


class Failing(TeacherSpeech):
    """Speech that ends after some steps."""

    asked = 0

    def first(self, count):
        self.asked += 1
        if self.asked > 5:
            raise RuntimeError("no memory for speech")
        return super().first(count)


def test_whatever_ends_it_the_last_whole_step_is_kept(tiny, sparse, tmp_path):
    speech = Failing(
        tiny, training_texts(tiny, TEXTS, QUICK.lessons, QUICK.seed), seed=0, segment=16
    )
    with pytest.raises(RuntimeError, match="no memory"):
        heal(sparse, tiny, QUICK, data=HealData(TEXTS, speech=speech), run=HealRun(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").newest()[1]["step"] == 5


def test_outputs_that_are_not_finite_end_it_at_the_last_good_checkpoint(families, tmp_path):
    teacher = families["plain"]
    weights = {  # the spline of a stochastic predictor refuses NaN; a large bias overflows the loss
        "text_encoder.embed_tokens.weight": float("nan"),
        "text_encoder.project.bias": 1e30,
    }
    for name, value in weights.items():
        tensor = torch.full_like(teacher.model.get_parameter(name), value)
        broken = teacher.with_weights({name: tensor})
        steps = []
        run = HealRun(tmp_path / name, observer=steps.append)
        result = heal(broken, teacher, QUICK, data=DATA, run=run)
        assert steps == []
        assert result.step == 0
        assert "was not finite at step 1" in result.stopped
        assert result.voice.recipe["healed"][0]["stopped"] == result.stopped
        assert all(
            tensor.equal(before) or tensor.isnan().all()
            for tensor, before in zip(
                result.voice.model.parameters(), broken.model.parameters(), strict=True
            )
        )


def test_recordings_are_learnt_from(tiny, sparse, last, tmp_path):
    noise = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randn(16, 40, generator=noise),
            0.1 * torch.randn(40 * tiny.hop_length, generator=noise),
        )
        for _ in range(2)
    ]
    steps = []
    with pytest.raises(Stop):
        heal(
            sparse,
            tiny,
            QUICK,
            data=HealData(TEXTS, pairs),
            run=HealRun(tmp_path, observer=lambda one: steps.append(one) or stopping(2)(one)),
        )
    assert all(one.losses["recorded_mel"] > 0 for one in steps)
    run = HealRun(tmp_path, resume=True)
    for other in ([], pairs[:1], pairs[::-1], [pairs[0], (pairs[1][0], pairs[1][1] + 1e-6)]):
        with pytest.raises(InputError, match="were made with other recordings"):
            heal(sparse, tiny, QUICK, data=HealData(TEXTS, other), run=run)
    copies = [(latents.clone(), waveform.clone()) for latents, waveform in pairs]
    result = heal(sparse, tiny, QUICK, data=HealData(TEXTS, copies), run=run)
    assert (result.step, result.recordings) == (8, 2)
    assert any(name.startswith("decoder.") for name in same_weights(result.voice, last.voice))
    flow = prune(tiny, PruneSpec(amount=0.5, parts=("flow",)))
    with pytest.raises(InputError, match="heal without recordings, or prune the decoder too"):
        heal(flow, tiny, QUICK, data=HealData(TEXTS, pairs))


# Gradual pruning


def test_each_step_goes_on_from_the_healed_voice(tiny, tmp_path):
    spec, messages = PruneSpec(amount=0.6, steps=2, schedule="linear"), []
    progress = vits_prune.progress.Progress(lambda message, _: messages.append(message))
    run = HealRun(tmp_path, progress=progress)
    plan = dataclasses.replace(QUICK, steps=3)
    found = list(heal_steps(tiny, spec, plan, data=DATA, run=run))
    assert [amount for amount, _ in found] == pytest.approx([0.3, 0.6])
    assert [one.step for _, one in found] == [1, 2]
    for amount, one in found:
        assert measure_sparsity(one.voice).overall == pytest.approx(amount, abs=0.01)
    first, second = (dict(one.voice.model.named_parameters()) for _, one in found)
    assert all(
        bool((second[name][first[name] == 0] == 0).all())
        for name in first
        if name.endswith("weight") and first[name].ndim > 1
    )
    recipe = found[-1][1].voice.recipe
    assert [one["steps"] for one in recipe["healed"]] == [1, 2]
    assert len(recipe["pruned"]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lessons", "step-1", "step-2"}
    assert messages


def test_with_other_threads_each_step_is_pruned_as_before(tiny, tmp_path):
    plan = dataclasses.replace(QUICK, steps=6, batch=1, checkpoint_every=1)
    spec = PruneSpec(method="second_order", amount=0.5, steps=2, parts=("flow",), texts=TEXTS[-1:])
    before, seen = torch.get_num_threads(), []
    run = HealRun(tmp_path, observer=stopping(1))
    try:
        torch.set_num_threads(1)
        with pytest.raises(Stop):
            list(heal_steps(tiny, spec, plan, data=DATA, run=run))
        torch.set_num_threads(2)
        progress = vits_prune.progress.Progress(lambda *_: seen.append(torch.get_num_threads()))
        run = HealRun(tmp_path, resume=True, progress=progress)
        steps = heal_steps(tiny, spec, plan, data=DATA, run=run)
        amount, _ = next(steps)
        assert torch.get_num_threads() == 2, "while the caller looks at a step"
        steps.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert amount < 0.5


def test_structured_steps_shrink_the_voice(tiny):
    spec = PruneSpec(method="structured", amount=0.3, parts=("decoder",), steps=2)
    plan = dataclasses.replace(QUICK, steps=2)
    results = [one for _, one in heal_steps(tiny, spec, plan, data=DATA)]
    voices = [tiny, *(one.voice for one in results)]
    sizes = [sum(p.numel() for p in voice.model.decoder.parameters()) for voice in voices]
    assert sizes[0] > sizes[1] >= sizes[2]
    assert results[-1].trained == ("decoder",)


# Several processes


@pytest.mark.slow
def test_several_processes_learn_one_voice(tiny_folder, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import os
        from vits_prune import HealPlan, InputError, PruneSpec, load_voice, prune, save_voice
        from vits_prune.healing import HealRun, heal
        place, rank = {str(tmp_path)!r}, os.environ["RANK"]
        teacher = load_voice({str(tiny_folder)!r})
        pruned = prune(teacher, PruneSpec(amount=0.5))
        plan = HealPlan(minutes=None, steps=6, lessons=20, batch=2, segment=16,
                        learning_rate=2e-3, checkpoint_every=3)
        steps = []
        result = heal(pruned, teacher, plan, run=HealRun(place + "/work", observer=steps.append))
        save_voice(result.voice, place + "/healed-" + rank)
        open(place + "/steps-" + rank, "w").write(str(len(steps)))
        own = place + ("/work" if rank == "0" else "/another machine")
        try:
            heal(pruned, teacher, plan, run=HealRun(own, resume=True))
        except InputError as error:
            open(place + "/refused-" + rank, "w").write(str(error))
        """)
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(vits_prune.__file__).parents[1]),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*launch, "--nproc_per_node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    one, other = (load_voice(tmp_path / f"healed-{rank}") for rank in (0, 1))
    assert same_weights(one, other) == []
    assert [(tmp_path / f"steps-{rank}").read_text() for rank in (0, 1)] == ["6", "0"]
    for rank in (0, 1):
        refused = (tmp_path / f"refused-{rank}").read_text()
        assert "a disk that all machines share" in refused
    teacher = load_voice(tiny_folder)
    plan = dataclasses.replace(QUICK, steps=6)
    alone = heal(prune(teacher, PruneSpec(amount=0.5)), teacher, plan).voice
    assert same_weights(one, alone), "each process has sentences of its own"
    assert Checkpoints(tmp_path / "work" / "checkpoints").newest()[1]["processes"] == 2
