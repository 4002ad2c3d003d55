"""Healing: what pruning took is learnt back from the voice as it was, without a data set."""

from vits_prune.heal.gradual import heal_steps
from vits_prune.heal.heal import Told, heal
from vits_prune.heal.lessons import Lessons
from vits_prune.heal.plan import HealPlan

__all__ = ["HealPlan", "Lessons", "Told", "heal", "heal_steps"]
