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
from tests.healing.conftest import QUICK, TEXTS, same_weights
from tests.pruning.conftest import KINDS
from tests.voices.hf_factory import make_checkpoint
from vits_prune import HealPlan, InputError, PruneSpec, Shape, heal, load_voice, prune, save_voice, speak
from vits_prune.errors import DamagedFileError
from vits_prune.healing.checkpoints import Checkpoints
from vits_prune.healing.corpus import corpus
from vits_prune.healing.lessons import Lessons
from vits_prune.healing.pair import check_pair
from vits_prune.healing.zeros import masks


class Stop(Exception):
    pass


def stopping(step):
    def on_step(told):
        if told.step == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["sparse", "smaller"])
def test_it_learns_and_what_was_pruned_stays_pruned(families, kind, method):
    teacher = families[kind]
    shape = Shape(decoder_width=0.5, flows=1, encoder_layers=1)
    pruned = prune(teacher, PruneSpec(amount=0.5) if method == "sparse" else PruneSpec(method="structured", shape=shape))
    told = []
    healed = heal(pruned, teacher, TEXTS, dataclasses.replace(QUICK, steps=40, joint=0.0), on_step=told.append)
    assert [one.step for one in told] == list(range(1, 41))
    begin, end = (statistics.fmean(one.losses["total"] for one in some) for some in (told[:6], told[-6:]))
    assert end < 0.95 * begin
    assert all(bool((dict(healed.model.named_parameters())[name][mask == 0] == 0).all()) for name, mask in masks(pruned).items())
    assert [p.shape for p in healed.model.parameters()] == [p.shape for p in pruned.model.parameters()]
    assert speak(healed, "a short one").audio_seconds > 0


def test_only_what_differs_learns(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("decoder",)))
    healed = heal(pruned, tiny, TEXTS, QUICK)
    assert {name.partition(".")[0] for name in same_weights(healed, tiny)} == {"decoder"}
    assert healed.recipe["healed"][0]["trained"] == ["decoder"]
    before = dict(pruned.model.named_parameters())
    assert all(tensor is before[name] for name, tensor in healed.model.named_parameters() if not name.startswith("decoder."))


def test_the_same_again_is_the_same_and_another_seed_another(tiny, smaller):
    one, same, other = (heal(smaller, tiny, TEXTS, dataclasses.replace(QUICK, seed=seed)) for seed in (1, 1, 2))
    assert same_weights(one, same) == []
    assert same_weights(one, other)
    assert one.recipe == same.recipe


@pytest.mark.parametrize("changes", [{}, {"adversarial": True, "adversarial_width": 0.04}], ids=["plain", "adversarial"])
def test_killed_and_resumed_it_is_the_same_to_the_bit(tiny, sparse, tmp_path, changes):
    plan = dataclasses.replace(QUICK, **changes)
    whole = heal(sparse, tiny, TEXTS, plan)
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, plan, tmp_path, on_step=stopping(8))
    told = []
    resumed = heal(sparse, tiny, TEXTS, plan, tmp_path, resume=True, on_step=told.append)
    assert [one.step for one in told] == [9, 10, 11, 12]
    assert same_weights(whole, resumed) == []
    assert resumed.recipe == whole.recipe


def test_a_damaged_checkpoint_is_passed_over(tiny, sparse, tmp_path):
    whole = heal(sparse, tiny, TEXTS, QUICK)
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_step=stopping(8))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    told = []
    resumed = heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, on_step=told.append)
    assert told[0].step == 6
    assert same_weights(whole, resumed) == []


def test_damaged_checkpoints_are_refused_and_stay(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, steps=6)
    heal(sparse, tiny, TEXTS, plan, tmp_path, on_checkpoint=lambda step, _: float(step))
    folder = tmp_path / "checkpoints"
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    spoiled = {path: content[:-100] for path, content in whole.items()}
    for names, words in (("checkpoint-", "are damaged"), ("best", "best.* is damaged")):
        for path in whole:
            path.write_bytes(spoiled[path] if path.name.startswith(names) else whole[path])
        there = {path: path.read_bytes() for path in whole}
        with pytest.raises(DamagedFileError, match=words):
            heal(sparse, tiny, TEXTS, plan, tmp_path, resume=True, on_checkpoint=lambda step, _: float(step))
        assert {path: path.read_bytes() for path in folder.iterdir()} == there


