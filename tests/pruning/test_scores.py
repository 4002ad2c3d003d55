"""The masks of torch.nn.utils.prune, as many zeros as asked, and an original that stays."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from vits_prune import PARTS, InputError, PruneSpec, measure_sparsity, prune, speak
from vits_prune.pruning import scores
from vits_prune.pruning.layers import LayerMatrix, prunable_layers, uses_of_weights
from vits_prune.pruning.scores import (
    most_zeros,
    pattern_mask,
    share_out,
    smallest,
    sorted_magnitudes,
    sparsity_preview,
)


def checksums(voice):
    return {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in voice.model.named_parameters()
    }


def torchs_masks(voice, spec):
    """Parameter name -> mask, by torch's own pruning of a copy of the folded model."""
    model = voice.with_weights({}).model
    modules = {
        layer.parameter: model.get_submodule(layer.name)
        for layer in prunable_layers(voice, spec.parts)
    }
    if spec.scope == "global":
        torch_prune.global_unstructured(
            [(module, "weight") for module in modules.values()],
            torch_prune.L1Unstructured,
            amount=spec.amount,
        )
    else:
        for module in modules.values():
            torch_prune.l1_unstructured(module, "weight", spec.amount)
    return {name: module.weight_mask.bool() for name, module in modules.items()}


def assert_cut_as_torch_cuts(before, after, masks):
    """The same mask but for weights of exactly the threshold's magnitude: as many of those.

    All three are lists of tensors that were ranked together.
    """
    magnitudes = torch.cat([tensor.flatten() for tensor in before]).abs()
    kept = torch.cat([tensor.flatten() for tensor in after]) != 0
    expected = torch.cat([mask.flatten() for mask in masks])
    assert int((~kept).sum()) == int((~expected).sum())
    threshold = magnitudes[~expected].max() if not expected.all() else torch.tensor(-1.0)
    differing = kept != expected
    assert bool((magnitudes[differing] == threshold).all())
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, torch.where(new != 0, old, torch.zeros_like(old)))


def compare_with_torch(voice, spec):
    pruned, masks = prune(voice, spec), torchs_masks(voice, spec)
    before, after = dict(voice.model.named_parameters()), dict(pruned.model.named_parameters())
    groups = [list(masks)] if spec.scope == "global" else [[name] for name in masks]
    for names in groups:
        assert_cut_as_torch_cuts(
            [before[n] for n in names], [after[n] for n in names], [masks[n] for n in names]
        )
        weights = sum(before[name].numel() for name in names)
        assert sum(int((after[name] == 0).sum()) for name in names) == round(spec.amount * weights)
    for name in before.keys() - masks.keys():
        assert before[name] is after[name]


@pytest.mark.parametrize(
    "spec",
    [PruneSpec(amount=0.3, parts=("duration_predictor", "flow")), PruneSpec("magnitude", "local")],
    ids=lambda spec: spec.scope,
)
def test_the_masks_of_torch_on_the_real_voice(joe, spec):
    compare_with_torch(joe, spec)


def test_the_masks_of_torch(tiny):
    for spec in (
        PruneSpec(amount=0.9, parts=("text_encoder",)),
        PruneSpec(amount=0.99, parts=("duration_predictor", "flow")),
        PruneSpec(amount=1e-6, parts=("decoder",)),
        PruneSpec(amount=0.123, parts=("duration_predictor",)),
        PruneSpec(scope="local", amount=0.37),
        PruneSpec(scope="local", amount=0.99, parts=("duration_predictor", "decoder")),
    ):
        compare_with_torch(tiny, spec)


@pytest.fixture(scope="module")
def tied(tiny):
    """A voice whose weights have few magnitudes, none of them zero."""
    weights = dict(tiny.model.named_parameters())
    step = 0.05
    rounded = {
        layer.parameter: torch.where(weights[layer.parameter] < 0, -step, step)
        * ((weights[layer.parameter].abs() / step).floor() + 1)
        for layer in prunable_layers(tiny)
    }
    voice = tiny.with_weights(rounded)
    assert len(torch.cat([weight.flatten() for weight in rounded.values()]).abs().unique()) < 60
    return voice


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("amount", [0.001, 0.25, 0.5, 0.9, 0.99])
def test_the_masks_of_torch_where_nearly_all_weights_are_ties(tied, scope, amount):
    compare_with_torch(tied, PruneSpec(scope=scope, amount=amount))


