from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.healing.conftest import QUICK, SMALLER, TEXTS
from tests.pruning.conftest import KINDS
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice, prune
from vits_prune.healing.batches import Window, draw_batch
from vits_prune.healing.student import masks, parts_to_train
from vits_prune.healing.teacher import TeacherSpeech
from vits_prune.healing.training import NotFiniteError, Training, make_accelerator


def training_of(pruned, teacher, **changes):
    plan = dataclasses.replace(QUICK, **changes)
    return Training(
        pruned,
        teacher,
        parts_to_train(pruned, teacher),
        plan,
        Window.of(teacher, 16),
        make_accelerator(plan, cpu=True),
    )


def batches(teacher, count):
    lessons = TeacherSpeech(teacher, TEXTS, seed=3, segment=16).first(6)
    return [
        draw_batch(lessons, 2, (0, step, 0), Window.of(teacher, 16), text=True)
        for step in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_to_the_bit_at_every_step(families, kind):
    teacher = families[kind]
    pruned = prune(teacher, PruneSpec(amount=0.6))
    held = {name: mask == 0 for name, mask in masks(pruned).items()}
    training, before = training_of(pruned, teacher), dict(pruned.model.named_parameters())
    assert sum(int(mask.sum()) for mask in held.values()) > 1_000
    for index, batch in enumerate(batches(teacher, 5)):
        training.step(batch, index / 5)
        for name, zero in held.items():
            now = training.weights[name].detach()[zero].view(torch.int32)
            assert now.equal(before[name][zero].view(torch.int32)), name
    assert any(not tensor.equal(before[name]) for name, tensor in training.weights.items())
    assert all(tensor.requires_grad is False for tensor in pruned.model.parameters())


def test_every_weight_that_may_learn_does(tiny):
    # Pruned globally this voice's attention is empty, and then nothing learns through it.
    training = training_of(prune(tiny, PruneSpec(amount=0.5, scope="local")), tiny)
    before = {name: tensor.detach().clone() for name, tensor in training.weights.items()}
    for index, batch in enumerate(batches(tiny, 3)):
        training.step(batch, index / 3)
    still = [name for name, tensor in training.weights.items() if tensor.equal(before[name])]
    assert still == []
    assert {name.partition(".")[0] for name in before} == {
        "text_encoder",
        "duration_predictor",
        "flow",
        "decoder",
    }


@pytest.mark.parametrize(
    ("spec", "share"),
    [(PruneSpec(amount=0.5, scope="local"), 0.5), (PruneSpec("structured", shape=SMALLER), 2.0)],
    ids=["zeros", "narrow"],
)
def test_a_decoder_with_zeros_takes_smaller_steps_than_a_narrow_one(tiny, spec, share):
    training = training_of(prune(tiny, spec), tiny)
    bias = training.weights["decoder.conv_pre.bias"]  # AdamW's in both
    before = bias.detach().clone()
    training.step(batches(tiny, 1)[0], 0.0)
    moved = (bias.detach() - before).abs().max()
    assert float(moved) == pytest.approx(share * QUICK.learning_rate, rel=0.02)


def test_a_loss_that_is_no_number_changes_nothing(tiny, sparse):
    training = training_of(sparse, tiny)
    batch = batches(tiny, 1)[0]
    training.step(batch, 0.0)
    before = {name: tensor.detach().clone() for name, tensor in training.state().items()}
    with pytest.raises(NotFiniteError, match=r"waveform|mel|stft"):
        training.step({**batch, "waveform": torch.full_like(batch["waveform"], float("nan"))}, 0.0)
    assert all(tensor.equal(before[name]) for name, tensor in training.state().items())


@pytest.mark.parametrize("part", ["text_encoder", "decoder"])
def test_a_gradient_that_is_no_number_changes_nothing(tiny, sparse, part):
    training = training_of(sparse, tiny)
    batch = batches(tiny, 1)[0]
    training.step(batch, 0.0)
    before = {name: tensor.detach().clone() for name, tensor in training.state().items()}
    weight = next(tensor for name, tensor in training.weights.items() if name.startswith(part))
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NotFiniteError, match=f"gradient of {part}"):
        training.step(batch, 0.0)
    assert all(tensor.equal(before[name]) for name, tensor in training.state().items())
    handle.remove()
    assert training.step(batch, 0.0)["total"] > 0