def test_minutes_become_steps_once_and_for_all(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, steps=None, minutes=0.1)
    told = []

    def until_known(one):
        told.append(one)
        if one.of is not None:
            raise Stop

    for resume in (False, True):
        with pytest.raises(Stop):
            heal(sparse, tiny, TEXTS, plan, tmp_path, resume=resume, on_step=until_known)
    first = next(one for one in told if one.of is not None)
    assert told[0].of is None
    assert (told[-1].step, told[-1].of) == (first.step + 1, first.of)


def test_the_number_of_threads_is_that_of_the_first_run(tiny, sparse, tmp_path):
    before = torch.get_num_threads()
    seen = []

    def on_step(told):
        seen.append(torch.get_num_threads())
        if told.step == 3:
            raise Stop

    try:
        torch.set_num_threads(1)
        with pytest.raises(Stop):
            heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_step=on_step)
        torch.set_num_threads(2)
        heal(
            sparse,
            tiny,
            TEXTS,
            dataclasses.replace(QUICK),
            tmp_path,
            resume=True,
            on_step=lambda told: seen.append(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_the_last_two_checkpoints_and_the_best_are_kept(tiny, sparse, tmp_path):
    scores = {5: 3.0, 10: 1.0, 15: 2.0, 20: 4.0, 23: 2.0}
    heard = {}

    def on_checkpoint(step, voice):
        heard[step] = voice
        return scores[step]

    healed = heal(sparse, tiny, TEXTS, dataclasses.replace(QUICK, steps=23), tmp_path, on_checkpoint=on_checkpoint)
    assert sorted(heard) == sorted(scores)
    assert same_weights(healed, heard[10]) == []
    assert healed.recipe["healed"][0]["steps"] == 10
    assert healed.recipe["healed"][0]["of"] == 23
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.safetensors", "checkpoint-00000020.safetensors", "checkpoint-00000023.safetensors", "scored.safetensors"]


def test_the_best_survives_being_resumed(tiny, sparse, tmp_path):
    scores = {5: 1.0, 10: 3.0, 12: 2.0}
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_checkpoint=lambda step, _: scores[step], on_step=stopping(7))
    healed = heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, on_checkpoint=lambda step, _: scores[step])
    assert healed.recipe["healed"][0]["steps"] == 5
    assert Checkpoints(tmp_path / "checkpoints").best()[1]["score"] == 1.0


@pytest.mark.parametrize(("at", "checks"), [(10, 0), (12, 0), (8, 3)])
def test_killed_while_it_is_measured_the_measurement_is_made_up_for(tiny, sparse, tmp_path, at, checks):
    scores = {4: 2.0, 5: 3.0, 8: 1.0, 10: 0.5, 12: 4.0}

    def whole_score(step, _voice):
        return scores[step]

    def killed(step, voice):
        if step == at:
            raise Stop
        return whole_score(step, voice)

    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, checks=checks, on_checkpoint=killed)
    measured = []
    resumed = heal(
        sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, checks=checks,
        on_checkpoint=lambda step, voice: measured.append(step) or whole_score(step, voice),
    )  # fmt: skip
    assert measured[0] == at
    assert len(set(measured)) == len(measured)
    whole = heal(sparse, tiny, TEXTS, QUICK, checks=checks, on_checkpoint=whole_score)
    assert same_weights(whole, resumed) == []
    assert resumed.recipe == whole.recipe


