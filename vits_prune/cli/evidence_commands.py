"""The commands that measure what pruning does to speech: evaluate, sweep, knee, sensitivity."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import (
    Progress,
    add_choices,
    add_method,
    add_scope,
    base_of,
    pattern_amount,
)
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.study.evaluation import Evaluation, Settings
    from vits_prune.study.knee import Knee
    from vits_prune.study.sweep import SweepResult
    from vits_prune.study.sweep_engines import VoiceRef
    from vits_prune.study.sweep_grid import Grid, Point


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    _add_evaluate(commands)
    _add_sweep(commands)
    _add_knee(commands)
    _add_sensitivity(commands)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure what became of a voice: words, naturalness, closeness, rhythm, loudness",
    )
    _add_voice(parser)
    parser.add_argument(
        "--against",
        required=True,
        metavar="DIR|REF",
        help="the pruned voice: a folder that `prune` wrote, or what --voice takes",
    )
    _add_settings(parser, noise_seeds=2)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write everything that was measured, sentence by sentence",
    )
    parser.set_defaults(run=_evaluate)


def _add_sweep(commands: Any) -> None:
    parser = commands.add_parser(
        "sweep",
        help="measure a whole grid of pruned voices; started again it goes on where it stopped",
    )
    _add_voice(parser, many=True)
    add_method(parser, many=True)
    add_scope(parser, many=True)
    _add_amounts(parser, "0:0.9:0.1")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["all"],
        metavar="GROUP",
        help="all, decoder, flow+decoder: one curve each (default: all)",
    )
    add_choices(parser)
    _add_settings(parser, noise_seeds=2)
    _add_engine(parser)
    parser.set_defaults(run=_sweep)


def _add_knee(commands: Any) -> None:
    parser = commands.add_parser(
        "knee", help="find the largest amount that keeps given limits, by bisection"
    )
    _add_voice(parser)
    add_method(parser)
    add_scope(parser)
    parser.add_argument(
        "--parts",
        default="all",
        metavar="GROUP",
        help="all, decoder, flow+decoder (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        nargs="+",
        metavar="METRIC=CHANGE",
        help="how much may be lost, such as wer=0.05 (default: cer=+0.02 dnsmos_ovrl=-0.1)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="whole intervals must keep the limits, not the estimates alone",
    )
    add_choices(parser)
    _add_settings(parser, noise_seeds=0, metrics=False)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the amounts that were tried and the intervals that decided",
    )
    parser.set_defaults(run=_knee)


def _add_sensitivity(commands: Any) -> None:
    parser = commands.add_parser(
        "sensitivity", help="prune one part, or one layer, at a time: which breaks speech first"
    )
    _add_voice(parser)
    add_method(parser)
    add_scope(parser)
    _add_amounts(parser, "0.3,0.5,0.7")
    parser.add_argument(
        "--layers",
        nargs="*",
        metavar="NAME",
        help="layers instead of parts: names or their beginnings; none for all",
    )
    add_choices(parser)
    _add_settings(parser, noise_seeds=2)
    _add_engine(parser)
    parser.set_defaults(run=_sensitivity)


def _add_voice(parser: argparse.ArgumentParser, many: bool = False) -> None:
    from vits_prune.cli import main as cli  # here, for cli imports this file

    cli.add_voice(parser, many)


def _add_amounts(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--amount",
        nargs="+",
        metavar="AMOUNT",
        help=f"0:0.9:0.1 (start:end:step), 0.1,0.3 or several; of a structured method the share of channels (default: {default})",
    )
    parser.set_defaults(usual_amounts=default)


def _add_settings(
    parser: argparse.ArgumentParser, *, noise_seeds: int, metrics: bool = True
) -> None:
    parser.add_argument(
        "--texts",
        type=int,
        metavar="N",
        help="how many sentences (default: 20 of the built-in ones, or the whole file)",
    )
    parser.add_argument(
        "--text-file", type=Path, metavar="FILE", help="your own sentences, one a line"
    )
    parser.add_argument(
        "--half",
        help="which of the built-in sentences: tuning, held-out or all (default: held-out)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the noise and of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--noise-seeds",
        type=int,
        default=noise_seeds,
        metavar="N",
        help="other seeds of the original for the noise floor (default: %(default)s)",
    )
    if metrics:
        parser.add_argument(
            "--metrics",
            nargs="+",
            help="intelligibility, naturalness, closeness, rhythm, loudness (default: all)",
        )
    parser.add_argument(
        "--recogniser",
        metavar="WHISPER",
        help="a Whisper size, hub id or folder for faster-whisper (default: tiny.en)",
    )
    parser.add_argument(
        "--language", help="of the texts, as Whisper names it (default: the voice's)"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder: new, empty, or of the same run that was stopped",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="processes of this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", default="local", help="local, or ray for a Ray cluster (default: %(default)s)"
    )


def _settings(options: argparse.Namespace) -> Settings:
    from vits_prune.measure.recognition import Recogniser
    from vits_prune.study.evaluation import Settings

    metrics = getattr(options, "metrics", None)
    named = {"model": options.recogniser, "language": options.language}
    recogniser = Recogniser(**{key: value for key, value in named.items() if value})
    return Settings(
        seed=options.seed,
        noise_seeds=options.noise_seeds,
        recogniser=recogniser,
        **({"metrics": tuple(metrics)} if metrics else {}),
    )


def _texts(options: argparse.Namespace) -> tuple[str, ...]:
    from vits_prune.synthesis.texts import DEFAULT_COUNT, load_texts, read_text_file

    if options.text_file is None:
        return load_texts(
            DEFAULT_COUNT if options.texts is None else options.texts, options.half or "held-out"
        )
    if options.half:
        raise InputError(
            "--half chooses among the built-in sentences: leave it out with --text-file."
        )
    found = read_text_file(options.text_file, options.texts)
    for note in found.notes:
        print(note, file=sys.stderr)
    return found.texts


def _ref(options: argparse.Namespace) -> VoiceRef:
    from vits_prune.study.sweep_engines import VoiceRef

    return VoiceRef(options.voice, options.speaker, options.revision)


def _evaluate(options: argparse.Namespace) -> None:
    from vits_prune.study.evaluation import evaluate
    from vits_prune.voices.load import load_voice

    settings, texts = (
        _settings(options),
        _texts(options),
    )  # before the voices load: bad input answers at once
    _check_writable(options.json)
    original, pruned = _ref(options).load(), load_voice(options.against, options.speaker)
    with Progress() as tell:
        found = evaluate(original, pruned, texts, settings, progress=tell)
    _print_evaluation(found)
    _write_json(options.json, found.to_dict())


def _print_evaluation(found: Evaluation) -> None:
    print(
        f"{found.names[0]} against {found.names[1]}: {len(found.texts)} sentences, seed {found.settings.seed}, 95% intervals\n"
    )
    rows = []
    for figure in found.figures.values():
        what, floor = figure.metric, figure.floor
        rows.append(
            {
                "metric": what.title + (f" ({what.unit})" if what.unit else ""),
                "original": _number(figure.original),
                "pruned": _number(figure.pruned),
                "difference": _interval(figure.difference),
                "noise floor": f"{floor.low:.3g} to {floor.high:.3g}" if floor else "",
                "verdict": figure.verdict,
            }
        )
    _print_table(rows)
    raised = [
        f"{kind}: {count} of {len(found.texts)}" for kind, count in found.failures.items() if count
    ]
    print(f"\nSpeech failures: {', '.join(raised) or 'none'}")
    for cost, name in zip(found.costs, ("original", "pruned"), strict=True):
        joules = cost.joules_per_audio_second
        energy = f"{joules:.3g} J" if joules is not None else "joules unknown"
        print(
            f"A second of speech, {name}: {cost.cpu_seconds_per_audio_second:.3g} CPU-seconds, {energy} ({cost.energy_method})"
        )
    for note in (*found.unmeasured.values(), *found.notes):
        print(f"Note: {note}")


def _sweep(options: argparse.Namespace) -> None:
    from vits_prune.study.sweep_grid import Grid, parse_parts

    groups = tuple(map(parse_parts, options.parts))
    grid = Grid(
        tuple(options.method), tuple(options.scope), groups, _amounts(options), base_of(options)
    )
    if len(options.voice) > 1:
        _sweep_voices(options, grid)
    else:
        options.voice = options.voice[0]
        _run(options, grid, "sweep")


def _amounts(options: argparse.Namespace) -> tuple[float, ...]:
    """What was typed; where nothing was, the pattern's own amount, or the usual ones."""
    from vits_prune.study.sweep_grid import parse_amounts

    if options.amount is None and options.pattern:
        return (pattern_amount(options.pattern),)
    return parse_amounts(options.amount or [options.usual_amounts])


