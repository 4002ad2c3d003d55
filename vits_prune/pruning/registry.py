"""The pruning methods, scopes, importances and schedules, with words for each.

A method is a function in some module and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass

_DURATIONS = ("duration_predictor", "decoder.conv_post")
_SPEAKERS = ("decoder.cond", "flow.flows.*.wavenet.cond_layer")


@dataclass(frozen=True)
class Method:
    """A way of choosing what is removed."""

    module: str
    """Has `prune_weights(voice, spec, progress) -> {parameter name: new tensor}`, or
    `prune_voice` if structured."""
    title: str
    words: str
    """What it does, in two sentences."""
    calibrated: bool = False
    """Whether the voice speaks first."""
    protect: tuple[str, ...] = ()
    """Layers that it leaves alone where the PruneSpec does not say."""
    recovers: bool = False
    """Whether it changes what survives, and so aims at an `original` in gradual pruning."""
    structured: bool = False
    """Whether it removes whole channels and layers, and so changes shapes."""


METHODS: dict[str, Method] = {
    "magnitude": Method(
        "vits_prune.pruning.scores",
        "magnitude (L1)",
        "The weights with the smallest absolute values become zero. The method looks at nothing "
        "but the weights, so it does not know which of them matter.",
    ),
    "random": Method(
        "vits_prune.pruning.scores",
        "random",
        "Random weights become zero. This is the baseline: a method that does not beat it has "
        "learned nothing.",
    ),
    "activation": Method(
        "vits_prune.pruning.scores",
        "activation (Wanda)",
        "The importance of a weight is its size times the strength of its input while the voice "
        "speaks a few sentences. The least important weights become zero; the others keep their "
        "values.",
        calibrated=True,
        protect=(*_DURATIONS, *_SPEAKERS),
    ),
    "second_order": Method(
        "vits_prune.pruning.second_order",
        "second order",
        "The inputs of each layer, recorded while the voice speaks, show which weights the others "
        "can replace. Those become zero, and the others are adjusted so that the output of each "
        "layer stays as close to the original's as possible.",
        calibrated=True,
        protect=(*_DURATIONS, *_SPEAKERS),
        recovers=True,
    ),
    "structured": Method(
        "vits_prune.pruning.structured.cut",
        "structured",
        "Whole channels and layers are removed, those that matter least to the speech first, and "
        "the rest is fitted to do their work. The network becomes smaller: it needs less "
        "arithmetic on any hardware.",
        calibrated=True,
        structured=True,
    ),
}

SCOPES: dict[str, str] = {
    "global": "one ranking over all layers",
    "local": "the same amount in each layer",
    "sensitivity": "each layer's share depends on what its errors do to the speech",
}

IMPORTANCES: dict[str, str] = {
    "sensitivity": "what its errors do to the speech",
    "second_order": "what the layers that read it lose even if the other channels replace it",
    "activation": "the energy it brings while the voice speaks",
    "weight_norm": "the size of its weights alone",
}

UNGROUPED = ("duration_predictor",)
"""What a pattern leaves alone where the method leaves nothing alone: some of its layers have one
input channel, which no pattern can group."""

SCHEDULES = ("linear", "cubic")
"""How the amount grows over the steps; cubic is Zhu & Gupta 2017, arXiv:1710.01878."""