def test_other_sentences_to_read_are_another_healing(tiny, sparse, tmp_path):
    plan = dataclasses.replace(QUICK, lessons=3)
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, plan, tmp_path, on_step=stopping(7))
    said = corpus(tiny, TEXTS, 3, plan.seed)
    others = tuple(text if text in said else f"{text} and more" for text in TEXTS)
    assert corpus(tiny, others, 3, plan.seed) == said  # the lessons are the same
    with pytest.raises(InputError, match="belong to another healing"):
        heal(sparse, tiny, others, plan, tmp_path, resume=True)


def test_a_score_that_is_no_number_is_never_the_best(tiny, sparse):
    scores = {5: 1.0, 10: float("nan"), 12: 2.0}
    assert heal(sparse, tiny, TEXTS, QUICK, on_checkpoint=lambda step, _: scores[step]).recipe["healed"][0]["steps"] == 5


def test_states_that_are_no_numbers_end_it_where_durations_are_drawn(tiny, sparse):
    """The spline of a stochastic predictor does not take them."""
    name = "text_encoder.embed_tokens.weight"
    broken = sparse.with_weights({name: torch.full_like(sparse.model.text_encoder.embed_tokens.weight, float("nan"))})
    healed = heal(broken, tiny, TEXTS, QUICK)
    assert "no finite number at step 1" in healed.recipe["healed"][0]["stopped"]
    assert healed.recipe["healed"][0]["steps"] == 0


def test_a_loss_that_is_no_number_ends_it_at_the_last_good_checkpoint(tiny, sparse, tmp_path):
    name = "text_encoder.project.bias"
    broken = sparse.with_weights({name: torch.full_like(sparse.model.text_encoder.project.bias, 1e30)})
    told = []
    healed = heal(broken, tiny, TEXTS, QUICK, tmp_path, on_step=told.append)
    assert told == []
    assert "no finite number" in healed.recipe["healed"][0]["stopped"]
    assert healed.recipe["healed"][0]["steps"] == 0
    assert same_weights(healed, broken) == []


def test_the_recipe_is_saved_with_the_voice(tiny, sparse, tmp_path):
    healed = heal(sparse, tiny, TEXTS, QUICK)
    again = load_voice(save_voice(healed, tmp_path / "healed"))
    assert again.recipe["healed"][0]["steps"] == 12
    assert HealPlan.from_dict(again.recipe["healed"][0]["plan"]) == QUICK
    assert again.recipe["pruned"] == sparse.recipe["pruned"]
    assert speak(again, TEXTS[0]).waveform.tolist() == speak(healed, TEXTS[0]).waveform.tolist()


def test_a_checkpoint_of_another_healing_is_refused(tiny, sparse, smaller, tmp_path):
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_step=stopping(3))
    for pruned, plan in ((sparse, dataclasses.replace(QUICK, seed=5)), (smaller, QUICK)):
        with pytest.raises(InputError, match="belong to another healing"):
            heal(pruned, tiny, TEXTS, plan, tmp_path, resume=True)
    for texts in (TEXTS[:3], None):
        with pytest.raises(InputError, match="belong to another healing"):
            heal(sparse, tiny, texts, QUICK, tmp_path, resume=True)
    with pytest.raises(InputError, match="nothing to resume without a folder"):
        heal(sparse, tiny, TEXTS, QUICK, resume=True)


def test_a_checkpoint_of_another_speakers_healing_is_refused(families, tmp_path):
    teacher = families["speakers"]
    pruned = prune(teacher, PruneSpec(amount=0.5))
    with pytest.raises(Stop):
        heal(pruned, teacher, TEXTS, QUICK, tmp_path, on_step=stopping(3))
    with pytest.raises(InputError, match="belong to another healing"):
        heal(pruned.with_speaker(0), teacher.with_speaker(0), TEXTS, QUICK, tmp_path, resume=True)


