"""The command budget: limits of size, time and quality -> the voice that keeps them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import (
    add_flag,
    add_flags,
    add_out,
    add_settings,
    add_texts,
    add_voice,
    load,
    settings_of,
)
from vits_prune.cli.terminal import ProgressLine, interval_words, print_table
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.study.budget import Budget, Candidate, Solution

_LIMITS = {
    "--max-mb MB": "largest file, plain or sparse, in MB of 1,000,000 bytes",
    "--max-latency-ratio RATIO": "longest time over the original's: 0.5 is twice as fast",
    "--max-cer-points POINTS": "character errors more than the original's, per 100",
    "--max-dnsmos-loss LOSS": "how much lower the predicted opinion may be",
}


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    parser = commands.add_parser(
        "budget",
        help="find what to prune so that a voice keeps limits of size, time and quality",
        description="Exit code 0 where all limits are kept, 2 where they cannot be: the nearest "
        "voice is saved all the same.",
    )
    add_voice(parser)
    add_flags(parser, float, _LIMITS)
    add_flag(parser, "--limit METRIC=CHANGE", "further limits, as in `knee`", default=[], nargs="+")
    add_texts(
        parser,
        "sentences to choose on, and as many others to verify on (default: 10); half of the lines "
        "of --text-file are for each",
    )
    add_settings(parser)
    add_out(parser, "folder, new or empty, for the voice and what was tried")
    parser.set_defaults(run=_budget)


def _budget(options: argparse.Namespace) -> None:
    from vits_prune.study.budget_solver import check_empty, save_solution, solve_budget

    budget, settings, (texts, held_out) = _limits(options), settings_of(options), _texts(options)
    check_empty(options.out)
    voice = load(options)
    with ProgressLine() as progress:
        solution = solve_budget(voice, budget, texts, held_out, settings, progress=progress)
    written = save_solution(solution, options.out)
    _print(solution)
    print(f"\nWritten to {options.out}: {', '.join(path.name for path in written)}")
    if not solution.kept:
        raise InputError(
            f"The limits could not all be kept; the nearest voice is in {options.out / 'voice'}."
        )


def _limits(options: argparse.Namespace) -> Budget:
    from vits_prune.study.budget import Budget
    from vits_prune.study.knee import Limit, parse_limit

    quality = [parse_limit(text) for text in options.limit]
    if options.max_cer_points is not None:
        quality.append(Limit("cer", options.max_cer_points / 100))
    if options.max_dnsmos_loss is not None:
        quality.append(Limit("dnsmos_ovrl", -options.max_dnsmos_loss))
    return Budget(options.max_mb, options.max_latency_ratio, tuple(quality))


def _texts(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sentences to choose on, and those to verify on."""
    from vits_prune.synthesis.texts import load_texts, read_text_file

    if options.text_file is None:
        count = 10 if options.texts is None else options.texts
        return load_texts(count, "tuning"), load_texts(count, "held-out")
    count = None if options.texts is None else 2 * options.texts
    found = tuple(dict.fromkeys(read_text_file(options.text_file, count).texts))
    if len(found) < 2:
        raise InputError(
            "The text file holds one sentence: a budget needs at least one to choose on and "
            "another to verify on."
        )
    return found[::2], found[1::2]


def _print(solution: Solution) -> None:
    def row(one: Candidate) -> dict[str, Any]:
        breaks = "" if one.stage == "cut" else ", ".join(solution.budget.broken(one)) or "nothing"
        return {
            "what": one.words,
            "stage": one.stage,
            "MB": f"{one.mb:.1f}",
            "time": f"{one.latency_ratio.median:.2f}",
            **{name: f"{interval.value:+.3g}" for name, interval in one.quality.items()},
            "breaks": breaks,
        }

    print_table([row(one) for one in solution.tried])
    print("", *solution.sentences, sep="\n")
    chosen, ratio = solution.chosen, solution.chosen.latency_ratio
    print(
        f"\nVerified on {solution.texts[1]} held-out sentences:\n"
        f"  {chosen.mb:.2f} MB ({chosen.file} file), {chosen.parameters / 1e6:.2f} million "
        "parameters\n"
        f"  {ratio.median:.2f} of the original's time (runs: {ratio.low:.2f} to {ratio.high:.2f}), "
        f"{chosen.macs_ratio:.2f} of its arithmetic"
    )
    for name, interval in chosen.quality.items():
        print(f"  {name} {interval_words(interval)}")
    for spec in solution.specs:
        print(f"  {spec.to_json()}")
