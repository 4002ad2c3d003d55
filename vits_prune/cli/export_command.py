"""The commands export and bench: a voice in the format in which it is used, and how it does on the machine that is to speak with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vits_prune.cli.options import Progress
from vits_prune.errors import InputError

FORMAT_NAMES = ("dense", "sparse", "onnx", "piper")
PRECISION_NAMES = ("fp32", "fp16", "int8")


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    from vits_prune.cli import main as cli  # here, for cli imports this file
    from vits_prune.ship import bench as standalone

    export = commands.add_parser(
        "export",
        help="write a voice as a dense or sparse folder, as ONNX, or for Piper",
        description="ONNX and Piper exports are compared with the voice in onnxruntime, and not written where they differ.",
    )
    cli.add_voice(export)
    export.add_argument(
        "--format",
        choices=FORMAT_NAMES,
        default="dense",
        help="dense or sparse folder, onnx, or piper (default: %(default)s)",
    )
    export.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        default="fp32",
        help="of the weights; int8 for onnx and piper (default: fp32)",
    )
    export.add_argument(
        "--no-measure", action="store_true", help="write only: no table of size, speed and sound"
    )
    export.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the files"
    )
    export.set_defaults(run=_export)

    bench = commands.add_parser(
        "bench",
        help="measure an exported voice on this machine; needs onnxruntime alone",
        description="The export puts the same program beside the .onnx as bench.py, for a machine without vits_prune.",
    )
    standalone.add_arguments(bench)
    bench.set_defaults(run=_bench)


def bench_parser(arguments: Sequence[str]) -> argparse.ArgumentParser | None:
    """A parser for `bench` alone, None where the arguments are of another command: the others' need torch, which a board may not have."""
    from vits_prune.ship import bench as standalone

    if list(arguments[:1]) != ["bench"]:
        return None
    parser = argparse.ArgumentParser(prog="vits_prune")
    parser.set_defaults(traceback=False)
    bench = parser.add_subparsers().add_parser("bench")
    standalone.add_arguments(bench)
    bench.set_defaults(run=_bench)
    return parser


def _bench(options: argparse.Namespace) -> None:
    from vits_prune.ship import bench as standalone

    folder, measure = Path(options.model or ""), standalone.bench
    try:
        if options.model and folder.is_dir() and not list(folder.glob("*.onnx")):
            from vits_prune.ship.bench_folder import bench_saved as measure
        standalone.run(options, measure)
    except ImportError as error:
        raise InputError(
            f"{folder.name} is a saved voice, which takes vits_prune and torch ({error.name} is not "
            "here): bench an .onnx export instead."
        ) from error
    except standalone.BenchError as error:
        raise InputError(str(error)) from error


def _export(options: argparse.Namespace) -> None:
    from vits_prune.cli import main as cli
    from vits_prune.ship.export_report import measure_export, ship_table
    from vits_prune.ship.formats import FORMATS, check_export_place, check_own_place, export_voice

    if (
        options.precision not in FORMATS[options.format].precisions
    ):  # before the voice loads: bad input answers at once
        raise InputError(
            f"The format {options.format} has the precisions {', '.join(FORMATS[options.format].precisions)}."
        )
    check_own_place(options.voice, Path(options.out))
    check_export_place(Path(options.out))
    voice = cli.load(options)
    with Progress() as tell:
        share = 1.0 if options.no_measure else 0.5
        export = export_voice(
            voice,
            options.out,
            options.format,
            options.precision,
            progress=lambda what, done: tell(what, share * done),
        )
        rows = (
            []
            if options.no_measure
            else measure_export(
                voice, export, progress=lambda what, done: tell(what, 0.5 + 0.5 * done)
            )
        )
    if rows:
        print(ship_table(rows).to_string(index=False))
    if export.waveform_error is not None:
        print(
            f"\nonnxruntime says what torch says: no sample is off by more than {export.waveform_error:.1e} (same weights, no noise)."
        )
    print(
        f"\nWritten to {export.folder}: {', '.join(f'{name} ({_size(size)})' for name, size in export.files.items())}"
    )
    if (export.folder / "bench.py").is_file():
        print(
            f"On the machine that is to speak: pip install onnxruntime numpy && python bench.py {export.model.name} --threads 1,2"
        )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
