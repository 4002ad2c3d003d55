"""Every method in every scope: the zeros asked for, the rest as it was, the same from a recipe."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from tests.pruning.conftest import KINDS, SENTENCES, in_turn
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune, speak
from vits_prune.progress import Progress
from vits_prune.pruning import calibration, prune_steps
from vits_prune.pruning.layers import chosen_layers, prunable_layers
from vits_prune.pruning.spec import METHODS, SCOPES

UNSTRUCTURED = [name for name, method in METHODS.items() if not method.structured]


def tensors(voice):
    return dict(voice.model.named_parameters())


def identical(first, second):
    one, two = tensors(first), tensors(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def zeros(voice, parts=None):
    weights = tensors(voice)
    return sum(
        int((weights[layer.parameter] == 0).sum())
        for layer in prunable_layers(voice, *([parts] if parts else []))
    )


def dense(voice):
    """The voice with no weight that is zero already."""
    weights = tensors(voice)
    mine = {one.parameter: weights[one.parameter] for one in prunable_layers(voice)}
    return voice.with_weights({name: one + 1e-3 * (one == 0) for name, one in mine.items()})


def forget():
    calibration.kept_statistics.clear()


@pytest.fixture(scope="module")
def whole(families):
    return {kind: dense(voice) for kind, voice in families.items()}


@pytest.mark.parametrize(
    ("method", "scope", "kind"),
    [
        (method, scope, KINDS[(row + column) % len(KINDS)])
        for row, method in enumerate(UNSTRUCTURED)
        for column, scope in enumerate(SCOPES)
    ],
)
def test_exactly_as_many_zeros_and_the_same_from_the_recipe(whole, method, scope, kind):
    voice, parts = whole[kind], ("text_encoder", "flow", "decoder")
    spec = PruneSpec(method, scope, 0.437, parts, texts=SENTENCES, seed=3)
    before = {name: tensor.clone() for name, tensor in tensors(voice).items()}
    pruned = prune(voice, spec)
    each = [layer.weights for layer in prunable_layers(voice, parts)]
    # In local scope magnitude rounds in each layer, as l1_unstructured does.
    as_torch = (method, scope) == ("magnitude", "local")
    assert zeros(pruned, parts) == (
        sum(round(0.437 * one) for one in each) if as_torch else round(0.437 * sum(each))
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(voice).items())
    may_change = {layer.parameter for layer in chosen_layers(voice, spec)}
    if METHODS[method].recovers:
        may_change |= {name.removesuffix("weight") + "bias" for name in may_change}
    for name, tensor in tensors(pruned).items():
        if name not in may_change:
            assert tensor is tensors(voice)[name], name
        elif not METHODS[method].recovers:
            assert torch.equal(tensor, before[name].masked_fill(tensor == 0, 0.0))
    [recipe] = pruned.recipe["pruned"]
    forget()
    assert PruneSpec.from_dict(recipe) == PruneSpec.from_json(spec.to_json()) == spec
    assert identical(prune(voice, PruneSpec.from_dict(recipe)), pruned)
    assert torch.isfinite(torch.from_numpy(speak(pruned, SENTENCES[1], 1).waveform)).all()


@pytest.mark.parametrize(("kind", "method"), in_turn(KINDS, UNSTRUCTURED))
def test_nothing_protected(whole, kind, method):
    """Durations, speakers and depthwise convolutions too."""
    voice = whole[kind]
    pruned = prune(voice, PruneSpec(method, "local", 0.5, protect=(), texts=SENTENCES))
    assert zeros(pruned) == round(0.5 * sum(layer.weights for layer in prunable_layers(voice)))
    for layer in prunable_layers(voice):
        assert abs(int((tensors(pruned)[layer.parameter] == 0).sum()) - 0.5 * layer.weights) <= 1, (
            layer.name
        )


@pytest.mark.parametrize(("method", "scope"), in_turn(UNSTRUCTURED, SCOPES))
def test_a_floor(whole, method, scope):
    voice = whole["plain"]
    spec = PruneSpec(method, scope, 0.7, floor=0.2, protect=(), texts=SENTENCES)
    pruned = prune(voice, spec)
    assert zeros(pruned) == round(0.7 * sum(layer.weights for layer in prunable_layers(voice)))
    for layer in prunable_layers(voice):
        assert int((tensors(pruned)[layer.parameter] != 0).sum()) >= 0.2 * layer.weights - 1e-6


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_what_is_zero_already_counts_and_stays(families, method):
    """An earlier and harder pruning is not undone; a softer one is added to."""
    voice = families["plain"]
    there = prune(voice, PruneSpec("random", amount=0.5, seed=9))
    gone = {
        layer.parameter: tensors(there)[layer.parameter] == 0 for layer in prunable_layers(voice)
    }
    for amount in (0.2, 0.7):
        spec = PruneSpec(method, "global", amount, protect=(), texts=SENTENCES)
        again = tensors(prune(there, spec))
        assert all(bool((again[name][mask] == 0).all()) for name, mask in gone.items())
        assert sum(int((again[name] == 0).sum()) for name in gone) == round(
            max(0.5, amount) * sum(m.numel() for m in gone.values())
        )


@pytest.mark.parametrize("method", ["random", "activation", "second_order"])
def test_the_seed(whole, method):
    spec = PruneSpec(method, amount=0.5, texts=SENTENCES)
    assert not identical(
        prune(whole["plain"], spec), prune(whole["plain"], dataclasses.replace(spec, seed=1))
    )


def test_random_is_blind_and_even(whole):
    voice = whole["plain"]
    pruned = tensors(prune(voice, PruneSpec("random", "local", 0.5)))
    before = tensors(voice)
    kept = torch.cat(
        [
            before[layer.parameter][pruned[layer.parameter] != 0].abs()
            for layer in prunable_layers(voice)
        ]
    )
    gone = torch.cat(
        [
            before[layer.parameter][pruned[layer.parameter] == 0].abs()
            for layer in prunable_layers(voice)
        ]
    )
    assert float(kept.mean()) == pytest.approx(float(gone.mean()), rel=0.05)


def test_activation_takes_the_same_share_of_each_output_in_local_scope(whole):
    voice = whole["plain"]
    pruned = tensors(prune(voice, PruneSpec("activation", "local", 0.5, texts=SENTENCES)))
    for name in (
        "flow.flows.0.conv_pre.weight",
        "text_encoder.encoder.layers.0.attention.q_proj.weight",
    ):
        counts = (pruned[name] == 0).flatten(1).sum(1)
        assert int(counts.max() - counts.min()) <= 1


def test_methods_differ(whole):
    voices = [
        prune(whole["plain"], PruneSpec(method, "global", 0.5, texts=SENTENCES))
        for method in UNSTRUCTURED
    ]
    voices += [
        prune(whole["plain"], PruneSpec("magnitude", scope, 0.5, texts=SENTENCES))
        for scope in ("local", "sensitivity")
    ]
    assert all(not identical(one, two) for i, one in enumerate(voices) for two in voices[:i])


def output_error(voice, pruned, name, inputs):
    module = voice.model.get_submodule(name)
    with torch.no_grad():
        return float((pruned.model.get_submodule(name)(inputs) - module(inputs)).square().mean())


def test_second_order_keeps_outputs_closer_than_the_others(whole):
    voice, errors = whole["piper-medium"], {}
    spec = PruneSpec("magnitude", "local", 0.6, texts=SENTENCES)
    from vits_prune.pruning.blocks import inputs_of
    from vits_prune.synthesis.inference import encode
    from vits_prune.synthesis.speak import read_text

    layers = prunable_layers(voice, ("text_encoder",))
    with torch.no_grad(), inputs_of(voice.model, layers) as inputs:
        encode(voice, read_text(voice, "a sentence that was not heard before")[0][0].ids)
    for method in UNSTRUCTURED:
        pruned = prune(voice, dataclasses.replace(spec, method=method, protect=()))
        errors[method] = [
            output_error(voice, pruned, layer.name, inputs[layer.name]) for layer in layers
        ]
    better = [
        mine < 0.7 * other
        for mine, other in zip(errors["second_order"], errors["magnitude"], strict=True)
    ]
    assert sum(better) >= 0.8 * len(better)
    assert sum(errors["second_order"]) < sum(errors["activation"]) < sum(errors["random"])


@pytest.mark.parametrize(
    ("method", "pattern", "amount"),
    [
        (method, *pattern)
        for method, pattern in in_turn(UNSTRUCTURED, [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25)])
    ],
)
def test_patterns(whole, method, pattern, amount):
    voice = whole["piper-medium"]
    spec = PruneSpec(
        method, "local", amount, ("text_encoder", "decoder"), pattern=pattern, texts=SENTENCES
    )
    pruned, keep = tensors(prune(voice, spec)), int(pattern[0])
    for layer in chosen_layers(voice, spec):
        dimension = (
            0 if isinstance(voice.model.get_submodule(layer.name), nn.ConvTranspose1d) else 1
        )
        groups = (pruned[layer.parameter] != 0).movedim(dimension, -1).reshape(-1, 4).sum(1)
        assert bool((groups == keep).all()), layer.name
    assert identical(prune(voice, PruneSpec.from_json(spec.to_json())), prune(voice, spec))


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_a_pattern_that_does_not_fit_names_the_layer(families, method):
    spec = PruneSpec(
        method, "local", 0.5, ("duration_predictor",), protect=(), pattern="2:4", texts=SENTENCES
    )
    with pytest.raises(
        InputError,
        match=r"duration_predictor\.\S+ has \d+ input channels, which cannot be grouped by 4",
    ) as error:
        prune(families["plain"], spec)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("method", "options"),
    in_turn(UNSTRUCTURED, [{"amount": 0.5}, {"amount": 0.5, "pattern": "2:4"}]),
)
def test_a_kernel_that_is_no_multiple_of_its_stride(tmp_path, method, options):
    voice = dense(load_voice(make_checkpoint(tmp_path / "uneven", upsample_kernel_sizes=[7, 8])))
    spec = PruneSpec(method, "local", parts=("decoder",), texts=SENTENCES, **options)
    pruned = tensors(prune(voice, spec))["decoder.upsampler.0.weight"]
    if spec.pattern:
        assert bool(((pruned == 0).movedim(0, -1).reshape(-1, 4).sum(1) == 2).all())
    else:
        assert 0.4 < float((pruned == 0).float().mean()) < 0.65


STEPS = [
    {"steps": 3}, {"steps": 2, "schedule": "linear"}, {"amounts": (0.2, 0.3, 0.6)},
    {"amounts": (0.6,)}
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), in_turn(UNSTRUCTURED[::-1], STEPS))
def test_steps(whole, method, options):
    voice = whole["plain"]
    spec = PruneSpec(
        method,
        "sensitivity" if options.get("steps") == 3 else "global",
        0.6,
        protect=(),
        texts=SENTENCES[1:2],
        **options,
    )
    weights, before, amounts = sum(layer.weights for layer in prunable_layers(voice)), None, []
    for amount, step in prune_steps(voice, spec):
        amounts.append(amount)
        assert zeros(step) == round(amount * weights)
        if before is not None:
            now, then = tensors(step), tensors(before)
            for layer in prunable_layers(voice):
                assert bool((now[layer.parameter][then[layer.parameter] == 0] == 0).all())
        [recipe] = step.recipe["pruned"]
        assert recipe["amount"] == amount
        if len(amounts) < 3:  # the last is compared below
            assert identical(prune(voice, PruneSpec.from_dict(recipe)), step)
        before = step
    assert tuple(amounts) == spec.schedule_amounts()
    assert PruneSpec.from_dict(recipe) == spec
    if len(amounts) > 2:
        assert identical(prune(voice, spec), before)


def test_what_is_done_after_a_step_is_what_the_next_prunes(whole):
    voice, name, seen = whole["plain"], "decoder.conv_pre.bias", []

    def doubled(index, pruned):
        seen.append(index)
        return pruned.with_weights(
            {name: 2 * tensors(pruned)[name]}, recipe={**pruned.recipe, "doubled": index}
        )

    found = [
        step for _, step in prune_steps(voice, PruneSpec(amount=0.4, steps=2), after_step=doubled)
    ]
    assert seen == [0, 1]
    for factor, step in zip((2, 4), found, strict=True):
        assert tensors(step)[name].equal(factor * tensors(voice)[name])
    assert found[-1].recipe["doubled"] == 1
    assert [one["amount"] for one in found[-1].recipe["pruned"]] == [0.4]


def test_steps_calibrate_anew(whole):
    voice = whole["plain"]
    one, more = (
        PruneSpec("second_order", amount=0.6, texts=SENTENCES, steps=steps) for steps in (1, 3)
    )
    assert not identical(prune(voice, one), prune(voice, more))


def test_leaving_at_a_step_does_no_more(whole, monkeypatch):
    calls, real = [], calibration.collect
    monkeypatch.setattr(
        calibration, "collect", lambda *args, **named: calls.append(1) or real(*args, **named)
    )
    forget()
    for amount, _ in prune_steps(
        whole["plain"],
        PruneSpec("activation", amount=0.6, texts=SENTENCES, amounts=(0.1, 0.4, 0.6)),
    ):
        if amount >= 0.4:
            break
    assert len(calls) == 2


def test_steps_of_nothing(whole):
    assert [amount for amount, _ in prune_steps(whole["plain"], PruneSpec(amount=0, steps=4))] == [
        0
    ]


@pytest.mark.parametrize(
    ("method", "scope", "options"),
    [
        (method, scope, options)
        for scope, options in in_turn(SCOPES, [{"steps": 3}, {}, {"pattern": "2:4"}])
        for method in METHODS
    ],
)
def test_progress_rises_from_0_to_1(families, method, scope, options):
    if options.get("pattern") and METHODS[method].structured:
        return
    forget()
    told = []
    spec = PruneSpec(method, scope, 0.5, ("text_encoder", "decoder"), texts=SENTENCES, **options)
    prune(
        families["piper-medium"].with_weights({}),
        spec,
        progress=Progress(lambda what, share: told.append((what, share))),
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if METHODS[method].calibrated:
        assert shares[0] == 0
        assert len(set(shares)) > 8
        gaps = [after - before for before, after in itertools.pairwise(shares)]
        assert max(gaps) < 0.6
    if options.get("steps"):
        assert told[0][0].startswith("step 1 of 3: ")
        assert told[-1][0].startswith("step 3 of 3: ")
    assert all(isinstance(what, str) and what for what, _ in told)


@pytest.mark.parametrize(
    ("method", "broken", "value"),
    in_turn(
        [name for name, method in METHODS.items() if method.calibrated],
        ["text_encoder.embed_tokens.weight", "decoder.conv_pre.weight", "decoder.conv_post.weight"],
        [float("nan"), float("inf")],
    ),
)
def test_a_voice_that_is_broken_is_refused(families, method, broken, value):
    voice = families["plain"]
    worse = voice.with_weights({broken: torch.full_like(tensors(voice)[broken], value)})
    options = {} if METHODS[method].structured else {"protect": ()}
    with pytest.raises(InputError, match=r"not finite|finite numbers"):
        prune(worse, PruneSpec(method, amount=0.5, texts=SENTENCES, **options))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.calibrated])
def test_texts_that_cannot_be_said(families, method):
    with pytest.raises(InputError, match="cannot speak any of this text"):
        prune(families["plain"], PruneSpec(method, amount=0.5, texts=("漢字",)))


@pytest.mark.slow
def test_second_order_of_the_real_voice(joe):
    spec = PruneSpec("second_order", "global", 0.6, ("flow",), texts=SENTENCES[:2])
    pruned = prune(joe, spec)
    assert zeros(pruned, ("flow",)) == round(
        0.6 * sum(layer.weights for layer in prunable_layers(joe, ("flow",)))
    )
    blind = prune(joe, dataclasses.replace(spec, method="random"))
    original, near, far = (speak(voice, SENTENCES[0], 1) for voice in (joe, pruned, blind))
    assert near.durations.tolist() == original.durations.tolist()
    how = {"n_fft": 512, "window": torch.hann_window(512), "return_complex": True}
    waveforms = (torch.from_numpy(one.waveform) for one in (original, near, far))
    spectra = [torch.stft(one, **how).abs() for one in waveforms]
    assert float((spectra[1] - spectra[0]).norm()) < 0.5 * float((spectra[2] - spectra[0]).norm())


@pytest.mark.parametrize(
    "spec",
    [
        PruneSpec(method="second_order", amount=0.3),
        PruneSpec(scope="sensitivity", amount=0.3),
        PruneSpec(method="structured", amount=0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["plain", "speakers"])
def test_hooks_go_on_copies(families, monkeypatch, spec, kind):
    """What another thread says with the voice is neither counted in nor changed."""
    voice, hooked = families[kind].with_weights({}), []
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        real = getattr(torch.nn.Module, name)

        def register(module, *args, real=real, **named):
            hooked.append(module)
            return real(module, *args, **named)

        monkeypatch.setattr(torch.nn.Module, name, register)
    prune(voice, dataclasses.replace(spec, texts=SENTENCES))
    assert hooked
    assert not set(hooked) & set(voice.model.modules())