def _sweep_voices(options: argparse.Namespace, grid: Grid) -> None:
    from vits_prune.study.sweep import run_voices
    from vits_prune.study.sweep_engines import VoiceRef

    settings, texts = _settings(options), _texts(options)
    refs = [VoiceRef(ref, options.speaker, options.revision) for ref in options.voice]
    with _kept(options.out), Progress() as tell:
        found = run_voices(
            refs,
            grid,
            texts,
            settings,
            options.out,
            jobs=options.jobs,
            engine=options.engine,
            progress=tell,
        )
    for name, sweep in found.sweeps.items():
        print(f"\n{name}")
        _print_sweep(sweep, sensitivity=False)
    print(f"\nAll voices together: {found.folder / 'sweep.csv'} ({len(found.rows)} points)")
    for name, reason in found.failures.items():
        print(f"Not measured: {name}: {reason}", file=sys.stderr)
    missing = sum(_tell_failures(sweep) for sweep in found.sweeps.values()) + len(found.failures)
    if missing:
        raise InputError(
            f"{missing} voices or points could not be measured, the others are in {options.out}: {_AGAIN}."
        )


def _sensitivity(options: argparse.Namespace) -> None:
    from vits_prune.study.sweep_grid import layer_points, part_points

    amounts, base = _amounts(options), base_of(options)
    if options.layers is None:
        base = dataclasses.replace(base, method=options.method, scope=options.scope)
        points = part_points(amounts, base)
    else:
        base = dataclasses.replace(base, method=options.method)
        points = layer_points(_ref(options).load(), amounts, options.layers, base)
    _run(
        options,
        points,
        "sensitivity of parts" if options.layers is None else "sensitivity of layers",
    )


