"""The histogram of weights: kept and zeroed, and the threshold between them."""

from __future__ import annotations

import numpy as np

from vits_prune import PruneSpec, measure_sparsity, prune
from vits_prune.measure import measure_weights
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.shape import Shape
from vits_prune.pruning.structured.cut import choose, cut


def test_every_weight_is_counted_once(joe):
    pruned = prune(joe, PruneSpec(amount=0.3))
    histogram, sparsity = measure_weights(joe, pruned, bins=50), measure_sparsity(pruned)
    assert histogram.zeroed.sum() == sparsity.zeros()
    assert histogram.kept.sum() + histogram.zeroed.sum() == sparsity.weights()
    assert histogram.edges.shape == (51,)
    assert histogram.kept.shape == histogram.zeroed.shape == (50,)
    assert (np.diff(histogram.edges) > 0).all()
    assert histogram.edges[0] == 0


def test_global_pruning_has_one_threshold(joe):
    histogram = measure_weights(joe, prune(joe, PruneSpec(amount=0.3)))
    assert 0 < histogram.largest_zeroed <= histogram.smallest_kept
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    width = histogram.edges[1]
    assert not histogram.zeroed[centres > histogram.largest_zeroed + width].any()
    assert not histogram.kept[centres < histogram.smallest_kept - width].any()


def test_local_pruning_has_none(joe):
    histogram = measure_weights(joe, prune(joe, PruneSpec(scope="local", amount=0.3)))
    assert histogram.smallest_kept < 0.5 * histogram.largest_zeroed


def test_only_the_layers_that_changed(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("flow",)))
    histogram = measure_weights(tiny, pruned)
    assert histogram.kept.sum() + histogram.zeroed.sum() == sum(
        layer.weights for layer in prunable_layers(tiny, ("flow",))
    )


def test_nothing_pruned(tiny):
    histogram = measure_weights(tiny, tiny)
    zeros = measure_sparsity(tiny).zeros()
    assert histogram.zeroed.sum() == zeros
    assert histogram.kept.sum() == measure_sparsity(tiny).weights() - zeros
    assert histogram.largest_zeroed == 0


def test_weights_that_went_with_their_channels_count_as_zeroed(tiny):
    narrow = cut(tiny, choose(tiny, Shape(decoder_width=0.5, multiple=2)))
    histogram = measure_weights(tiny, narrow)
    assert histogram.kept.sum() + histogram.zeroed.sum() == measure_sparsity(tiny).weights(
        "decoder"
    )
    assert histogram.kept.sum() == measure_sparsity(narrow).weights(
        "decoder"
    )  # the very weights that stayed
    assert histogram.largest_zeroed == 0
    both = measure_weights(
        tiny, prune(narrow, PruneSpec(scope="local", amount=0.5, parts=("decoder", "flow")))
    )
    parts = {part: measure_sparsity(tiny).weights(part) for part in ("decoder", "flow")}
    assert both.kept.sum() + both.zeroed.sum() == sum(parts.values())
    assert (
        abs(
            both.zeroed.sum()
            - (
                parts["decoder"]
                - 0.5 * measure_sparsity(narrow).weights("decoder")
                + 0.5 * parts["flow"]
            )
        )
        < 50
    )
    assert both.largest_zeroed > 0


def test_layers_that_went_count_as_zeroed(tiny):
    short = cut(tiny, choose(tiny, Shape(encoder_layers=1)))
    histogram = measure_weights(tiny, short)
    before, after = (measure_sparsity(voice).weights("text_encoder") for voice in (tiny, short))
    assert (histogram.kept.sum(), histogram.zeroed.sum()) == (after, before - after)