def test_what_a_killed_run_left_goes(tiny, sparse, tmp_path):
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_step=stopping(3))
    for name in (".checkpoint-00000009.safetensors.abc", ".best.safetensors.abc", "mine"):
        (tmp_path / "checkpoints" / name).write_text("half")
    heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True)
    assert not [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]
    assert (tmp_path / "checkpoints" / "mine").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"symbols": "_ abcdefgh"}, "vocabulary"),
        ({"flow_size": 8}, "size of the flow"),
        ({"sampling_rate": 22_050}, "sampling rate"),
        ({"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]}, "hop length"),
        ({"stochastic": False}, "kind of duration predictor"),
        ({"speakers": 3}, "number of speakers"),
    ],
)
def test_a_teacher_of_another_shape_is_refused(sparse, tmp_path, config, words):
    teacher = load_voice(make_checkpoint(tmp_path / "other", **config))
    with pytest.raises(InputError, match=f"cannot teach this voice: its {words} is .* Give the voice it was pruned from"):
        heal(sparse, teacher, TEXTS, QUICK)


def test_another_voice_of_the_same_shape_is_refused(sparse, tiny_folder, tmp_path):
    other = load_voice(make_checkpoint(tmp_path / "other", seed=5))
    with pytest.raises(InputError, match="is not the voice that this one was pruned from"):
        heal(sparse, other, TEXTS, QUICK)
    letters = load_voice(make_checkpoint(tmp_path / "letters", symbols="_ 'zyxwvutsrqponmlkjihgfedcba-"))
    with pytest.raises(InputError, match="its vocabulary has other symbols"):
        heal(sparse, letters, TEXTS, QUICK)
    copy = load_voice(shutil.copytree(tiny_folder, tmp_path / "a copy"))
    assert heal(sparse, copy, TEXTS, dataclasses.replace(QUICK, steps=1)).recipe["healed"][0]["steps"] == 1


def test_a_healed_voice_is_known_by_what_was_published(tiny, sparse, tmp_path):
    """Its embeddings have learnt: only two published names that differ tell."""
    other = load_voice(make_checkpoint(tmp_path / "other", seed=5))
    healed = heal(sparse, tiny, TEXTS, dataclasses.replace(QUICK, steps=1))
    check_pair(healed, other)
    mine, theirs = (
        dataclasses.replace(one, origin=dataclasses.replace(one.origin, reference=name, revision="0" * 40))
        for one, name in ((healed, "one/voice"), (other, "another/voice"))
    )
    with pytest.raises(InputError, match=r"another/voice\) is not the voice .* which is one/voice: give that one"):
        check_pair(mine, theirs)


def test_nothing_to_heal_is_said(tiny):
    with pytest.raises(InputError, match="nothing to heal"):
        heal(tiny, tiny, TEXTS, QUICK)


def test_a_full_disk_loses_nothing(tiny, sparse, tmp_path):
    in_the_way = tmp_path / "checkpoints" / "checkpoint-00000010.safetensors"
    (in_the_way / "of the tenth").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint-00000010\.safetensors could not be written"):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path)
    shutil.rmtree(in_the_way)
    assert Checkpoints(tmp_path / "checkpoints").newest()[1]["step"] == 5
    told = []
    resumed = heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, on_step=told.append)
    assert told[0].step == 6
    assert same_weights(heal(sparse, tiny, TEXTS, QUICK), resumed) == []


def test_whatever_ends_it_the_last_whole_step_is_kept(tiny, sparse, tmp_path):
    lessons = Lessons(tiny, TEXTS, seed=0, segment=16)
    before = lessons.first

    def first(count):
        if made[0] == 7:
            raise RuntimeError("no memory for lessons")
        return before(count)

    made = [0]
    lessons.first = first

    def on_step(told):
        made[0] = told.step

    with pytest.raises(RuntimeError, match="no memory"):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, lessons=lessons, on_step=on_step)
    assert Checkpoints(tmp_path / "checkpoints").newest()[1]["step"] == 7


def test_recordings_join_in(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("decoder",)))
    noise = torch.Generator().manual_seed(0)
    clips = [(torch.randn(16, 40, generator=noise), 0.1 * torch.randn(40 * tiny.hop_length, generator=noise))]
    told = []
    healed = heal(pruned, tiny, TEXTS, QUICK, recordings=clips, on_step=told.append)
    assert "recorded_mel" in told[0].losses
    assert healed.recipe["healed"][0]["recordings"] == 1