def _run(options: argparse.Namespace, points: Grid | Sequence[Point], kind: str) -> None:
    from vits_prune.study.sweep import run_sweep

    settings, texts = _settings(options), _texts(options)
    with _kept(options.out), Progress() as tell:
        found = run_sweep(
            _ref(options),
            points,
            texts,
            settings,
            options.out,
            jobs=options.jobs,
            engine=options.engine,
            kind=kind,
            progress=tell,
        )
    _print_sweep(found, kind != "sweep")
    if _tell_failures(found):
        raise InputError(
            f"{len(found.failures)} points could not be measured, the others are in {options.out}: {_AGAIN}."
        )


_AGAIN = "start the same command again to go on"


@contextlib.contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Says to whoever interrupts a sweep that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"What is done is kept in {folder}: {_AGAIN}.", file=sys.stderr)
        raise


def _tell_failures(found: SweepResult) -> int:
    """Print the points that could not be measured; their number."""
    for failure in found.failures[:20]:
        spec = failure.point.columns()
        print(
            f"Not measured: {', '.join(f'{key} {value}' for key, value in spec.items())}: {failure.reason}",
            file=sys.stderr,
        )
    return len(found.failures)


def _print_sweep(found: SweepResult, sensitivity: bool) -> None:
    from vits_prune.measure.quality import METRICS
    from vits_prune.study.charts import save_plots

    metrics = [name for name in METRICS if any(row.get(name) is not None for row in found.rows)]
    shown = [
        name
        for name in ("cer", "dnsmos_ovrl", "mcd_db", "duration_ratio", "lufs")
        if name in metrics
    ]
    columns = ("method", "scope", "parts", "layer", "amount", "sparsity", *shown)
    _print_table(
        [{name: _cell(row[name]) for name in columns if name in row} for row in found.rows]
    )
    try:
        plots = save_plots(found.rows, found.folder, sensitivity=sensitivity)
    except OSError as error:
        raise InputError(
            f"The plots could not be written to {found.folder}: {error.strerror or error}. The numbers are there."
        ) from error
    earlier = len(found.rows) - found.measured
    kept = f", {earlier} of an earlier run" if earlier else ""
    print(
        f"\nWritten to {found.folder}: sweep.csv, sweep.jsonl and sweep.json ({len(found.rows)} points{kept}), {len(plots)} plots"
    )


