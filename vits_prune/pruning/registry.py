"""The names of the pruning methods, what each does in two sentences, and the modules that hold them: a method is one file and one entry."""

from __future__ import annotations

from dataclasses import dataclass

_DURATIONS = ("duration_predictor", "decoder.conv_post")
_SPEAKERS = ("decoder.cond", "flow.flows.*.wavenet.cond_layer")


@dataclass(frozen=True)
class Method:
    """A way of choosing what goes."""

    module: str
    """Has a function `prune_weights(voice, spec, progress=None) -> {parameter name: new tensor}`; a structured one `prune_voice`."""
    title: str
    words: str
    """What it does, in two sentences."""
    calibrated: bool = False
    """Whether it listens to the voice first."""
    protect: tuple[str, ...] = ()
    """Layers that it leaves alone where the PruneSpec does not say: names, their beginnings, "*" for one piece of a name."""
    recovers: bool = False
    """Whether it changes what survives, and so takes an `original` to aim at in gradual pruning."""
    structured: bool = False
    """Whether it takes whole channels and layers out, and so changes shapes."""


METHODS: dict[str, Method] = {
    "magnitude": Method(
        "vits_prune.pruning.magnitude",
        "magnitude (L1)",
        "The weights smallest in absolute value become zero. It looks at nothing but the weights, so it does not know which matter.",
    ),
    "random": Method(
        "vits_prune.pruning.random_choice",
        "random",
        "Random weights become zero. It is the baseline: a method that does not beat it has learned nothing.",
    ),
    "activation": Method(
        "vits_prune.pruning.activation",
        "activation (Wanda)",
        "A weight counts as much as its size times the strength of the signal it is given while the voice speaks a few sentences. "
        "The others become zero; those that stay keep their value.",
        calibrated=True,
        protect=(*_DURATIONS, *_SPEAKERS),
    ),
    "second_order": Method(
        "vits_prune.pruning.second_order",
        "second order",
        "What every layer is given while the voice speaks tells which weights the others can stand in for. Those become zero, and the "
        "others take over their work: each layer's output stays as close to the original's as it can.",
        calibrated=True,
        protect=(*_DURATIONS, *_SPEAKERS),
        recovers=True,
    ),
    "structured": Method(
        "vits_prune.pruning.structured.shrink",
        "structured",
        "Whole channels and layers are taken out, those that matter least to the speech first, and what stays is fitted to their work. "
        "The network is really smaller: it needs less arithmetic on any hardware.",
        calibrated=True,
        structured=True,
    ),
}

SCOPES: dict[str, str] = {
    "global": "one ranking over all layers",
    "local": "the same amount in each layer",
    "sensitivity": "each layer's share from what its errors do to the speech",
}
"""How the amount is shared out among the layers."""

IMPORTANCES: dict[str, str] = {
    "sensitivity": "what its errors do to the speech",
    "second_order": "what the layers that read it lose though the others stand in for it",
    "activation": "the energy it brings while the voice speaks",
    "weight_norm": "the size of its weights alone",
}
"""What structured pruning judges a channel by."""

UNGROUPED = ("duration_predictor",)
"""What a pattern leaves alone where the method leaves nothing alone: it has layers of one input channel, which no pattern can group."""

SCHEDULES = ("linear", "cubic")
"""How the amount grows over the steps of gradual pruning; cubic is Zhu & Gupta 2017, arXiv:1710.01878."""
