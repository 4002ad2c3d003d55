"""Healing: a pruned voice learns from the original's own speech, without a data set."""

from vits_prune.healing.plan import HealData, HealPlan, HealResult, HealRun, Judge, TrainingStep
from vits_prune.healing.run import heal, heal_steps
from vits_prune.healing.student import best

__all__ = [
    "HealData",
    "HealPlan",
    "HealResult",
    "HealRun",
    "Judge",
    "TrainingStep",
    "best",
    "heal",
    "heal_steps",
]
