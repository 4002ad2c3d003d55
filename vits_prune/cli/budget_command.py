"""The command budget: limits of size, time and quality -> the voice that keeps them, and a picture of what was tried."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import Progress
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.study.budget import Budget, Solution
    from vits_prune.study.evaluation import Settings


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    from vits_prune.cli import main as cli  # here, for cli imports this file

    parser = commands.add_parser(
        "budget",
        help="find what to prune so that a voice keeps limits of size, time and quality",
        description="Exit code 0 where all limits are kept, 2 where they cannot be: the nearest voice is saved all the same.",
    )
    cli.add_voice(parser)
    parser.add_argument(
        "--max-mb",
        type=float,
        metavar="MB",
        help="largest file, plain or sparse, in MB of 1,000,000 bytes",
    )
    parser.add_argument(
        "--max-latency-ratio",
        type=float,
        metavar="RATIO",
        help="longest time over the original's: 0.5 is twice as fast",
    )
    parser.add_argument(
        "--max-cer-points",
        type=float,
        metavar="POINTS",
        help="character errors more than the original's, per 100",
    )
    parser.add_argument(
        "--max-dnsmos-loss",
        type=float,
        metavar="LOSS",
        help="how much lower the predicted opinion may be",
    )
    parser.add_argument(
        "--limit",
        nargs="+",
        default=[],
        metavar="METRIC=CHANGE",
        help="further limits, as in `knee`",
    )
    parser.add_argument(
        "--texts",
        type=int,
        metavar="N",
        help="sentences to choose on, and as many to verify on, of the other half (default: 10)",
    )
    parser.add_argument(
        "--text-file",
        type=Path,
        metavar="FILE",
        help="your own sentences, one a line: half of them to verify on",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the noise, of calibration and of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--recogniser",
        metavar="WHISPER",
        help="a Whisper size, hub id or folder for faster-whisper (default: tiny.en)",
    )
    parser.add_argument(
        "--language", help="of the texts, as Whisper names it (default: the voice's)"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder, new or empty, for the voice and what was tried",
    )
    parser.set_defaults(run=_budget)


def _budget(options: argparse.Namespace) -> None:
    from vits_prune.cli import main as cli
    from vits_prune.study.budget_solver import check_empty, save_solution, solve_budget

    budget, settings, (texts, held_out) = _limits(options), _settings(options), _texts(options)
    check_empty(options.out)
    voice = cli.load(options)
    with Progress() as tell:
        solution = solve_budget(voice, budget, texts, held_out, settings, progress=tell)
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


def _settings(options: argparse.Namespace) -> Settings:
    from vits_prune.measure.recognition import Recogniser
    from vits_prune.study.evaluation import Settings

    named = {"model": options.recogniser, "language": options.language}
    return Settings(
        seed=options.seed,
        recogniser=Recogniser(**{key: value for key, value in named.items() if value}),
    )


def _texts(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is chosen on, and what is verified on."""
    from vits_prune.synthesis.texts import load_texts, read_text_file

    if options.text_file is None:
        count = 10 if options.texts is None else options.texts
        return load_texts(count, "tuning"), load_texts(count, "held-out")
    found = tuple(
        dict.fromkeys(
            read_text_file(
                options.text_file, None if options.texts is None else 2 * options.texts
            ).texts
        )
    )
    if len(found) < 2:
        raise InputError(
            "The text file holds one sentence: a budget needs at least one to choose on and another to verify on."
        )
    return found[::2], found[1::2]


def _print(solution: Solution) -> None:
    import pandas as pd

    rows = []
    for one in solution.tried:
        ratio = one.latency_ratio
        changes = {name: f"{interval.value:+.3g}" for name, interval in one.quality.items()}
        breaks = "" if one.stage == "cut" else ", ".join(solution.budget.broken(one)) or "nothing"
        cost = {"MB": f"{one.mb:.1f}", "time": f"{ratio.median:.2f}"}
        rows.append({"what": one.words, "stage": one.stage, **cost, **changes, "breaks": breaks})
    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))
    print()
    for sentence in solution.sentences:
        print(sentence)
    chosen, ratio = solution.chosen, solution.chosen.latency_ratio
    print(f"\nVerified on {solution.texts[1]} held-out sentences:")
    print(
        f"  {chosen.mb:.2f} MB ({chosen.file} file), {chosen.parameters / 1e6:.2f} million parameters"
    )
    runs = f"runs: {ratio.low:.2f} to {ratio.high:.2f}"
    print(
        f"  {ratio.median:.2f} of the original's time ({runs}), {chosen.macs_ratio:.2f} of its arithmetic"
    )
    for name, interval in chosen.quality.items():
        ends = "" if interval.low is None else f" [{interval.low:+.3g}, {interval.high:+.3g}]"
        print(f"  {name} {interval.value:+.3g}{ends}")
    for spec in solution.specs:
        print(f"  {spec.to_json()}")