def test_ties_go_first_in_memory_order(tied):
    spec = PruneSpec(scope="local", amount=0.5)
    before, after = (
        dict(tied.model.named_parameters()),
        dict(prune(tied, spec).model.named_parameters()),
    )
    split = 0
    for layer in prunable_layers(tied):
        old, gone = before[layer.parameter].abs().flatten(), (after[layer.parameter] == 0).flatten()
        ties = old == old[gone].max()
        order = gone[ties].int()
        assert torch.equal(order, order.sort(descending=True).values)
        split += bool(0 < order.sum() < len(order))
    assert split > 10


@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_voice_given_stays_as_it_was(joe, scope):
    before, identities = (
        checksums(joe),
        {name: id(tensor) for name, tensor in joe.model.named_parameters()},
    )
    pruned = prune(joe, PruneSpec(scope=scope, amount=0.5, parts=("flow", "decoder")))
    assert checksums(joe) == before
    assert {name: id(tensor) for name, tensor in joe.model.named_parameters()} == identities
    assert dict(joe.recipe) == {}
    old, new = dict(joe.model.named_parameters()), dict(pruned.model.named_parameters())
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {layer.parameter for layer in prunable_layers(joe, ("flow", "decoder"))}
    for name in old:
        assert (old[name].data_ptr() == new[name].data_ptr()) == (name not in changed)
    assert pruned.model is not joe.model
    assert (pruned.name, pruned.origin, pruned.tokenizer) == (joe.name, joe.origin, joe.tokenizer)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_amount_zero_is_the_original(joe, scope):
    pruned = prune(joe, PruneSpec(scope=scope, amount=0))
    for old, new in zip(joe.model.parameters(), pruned.model.parameters(), strict=True):
        assert old is new
    assert pruned.recipe["pruned"] == [PruneSpec(scope=scope, amount=0).to_dict()]


def test_the_recipe_tells_every_step(tiny):
    first, second = PruneSpec(scope="local", amount=0.2), PruneSpec(amount=0.5, parts=("decoder",))
    twice = prune(prune(tiny, first), second)
    assert twice.recipe["pruned"] == [first.to_dict(), second.to_dict()]
    assert [PruneSpec.from_dict(step) for step in twice.recipe["pruned"]] == [first, second]
    with pytest.raises(TypeError):
        twice.recipe["pruned"] = []


SPECS = [
    PruneSpec(),
    PruneSpec(scope="local", amount=0.7),
    PruneSpec(amount=0.9, parts=("decoder", "duration_predictor")),
    PruneSpec(scope="local", amount=0.05, parts=("flow",)),
    PruneSpec(amount=0),
]


def preview_equals_measure(voice, spec):
    measured, preview = measure_sparsity(prune(voice, spec)), sparsity_preview(voice, spec)
    assert preview == {"overall": measured.overall, **measured.parts}
    assert list(preview) == ["overall", *PARTS]
    return preview


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.scope} {spec.amount}")
def test_the_preview_is_what_pruning_does(joe, tied, spec):
    preview_equals_measure(joe, spec)
    preview_equals_measure(tied, spec)


def test_the_preview_counts_zeros_that_are_there_already(tiny):
    before = prune(tiny, PruneSpec(scope="local", amount=0.5, parts=("flow", "text_encoder")))
    for spec in SPECS:
        preview_equals_measure(before, spec)
    assert preview_equals_measure(before, PruneSpec(scope="local", amount=0.1))[
        "flow"
    ] == pytest.approx(0.5, abs=0.01)
    assert preview_equals_measure(before, PruneSpec(scope="local", amount=0.8))[
        "flow"
    ] == pytest.approx(0.8, abs=0.01)


def test_pruning_again_at_the_same_amount_changes_nothing(joe):
    spec = PruneSpec(amount=0.4)
    once = prune(joe, spec)
    assert checksums(prune(once, spec)) == checksums(once)


def test_a_larger_amount_zeroes_more_of_the_same(joe):
    less, more = (
        dict(prune(joe, PruneSpec(amount=amount)).model.named_parameters()) for amount in (0.2, 0.6)
    )
    for layer in prunable_layers(joe):
        assert bool((more[layer.parameter][less[layer.parameter] == 0] == 0).all())


