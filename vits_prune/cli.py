"""The command line: python -m vits_prune compare | layers | prune, and the commands of cli_evidence."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vits_prune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from vits_prune.pruning import PruneSpec
    from vits_prune.synthesis import Delivery, Speech
    from vits_prune.voices.voice import Voice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 for bad input, 1 for anything else that went wrong, 130 when interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows another instead of ending the work
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
    parser = argparse.ArgumentParser(prog="vits_prune", description="Prune VITS text-to-speech voices, hear what it does, and measure it.")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an unexpected error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compare = commands.add_parser("compare", help="speak a text with the original and the pruned voice and measure both")
    _add_voice(compare)
    _add_spec(compare)
    compare.add_argument("--text", default="The birch canoe slid on the smooth planks.", help="what to say (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    compare.add_argument("--timing", choices=("own", "locked"), default="own", help="durations of the pruned voice (default: %(default)s)")
    compare.add_argument("--speaking-rate", type=float, help="speed of speech, 1 is the voice's own")
    compare.add_argument("--noise-scale", type=float, help="variation of the sound")
    compare.add_argument("--noise-scale-duration", type=float, help="variation of the rhythm")
    compare.add_argument("--runs", type=int, default=5, help="timed runs of each voice (default: %(default)s)")
    compare.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the sound, the report and the tables")
    compare.set_defaults(run=_compare)

    layers = commands.add_parser("layers", help="list the layers of a voice, and why some are left alone")
    _add_voice(layers)
    layers.add_argument("--csv", action="store_true", help="as CSV")
    layers.set_defaults(run=_layers)

    prune = commands.add_parser("prune", help="save a pruned voice to a folder")
    _add_voice(prune)
    _add_spec(prune)
    prune.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the pruned voice")
    prune.set_defaults(run=_prune)
    from vits_prune.cli_evidence import add_commands

    add_commands(commands)
    return parser


def _add_voice(parser: argparse.ArgumentParser, many: bool = False) -> None:
    what = "joe, a hub id, a folder, or a Piper .onnx"
    if many:
        parser.add_argument("--voice", nargs="+", default=["joe"], metavar="REF", help=f"one or several of {what} (default: joe)")
    else:
        parser.add_argument("--voice", default="joe", metavar="REF", help=f"{what} (default: %(default)s)")
    parser.add_argument("--speaker", help="index or name, for a voice with several")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="magnitude", help="which weights go first (default: %(default)s)")
    parser.add_argument("--scope", default="global", help="global or local (default: %(default)s)")
    parser.add_argument("--amount", type=float, default=0.3, help="share of the weights to zero, 0 to 0.99 (default: %(default)s)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["all"],
        metavar="PART",
        help="text_encoder, duration_predictor, flow, decoder, or all (default: all)",
    )


def _load(options: argparse.Namespace) -> Voice:
    from vits_prune.voices.load import load_voice

    return load_voice(options.voice, options.speaker, revision=options.revision)


def _spec(options: argparse.Namespace) -> PruneSpec:
    from vits_prune.pruning import PruneSpec
    from vits_prune.voices.voice import PARTS

    parts = PARTS if options.parts == ["all"] else tuple(options.parts)
    return PruneSpec(method=options.method, scope=options.scope, amount=options.amount, parts=parts)


def _delivery(options: argparse.Namespace) -> Delivery:
    from vits_prune.synthesis import Delivery

    return Delivery(options.speaking_rate, options.noise_scale, options.noise_scale_duration)


def _compare(options: argparse.Namespace) -> None:
    from vits_prune.comparison import compare
    from vits_prune.pruning import prune
    from vits_prune.sound import write_wav
    from vits_prune.synthesis import checked_seed, checked_text

    spec, delivery = _spec(options), _delivery(options)  # before the voice loads: bad input answers at once
    checked_text(options.text)
    seed = checked_seed(options.seed)
    voice = _load(options)
    tell = _progress()
    comparison = compare(
        voice,
        prune(voice, spec),
        options.text,
        seed,
        timing=options.timing,
        delivery=delivery,
        runs=options.runs,
        on_step=tell,
    )
    tell("", 1.0)
    tables = comparison.tables()
    report = {**comparison.report(), "spec": spec.to_dict()}
    with _writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        write_wav(comparison.original, options.out / "original.wav")
        write_wav(comparison.pruned, options.out / "pruned.wav")
        for name, table in tables.items():
            table.to_csv(options.out / f"{name}.csv", index=False)
        (options.out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(comparison)
    _warn(comparison.pruned)
    print(f"\nWritten to {options.out}: original.wav, pruned.wav, report.json, {', '.join(f'{name}.csv' for name in tables)}")


def _warn(speech: Speech) -> None:
    from vits_prune.synthesis import MAX_SENTENCE_SECONDS

    if speech.dropped:
        print(f"\nThe voice has no symbol for: {' '.join(speech.dropped)}")
    if speech.cut_short:
        print(f"\nThe pruned voice's durations ran away: a sentence was ended at {MAX_SENTENCE_SECONDS:.0f} seconds.")


def _layers(options: argparse.Namespace) -> None:
    from vits_prune.measure import measure_sparsity
    from vits_prune.tables import layer_table

    table: pd.DataFrame = layer_table(measure_sparsity(_load(options)))
    print(table.to_csv(index=False) if options.csv else table.to_string(index=False))


def _prune(options: argparse.Namespace) -> None:
    from vits_prune.measure import measure_sparsity
    from vits_prune.pruning import prune
    from vits_prune.voices.saved import save_voice

    spec = _spec(options)
    voice = _load(options)
    pruned = prune(voice, spec)
    folder = save_voice(pruned, options.out)
    print(f"{voice.name} with {100 * measure_sparsity(pruned).overall:.1f}% of its weights at zero, saved to {folder}")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a disk that does not take the files into a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(f"The files could not be written to {folder}: {error.strerror or error}.") from error


def _progress() -> Callable[[str, float], None]:
    """One line on a terminal that is written over; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda _what, _share: None
    return lambda what, share: print(f"\r\x1b[2K{100 * share:3.0f}%  {what}" if what else "\r\x1b[2K", end="", file=sys.stderr, flush=True)
