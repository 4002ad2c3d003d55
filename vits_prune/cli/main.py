"""The command line: python -m vits_prune compare | layers, and the commands of cli_prune, cli_evidence and cli_budget."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vits_prune.cli.export_command import bench_parser
from vits_prune.cli.options import Progress, add_method, add_protect, add_spec, spec_of
from vits_prune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from vits_prune.synthesis.speak import Delivery, Speech
    from vits_prune.voices.voice import Voice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 for bad input, 1 for anything else that went wrong, 130 when interrupted.
    """
    parser = bench_parser(sys.argv[1:] if arguments is None else arguments) or _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that lacks a character shows another instead of ending the work
    try:
        options.run(options)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`): nothing to tell anyone
        return 1
    except Exception as error:
        print(f"{parser.prog}: {type(error).__name__}: {error}", file=sys.stderr)
        if options.traceback:
            raise
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vits_prune",
        description="Prune VITS text-to-speech voices, hear what it does, and measure it.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an unexpected error"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compare = commands.add_parser(
        "compare", help="speak a text with the original and the pruned voice and measure both"
    )
    add_voice(compare)
    add_spec(compare)
    compare.add_argument(
        "--text",
        default="The birch canoe slid on the smooth planks.",
        help="what to say (default: %(default)s)",
    )
    compare.add_argument(
        "--seed", type=int, default=0, help="seed of the noise (default: %(default)s)"
    )
    compare.add_argument(
        "--timing",
        choices=("own", "locked"),
        default="own",
        help="durations of the pruned voice (default: %(default)s)",
    )
    compare.add_argument(
        "--speaking-rate", type=float, help="speed of speech, 1 is the voice's own"
    )
    compare.add_argument("--noise-scale", type=float, help="variation of the sound")
    compare.add_argument("--noise-scale-duration", type=float, help="variation of the rhythm")
    compare.add_argument(
        "--runs", type=int, default=5, help="timed runs of each voice (default: %(default)s)"
    )
    compare.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the sound, the report and the tables",
    )
    compare.set_defaults(run=_compare)

    layers = commands.add_parser(
        "layers", help="list the layers of a voice, and why some are left alone"
    )
    add_voice(layers)
    add_method(layers)
    add_protect(layers)
    layers.add_argument("--csv", action="store_true", help="as CSV")
    layers.set_defaults(run=_layers)

    from vits_prune.cli import budget_command as cli_budget
    from vits_prune.cli import evidence_commands as cli_evidence
    from vits_prune.cli import export_command as cli_ship
    from vits_prune.cli import heal_command as cli_heal
    from vits_prune.cli import prune_command as cli_prune
    from vits_prune.cli import push_command as cli_push

    for more in (cli_prune, cli_heal, cli_evidence, cli_budget, cli_ship, cli_push):
        more.add_commands(commands)
    return parser


def add_voice(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the options that name a voice, or with `many` several."""
    what = "joe, a hub id, a folder, or a Piper .onnx"
    if many:
        parser.add_argument(
            "--voice",
            nargs="+",
            default=["joe"],
            metavar="REF",
            help=f"one or several of {what} (default: joe)",
        )
    else:
        parser.add_argument(
            "--voice", default="joe", metavar="REF", help=f"{what} (default: %(default)s)"
        )
    parser.add_argument("--speaker", help="index or name, for a voice with several")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def load(options: argparse.Namespace) -> Voice:
    """The voice that the options of `add_voice` name."""
    from vits_prune.voices.load import load_voice

    return load_voice(options.voice, options.speaker, revision=options.revision)


def _delivery(options: argparse.Namespace) -> Delivery:
    from vits_prune.synthesis.speak import Delivery

    return Delivery(options.speaking_rate, options.noise_scale, options.noise_scale_duration)


def _compare(options: argparse.Namespace) -> None:
    from vits_prune.pruning import prune
    from vits_prune.study.comparison import compare
    from vits_prune.synthesis.speak import checked_seed, checked_text, write_wav

    spec, delivery = (
        spec_of(options),
        _delivery(options),
    )  # before the voice loads: bad input answers at once
    checked_text(options.text)
    seed = checked_seed(options.seed)
    voice = load(options)
    with Progress() as tell:
        pruned = prune(voice, spec, progress=tell)
    with Progress() as tell:
        choices = {"timing": options.timing, "delivery": delivery, "runs": options.runs}
        comparison = compare(voice, pruned, options.text, seed, progress=tell, **choices)
    tables = comparison.tables()
    report = comparison.report()
    with _writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        write_wav(comparison.original, options.out / "original.wav")
        write_wav(comparison.pruned, options.out / "pruned.wav")
        for name, table in tables.items():
            table.to_csv(options.out / f"{name}.csv", index=False)
        (options.out / "report.json").write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(comparison)
    _warn(comparison.pruned)
    print(
        f"\nWritten to {options.out}: original.wav, pruned.wav, report.json, {', '.join(f'{name}.csv' for name in tables)}"
    )


def _warn(speech: Speech) -> None:
    from vits_prune.synthesis.stages import MAX_SENTENCE_SECONDS

    if speech.dropped:
        print(f"\nThe voice has no symbol for: {' '.join(speech.dropped)}")
    if speech.cut_short:
        print(
            f"\nThe pruned voice's durations ran away: a sentence was ended at {MAX_SENTENCE_SECONDS:.0f} seconds."
        )


def _layers(options: argparse.Namespace) -> None:
    from vits_prune.measure import measure_sparsity
    from vits_prune.pruning import PruneSpec
    from vits_prune.pruning.registry import METHODS
    from vits_prune.study.tables import layer_table

    protect = {} if options.protect is None else {"protect": tuple(options.protect)}
    spec = PruneSpec(
        method=options.method, **protect
    )  # before the voice loads: bad input answers at once
    voice = load(options)
    if (
        spec.protected or METHODS[spec.method].structured
    ):  # what this pruning would leave alone, whatever was done before
        voice = dataclasses.replace(voice, recipe={"pruned": [spec.to_dict()]})
    table: pd.DataFrame = layer_table(measure_sparsity(voice))
    if METHODS[spec.method].structured:
        reachable, alone = _with_channels(voice), "left alone because"
        stays = (table[alone] == "") & ~table["layer"].isin(reachable)
        table.loc[stays, alone] = "none of its channels can be taken out"
    print(table.to_csv(index=False) if options.csv else table.to_string(index=False))


def _with_channels(voice: Voice) -> set[str]:
    """The layers that lose channels, or can go as a whole, in structured pruning."""
    from vits_prune.pruning.structured.couplings import groups

    found: set[str] = set()
    for group in groups(voice):
        found |= {*group.writers, *group.readers}
        blocks = tuple(f"{module}." for modules in group.blocks for module in modules)
        found |= {
            name
            for name, _ in voice.model.named_modules()
            if blocks and f"{name}.".startswith(blocks)
        }
    return found


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a disk that does not take the files into a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The files could not be written to {folder}: {error.strerror or error}."
        ) from error
