"""The command line: python -m vits_prune COMMAND."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from vits_prune.cli import evidence_commands, heal_command, prune_commands, ship_commands
from vits_prune.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 2 for bad input, 1 for any other error, 130 after Ctrl-C.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    # the other commands' options need torch, which the machine of a bench may not have
    parser = ship_commands.bench_parser() if list(typed[:1]) == ["bench"] else make_parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that lack a character
    try:
        options.run(options)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`)
        return 1
    except Exception as error:
        print(f"{parser.prog}: {type(error).__name__}: {error}", file=sys.stderr)
        if options.traceback:
            raise
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `options.run(options)` runs the one that was typed."""
    parser = argparse.ArgumentParser(
        prog="vits_prune",
        description="Prune VITS text-to-speech voices, hear what it does, and measure it.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show the whole traceback of an unexpected error"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (prune_commands, heal_command, evidence_commands, ship_commands):
        module.add_commands(commands)
    return parser
