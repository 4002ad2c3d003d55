"""What was cut is gone: a smaller voice speaks as the whole one without what was removed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tests.nearly import nearly
from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice, speak
from vits_prune.measure.cost import count_macs
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.couplings import (
    BRANCHES,
    ENCODER_LAYERS,
    FLOWS,
    groups,
    latents_are_flipped,
    sizes,
    sizes_of,
)
from vits_prune.pruning.structured.cut import (
    choose,
    cut,
)
from vits_prune.pruning.structured.importance import weight_norm

TEXT = "the birch canoe slid"
PIPER_MEDIUM = piper_factory.Shape(
    resblock_kernels=(3, 5, 7),
    resblock_dilations=((1, 2), (2, 6), (3, 12)),
    rates=(8, 4),
    rate_kernels=(16, 8),
    initial=32,
)
PIPER_HIGH = piper_factory.Shape(
    stochastic=False, speakers=2, resblock="1", resblock_dilations=((1, 3, 5),) * 2, initial=32,
    filter=32
)  # fmt: skip
LEVERS = {
    "decoder": Shape(decoder_width=0.5, multiple=2),
    "branches": Shape(branches=1),
    "feed-forward": Shape(ffn_width=0.5),
    "encoder": Shape(encoder_layers=1),
    "three-flows": Shape(flows=3),
    "two-flows": Shape(flows=2),
    "one-flow": Shape(flows=1),
    "wavenet": Shape(wavenet_layers=1),
    "all": Shape(
        decoder_width=0.5,
        branches=1,
        ffn_width=0.25,
        encoder_layers=1,
        flows=3,
        wavenet_layers=1,
        multiple=2,
    ),
}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Tiny voices of every kind with four coupling layers each."""
    place = tmp_path_factory.mktemp("voices")
    return {
        "plain": load_voice(make_checkpoint(place / "plain", prior_encoder_num_flows=4)),
        "speakers": load_voice(
            make_checkpoint(
                place / "speakers", prior_encoder_num_flows=4, speakers=3, stochastic=False
            ),
            2,
        ),
        "dilated": load_voice(
            make_checkpoint(place / "dilated", prior_encoder_num_flows=4, wavenet_dilation_rate=2)
        ),
        "piper-medium": load_voice(piper_factory.make_voice(place, PIPER_MEDIUM, "medium")),
        "piper-high": load_voice(piper_factory.make_voice(place, PIPER_HIGH, "high"), 1),
    }


NAMES = ["plain", "speakers", "dilated", "piper-medium", "piper-high"]
KINDS = pytest.mark.parametrize("kind", NAMES)


class Silent(nn.Module):
    def forward(self, hidden_states):
        return torch.zeros_like(hidden_states)


def without(voice, choice):
    """The voice in its own size, what a choice leaves out contributing zero."""
    parameters = dict(voice.model.named_parameters())
    weights = {}

    def silence(name, rows=slice(None)):
        weights[name] = weights.get(name, parameters[name]).clone()
        weights[name][rows] = 0

    for group in groups(voice):
        gone = sorted(set(range(group.size)) - set(choice.get(group.name, range(group.size))))
        for name, dimension in group.slices(voice.model):
            writes = name.endswith(".bias") or name.removesuffix(".weight") in group.writers
            layer = voice.model.get_submodule(name.rpartition(".")[0])
            into = 0 if name.endswith(".bias") or not isinstance(layer, nn.ConvTranspose1d) else 1
            if writes and dimension == into:
                silence(name, (slice(None),) * dimension + (gone,))
        for member in gone:
            if group.name == FLOWS:
                for kind in ("weight", "bias"):
                    silence(f"{group.blocks[member][0]}.conv_post.{kind}")
            elif group.lever == "wavenet_layers":
                for kind in ("weight", "bias"):
                    silence(f"{group.blocks[member][1]}.{kind}")
    silenced = voice.with_weights(weights)
    for group in groups(voice):
        kept = choice.get(group.name, range(group.size))
        if group.name == ENCODER_LAYERS:
            encoder = silenced.model.text_encoder.encoder
            encoder.layers = nn.ModuleList(encoder.layers[index] for index in kept)
        elif group.name == BRANCHES:
            for name in itertools.chain(
                *(group.blocks[member] for member in range(group.size) if member not in kept)
            ):
                silenced.model.decoder.resblocks[int(name.rpartition(".")[2])] = Silent()
    return silenced


