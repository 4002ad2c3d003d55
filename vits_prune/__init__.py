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
    from vits_prune.kernels import measure_kernels
    from vits_prune.measure import measure_latency, measure_size, measure_sparsity
    from vits_prune.pruning import Layer, PruneSpec, Shape, layers, prune, prune_steps
    from vits_prune.study.comparison import Comparison, compare
    from vits_prune.study.judge import JudgeSettings, heal, heal_steps
    from vits_prune.synthesis.speak import Delivery, Speech, speak
    from vits_prune.voices.load import load_voice
    from vits_prune.voices.saved import save_voice
    from vits_prune.voices.voice import PARTS, Voice

_HOMES = {
    name: module
    for module, names in {
        "errors": "InputError",
        "healing.plan": "HealData HealPlan HealResult HealRun",
        "kernels": "measure_kernels",
        "measure": "measure_latency measure_size measure_sparsity",
        "pruning": "Layer PruneSpec Shape layers prune prune_steps",
        "study.comparison": "Comparison compare",
        "study.judge": "JudgeSettings heal heal_steps",
        "synthesis.speak": "Delivery Speech speak",
        "voices.load": "load_voice",
        "voices.saved": "save_voice",
        "voices.voice": "PARTS Voice",
    }.items()
    for name in names.split()
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import vits_prune` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
