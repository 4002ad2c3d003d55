"""Healing: what pruning took is learnt back from the voice as it was, without a data set."""

from vits_prune.healing.gradual import heal_steps
from vits_prune.healing.lessons import Lessons
from vits_prune.healing.plan import HealPlan, Told
from vits_prune.healing.run import heal
from vits_prune.healing.student import best

__all__ = ["HealPlan", "Lessons", "Told", "best", "heal", "heal_steps"]
