"""Which layers, which texts, and statistics that are kept for another amount and forgotten with the voice."""

from __future__ import annotations

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.pruning.conftest import SENTENCES
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune
from vits_prune.caches import Bounded
from vits_prune.pruning import calibration
from vits_prune.pruning.calibration import calibrate, texts_for
from vits_prune.pruning.layers import chosen_layers, prunable_layers
from vits_prune.pruning.masks import zeros_wanted
from vits_prune.synthesis.texts import load_calibration_texts

SPEC = PruneSpec(method="second_order", amount=0.3, texts=SENTENCES)


def names(layers):
    return {layer.name for layer in layers}


def test_the_defaults_leave_durations_speakers_and_the_last_convolution_alone(families):
    left = names(prunable_layers(families["speakers"])) - names(
        chosen_layers(families["speakers"], SPEC)
    )
    assert {"decoder.cond", "decoder.conv_post", "flow.flows.0.wavenet.cond_layer"} <= left
    assert all(
        name.startswith("duration_predictor.") or name.endswith(("cond", "cond_layer", "conv_post"))
        for name in left
    )
    assert "flow.flows.0.conv_post" not in left


def test_patterns_of_names(families):
    voice = families["plain"]
    everything = names(prunable_layers(voice))

    def left(*patterns):
        return everything - names(chosen_layers(voice, dataclasses.replace(SPEC, protect=patterns)))

    assert left() == set()
    assert left("flow.flows.*.conv_pre") == {"flow.flows.0.conv_pre", "flow.flows.1.conv_pre"}
    assert left("*.conv_pre") == {name for name in everything if name.split(".")[1] == "conv_pre"}
    assert left("decoder", "flow") == {
        name for name in everything if name.startswith(("decoder.", "flow."))
    }
    assert left("decoder.upsampler.1") == {"decoder.upsampler.1"}
    assert names(chosen_layers(voice, dataclasses.replace(SPEC, parts=("flow",), protect=()))) == {
        name for name in everything if name.startswith("flow.")
    }


@pytest.mark.parametrize(
    "pattern",
    ["decoder.con", "vocoder", "flow.flows.9", "*.*.*.*.*.*.*.*.*", "decoder..conv_pre", "DECODER"],
)
@pytest.mark.parametrize("method", ["magnitude", "second_order"])
def test_something_to_protect_that_is_not_there(families, pattern, method):
    with pytest.raises(InputError, match=r"has no layer .* to protect") as error:
        prune(families["plain"], PruneSpec(method=method, protect=(pattern,), texts=SENTENCES))
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("method", ["magnitude", "activation", "second_order"])
def test_everything_is_protected(families, method):
    with pytest.raises(InputError, match="nothing is left to prune"):
        prune(
            families["plain"],
            PruneSpec(method=method, parts=("decoder",), protect=("decoder",), texts=SENTENCES),
        )


def test_what_is_protected_counts(families):
    voice = families["plain"]
    spec = dataclasses.replace(SPEC, protect=("decoder",))
    everything = sum(layer.weights for layer in prunable_layers(voice))
    assert zeros_wanted(voice, spec, chosen_layers(voice, spec)) == round(0.3 * everything)


@pytest.mark.parametrize("method", ["magnitude", "random", "activation", "second_order"])
@pytest.mark.parametrize(
    "change", [{"protect": ("decoder", "flow")}, {"floor": 0.2, "protect": ()}], ids=str
)
def test_more_than_there_is_says_how_much_there_is(families, method, change):
    voice, spec = (
        families["plain"],
        PruneSpec(method=method, amount=0.95, texts=SENTENCES, **change),
    )
    with pytest.raises(InputError, match=r"0\.\d{3} is the most here") as error:
        prune(voice, spec)
    most = float(str(error.value).split(" is the most")[0].split()[-1])
    chosen = chosen_layers(voice, spec)
    assert zeros_wanted(voice, dataclasses.replace(spec, amount=most - 0.001), chosen) > 0
    with pytest.raises(InputError):
        zeros_wanted(voice, dataclasses.replace(spec, amount=most + 0.001), chosen)


def test_texts(families, tmp_path):
    english = families["plain"]
    assert texts_for(english, SPEC) == SENTENCES
    assert texts_for(english, PruneSpec(method="activation")) == load_calibration_texts()
    assert (
        texts_for(families["piper-medium"], PruneSpec(method="activation"))
        == load_calibration_texts()
    )
    german = load_voice(make_checkpoint(tmp_path / "deu", language="deu"))
    drawn = texts_for(german, PruneSpec(method="activation", seed=1))
    assert len(drawn) == calibration.DRAWN_TEXTS
    assert (
        drawn
        == texts_for(german, PruneSpec(method="activation", seed=1))
        != texts_for(german, PruneSpec(method="activation", seed=2))
    )
    assert texts_for(german, SPEC) == SENTENCES


