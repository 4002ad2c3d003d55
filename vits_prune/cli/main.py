"""The command line: python -m vits_prune COMMAND."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from vits_prune.errors import InputError
from vits_prune.interrupt import STOPPED, clean_interrupts
from vits_prune.memory import keep_freed_memory
from vits_prune.ship import bench

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 for bad input, 1 for any other error, 130 after Ctrl-C.
    """
    keep_freed_memory()
    typed = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="vits_prune")
    if list(typed[:1]) == ["bench"]:
        # the other commands' options need torch, which the machine of a bench may not have
        parser.set_defaults(traceback=False)
        _add_bench(parser.add_subparsers())
    else:
        parser = make_parser()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that lack a character
    options = argparse.Namespace(traceback=False)
    try:
        with clean_interrupts():
            try:
                options = parser.parse_args(arguments)
            finally:  # --help leaves by SystemExit
                print(end="", flush=True)
            options.run(options)
            print(end="", flush=True)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader went away (`| head`), and at exit Python writes again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            what = f"A file could not be written ({error.strerror}): free some space"
            print(f"{parser.prog}: {what}, or set TMPDIR to another disk.", file=sys.stderr)
            return 2
        print(f"{parser.prog}: {type(error).__name__}: {error}", file=sys.stderr)
        if options.traceback:
            raise
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `options.run(options)` runs the one that was typed."""
    from vits_prune.cli import (
        evidence_commands,
        heal_command,
        listen_command,
        prune_commands,
        ship_commands,
    )
    from vits_prune.cli.options import CommandParser

    parser = CommandParser(
        prog="vits_prune",
        description="Prune VITS text-to-speech voices, hear what it does, and measure it.",
    )
    words = "show the whole traceback of an unexpected error"
    parser.add_flag("--traceback", words, bool, default=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    parts = (prune_commands, heal_command, evidence_commands, listen_command, ship_commands)
    for module in parts:
        module.add_commands(commands)
    _add_bench(
        commands,
        help="measure voices on this machine; an .onnx needs onnxruntime and numpy alone",
        description="The export puts the same program beside the .onnx as bench.py, for a machine "
        "without vits_prune. A saved voice runs with the kernels that are best for it on this "
        f"machine; it needs {bench.NEEDS} there.",
    )
    return parser


def _add_bench(commands: Any, **words: str) -> None:
    parser = commands.add_parser("bench", **words)
    bench.add_arguments(parser)
    parser.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    try:
        bench.run(options, _bench_one)
    except bench.BenchError as error:
        raise InputError(str(error)) from error


def _bench_one(model: str, *how: Any) -> dict[str, Any]:
    if bench.is_onnx(model):
        return bench.bench(model, *how)
    try:
        from vits_prune.ship.torch_reference import bench_voice
    except ImportError as error:
        what = f"{model[:80]} is no .onnx file or folder with one, and a saved voice needs"
        raise InputError(f"{what} {bench.NEEDS}: {error.name} is not here.") from error
    return bench_voice(model, *how)
