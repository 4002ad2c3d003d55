"""The command listen: pool blind listening tests, and lay predictors beside the listeners."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from vits_prune.cli.options import typed_path
from vits_prune.cli.terminal import ProgressLine, print_left_out, print_table, writing
from vits_prune.files import replaced_files
from vits_prune.measure.predictors import FAMILIES, absent, deaf_words
from vits_prune.study.listening import Hearing
from vits_prune.study.listening_predictors import (
    COMPARED,
    Agreement,
    measure_agreement,
    write_agreements,
)
from vits_prune.study.listening_store import (
    Group,
    Trial,
    pool,
    questions,
    read_trials,
    write_trials,
)

_MANY_CONDITIONS = 10
"""With fewer, a rank correlation of 0.6 comes about by chance in more than one of 20 cases."""


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    parser = commands.add_parser(
        "listen",
        help="pool the results of blind listening tests, which the page makes",
        description="Where an ABX test has 3 amounts or more, its sounds are made again from the "
        "voice that the CSV names, and each predictor's rank correlation with the listeners is "
        "printed.",
        run=_listen,
    )
    words = "CSV files of the page's tab Listen blind"
    parser.add_flag("--merge CSV", words, typed_path, nargs="+", required=True)
    words = "folder for merged.csv, predictors.csv and the plot"
    parser.add_flag("--out DIR", words, typed_path)
    words = "do not measure what predictors say of the sounds that were heard"
    parser.add_flag("--no-predictors", words, bool)


def _listen(options: Namespace) -> None:
    from vits_prune.study.charts import listening_figure, save_figure

    trials = list(dict.fromkeys(one for path in options.merge for one in read_trials(path)))
    groups = pool(trials)
    for group in groups:
        _print_group(group)
    compared = [] if options.no_predictors else _agreements(trials)
    if options.out is None:
        return
    with writing(options.out), replaced_files(options.out, last="merged.csv") as new:
        write_trials(trials, new / "merged.csv")
        written = ["merged.csv"]
        if any(one.conditions for one in compared):
            write_agreements(compared, new / "predictors.csv")
            written.append("predictors.csv")
        if any(group.kind == "abx" for group in groups):
            figure = listening_figure(groups)
            written += [path.name for path in save_figure(figure, new, "listening")]
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


def _agreements(trials: Sequence[Trial]) -> list[Agreement]:
    """Measure what was heard in ABX tests, and print how predictors agree with the listeners."""
    asked = [own for own in questions(trials) if own[0].setup.kind == "abx"]
    found = []
    with ProgressLine() as progress:
        for i, own in enumerate(asked):
            part = progress.part(i / len(asked), (i + 1) / len(asked))
            found.append(measure_agreement(own, part))
    for one in found:
        _print_agreement(one)
    measured = {name for one in found for heard in one.conditions for name in heard.changes}
    for sentence in deaf_words(measured):
        print(sentence)
    if measured:
        print_left_out(absent(FAMILIES).values())
        print()
    return found


def _print_agreement(found: Agreement) -> None:
    print(f"{found.setup.voice}: {found.name}: do predictors agree with the listeners?")
    if found.problem:
        print(f"{found.problem}\n")
        return
    rows = []
    for name, title in COMPARED.items():
        one = found.correlation(name)
        if one.conditions:
            rho = "none" if one.rho is None else f"{one.rho:+.2f}"
            rows.append({"predictor": title, "correlation": rho, "conditions": one.conditions})
    print_table(rows)
    print(
        "Spearman's rank correlation of right answers with predicted damage: 1 where a predictor "
        "finds the more damage the more is heard; none where all conditions are equal."
    )
    if len(found.conditions) < _MANY_CONDITIONS:
        print(
            f"{len(found.conditions)} conditions are few: below {_MANY_CONDITIONS}, chance alone "
            "gives large correlations."
        )
    for note in found.notes:
        print(f"Note: {note}")
    print()
