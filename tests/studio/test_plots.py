"""The pictures of measures: what they show, and that nothing keeps them alive."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from vits_prune import PruneSpec, prune, speak
from vits_prune.measure import measure_sparsity, measure_weights
from vits_prune.measure.waveform import measure_spectrogram
from vits_prune.studio import plots


@pytest.fixture(scope="module")
def pair(tiny):
    return tiny, prune(tiny, PruneSpec(scope="global", amount=0.5))


def spectrogram_figure(pair, aligned):
    original, pruned = pair
    first = speak(original, "hi there")
    second = speak(pruned, "hi there", timing=first if aligned else "own")
    return (
        plots.spectrograms(measure_spectrogram(first), measure_spectrogram(second), aligned),
        first,
        second,
    )


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


@pytest.mark.parametrize("aligned", [True, False])
def test_spectrograms_show_a_difference_only_where_samples_are_aligned(pair, aligned):
    figure, first, second = spectrogram_figure(pair, aligned)
    shown = titles(figure)
    assert shown[0].startswith("original")
    assert shown[1].startswith("pruned")
    assert len(shown) == (3 if aligned else 2)
    images = [axis.images[0] for axis in figure.axes[: len(shown)]]
    assert images[0].get_clim() == images[1].get_clim(), "two scales cannot be compared"
    assert images[0].get_extent()[1] == pytest.approx(first.audio_seconds)
    assert images[1].get_extent()[1] == pytest.approx(second.audio_seconds)
    if aligned:
        low, high = images[2].get_clim()
        assert low == -high


def test_equal_sounds_have_no_difference(tiny):
    speech = speak(tiny, "hi there")
    figure = plots.spectrograms(measure_spectrogram(speech), measure_spectrogram(speech), True)
    assert not np.any(figure.axes[2].images[0].get_array())


def test_bars_are_the_sparsity_of_the_layers(pair):
    sparsity = measure_sparsity(pair[1])
    (axis,) = plots.layer_bars(sparsity).axes
    heights = [bar.get_height() for bar in axis.patches]
    assert sorted(heights) == pytest.approx(
        sorted(100 * row.sparsity for row in sparsity.layers if row.layer.prunable)
    )
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "text encoder",
        "duration predictor",
        "flow",
        "decoder",
    ]


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
    assert [text.get_text() for text in local.axes[0].texts] == ["each layer has its own threshold"]
    nothing = plots.weight_histogram(measure_weights(tiny, prune(tiny, PruneSpec(amount=0.0))))
    assert not nothing.axes[0].lines


def test_figures_are_transparent_and_forgotten(pair):
    figure, _, _ = spectrogram_figure(pair, True)
    assert figure.get_facecolor()[3] == 0
    assert all(axis.get_facecolor()[3] == 0 for axis in figure.axes[:3])
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None
