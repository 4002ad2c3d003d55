"""fit_zeros: as many zeros as a voice's sparse file needs to be of a size, and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vits_prune.evaluation import Step
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.prune import prune
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.sparse_file import encode
from vits_prune.voices.voice import Voice

METHOD, SCOPE = "second_order", "global"
MOST = 0.95
"""Above it nothing of a voice is left that speaks."""
TRIES = 4
_FINE = 0.001


@dataclass(frozen=True, eq=False)
class Fitted:
    """A voice with zeros."""

    spec: PruneSpec
    voice: Voice
    bytes: int
    """Of its sparse file."""
    fits: bool


def sparse_bytes(voice: Voice) -> int:
    """Bytes of the lossless sparse file."""
    return len(encode({name: tensor.float() for name, tensor in voice.model.named_parameters()}))


def fit_zeros(voice: Voice, most_bytes: float, seed: int = 0, *, on_step: Step | None = None) -> Fitted:
    """The fewest zeros, to a thousandth or so, with which the sparse file is no larger than given; MOST where none are enough.

    Bisected on plain magnitude, whose file is about as large, then pruned for real and corrected by the bytes that come of it.

    Args:
        voice: what gets the zeros.
        most_bytes: that the file may have.
        seed: of calibration.
        on_step: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing for calibration, or has not so many weights that are not protected.
    """
    tell = on_step or (lambda _what, _share: None)
    low, high = 0.0, MOST
    while high - low > 0.01:
        tell("looking for the number of zeros", 0.0)
        middle = (low + high) / 2
        fits = sparse_bytes(prune(voice, PruneSpec(amount=middle))) <= most_bytes
        low, high = (low, middle) if fits else (middle, high)
    slope = _slope(voice)
    most = min(MOST, 0.999 * _open_share(voice))
    amount, best = min(most, high), None
    for turn in range(TRIES):
        spec = PruneSpec(method=METHOD, scope=SCOPE, amount=math.floor(1e4 * amount) / 1e4, seed=seed)
        pruned = prune(voice, spec, on_step=lambda what, share, turn=turn: tell(f"zeros: {what}", (turn + share) / TRIES))
        size = sparse_bytes(pruned)
        found = Fitted(spec, pruned, size, size <= most_bytes)
        if found.fits and (best is None or not best.fits or found.spec.amount < best.spec.amount):
            best = found
        best = best or found
        over = (size - most_bytes) / slope
        if (found.fits and (over > -0.01 or spec.amount == 0)) or (not found.fits and spec.amount >= most - _FINE):
            break
        amount = min(most, max(0.0, amount + over + 2 * _FINE))
    tell("zeros set", 1.0)
    return best if best.fits else found


def _open_share(voice: Voice) -> float:
    """The share of its weights that is not protected."""
    layers = prunable_layers(voice)
    spec = PruneSpec(method=METHOD)
    return sum(layer.weights for layer in layers if not spec.protects(layer.name)) / max(1, sum(layer.weights for layer in layers))


def _slope(voice: Voice) -> float:
    """Bytes of the sparse file that go with an amount of 1, around two thirds."""
    sizes = [sparse_bytes(prune(voice, PruneSpec(amount=amount))) for amount in (0.6, 0.8)]
    return max(1.0, (sizes[0] - sizes[1]) / 0.2)