@pytest.fixture
def counted(monkeypatch):
    """How often a voice was listened to."""
    calls, real = [], calibration.collect
    monkeypatch.setattr(
        calibration, "collect", lambda *args, **named: calls.append(args) or real(*args, **named)
    )
    monkeypatch.setattr(
        calibration, "kept_statistics", Bounded(calibration.KEPT_VOICES, lambda _: 1)
    )
    return calls


def test_another_amount_needs_no_listening(families, counted):
    voice = families["plain"]
    prune(voice, SPEC)
    assert len(counted) == 1
    for change in (
        {"amount": 0.6},
        {"scope": "local"},
        {"parts": ("decoder",)},
        {"method": "activation", "floor": 0.1},
    ):
        prune(voice, dataclasses.replace(SPEC, **change))
    assert len(counted) == 1
    prune(voice, dataclasses.replace(SPEC, seed=1))
    prune(voice, dataclasses.replace(SPEC, texts=SENTENCES[:1]))
    prune(voice.with_weights({}), SPEC)
    assert len(counted) == 4


def test_energies_alone_do_not_do_for_covariances(families, counted):
    voice = families["plain"]
    prune(voice, dataclasses.replace(SPEC, method="activation"))
    prune(voice, SPEC)
    assert len(counted) == 2
    prune(voice, dataclasses.replace(SPEC, method="activation", amount=0.1))
    assert len(counted) == 2


def test_speakers_are_kept_apart(families, counted):
    voice = families["speakers"]
    first = dict(prune(voice, SPEC).model.named_parameters())
    other = dict(prune(voice.with_speaker(0), SPEC).model.named_parameters())
    assert len(counted) == 2
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_statistics_are_forgotten_with_the_voice(families, counted):
    voice = families["plain"].with_weights({})
    prune(voice, SPEC)
    assert len(calibration.kept_statistics) == 1
    del voice
    counted.clear()
    gc.collect()
    assert len(calibration.kept_statistics) == 0


def test_no_more_than_a_few_voices_are_kept(families, counted):
    voices = [families["plain"].with_weights({}) for _ in range(4)]
    for voice in voices:
        prune(voice, dataclasses.replace(SPEC, method="activation"))
    assert len(calibration.kept_statistics) == calibration.KEPT_VOICES


def test_what_does_not_fit_is_listened_to_again_with_the_same_result(
    families, counted, monkeypatch
):
    voice = families["plain"]
    kept = dict(prune(voice, SPEC).model.named_parameters())
    monkeypatch.setattr(calibration, "KEPT_BYTES", 1000)
    counted.clear()
    shares = []
    streamed = dict(
        prune(
            voice, SPEC, progress=lambda _what, share: shares.append(share)
        ).model.named_parameters()
    )
    assert len(counted) == 2
    assert all(torch.equal(kept[name], streamed[name]) for name in kept)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_after_one_who_cancels_the_next_one_listens(families, counted):
    def cancel(_what, share):
        if share > 0.1:
            raise KeyboardInterrupt

    voice = families["plain"].with_weights({})
    with pytest.raises(KeyboardInterrupt):
        prune(voice, SPEC, progress=cancel)
    prune(voice, SPEC)
    assert len(counted) == 2


def test_only_what_is_asked_for_comes_back(families):
    voice = families["plain"]
    list(calibrate(voice, SPEC, prunable_layers(voice), covariances=True))
    decoder = prunable_layers(voice, ("decoder",))
    assert [layer for layer, _ in calibrate(voice, SPEC, decoder, covariances=False)] != []
    assert names(layer for layer, _ in calibrate(voice, SPEC, decoder, covariances=False)) == names(
        decoder
    )


def test_others_need_not_wait_and_who_waits_can_leave(families, counted):
    """One listens to a voice for minutes: another voice is pruned meanwhile, and a second visitor of the same one can leave."""
    voice, other = families["plain"].with_weights({}), families["speakers"].with_weights({})
    inside, go_on = threading.Event(), threading.Event()

    def wait(_what, _share):
        inside.set()
        assert go_on.wait(60)

    class Gone(Exception):
        pass

    def leave(_what, _share):
        raise Gone

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(prune, voice, SPEC, progress=wait)
        try:
            assert inside.wait(60)
            with pytest.raises(Gone):
                prune(voice, SPEC, progress=leave)
            prune(other, SPEC)
        finally:
            go_on.set()
        first.result(60)
    assert len(counted) == 2, "who left had not begun to listen"