def test_magnitudes_are_sorted_once_a_voice(joe, tiny):
    assert sorted_magnitudes(joe) is sorted_magnitudes(joe)
    assert sorted_magnitudes(joe) is not sorted_magnitudes(tiny)


@pytest.mark.parametrize("spec", [None, 0.3, {"amount": 0.3}, "global"], ids=repr)
def test_prune_takes_a_spec_only(tiny, spec):
    with pytest.raises(InputError, match="PruneSpec"):
        prune(tiny, spec)


def test_while_one_voice_is_sorted_another_need_not_wait(tiny, monkeypatch):
    voice, other = tiny.with_weights({}), tiny.with_weights({})
    inside, go_on, real = threading.Event(), threading.Event(), scores.SortedMagnitudes

    def slow(which):
        if which is voice:
            inside.set()
            assert go_on.wait(60)
        return real(which)

    monkeypatch.setattr(scores, "SortedMagnitudes", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(scores.sorted_magnitudes, voice)
        try:
            assert inside.wait(60)
            assert pool.submit(scores.sorted_magnitudes, other).result(60)
        finally:
            go_on.set()
        assert first.result(60) is scores.sorted_magnitudes(voice)


SIZES = {"a": 1, "b": 10, "c": 37, "d": 400}


def scores_of(sizes, seed=0, levels=None):
    random = np.random.default_rng(seed)
    drawn = {
        name: random.random(size, dtype=np.float32) * (place + 1)
        for place, (name, size) in enumerate(sizes.items())
    }
    return (
        drawn
        if levels is None
        else {name: np.floor(one * levels).astype(np.float32) for name, one in drawn.items()}
    )


@pytest.mark.parametrize("scope", ["local", "global", "sensitivity"])
@pytest.mark.parametrize("levels", [None, 2, 0], ids=["different", "ties", "all equal"])
@pytest.mark.parametrize("zeros", [0, 1, 7, 224, 447, 448])
def test_the_total_is_exact(scope, levels, zeros):
    scores = scores_of(SIZES, levels=levels)
    found = share_out(scores, zeros, scope)
    assert sum(found.values()) == zeros
    assert found.keys() == scores.keys()
    assert all(0 <= found[name] <= size for name, size in SIZES.items())


@pytest.mark.parametrize("zeros", range(0, 449, 32))
def test_local_is_within_one_of_the_share(zeros):
    for name, count in share_out(scores_of(SIZES), zeros, "local").items():
        assert abs(count - zeros * SIZES[name] / 448) < 1


@pytest.mark.parametrize("zeros", [5, 100, 300])
def test_global_is_one_ranking(zeros):
    scores = scores_of(SIZES)
    threshold = np.sort(np.concatenate(list(scores.values())))[zeros - 1]
    assert share_out(scores, zeros, "global") == {
        name: int((one <= threshold).sum()) for name, one in scores.items()
    }


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("floor", [0.1, 0.3, 0.5, 0.9])
def test_floors_hold_and_others_make_up(scope, floor):
    scores = scores_of(SIZES)
    most = {name: most_zeros(size, floor) for name, size in SIZES.items()}
    assert all(SIZES[name] - count >= floor * SIZES[name] - 1e-6 for name, count in most.items())
    for zeros in (1, sum(most.values()) // 2, sum(most.values())):
        found = share_out(scores, zeros, scope, floor)
        assert sum(found.values()) == zeros
        assert all(found[name] <= most[name] for name in SIZES)


def test_a_floor_is_no_less_than_it_says():
    assert [most_zeros(10, floor) for floor in (0, 0.3, 0.9, 0.95, 1)] == [10, 7, 1, 0, 0]
    assert most_zeros(1000, 0.7) == 300


def test_layers_at_their_floor_give_to_the_others_in_order():
    scores = {"low": np.zeros(10, np.float32), "high": np.arange(1, 21, dtype=np.float32)}
    assert share_out(scores, 8, "global") == {"low": 8, "high": 0}
    assert share_out(scores, 8, "global", 0.5) == {"low": 5, "high": 3}


def test_a_budget_of_costs_is_spent_where_it_does_least_damage():
    scores = {"cheap": np.full(10, 1.0, np.float32), "dear": np.full(10, 1.2, np.float32)}
    costs = {"cheap": 1.0, "dear": 4.0}
    assert share_out(scores, 30, "global", costs=costs) == {"cheap": 0, "dear": 7}
    assert share_out(scores, 45, "global", costs=costs) == {"cheap": 5, "dear": 10}
    assert share_out(scores, 45, "global", 0.2, costs) == {"cheap": 8, "dear": 8}
    assert share_out(scores, 15, "global") == {"cheap": 10, "dear": 5}  # by weights


@pytest.mark.parametrize("method", ["activation", "second_order"])
@pytest.mark.parametrize("scope", ["global", "sensitivity"])
def test_an_amount_of_arithmetic_is_taken_from_the_arithmetic(tiny, method, scope):
    spec = PruneSpec(method, scope, 0.5, parts=("flow", "decoder"), protect=(), texts=("hi you",))
    spec = dataclasses.replace(spec, cost="macs")
    pruned = prune(tiny, spec)
    uses = uses_of_weights(tiny, lambda copy: speak(copy, "hi you", kernels="dense"))
    whole, left = 0, 0
    for layer in prunable_layers(tiny, spec.parts):
        weight = pruned.model.get_parameter(layer.parameter)
        whole += uses.get(layer.name, 0) * layer.weights
        left += uses.get(layer.name, 0) * int(weight.count_nonzero())
    assert left / whole == pytest.approx(0.5, abs=0.01)


def test_uses_of_weights(joe):
    spoken = []
    uses = uses_of_weights(joe, lambda copy: spoken.append(speak(copy, "Hi.", kernels="dense")))
    frames = int(spoken[0].durations.sum())
    assert uses["decoder.conv_pre"] == uses["decoder.upsampler.0"] == frames
    assert uses["decoder.upsampler.1"] == 8 * frames
    assert uses["decoder.conv_post"] == 256 * frames
    assert uses["flow.flows.0.wavenet.in_layers.0"] == frames
    assert uses["text_encoder.encoder.layers.0.attention.q_proj"] == len(spoken[0].durations)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_more_than_there_is(scope):
    scores = {"large": np.zeros(100, np.float32), "small": np.ones(2, np.float32)}
    assert share_out(scores, 100, scope, 0.5) == {"large": 50, "small": 1}
    assert share_out(scores, 500, scope) == {"large": 100, "small": 2}


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_the_smallest_and_of_equal_ones_the_first(count):
    scores = torch.tensor([[2.0, 1.0, 1.0], [0.0, 1.0, 3.0]])
    order = [3, 1, 2, 4, 0, 5]
    assert sorted(smallest(scores, count).flatten().nonzero().flatten().tolist()) == sorted(
        order[:count]
    )


PATTERNED = {
    "linear": nn.Linear(8, 3),
    "convolution": nn.Conv1d(8, 3, 5),
    "upsampling": nn.ConvTranspose1d(8, 3, 4, 2, padding=1),
    "uneven upsampling": nn.ConvTranspose1d(8, 3, 7, 4),
}


@pytest.mark.parametrize("kind", PATTERNED)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 2), (1, 4), (3, 8)])
def test_patterns_leave_so_many_of_so_many_input_channels(kind, keep, of):
    module = PATTERNED[kind]
    matrix, scores = LayerMatrix(module), module.weight.detach().abs()
    mask = matrix.back(pattern_mask(matrix.of(scores), matrix, (keep, of), "layer"))
    assert mask.dtype == torch.bool
    channels = 0 if isinstance(module, nn.ConvTranspose1d) else 1
    groups, values = ((one.movedim(channels, -1)).reshape(-1, of) for one in (mask, scores))
    assert bool((groups.sum(1) == of - keep).all())
    assert bool(
        (
            values.masked_fill(groups, 9).min(1).values
            >= values.masked_fill(~groups, -9).max(1).values
        ).all()
    )


def test_a_pattern_that_does_not_fit_names_the_layer():
    matrix = LayerMatrix(nn.Conv1d(6, 3, 5))
    with pytest.raises(
        InputError, match=r"flow\.x has 6 input channels, which cannot be grouped by 4"
    ) as error:
        pattern_mask(torch.zeros(matrix.shape), matrix, (2, 4), "flow.x")
    assert str(error.value).endswith(".")