def _knee(options: argparse.Namespace) -> None:
    from vits_prune.study.knee import LIMITS, find_knee, parse_limit
    from vits_prune.study.sweep_grid import parse_parts

    parts, settings, texts, base = (
        parse_parts(options.parts),
        _settings(options),
        _texts(options),
        base_of(options),
    )
    limits = tuple(map(parse_limit, options.limit)) if options.limit else LIMITS
    _check_writable(options.json)
    voice = _ref(options).load()
    with Progress() as tell:
        knee = find_knee(
            voice,
            dataclasses.replace(base, method=options.method, scope=options.scope, parts=parts),
            limits,
            texts=texts,
            settings=settings,
            strict=options.strict,
            progress=tell,
        )
    _print_knee(knee)
    _write_json(options.json, knee.to_dict())


def _print_knee(knee: Knee) -> None:
    from vits_prune.study.knee import RULE
    from vits_prune.study.sweep_grid import parts_name

    rows = []
    for row in knee.rows():
        ends = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
        measured = "not measurable" if row["value"] is None else f"{row['value']:+.3g}{ends}"
        kept = ("kept" if row["kept"] else "broken") + (
            "" if row["certain"] else ", interval undecided"
        )
        rows.append(
            {
                "amount": f"{row['amount']:.2f}",
                "metric": row["metric"],
                "limit": f"{row['limit']:+g}",
                "measured": measured,
                "verdict": kept,
            }
        )
    _print_table(rows)
    where = f"{knee.voice}, {knee.spec.method}, {knee.spec.scope}, {parts_name(knee.spec.parts)}"
    print(
        f"\nKnee: amount {knee.amount:.2f} ({where}; {knee.texts} sentences, seed {knee.seed})\n{RULE}"
    )


def _check_writable(path: Path | None) -> None:
    """Tell of a file that cannot be written before an hour of measuring, not after it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(
            f"{path} cannot be written: give the name of a file in a folder that exists."
        )


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    from vits_prune.files import write_json
    from vits_prune.study.sweep_store import plain

    if path is None:
        return
    try:
        write_json(path, plain(content))
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror or error}.") from error
    print(f"\nWritten to {path}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    if rows:
        print(pd.DataFrame(rows).to_string(index=False, na_rep=""))


def _number(interval: Any) -> str:
    return f"{interval.value:.4g}" if interval else ""


def _interval(interval: Any) -> str:
    if interval is None:
        return ""
    return f"{interval.value:+.3g}" + (
        "" if interval.low is None else f" [{interval.low:+.3g}, {interval.high:+.3g}]"
    )


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
