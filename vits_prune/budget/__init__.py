"""budget: limits of size, time and quality -> the PruneSpecs that keep them, and what was tried on the way."""

from vits_prune.budget.solve import solve_budget
from vits_prune.budget.values import Budget, Candidate, Solution

__all__ = ["Budget", "Candidate", "Solution", "solve_budget"]
