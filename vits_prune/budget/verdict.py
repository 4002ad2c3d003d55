"""What a budget came to, in sentences: what was chosen, and which limits could not be had together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from vits_prune.budget.values import Budget, Candidate


def sentences_of(budget: Budget, chosen: Candidate, tried: Sequence[Candidate]) -> tuple[str, ...]:
    """What to tell of a search.

    Args:
        budget: what was asked for.
        chosen: the verified one.
        tried: everything that was tried.
    """
    broken = budget.broken(chosen)
    if not broken:
        found = [f"All limits are kept by: {chosen.words}."]
        return (*found, "Quality was not limited: this is the least damaged of those tried.") if not budget.quality else tuple(found)
    return (
        "None of the voices that were verified on the held-out sentences keeps all limits. "
        f"The nearest is: {chosen.words}; it breaks {_listed(budget, broken)}.",
        *_conflicts(budget, [one for one in tried if one.stage != "cut"]),
    )


def _conflicts(budget: Budget, measured: Sequence[Candidate]) -> list[str]:
    """The smallest sets of limits that no candidate keeps together, and for each limit of cost what the others would allow."""
    names = list(budget.loads(measured[0])) if measured else []
    found: list[tuple[str, ...]] = []
    for size in range(1, len(names) + 1):
        for some in itertools.combinations(names, size):
            if any(set(known) <= set(some) for known in found):
                continue
            if all(set(some) & set(budget.broken(one)) for one in measured):
                found.append(some)
    sentences = []
    for some in found:
        if len(some) == 1:
            sentences.append(f"Of all that was tried nothing keeps {_listed(budget, some)}.")
            continue
        sentences.append(f"Of all that was tried nothing keeps {_listed(budget, some)} together.")
        sentences += [told for name in some if (told := _instead(budget, name, [one for one in some if one != name], measured))]
    return sentences


def _instead(budget: Budget, given_up: str, kept: list[str], measured: Sequence[Candidate]) -> str:
    """The least that giving up a limit costs, where the others are kept."""
    fitting = [one for one in measured if not set(kept) & set(budget.broken(one))]
    if not fitting:
        return ""
    best = min(fitting, key=lambda one: budget.loads(one)[given_up])
    value = {"size": f"{best.mb:.1f} MB", "latency": f"{best.latency_ratio.median:.2f} of the time"}.get(given_up)
    if value is None:
        value = f"{given_up} {best.quality[given_up].value:+.3g}" if given_up in best.quality else f"{given_up} that cannot be measured"
    return f"With {_listed(budget, kept)} the best was {value} ({best.words})."


def _listed(budget: Budget, names: Sequence[str]) -> str:
    return " and ".join(budget.words(name) for name in names)
