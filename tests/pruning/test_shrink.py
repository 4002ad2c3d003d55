"""Structured pruning as a method: smaller voices whose survivors do the work of what went."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.nearly import nearly
from tests.pruning.conftest import KINDS, SENTENCES, in_turn
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune, speak
from vits_prune.progress import Progress
from vits_prune.pruning import Shape, prune_steps
from vits_prune.pruning.blocks import flow_blocks, own_durations, stretched
from vits_prune.pruning.calibration import channel_sensitivity
from vits_prune.pruning.structured.couplings import (
    groups,
    latents_are_flipped,
    sizes,
    sizes_of,
)
from vits_prune.pruning.structured.cut import choose, cut, shape_for
from vits_prune.pruning.structured.importance import by_sensitivity
from vits_prune.synthesis.inference import encode, speaker_embedding
from vits_prune.synthesis.speak import read_text

HALF = Shape(decoder_width=0.5, ffn_width=0.5, multiple=4)
UNHEARD = (
    "the source of the huge river is the clear spring",
    "help the woman get back to her feet",
)


def spec_of(shape=None, **options):
    return PruneSpec("structured", shape=shape, texts=SENTENCES, **options)


def distance(original, other):
    """Mean squared difference of waveforms of the same durations, over unheard sentences."""
    found = []
    for text in UNHEARD:
        speech = speak(original, text, 1)
        found.append(
            np.square(speech.waveform - speak(other, text, 1, timing=speech).waveform).mean()
        )
    return np.mean(found)


def plain_cut(voice, shape):
    """The same channels gone and nothing fitted."""
    scores = by_sensitivity(channel_sensitivity(voice, SENTENCES, 0), groups(voice))
    return cut(voice, choose(voice, shape, scores))


@pytest.mark.parametrize(
    ("kind", "shape"),
    in_turn(
        KINDS,
        [HALF, Shape(decoder_width=0.5, branches=1, multiple=4), Shape(ffn_width=0.25, multiple=2)],
    ),
)
def test_the_survivors_do_the_work_of_what_went(families, kind, shape):
    voice = families[kind]
    before = {name: tensor.clone() for name, tensor in voice.model.named_parameters()}
    smaller, rough = prune(voice, spec_of(shape)), plain_cut(voice, shape)
    assert (
        sizes_of(smaller.model.config)
        == sizes_of(rough.model.config)
        == sizes(voice.model.config, shape)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in voice.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in smaller.model.parameters())
    assert distance(voice, smaller) < distance(voice, rough)


@pytest.mark.parametrize("kind", ["speakers", "piper-medium"])
def test_the_same_from_the_recipe(families, kind):
    voice, spec = families[kind], spec_of(HALF, seed=2)
    pruned = prune(voice, spec)
    [recipe] = pruned.recipe["pruned"]
    again = prune(voice.with_weights({}), PruneSpec.from_dict(recipe))
    assert PruneSpec.from_json(spec.to_json()) == spec
    one, two = dict(pruned.model.named_parameters()), dict(again.model.named_parameters())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("kind", "shape"),
    in_turn(
        ["plain", "piper-high", "piper-high", "plain"],
        [
            Shape(resblock_width=0.5, multiple=2),
            Shape(flows=1),
            Shape(encoder_layers=1),
            Shape(wavenet_layers=1),
        ],
    ),
)
def test_other_levers(families, kind, shape):
    voice = families[kind]
    if shape.flows and kind == "piper-high":  # four coupling layers: a part of them stays
        shape = Shape(flows=3)
    smaller, rough = prune(voice, spec_of(shape)), plain_cut(voice, shape)
    assert sizes_of(smaller.model.config) == sizes(voice.model.config, shape)
    assert np.isfinite(speak(smaller, UNHEARD[0], 1).waveform).all()
    weights = [dict(one.model.named_parameters()) for one in (smaller, rough)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), (
        "what stays was fitted"
    )


def latents(voice, original):
    """What the flow makes of the original's prior, in the order of the original's channels."""
    found = []
    for index, text in enumerate(UNHEARD):
        [sentence] = read_text(original, text)[0]
        _, means, log_variances = encode(original, sentence.ids)
        state = {
            "means": means,
            "log_variances": log_variances,
            "durations": own_durations(original, encode(original, sentence.ids)[0], (5, index)),
        }
        state = stretched(
            {**state, "key": (5, index), "conditioning": speaker_embedding(voice)}, original
        )
        for block in flow_blocks(voice.model):
            state = block.run(state)
        found.append(
            state["latents"].flip(1) if latents_are_flipped(original, voice) else state["latents"]
        )
    return torch.cat(found, dim=2)


@pytest.fixture(scope="module")
def four_couplings(families, tmp_path_factory):
    place = tmp_path_factory.mktemp("couplings")
    return {
        "plain": load_voice(make_checkpoint(place / "plain", prior_encoder_num_flows=4)),
        "speakers": load_voice(
            make_checkpoint(
                place / "speakers", prior_encoder_num_flows=4, speakers=3, stochastic=False
            ),
            2,
        ),
        "piper-high": families["piper-high"],
    }


@pytest.mark.parametrize("kind", ["plain", "speakers", "piper-high"])
@pytest.mark.parametrize(
    "shape", [Shape(flows=3), Shape(flows=2), Shape(flows=1), Shape(wavenet_layers=1)], ids=str
)
def test_the_couplings_that_stay_carry_what_the_flow_did(four_couplings, kind, shape):
    voice = four_couplings[kind]
    wanted = latents(voice, voice)
    errors = [
        float((latents(one, voice) - wanted).square().mean())
        for one in (prune(voice, spec_of(shape)), plain_cut(voice, shape))
    ]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("kind", ["plain", "speakers", "piper-medium"])
def test_the_encoder_layers_that_stay_carry_what_the_encoder_did(families, kind):
    """Priors and durations come nearer to the original's."""
    voice, errors = families[kind], []
    for one in (
        prune(voice, spec_of(Shape(encoder_layers=1))),
        plain_cut(voice, Shape(encoder_layers=1)),
    ):
        means, durations = [], []
        for text in UNHEARD:
            [sentence] = read_text(voice, text)[0]
            (_, before, _), (_, after, _) = encode(voice, sentence.ids), encode(one, sentence.ids)
            means.append(float((after - before).square().mean()))
            ours, theirs = (
                own_durations(which, encode(which, sentence.ids)[0], (5, 0))
                for which in (one, voice)
            )
            durations.append(float(np.abs(ours - theirs).mean()))
        errors.append((np.mean(means), np.mean(durations)))
    assert errors[0][0] < errors[1][0]
    assert errors[0][1] <= errors[1][1] + 0.2


