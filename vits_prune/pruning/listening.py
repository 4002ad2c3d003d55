"""What a method needs to know of a voice: its chosen layers, the texts it is calibrated on, and their statistics, kept while they fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Statistics, Step, collect
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.masks import most_zeros
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.spec import PruneSpec, begins_with
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.language import draw_texts, spoken_language
from vits_prune.voices.voice import Voice

DRAWN = 120
KEPT_BYTES = 1 << 30
"""Covariances that are kept for another amount; a voice that has more is listened to again."""
_KEPT_VOICES = 2

_Found = tuple[tuple[Layer, Statistics], ...]
_kept: Bounded[tuple[object, ...], _Found] = Bounded(_KEPT_VOICES, lambda _: 1)


def chosen_layers(voice: Voice, spec: PruneSpec) -> tuple[Layer, ...]:
    """The layers of the spec's parts that are not protected.

    Raises:
        InputError: none is left, or something to protect is no layer of the voice.
    """
    there = prunable_layers(voice)
    if spec.protect:
        for pattern in dict.fromkeys(spec.protect):
            if not any(begins_with(layer.name, pattern) for layer in there):
                raise InputError(
                    f"{voice.name} has no layer {pattern[:80]!r} to protect: `layers` lists them."
                )
    found = tuple(
        layer for layer in there if layer.part in spec.parts and not spec.protects(layer.name)
    )
    if not found:
        raise InputError(
            f"Of {', '.join(spec.parts)} everything is protected: nothing is left to prune. Protect less."
        )
    return found


def zeros_wanted(voice: Voice, spec: PruneSpec, chosen: Sequence[Layer]) -> int:
    """How many weights the chosen layers lose together: the amount of all the parts' weights, protected ones included.

    Raises:
        InputError: they do not have so many.
    """
    everything = sum(layer.weights for layer in prunable_layers(voice, spec.parts))
    wanted = round(spec.amount * everything)
    most = sum(most_zeros(layer.weights, spec.floor) for layer in chosen)
    if wanted > most:
        raise InputError(
            f"An amount of {spec.amount:g} would take more than what is not protected and above the floor: "
            f"{most / everything:.3f} is the most here. Protect less, or prune less."
        )
    return wanted


def texts_for(voice: Voice, spec: PruneSpec) -> tuple[str, ...]:
    """What a voice is calibrated on: the spec's texts, else built-in English sentences, else draws from its vocabulary."""
    if spec.texts:
        return spec.texts
    return (
        load_calibration_texts()
        if spoken_language(voice) == "en"
        else draw_texts(voice, DRAWN, spec.seed)
    )


def listen(
    voice: Voice,
    spec: PruneSpec,
    layers: Sequence[Layer],
    *,
    covariances: bool,
    progress: Step | None = None,
) -> Iterator[tuple[Layer, Statistics]]:
    """The statistics of layers, from what is kept where they were asked for before with the same texts and seed.

    Args:
        voice: who speaks.
        spec: its texts and seed.
        layers: which are wanted, the whole tuple being listened to at once where its covariances fit.
        covariances: whether energies alone will not do.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts, or a covariance does not fit.
    """
    texts, names = texts_for(voice, spec), {layer.name for layer in layers}
    size = sum(_bytes(voice, layer) for layer in layers) if covariances else 0
    if size > KEPT_BYTES:
        yield from collect(voice, layers, texts, spec.seed, progress=progress)
        return

    def _enough(found: _Found) -> bool:
        return names <= {
            layer.name
            for layer, one in found
            if not covariances or one.covariance is not None or not one.matrix.dense
        }

    found = _kept.get_or_make(
        (voice.speaker, texts, spec.seed, torch.get_num_threads()),
        lambda: tuple(
            collect(voice, layers, texts, spec.seed, covariances=covariances, progress=progress)
        ),
        progress
        and functools.partial(progress, "waiting for another calibration of this voice", 0.0),
        owner=voice.model,
        enough=_enough,
    )
    yield from (pair for pair in found if pair[0].name in names)


def _bytes(voice: Voice, layer: Layer) -> int:
    matrix = LayerMatrix(voice.model.get_submodule(layer.name))
    return 4 * (matrix.shape[1] + 1) ** 2 if matrix.dense else 0
