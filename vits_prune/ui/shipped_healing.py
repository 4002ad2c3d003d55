"""What a healing on the page gives to the model card: its course, and what was measured of the healed voice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.background import Doing
from vits_prune.errors import InputError
from vits_prune.healing.curve import Curve
from vits_prune.ui import healed

if TYPE_CHECKING:
    from vits_prune.ui.healed import Healing


def write_course(found: Healing, folder: Path) -> Path | None:
    """Write the course as `heal` does, curve.csv with losses and changes from the original; the folder, None where there is no course.

    Raises:
        InputError: the disk does not take it.
    """
    curve = Curve()
    rows = {row["step"]: dict(row) for row in found.rows}
    for check in found.checks:
        changes = {name: figure.difference.value for name, figure in check.figures.items() if figure.difference is not None}
        known = {f"measured_{name}": round(value, 5) for name, value in changes.items() if name in _MEASURED and value is not None}
        rows[check.step] = rows.get(check.step, {"step": check.step}) | known
    curve.rows = [rows[step] for step in sorted(rows)]
    if not curve.rows:
        return None
    curve.write(folder / "curve.csv")
    return folder


_MEASURED = ("cer", "dnsmos_ovrl", "duration_ratio")
"""As many as a small plot each has room for."""


def measured(found: Healing, token: str | None, tell: Callable[[str, float], None]) -> dict[str, Any] | None:
    """What `evaluate` finds of a healed voice, on the sentences of the Heal tab's table; None where it can say none of them.

    Args:
        found: the healing, with its voice.
        token: the visitor's.
        tell: told how far it is; it may raise to cancel.
    """
    try:
        with contextlib.closing(healed.compared_steps(found, found.order.request, token)) as work:
            for step in work:
                if not isinstance(step, Doing):
                    return step[1].to_dict()
                tell(f"measuring for the card: {step.what}", step.share)
    except InputError:  # a voice may be pushed without figures, too, and its card says so
        return None
    return None
