"""The commands export and bench: a voice in the format that it is used in, and its speed there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vits_prune.cli.options import add_flag, add_out, add_voice, load
from vits_prune.cli.terminal import ProgressLine
from vits_prune.errors import InputError

FORMAT_NAMES = ("dense", "sparse", "onnx", "piper")
PRECISION_NAMES = ("fp32", "fp16", "int8")


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    export = commands.add_parser(
        "export",
        help="write a voice as a dense or sparse folder, as ONNX, or for Piper",
        description="ONNX and Piper exports are compared with the voice in onnxruntime, and not "
        "written where they differ.",
    )
    add_voice(export)
    add_format(export)
    add_flag(export, "--no-measure", "write only: no table of size, speed and sound", bool)
    add_out(export, "folder for the files")
    export.set_defaults(run=_export)
    _add_bench(
        commands,
        help="measure an exported voice on this machine; needs onnxruntime alone",
        description="The export puts the same program beside the .onnx as bench.py, for a machine "
        "without vits_prune.",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add --format and --precision."""
    add_flag(
        parser,
        "--format",
        "dense or sparse folder, onnx, or piper",
        default="dense",
        choices=FORMAT_NAMES,
    )
    add_flag(
        parser,
        "--precision",
        "of the weights; int8 for onnx and piper",
        default="fp32",
        choices=PRECISION_NAMES,
    )


def check_format(options: argparse.Namespace) -> None:
    """Raise InputError if the format that was typed does not have the precision."""
    from vits_prune.ship.formats import FORMATS

    precisions = FORMATS[options.format].precisions
    if options.precision not in precisions:
        raise InputError(f"The format {options.format} has the precisions {', '.join(precisions)}.")


def bench_parser() -> argparse.ArgumentParser:
    """Return a parser for `bench` alone, which needs no torch."""
    parser = argparse.ArgumentParser(prog="vits_prune")
    parser.set_defaults(traceback=False)
    _add_bench(parser.add_subparsers())
    return parser


def _add_bench(commands: Any, **words: str) -> None:
    from vits_prune.ship import bench

    parser = commands.add_parser("bench", **words)
    bench.add_arguments(parser)
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    from vits_prune.ship import bench

    folder = Path(options.model or "")
    try:
        if options.model and folder.is_dir() and not list(folder.glob("*.onnx")):
            from vits_prune.ship.bench_folder import bench_saved

            bench.run(options, bench_saved)
        else:
            bench.run(options)
    except ImportError as error:
        raise InputError(
            f"{folder.name} is a saved voice, which takes vits_prune and torch ({error.name} is "
            "not here): bench an .onnx export instead."
        ) from error
    except bench.BenchError as error:
        raise InputError(str(error)) from error


def _export(options: argparse.Namespace) -> None:
    from vits_prune.ship.export_report import measure_export, ship_table
    from vits_prune.ship.formats import check_export_place, check_own_place, export_voice

    check_format(options)
    check_own_place(options.voice, options.out)
    check_export_place(options.out)
    voice = load(options)
    with ProgressLine() as progress:
        first = progress if options.no_measure else progress.part(0.0, 0.5)
        export = export_voice(voice, options.out, options.format, options.precision, progress=first)
        rows = []
        if not options.no_measure:
            rows = measure_export(voice, export, progress=progress.part(0.5, 1.0))
    if rows:
        print(ship_table(rows).to_string(index=False))
    if export.waveform_error is not None:
        print(
            "\nonnxruntime says what torch says: no sample is off by more than "
            f"{export.waveform_error:.1e} (same weights, no noise)."
        )
    written = (f"{name} ({_size(size)})" for name, size in export.files.items())
    print(f"\nWritten to {export.folder}: {', '.join(written)}")
    if (export.folder / "bench.py").is_file():
        print(
            "On the machine that is to speak: pip install onnxruntime numpy && "
            f"python bench.py {export.model.name} --threads 1,2"
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