def same(first, second, tolerance=1e-5):
    one, two = speak(first, TEXT, 3).waveform, speak(second, TEXT, 3).waveform
    assert np.isfinite(one).all()
    assert one.std() > 1e-3
    return one.shape == two.shape and np.abs(one - two).max() <= tolerance


def random_scores(voice):
    return {
        group.name: np.random.default_rng(group.size + len(group.name)).random(group.size)
        for group in groups(voice)
    }


@pytest.mark.parametrize(
    ("kind", "lever", "scores"),
    [
        (NAMES[(row + step) % len(NAMES)], lever, (lambda _voice: None, random_scores)[step % 2])
        for row, lever in enumerate(LEVERS)
        for step in range(2)
    ],
)
def test_what_is_removed_contributes_nothing(voices, kind, lever, scores):
    voice, shape = voices[kind], LEVERS[lever]
    choice = choose(voice, shape, scores(voice))
    assert choice
    smaller = cut(voice, choice)
    assert same(without(voice, choice), smaller)
    assert not same(voice, smaller)
    assert sizes_of(smaller.model.config) == sizes(voice.model.config, shape)
    assert type(smaller.model) is type(voice.model)


@pytest.mark.parametrize(
    ("kind", "width"), [("plain", 1.0), ("speakers", 0.5), ("piper-high", 0.5)]
)
def test_narrow_residual_blocks(voices, kind, width):
    voice, shape = voices[kind], Shape(resblock_width=0.5, decoder_width=width, multiple=2)
    choice = choose(voice, shape, random_scores(voice))
    smaller = cut(voice, choice)
    assert same(without(voice, choice), smaller)
    found = sizes_of(smaller.model.config)
    assert found == sizes(voice.model.config, shape)
    assert found.inner_channels == tuple(channels // 2 for channels in found.stage_channels)
    again = cut(smaller, choose(smaller, Shape(decoder_width=0.5, multiple=1)))
    assert sizes_of(again.model.config).inner_channels == tuple(
        channels // 2 for channels in found.inner_channels
    )
    assert np.isfinite(speak(again, TEXT, 3).waveform).all()


def _allowed(flows):
    """Sets of couplings whose flips cancel as the plain flow's do; -1 is a reversal."""
    for count in range(1, flows + 1):
        for kept in itertools.combinations(range(flows), count):
            steps = [
                step
                for index in reversed(range(flows))
                for step in ((-1, index) if index in kept else (-1,))
            ]
            runs = "".join("f" if step == -1 else "c" for step in steps)
            if all(len(run) % 2 for run in runs.split("c")[:-1]):
                yield kept


@pytest.mark.parametrize("kind", ["speakers", "piper-medium"])
def test_every_set_of_couplings_that_alternate_is_exact(voices, kind):
    voice, allowed = voices[kind], set(_allowed(4))
    assert allowed == {(3,), (1,), (2, 3), (0, 3), (0, 1), (1, 2, 3), (0, 1, 2, 3)}
    for kept in allowed:
        smaller = cut(voice, {FLOWS: kept})
        assert same(without(voice, {FLOWS: kept}), smaller), kept
        assert latents_are_flipped(voice, smaller) == (len(kept) % 2 == 1)


def test_the_best_couplings_that_are_allowed(voices):
    scores = np.random.default_rng(1)
    for _ in range(50):
        importance = {FLOWS: scores.random(4)}
        for count in (1, 2, 3):
            kept = choose(voices["plain"], Shape(flows=count), importance)[FLOWS]
            best = max(
                (k for k in _allowed(4) if len(k) == count),
                key=lambda k: importance[FLOWS][list(k)].sum(),
            )
            assert kept == best


def test_the_encoder_is_transformers_own_with_fewer_layers(voices):
    voice = voices["plain"]
    smaller = cut(voice, {ENCODER_LAYERS: (0,)})
    ids = torch.tensor([next(iter(voice.tokenizer.sentences(TEXT))).ids])
    mask = torch.ones(1, ids.shape[1], 1)
    with torch.no_grad():
        whole = voice.model.text_encoder(ids, mask, output_hidden_states=True)
        short = smaller.model.text_encoder(ids, mask)
    assert torch.equal(whole.hidden_states[1], short.last_hidden_state)


@KINDS
def test_nothing_to_cut(voices, kind):
    voice = voices[kind]
    assert choose(voice, Shape()) == {}
    same_size = cut(voice, choose(voice, Shape()))
    assert nearly(speak(voice, TEXT, 3).waveform, speak(same_size, TEXT, 3).waveform)
    old, new = dict(voice.model.named_parameters()), dict(same_size.model.named_parameters())
    assert old.keys() == new.keys()
    assert all(old[name] is new[name] for name in old)


@KINDS
def test_the_original_stays_as_it_is(voices, kind):
    voice = voices[kind]
    before = {name: parameter.clone() for name, parameter in voice.model.named_parameters()}
    config = voice.model.config.to_dict()
    smaller = cut(voice, choose(voice, LEVERS["all"]), recipe={"pruned": []}, name="smaller")
    assert voice.model.config.to_dict() == config
    after = dict(voice.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (smaller.name, dict(smaller.recipe)) == ("smaller", {"pruned": []})
    assert (smaller.speaker, smaller.free_cut, smaller.hop_length) == (
        voice.speaker,
        voice.free_cut,
        voice.hop_length,
    )
    assert not any(parameter.requires_grad for parameter in smaller.model.parameters())
    assert not smaller.model.training


def test_controls_that_were_set_on_the_model_stay(voices):
    voice = voices["plain"].with_weights({})
    voice.model.noise_scale = 0.1
    assert cut(voice, choose(voice, Shape(ffn_width=0.5))).model.noise_scale == 0.1


@KINDS
def test_groups_cover_what_they_say(voices, kind):
    voice = voices[kind]
    parameters, found = dict(voice.model.named_parameters()), groups(voice)
    assert len({group.name for group in found}) == len(found)
    for group in found:
        assert bool(group.blocks) != bool(group.writers and group.readers)
        assert all(
            parameters[name].shape[dimension] == group.size
            for name, dimension in group.slices(voice.model)
        )
        norms = weight_norm(voice, group)
        assert norms.shape == (group.size,)
        assert (norms > 0).all()
    covered = {
        name
        for group in found
        if not group.blocks
        for name, _ in group.slices(voice.model)
        if name.startswith("decoder.")
    }
    assert covered == {name for name in parameters if name.startswith("decoder.")}
    levers = {group.lever for group in found}
    assert ("resblock_width" in levers) == (kind != "piper-medium")


def test_the_most_important_stay_and_the_first_of_equal_ones(voices):
    voice, name = voices["plain"], "text_encoder.encoder.layers.0.feed_forward.conv_1"
    scores = np.zeros(32)
    scores[[30, 4, 17]] = 1, 2, 3
    kept = choose(voice, Shape(ffn_width=0.25), {name: scores})
    assert kept[name] == (0, 1, 2, 3, 4, 5, 17, 30)
    other = "text_encoder.encoder.layers.1.feed_forward.conv_1"
    assert kept[other] == choose(voice, Shape(ffn_width=0.25))[other]


def test_a_broken_voice_is_refused(voices):
    name = "text_encoder.encoder.layers.0.feed_forward.conv_1"
    weight = voices["plain"].model.get_parameter(f"{name}.weight")
    broken = voices["plain"].with_weights({f"{name}.weight": torch.full_like(weight, np.nan)})
    with pytest.raises(InputError, match=rf"importance of {name} is not finite"):
        choose(broken, Shape(ffn_width=0.5))


def test_dilated_wavenets_lose_their_last_layers_only(voices):
    scores = {f"{FLOWS}.{flow}.wavenet": np.array([0, 1]) for flow in range(4)}
    kept = choose(voices["dilated"], Shape(wavenet_layers=1), scores)
    assert kept[f"{FLOWS}.0.wavenet"] == (0,)


def test_macs_fall_with_the_width(voices):
    voice = voices["piper-medium"]
    smaller = cut(voice, choose(voice, Shape(decoder_width=0.5, branches=1, multiple=2)))
    speech, (dense, _) = count_macs(voice, TEXT)
    _, (fewer, nonzero) = count_macs(smaller, TEXT, timing=speech)
    assert nonzero <= fewer < dense
