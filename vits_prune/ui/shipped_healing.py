"""What the page gives to a model card: the course of a healing, and what was measured of the voice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.healing.training_curve import Curve
from vits_prune.ship.bundle import sample_texts
from vits_prune.studio import workbench
from vits_prune.studio.evidence import measured_original, texts_for
from vits_prune.studio.jobs import Update, in_background
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.study.evaluation import Evaluation, Settings, evaluate_against
from vits_prune.ui import healed
from vits_prune.voices.voice import spoken_language

if TYPE_CHECKING:
    from vits_prune.studio.request import Request
    from vits_prune.ui.healed import Healing
    from vits_prune.voices.voice import Voice


def write_course(found: Healing, folder: Path) -> Path | None:
    """Write the course as `heal` does, curve.csv with losses and changes from the original; the folder, None where there is no course.

    Raises:
        InputError: the disk does not take it.
    """
    curve = Curve()
    rows = {row["step"]: dict(row) for row in found.rows}
    for check in found.checks:
        changes = {
            name: figure.difference.value
            for name, figure in check.figures.items()
            if figure.difference is not None
        }
        known = {
            f"measured_{name}": round(value, 5)
            for name, value in changes.items()
            if name in _MEASURED and value is not None
        }
        rows[check.step] = rows.get(check.step, {"step": check.step}) | known
    curve.rows = [rows[step] for step in sorted(rows)]
    if not curve.rows:
        return None
    curve.write(folder / "curve.csv")
    return folder


_MEASURED = ("cer", "dnsmos_ovrl", "duration_ratio")
"""As many as a small plot each has room for."""


_TEXTS = 10
"""Sentences that a voice which was only pruned is measured on."""


def measured(
    voice: Voice,
    found: Healing | None,
    request: Request,
    token: str | None,
    tell: Callable[[str, float], None],
) -> dict[str, Any]:
    """Return what `evaluate` finds of a voice, of a healed one on the sentences of the Heal tab's table.

    Args:
        voice: pruned, or healed.
        found: the healing that it comes from.
        request: what it was made of and how.
        token: the visitor's.
        tell: told how far it is; it may raise to cancel.

    Raises:
        UnmeasurableError: there are no sentences that the voice can say.
    """
    work = (
        healed.compared_steps(found, found.order.request, token)
        if found
        else _pruned_steps(voice, request, token)
    )
    with contextlib.closing(work):
        for step in work:
            if isinstance(step, Update):
                tell(f"measuring for the card: {step.message}", step.fraction)
    return step[1].to_dict()


def _pruned_steps(
    pruned: Voice, request: Request, token: str | None
) -> Iterator[Update | tuple[str, Evaluation]]:
    """A pruned voice against its original: on which sentences, and what was found, last."""
    voice = workbench.bench.voice(request.reference, request.speaker, token)
    voice = voice.with_speaker(pruned.speaker) if voice.speakers else voice
    said, note = texts_for(voice, request.text, _TEXTS)
    if spoken_language(voice) != "en" and request.text == DEFAULT_TEXT:
        said = sample_texts(voice, _TEXTS)  # the page's own text is English
    settings = Settings(
        seed=request.seed, metrics=healed.METRICS, noise_seeds=1, delivery=request.delivery
    )
    for reference in in_background(
        lambda told: measured_original(request, token, voice, said, settings, told)
    ):
        if isinstance(reference, Update):
            yield Update(reference.message, reference.fraction / 2)
    device = voice.device
    for found in in_background(
        lambda tell: evaluate_against(reference, pruned.to(device), progress=tell)
    ):
        yield (
            Update(found.message, 0.5 + found.fraction / 2)
            if isinstance(found, Update)
            else (note, found)
        )