def test_speakers_stay(families):
    smaller = prune(families["speakers"], spec_of(HALF))
    one, two = (speak(smaller.with_speaker(speaker), UNHEARD[0], 1) for speaker in (0, 1))
    assert smaller.speaker == families["speakers"].speaker
    assert one.waveform.shape != two.waveform.shape or not nearly(one.waveform, two.waveform)


@pytest.mark.parametrize("kind", KINDS)
def test_an_amount_of_parts(families, kind):
    voice = families[kind]
    flows = voice.model.config.prior_encoder_num_flows
    assert shape_for(voice, spec_of(amount=0.5)) == Shape(
        decoder_width=0.5, ffn_width=0.5, flows=flows // 2
    )
    assert shape_for(voice, spec_of(amount=0.25, parts=("decoder",))) == Shape(decoder_width=0.75)
    assert shape_for(voice, spec_of(amount=0.99, parts=("flow", "duration_predictor"))) == Shape(
        flows=1
    )
    with pytest.raises(InputError, match="nothing to shrink"):
        prune(voice, spec_of(amount=0.5, parts=("duration_predictor",)))
    assert (
        sizes_of(
            prune(voice, spec_of(amount=0.5, parts=("decoder",))).model.config
        ).initial_channels
        == 16
    )


@pytest.mark.parametrize("kind", ["piper-high"])
def test_steps_count_from_the_original(families, kind):
    voice = families[kind]
    spec = spec_of(amount=0.75, amounts=(0.25, 0.5, 0.75), parts=("text_encoder", "decoder"))
    for amount, step in prune_steps(voice, spec):
        once = dataclasses.replace(spec, amount=amount, amounts=())
        assert sizes_of(step.model.config) == sizes(voice.model.config, shape_for(voice, once))
        assert PruneSpec.from_dict(step.recipe["pruned"][0]).amount == amount


def test_steps_of_the_flow(families):
    voice = families["piper-high"]
    spec = spec_of(amount=0.75, steps=2, parts=("flow",))
    steps = [step for _, step in prune_steps(voice, spec)]
    again = prune(voice, spec).model.parameters()
    assert all(map(torch.equal, steps[-1].model.parameters(), again))
    flows = [step.model.config.prior_encoder_num_flows for step in steps]
    assert flows == sorted(flows, reverse=True)
    assert flows[-1] == 1


def test_a_kernel_that_is_no_multiple_of_its_stride(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "uneven", upsample_kernel_sizes=[7, 8]))
    smaller = prune(voice, spec_of(HALF))
    assert distance(voice, smaller) < distance(voice, plain_cut(voice, HALF))


@pytest.mark.parametrize(
    "shape", [Shape(branches=5), Shape(flows=9), Shape(encoder_layers=3)], ids=str
)
def test_more_than_there_is(families, shape):
    with pytest.raises(InputError, match="cannot be"):
        prune(families["plain"], spec_of(shape))


def test_cancelling(families):
    class Cancelled(Exception):
        pass

    def cancel(_what, share):
        if share > 0.6:
            raise Cancelled

    with pytest.raises(Cancelled):
        prune(families["plain"].with_weights({}), spec_of(HALF), progress=Progress(cancel))