def test_weights_are_looked_at_before_they_are_kept(tiny, sparse):
    training = training_of(sparse, tiny)
    training.check()
    with torch.no_grad():
        next(iter(training.weights.values())).view(-1)[0] = float("inf")
    with pytest.raises(NotFiniteError, match="weights"):
        training.check()


def test_weights_that_nothing_runs_through_stay(tmp_path):
    """One speaker and a size of embeddings: the layers that would take an embedding are there."""
    teacher = load_voice(make_checkpoint(tmp_path / "cond", speaker_embedding_size=8))
    pruned = prune(teacher, PruneSpec(amount=0.5, scope="local"))
    training = training_of(pruned, teacher)
    assert any(".cond" in name for name in training.weights)
    assert training.step(batches(teacher, 1)[0], 0.0)["total"] > 0
    before = dict(pruned.model.named_parameters())
    assert all(
        tensor.equal(before[name]) for name, tensor in training.weights.items() if ".cond" in name
    )


def test_a_rehearsal_changes_nothing(tiny, sparse):
    training = training_of(sparse, tiny)
    batch = batches(tiny, 1)[0]
    training.step(batch, 0.0)
    before = {name: tensor.detach().clone() for name, tensor in training.state().items()}
    training.step(batch, 0.9, learn=False)
    assert all(tensor.equal(before[name]) for name, tensor in training.state().items())


@pytest.mark.parametrize(
    "changes",
    [{}, {"adversarial": True, "adversarial_from": 0.0, "adversarial_width": 0.04}],
    ids=["plain", "adversarial"],
)
def test_taken_up_from_its_state_it_goes_on_alike(tiny, sparse, changes):
    work = batches(tiny, 4)
    one, other = training_of(sparse, tiny, **changes), training_of(sparse, tiny, **changes)
    for batch in work[:2]:
        one.step(batch, 0.5)
    other.load({name: tensor.clone() for name, tensor in one.state().items()})
    for batch in work[2:]:
        assert one.step(batch, 0.5) == other.step(batch, 0.5)
    mine, theirs = one.state(), other.state()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not mine[name].equal(theirs[name])] == []


def test_discriminators_do_not_raise_the_rate_of_a_decoder_with_zeros(tiny, sparse):
    training = training_of(sparse, tiny, adversarial=True, adversarial_from=0.0)
    bias = training.weights["decoder.conv_pre.bias"]
    before = bias.detach().clone()
    training.step(batches(tiny, 1)[0], 0.0)
    moved = (bias.detach() - before).abs().max()
    assert float(moved) == pytest.approx(0.5 * QUICK.learning_rate, rel=0.02)


def test_discriminators_learn_and_teach(tiny, sparse):
    training = training_of(
        sparse, tiny, adversarial=True, adversarial_from=0.5, adversarial_width=0.04
    )
    batch = batches(tiny, 1)[0]
    assert "adversarial" not in training.step(batch, 0.4)
    state = {
        name: tensor.clone()
        for name, tensor in training.state().items()
        if name.startswith("adversary.")
    }
    told = training.step(batch, 0.6)
    assert told["adversarial"] > 0
    assert told["features"] > 0
    assert any(
        not tensor.equal(state[name]) for name, tensor in training.state().items() if name in state
    )


def test_bfloat16_arithmetic_runs_on_a_cpu(tiny, sparse):
    training = training_of(sparse, tiny, precision="bf16")
    plain = training_of(sparse, tiny)
    batch = batches(tiny, 1)[0]
    rough, exact = training.step(batch, 0.9), plain.step(batch, 0.9)
    assert rough != exact
    assert rough["total"] == pytest.approx(exact["total"], rel=0.1)
    assert all(tensor.dtype == torch.float32 for tensor in training.weights.values())


def test_the_real_voice_learns_what_it_is_shown(joe):
    pruned = prune(joe, PruneSpec(amount=0.5, scope="local"))
    training = training_of(pruned, joe, learning_rate=5e-4)
    lessons = TeacherSpeech(joe, ["a short one."], seed=0, segment=16).first(1)
    scale, window = float(joe.model.noise_scale), Window.of(joe, 16)
    batch = draw_batch(lessons, 1, (0, 0, 0), window, text=True, noise_scale=scale)
    told = [training.step(batch, 0.0) for _ in range(8)]  # at first the earlier parts give way
    assert all(told[-1][name] < told[0][name] for name in ("prior", "durations", "flow", "mel"))
