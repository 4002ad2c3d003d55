"""The options that describe a PruneSpec, and the PruneSpec of what was typed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.pruning import PruneSpec


DEFAULT_AMOUNT = 0.3

_WIDTHS = {
    "decoder_width": "share of the decoder's channels that stay",
    "resblock_width": "share of the channels inside each residual step that stay",
    "ffn_width": "share of the inner channels of the encoder's feed-forward layers that stay",
}

_COUNTS = {
    "branches": "residual branches that stay in each decoder stage",
    "encoder_layers": "layers of the text encoder that stay",
    "flows": "coupling layers of the flow that stay",
    "wavenet_layers": "WaveNet layers that stay in each coupling layer",
    "multiple": "round widths to a multiple of so many channels (default: 8)",
}


def add_spec(parser: argparse.ArgumentParser) -> None:
    """All fields of a PruneSpec."""
    add_method(parser)
    add_scope(parser)
    parser.add_argument(
        "--amount",
        type=float,
        help=f"share of the weights to zero, 0 to 0.99; for a structured method of the channels that go (default: {DEFAULT_AMOUNT}, "
        "or what --pattern or --steps says)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="text_encoder, duration_predictor, flow, decoder, or all (default: all)",
    )
    add_choices(parser, "gradual pruning: a number of steps, or their amounts, such as 0.3,0.5,0.6")
    levers = parser.add_argument_group(
        "what stays, lever by lever, for a structured method (instead of --amount)"
    )
    for name, words in {**_WIDTHS, **_COUNTS}.items():
        share = name in _WIDTHS
        levers.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if share else int,
            metavar="SHARE" if share else "N",
            help=words,
        )


def add_method(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """--method, with what the registry knows."""
    from vits_prune.pruning.registry import METHODS

    known = ", ".join(METHODS)
    if many:
        parser.add_argument(
            "--method",
            nargs="+",
            default=["magnitude"],
            help=f"one or several of {known} (default: magnitude)",
        )
    else:
        parser.add_argument("--method", default="magnitude", help=f"{known} (default: %(default)s)")


def add_scope(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """--scope, with what the registry knows."""
    from vits_prune.pruning.registry import SCOPES

    known = "; ".join(f"{name}: {words}" for name, words in SCOPES.items())
    if many:
        parser.add_argument(
            "--scope",
            nargs="+",
            default=["global"],
            help=f"one or several of {known} (default: global)",
        )
    else:
        parser.add_argument("--scope", default="global", help=f"{known} (default: %(default)s)")


def add_choices(
    parser: argparse.ArgumentParser, steps: str = "gradual pruning: a number of steps"
) -> None:
    """The fields besides method, scope, amount, parts and shape."""
    from vits_prune.pruning.registry import IMPORTANCES, SCHEDULES

    add_protect(parser)
    parser.add_argument(
        "--floor",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of weights every layer keeps (default: 0)",
    )
    parser.add_argument(
        "--pattern",
        default="",
        metavar="N:M",
        help="2:4 leaves 2 of every 4 neighbouring input channels",
    )
    parser.add_argument("--steps", metavar="N", help=steps)
    parser.add_argument(
        "--schedule",
        default="cubic",
        help=f"how the amount grows over the steps: {', '.join(SCHEDULES)} (default: cubic)",
    )
    parser.add_argument(
        "--importance",
        default="sensitivity",
        help=f"what a structured method judges a channel by: {'; '.join(f'{name}: {words}' for name, words in IMPORTANCES.items())} "
        "(default: sensitivity)",
    )
    parser.add_argument(
        "--calibration-texts",
        type=Path,
        metavar="FILE",
        help="sentences to calibrate on, one a line (default: built in)",
    )
    parser.add_argument(
        "--prune-seed",
        type=int,
        default=0,
        metavar="SEED",
        help="of random and of calibration (default: %(default)s)",
    )


def add_protect(parser: argparse.ArgumentParser) -> None:
    """--protect alone."""
    parser.add_argument(
        "--protect",
        nargs="*",
        metavar="LAYER",
        help="layers to leave alone: names, their beginnings, * for one piece; none for no layer (default: the method's own list; with "
        "a pattern, where that is empty, duration_predictor, which no pattern can group)",
    )


def spec_of(options: argparse.Namespace) -> PruneSpec:
    """The PruneSpec that was typed in full.

    Raises:
        InputError: a value is out of range, or two do not fit together.
    """
    from vits_prune.pruning import PruneSpec
    from vits_prune.voices.voice import PARTS

    amounts = _typed_amounts(options.steps)
    fields = {
        **_choices(options),
        "method": options.method,
        "scope": options.scope,
        "shape": _shape(options),
    }
    idle = [name for name in ("amount", "parts") if getattr(options, name) is not None]
    if fields["shape"] is not None and idle:
        raise InputError(
            f"Levers such as --decoder-width say all of what stays: leave --{idle[0]} out, or the levers."
        )
    fields["parts"] = PARTS if options.parts in (None, ["all"]) else tuple(options.parts)
    if amounts:
        fields["amounts"] = amounts
    fields["amount"] = options.amount
    if options.amount is None:
        fields["amount"] = amounts[-1] if amounts else pattern_amount(options.pattern)
    return PruneSpec(**fields)


def base_of(options: argparse.Namespace) -> PruneSpec:
    """What all points of a grid have in common.

    Raises:
        InputError: a value is out of range.
    """
    from vits_prune.pruning import PruneSpec

    if _typed_amounts(options.steps):
        raise InputError(
            "Each point has an amount of its own here: give --steps as a number, such as 4."
        )
    more = (
        {} if options.importance == "sensitivity" else {"method": "structured"}
    )  # which alone takes one
    return PruneSpec(**_choices(options), **more, amount=pattern_amount(options.pattern))


def pattern_amount(pattern: str) -> float:
    """The share that a pattern zeroes; the usual amount where there is none (PruneSpec says what is wrong with it)."""
    keep, colon, of = pattern.partition(":")
    if colon and keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of):
        return 1 - int(keep) / int(of)
    return DEFAULT_AMOUNT


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    from vits_prune.synthesis.texts import read_text_file

    fields: dict[str, Any] = {
        "floor": options.floor,
        "pattern": options.pattern,
        "schedule": options.schedule,
        "seed": options.prune_seed,
    }
    fields["importance"] = options.importance
    if options.protect is not None:
        fields["protect"] = tuple(options.protect)
    if options.steps is not None and not _typed_amounts(options.steps):
        fields["steps"] = _whole(options.steps)
    if options.calibration_texts is not None:
        fields["texts"] = read_text_file(options.calibration_texts).texts
    return fields


def _shape(options: argparse.Namespace) -> Any:
    from vits_prune.pruning.shape import Shape

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Shape)}
    given = {name: value for name, value in given.items() if value is not None}
    return Shape(**given) if given else None


def _typed_amounts(steps: str | None) -> tuple[float, ...]:
    """The amounts of "0.3,0.5,0.6", in the order typed; empty for a number of steps."""
    if steps is None or not ("," in steps or "." in steps):
        return ()
    try:
        return tuple(float(one) for one in steps.split(","))
    except ValueError as error:
        raise InputError(
            f"{steps[:40]!r} are no steps: give their number, such as 4, or their amounts, such as 0.3,0.5,0.6."
        ) from error


def _whole(steps: str) -> int:
    try:
        return int(steps)
    except ValueError as error:
        raise InputError(
            f"{steps[:40]!r} are no steps: give their number, such as 4, or their amounts, such as 0.3,0.5,0.6."
        ) from error


class Progress:
    """The line, gone at the end; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __enter__(self) -> Callable[[str, float], None]:
        return self._tell if sys.stderr.isatty() else lambda _what, _share: None

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def _tell(self, what: str, share: float) -> None:
        left = time_left(time.monotonic() - self._start, share)
        print(
            f"\r\x1b[2K{100 * share:3.0f}%  {left}{what}"[:160], end="", file=sys.stderr, flush=True
        )


def time_left(seconds: float, share: float) -> str:
    """How long the rest takes if it goes on as before, empty where too little is done to say."""
    if share < 0.01 or seconds < 1:
        return ""
    left = round(seconds * (1 - share) / share)
    hours, minutes = left // 3600, left // 60 % 60
    return (
        f"{hours}:{minutes:02}:{left % 60:02} left  "
        if hours
        else f"{minutes}:{left % 60:02} left  "
    )
