"""Prune VITS text-to-speech voices, hear what it does, and measure it.

from vits_prune import PruneSpec, compare, load_voice, prune
voice = load_voice("joe")
pruned = prune(voice, PruneSpec(scope="global", amount=0.3))
print(compare(voice, pruned, "The birch canoe slid on the smooth planks."))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vits_prune.errors import InputError
    from vits_prune.healing.plan import HealData, HealPlan, HealResult, HealRun
    from vits_prune.measure import measure_latency, measure_size, measure_sparsity
    from vits_prune.pruning import Layer, PruneSpec, Shape, layers, prune, prune_steps
    from vits_prune.study.comparison import Comparison, compare
    from vits_prune.study.judge import JudgeSettings, heal, heal_steps
    from vits_prune.synthesis.speak import Delivery, Speech, speak
    from vits_prune.voices.load import load_voice
    from vits_prune.voices.saved import save_voice
    from vits_prune.voices.voice import PARTS, Voice

_HOMES = {
    "Comparison": "vits_prune.study.comparison",
    "Delivery": "vits_prune.synthesis.speak",
    "HealData": "vits_prune.healing.plan",
    "HealPlan": "vits_prune.healing.plan",
    "HealResult": "vits_prune.healing.plan",
    "HealRun": "vits_prune.healing.plan",
    "InputError": "vits_prune.errors",
    "JudgeSettings": "vits_prune.study.judge",
    "Layer": "vits_prune.pruning",
    "PARTS": "vits_prune.voices.voice",
    "PruneSpec": "vits_prune.pruning",
    "Shape": "vits_prune.pruning",
    "Speech": "vits_prune.synthesis.speak",
    "Voice": "vits_prune.voices.voice",
    "compare": "vits_prune.study.comparison",
    "heal": "vits_prune.study.judge",
    "heal_steps": "vits_prune.study.judge",
    "layers": "vits_prune.pruning",
    "load_voice": "vits_prune.voices.load",
    "measure_latency": "vits_prune.measure",
    "measure_size": "vits_prune.measure",
    "measure_sparsity": "vits_prune.measure",
    "prune": "vits_prune.pruning",
    "prune_steps": "vits_prune.pruning",
    "save_voice": "vits_prune.voices.saved",
    "speak": "vits_prune.synthesis.speak",
}
__all__ = [
    "PARTS",
    "Comparison",
    "Delivery",
    "HealData",
    "HealPlan",
    "HealResult",
    "HealRun",
    "InputError",
    "JudgeSettings",
    "Layer",
    "PruneSpec",
    "Shape",
    "Speech",
    "Voice",
    "compare",
    "heal",
    "heal_steps",
    "layers",
    "load_voice",
    "measure_latency",
    "measure_size",
    "measure_sparsity",
    "prune",
    "prune_steps",
    "save_voice",
    "speak",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import vits_prune` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
