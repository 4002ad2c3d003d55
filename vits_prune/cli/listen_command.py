"""The command that pools blind listening tests: listen."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from vits_prune.cli.terminal import print_table, writing
from vits_prune.study.charts import listening_figure, save_figure
from vits_prune.study.listening import Hearing
from vits_prune.study.listening_store import Group, pool, read_trials, write_trials


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    words = "pool the results of blind listening tests, which the page makes"
    parser = commands.add_parser("listen", help=words, run=_listen)
    words = "CSV files of the page's tab Listen blind"
    parser.add_flag("--merge CSV", words, Path, nargs="+", required=True)
    parser.add_flag("--out DIR", "folder for merged.csv and the plot", Path)


def _listen(options: Namespace) -> None:
    trials = list(dict.fromkeys(one for path in options.merge for one in read_trials(path)))
    groups = pool(trials)
    for group in groups:
        _print_group(group)
    if options.out is None:
        return
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        write_trials(trials, options.out / "merged.csv")
        written = ["merged.csv"]
        if any(group.kind == "abx" for group in groups):
            figure = listening_figure(groups)
            written += [path.name for path in save_figure(figure, options.out, "listening")]
    print(f"Written to {options.out}: {', '.join(written)} ({len(trials)} trials)")


def _print_group(group: Group) -> None:
    print(f"{group.voice}: {group.name}")
    rows = []
    for who, found in (*group.by_listener.items(), ("all together", group.pooled)):
        if isinstance(found, Hearing):
            counts, result = (found.trials, found.right), {"heard from": found.range_words()}
        else:
            counts, result = (found.share.of, found.share.hits), {"preferred": found.words()}
        counted = {"trials": counts[0], "right" if group.kind == "abx" else "chosen": counts[1]}
        rows.append({"listener": who, **counted, **result})
    print_table(rows)
    print()
