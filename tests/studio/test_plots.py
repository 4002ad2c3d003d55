"""The pictures of measures: what they show, and that nothing keeps them alive."""

from __future__ import annotations

import gc
import weakref

import pytest

from vits_prune import PruneSpec, prune
from vits_prune.measure import measure_sparsity, measure_weights
from vits_prune.pruning.layers import layers
from vits_prune.studio import plots
from vits_prune.studio.renditions import LayerChange


@pytest.fixture(scope="module")
def pair(tiny):
    return tiny, prune(tiny, PruneSpec(scope="global", amount=0.5))


def test_the_histogram_counts_every_weight_and_marks_a_threshold_where_there_is_one(pair, tiny):
    weights = measure_weights(*pair)
    (axis,) = plots.weight_histogram(weights).axes
    counted = sum(bar.get_height() for bar in axis.patches)
    assert counted == sum(
        row.layer.weights
        for row in measure_sparsity(pair[1]).layers
        if row.zeros and row.layer.prunable
    )
    assert [text.get_text().strip() for text in axis.texts] == [
        f"threshold {weights.largest_zeroed:.3g}"
    ]
    assert [line.get_xdata()[0] for line in axis.lines] == [weights.largest_zeroed]
    local = plots.weight_histogram(
        measure_weights(tiny, prune(tiny, PruneSpec(scope="local", amount=0.5)))
    )
    assert not local.axes[0].lines
    assert [text.get_text() for text in local.axes[0].texts] == [
        "size alone did not decide: no threshold"
    ]
    nothing = plots.weight_histogram(measure_weights(tiny, prune(tiny, PruneSpec(amount=0.0))))
    assert not nothing.axes[0].lines


def test_layers_are_grouped_and_say_why_they_were_left_alone(tiny):
    layer, alone = layers(tiny)[3], layers(tiny)[0]
    changes = [
        LayerChange(layer, 0.25, False, ""),
        LayerChange(alone, 0.0, False, alone.reason),
    ]
    value = plots.layers_value(changes, {"flow": 0.5}, layer.name)
    assert [row["share"] for row in value["rows"]] == [0.25, 0.0]
    assert value["rows"][0]["word"] == "zero"
    assert value["rows"][1]["note"] == alone.reason
    assert value["groups"]["flow"]["zeros"] == 0.5
    assert value["first"] == layer.name
    assert value["hint"].startswith("2 layers, 1 left alone.")


def test_figures_are_transparent_and_forgotten(pair):
    figure = plots.weight_histogram(measure_weights(*pair))
    assert figure.get_facecolor()[3] == 0
    assert all(axis.get_facecolor()[3] == 0 for axis in figure.axes)
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None