def test_recordings_without_a_decoder_that_learns_are_refused(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("flow",)))
    clips = [(torch.randn(16, 40), torch.zeros(40 * tiny.hop_length))]
    with pytest.raises(InputError, match="heal without recordings, or prune the decoder too"):
        heal(pruned, tiny, TEXTS, QUICK, recordings=clips)


def test_with_other_recordings_it_does_not_go_on(tiny, sparse, tmp_path):
    noise = torch.Generator().manual_seed(0)
    clips = [(torch.randn(16, 40, generator=noise), 0.1 * torch.randn(40 * tiny.hop_length, generator=noise)) for _ in range(2)]
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, recordings=clips, on_step=stopping(6))
    others = ([], clips[:1], clips[::-1], [clips[0], (clips[1][0], clips[1][1] + 1e-6)])
    for other in others:
        with pytest.raises(InputError, match=r"^The checkpoints in .* were made with other recordings: give the very recordings [^\n]+\.$"):
            heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, recordings=other)
    told = []
    heal(sparse, tiny, TEXTS, QUICK, tmp_path, resume=True, recordings=[(a.clone(), b.clone()) for a, b in clips], on_step=told.append)
    assert told[0].step == 7


def test_checks_are_checkpoints_too_and_change_nothing(tiny, sparse):
    steps = {0: [], 3: []}
    voices = [
        heal(sparse, tiny, TEXTS, QUICK, checks=checks, on_checkpoint=lambda step, _, to=to: to.append(step))
        for checks, to in steps.items()
    ]
    assert steps == {0: [5, 10, 12], 3: [4, 5, 8, 10, 12]}
    assert same_weights(*voices) == []


def test_several_processes_learn_one_voice(tiny_folder, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys
        from vits_prune import HealPlan, InputError, PruneSpec, heal, load_voice, prune, save_voice
        teacher = load_voice({str(tiny_folder)!r})
        plan = HealPlan(minutes=None, steps=6, lessons=20, batch=2, segment=16, learning_rate=2e-3, checkpoint_every=3)
        told = []
        healed = heal(prune(teacher, PruneSpec(amount=0.5)), teacher, None, plan, {str(tmp_path / "work")!r}, on_step=told.append)
        save_voice(healed, {str(tmp_path)!r} + "/healed-" + os.environ["RANK"])
        open({str(tmp_path)!r} + "/told-" + os.environ["RANK"], "w").write(str(len(told)))
        own = {str(tmp_path / "work")!r} if os.environ["RANK"] == "0" else {str(tmp_path / "another machine")!r}
        try:
            heal(prune(teacher, PruneSpec(amount=0.5)), teacher, None, plan, own, resume=True)
        except InputError as error:
            open({str(tmp_path)!r} + "/refused-" + os.environ["RANK"], "w").write(str(error))
        """)
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    found = {"PYTHONPATH": str(Path(vits_prune.__file__).parents[1])}  # a script looks beside itself, not where it was started
    done = subprocess.run(launch, capture_output=True, text=True, timeout=280, env={**os.environ, **found, "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-2_000:]
    one, other = (load_voice(tmp_path / f"healed-{rank}") for rank in (0, 1))
    assert same_weights(one, other) == []
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == ["6", "0"]
    assert all("a disk that all machines share" in (tmp_path / f"refused-{rank}").read_text() for rank in (0, 1))
    alone = heal(
        prune(load_voice(tiny_folder), PruneSpec(amount=0.5)), load_voice(tiny_folder), None,
        HealPlan(minutes=None, steps=6, lessons=20, batch=2, segment=16, learning_rate=2e-3),
    )  # fmt: skip
    assert same_weights(one, alone), "each process has sentences of its own"
    assert Checkpoints(tmp_path / "work" / "checkpoints").newest()[1]["processes"] == 2
