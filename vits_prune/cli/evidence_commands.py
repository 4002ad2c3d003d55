"""The commands that measure what pruning does to speech.

They are evaluate, sweep, sensitivity and knee.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from vits_prune.cli.options import (
    GRID_FIELDS,
    CommandParser,
    base_of,
    load,
    pattern_amount,
    settings_of,
    texts_of,
    typed_path,
)
from vits_prune.cli.terminal import (
    ProgressLine,
    check_writable,
    interval_words,
    print_left_out,
    print_table,
    write_report,
    writing,
)
from vits_prune.errors import InputError
from vits_prune.measure.predictors import absent, deaf_words
from vits_prune.measure.quality import METRICS
from vits_prune.pruning import PruneSpec
from vits_prune.study.evaluation import Evaluation, evaluate
from vits_prune.study.knee import KNEE_RULE, Knee, find_knee, parse_limit, seeds_for, usual_limits
from vits_prune.study.sweep import SweepResult, VoicesResult, run_sweep, run_voices
from vits_prune.study.sweep_engines import VoiceRef
from vits_prune.study.sweep_grid import (
    Grid,
    Point,
    layer_points,
    parse_amounts,
    parse_parts,
    part_points,
    parts_name,
)
from vits_prune.study.sweep_store import check_signatures
from vits_prune.voices.load import load_voice

_AGAIN = "start the same command again to go on"
_SHOWN = (
    *("cer", "distillmos", "dnsmos_ovrl", "visqol", "mcd_db", "speaker_similarity"),
    *("duration_ratio", "lufs"),
)
"""Metrics in the table of a sweep; the others are in its file."""
_PARTS = "all, decoder, flow+decoder"


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    words = "measure what pruning did to a voice: words, naturalness, closeness, rhythm, loudness"
    parser = commands.add_parser("evaluate", help=words, run=_evaluate)
    parser.add_voice()
    words = "the pruned voice: a folder that `prune` wrote, or what --voice takes"
    parser.add_flag("--against DIR|REF", words, required=True)
    _add_measuring(parser)
    parser.add_flag("--json FILE", "write all measurements, sentence by sentence", typed_path)

    words = "measure a whole grid of pruned voices; started again it goes on where it stopped"
    parser = commands.add_parser("sweep", help=words, run=_sweep)
    parser.add_voice(many=True)
    parser.add_spec(("method", "scope"), many=("method", "scope"))
    _add_amounts(parser, "0:0.9:0.1")
    parser.add_flag("--parts GROUP", f"{_PARTS}: one curve each", default=["all"], nargs="+")
    _add_grid(parser)

    words = "prune one part, or one layer, at a time: which breaks speech first"
    parser = commands.add_parser("sensitivity", help=words, run=_sensitivity)
    parser.add_voice()
    parser.add_spec(("method", "scope"))
    _add_amounts(parser, "0.3,0.5,0.7")
    words = "layers instead of parts: names or their beginnings; none for all"
    parser.add_flag("--layers NAME", words, nargs="*")
    _add_grid(parser)

    words = "find the largest amount that keeps given limits, by bisection"
    parser = commands.add_parser("knee", help=words, run=_knee)
    parser.add_voice()
    parser.add_spec(("method", "scope"))
    parser.add_flag("--parts GROUP", _PARTS, default="all")
    words = (
        "how much may be lost, such as wer=0.05 (default: cer=+0.02 distillmos=-0.1 visqol=-0.25, "
        "and dnsmos_ovrl=-0.1 where Distill-MOS is not installed)"
    )
    parser.add_flag("--limit METRIC=CHANGE", words, nargs="+")
    words = "whole intervals must keep the limits, not the estimates alone"
    parser.add_flag("--strict", words, bool)
    parser.add_spec(GRID_FIELDS)
    _add_measuring(parser, ("noise_seeds",), noise_seeds=0)
    words = "write the amounts that were tried and the intervals that decided"
    parser.add_flag("--json FILE", words, typed_path)


def _add_amounts(parser: CommandParser, default: str) -> None:
    words = (
        "0:0.9:0.1 (start:end:step), 0.1,0.3 or several; of a structured method the share of "
        f"channels (default: {default})"
    )
    parser.add_flag("--amount AMOUNT", words, nargs="+")
    parser.set_defaults(usual_amounts=default)


def _add_measuring(
    parser: CommandParser, names: Sequence[str] = ("noise_seeds", "metrics"), **defaults: Any
) -> None:
    parser.add_texts("how many sentences (default: 20 of the built-in ones, or the whole file)")
    words = "which of the built-in sentences: tuning, held-out or all (default: held-out)"
    parser.add_flag("--half", words)
    parser.add_settings(names, **defaults)


def _add_grid(parser: CommandParser) -> None:
    parser.add_spec(GRID_FIELDS)
    _add_measuring(parser)
    parser.add_out("folder: new, empty, or of the same run that was stopped")
    parser.add_flag("--jobs N", "processes of this machine", int, default=1)
    parser.add_flag("--engine", "local, or ray for a Ray cluster", default="local")


def _evaluate(options: Namespace) -> None:
    # bad input answers before the voices load
    settings, texts = settings_of(options), texts_of(options)
    check_writable(options.json)
    original, pruned = load(options), load_voice(options.against, options.speaker)
    with ProgressLine() as progress:
        found = evaluate(original, pruned, texts, settings, progress=progress)
    _print_evaluation(found)
    write_report(options.json, found.to_dict())


def _print_evaluation(found: Evaluation) -> None:
    print(
        f"{found.names[0]} against {found.names[1]}: {len(found.texts)} sentences, "
        f"seed {found.settings.seed}, 95% intervals\n"
    )
    rows = [
        {
            "metric": one.metric.title + (f" ({one.metric.unit})" if one.metric.unit else ""),
            "original": f"{one.original.value:.4g}" if one.original else "",
            "pruned": f"{one.pruned.value:.4g}" if one.pruned else "",
            "difference": interval_words(one.difference),
            "noise floor": f"{one.floor.low:.3g} to {one.floor.high:.3g}" if one.floor else "",
            "margin": "" if one.margin is None else f"{one.margin:.3g}",
            "verdict": one.verdict,
        }
        for one in found.figures.values()
    ]
    print_table(rows)
    print("", found.claim.sentence(len(found.texts)), *deaf_words(found.figures), sep="\n")
    if found.other_voice is not None:
        another = "Another voice, the original four semitones higher, has the speaker similarity"
        print(f"{another} {found.other_voice:.3g}.")
    texts = len(found.texts)
    failures = [f"{kind}: {count} of {texts}" for kind, count in found.failures.items() if count]
    print(f"\nSpeech failures: {', '.join(failures) or 'none'}")
    for cost, name in zip(found.costs, ("original", "pruned"), strict=True):
        joules = cost.joules_per_audio_second
        energy = "joules unknown" if joules is None else f"{joules:.3g} J"
        print(
            f"A second of speech, {name}: {cost.cpu_seconds_per_audio_second:.3g} CPU-seconds, "
            f"{energy} ({cost.energy_method})"
        )
    print_left_out((*found.unmeasured.values(), *found.notes))
    print(f"Signature: {found.signature}")


def _knee(options: Namespace) -> None:
    parts, settings, texts = parse_parts(options.parts), settings_of(options), texts_of(options)
    base = dataclasses.replace(_base(options), parts=parts)
    limits = tuple(map(parse_limit, options.limit)) if options.limit else usual_limits()
    seeds = max(settings.noise_seeds, seeds_for(limits))
    settings = dataclasses.replace(settings, noise_seeds=seeds)
    check_writable(options.json)
    how = {"texts": texts, "settings": settings, "strict": options.strict}
    voice = load(options)
    with ProgressLine() as progress:
        knee = find_knee(voice, base, limits, progress=progress, **how)
    _print_knee(knee)
    write_report(options.json, knee.to_dict())


def _print_knee(knee: Knee) -> None:
    rows = [
        {
            "amount": f"{trial.amount:.2f}",
            "metric": one.limit.metric,
            "limit": f"{one.limit.change:+g}",
            "measured": interval_words(one.interval, sign="") or "not measurable",
            "verdict": ("kept" if one.kept else "broken")
            + ("" if one.certain else ", interval undecided"),
        }
        for trial in sorted(knee.trials, key=lambda trial: trial.amount)
        for one in trial.decisions
    ]
    print_table(rows)
    where = f"{knee.voice}, {knee.spec.method}, {knee.spec.scope}, {parts_name(knee.spec.parts)}"
    print(
        f"\nKnee: amount {knee.amount:.2f} ({where}; {knee.texts} sentences, seed {knee.seed})\n"
        f"{KNEE_RULE}"
    )
    metrics = [one.limit.metric for one in knee.trials[0].decisions]
    for sentence in deaf_words(metrics):
        print(sentence)
    print_left_out(absent([METRICS[name].family for name in metrics]).values())
    print(f"Signature: {knee.signature}")


def _sweep(options: Namespace) -> None:
    grid = Grid(
        tuple(options.method or (PruneSpec.method,)),
        tuple(options.scope or (PruneSpec.scope,)),
        tuple(map(parse_parts, options.parts)),
        _amounts(options),
        base_of(options),
    )
    if len(options.voice) > 1:
        _sweep_voices(options, grid)
    else:
        (options.voice,) = options.voice
        _run(options, grid, "sweep")


def _sensitivity(options: Namespace) -> None:
    amounts, base = _amounts(options), _base(options)
    if options.layers is None:
        _run(options, part_points(amounts, base), "sensitivity of parts")
    else:
        points = layer_points(load(options), amounts, options.layers, base)
        _run(options, points, "sensitivity of layers")


def _base(options: Namespace) -> PruneSpec:
    """Return what all points have in common, the one method and scope included."""
    method, scope = options.method or PruneSpec.method, options.scope or PruneSpec.scope
    return dataclasses.replace(base_of(options), method=method, scope=scope)


def _amounts(options: Namespace) -> tuple[float, ...]:
    """Return what was typed, else the pattern's own amount, else the usual ones."""
    if options.amount is None and options.pattern:
        return (pattern_amount(options.pattern),)
    return parse_amounts(options.amount or [options.usual_amounts])


def _run(options: Namespace, points: Grid | Sequence[Point], kind: str) -> None:
    ref = VoiceRef(options.voice, options.speaker, options.revision)
    found: SweepResult = _measured(options, run_sweep, ref, points, kind=kind)
    _print_sweep(found, kind != "sweep")
    _print_measuring(found.rows, options)
    _require_all("points", _print_failures(found), options)


def _sweep_voices(options: Namespace, grid: Grid) -> None:
    refs = [VoiceRef(voice, options.speaker, options.revision) for voice in options.voice]
    found: VoicesResult = _measured(options, run_voices, refs, grid)
    for name, sweep in found.sweeps.items():
        print(f"\n{name}")
        _print_sweep(sweep, sensitivity=False)
    print(f"\nAll voices together: {found.folder / 'sweep.csv'} ({len(found.rows)} points)")
    _print_measuring(found.rows, options)
    for name, reason in found.failures.items():
        print(f"Not measured: {name}: {reason}", file=sys.stderr)
    missing = sum(map(_print_failures, found.sweeps.values())) + len(found.failures)
    _require_all("voices or points", missing, options)


def _require_all(what: str, missing: int, options: Namespace) -> None:
    if missing:
        done = f"the others are in {options.out}"
        raise InputError(f"{missing} {what} could not be measured, {done}: {_AGAIN}.")


def _measured(
    options: Namespace, run: Callable[..., Any], what: Any, points: Any, **more: Any
) -> Any:
    """Return what `run_sweep` or `run_voices` finds, and after Ctrl-C say that nothing is lost."""
    settings, texts = settings_of(options), texts_of(options)
    choices = {"jobs": options.jobs, "engine": options.engine, **more}
    try:
        with ProgressLine() as progress:
            return run(what, points, texts, settings, options.out, progress=progress, **choices)
    except KeyboardInterrupt:
        print(f"What is done is kept in {options.out}: {_AGAIN}.", file=sys.stderr)
        raise


def _print_failures(found: SweepResult) -> int:
    """Print the points that could not be measured, and return their number."""
    for failure in found.failures[:20]:
        point = ", ".join(f"{key} {value}" for key, value in failure.point.columns().items())
        print(f"Not measured: {point}: {failure.reason}", file=sys.stderr)
    return len(found.failures)


def _print_sweep(found: SweepResult, sensitivity: bool) -> None:
    from vits_prune.study.charts import save_plots

    shown = [name for name in _SHOWN if any(row.get(name) is not None for row in found.rows)]
    columns = ("method", "scope", "parts", "layer", "amount", "sparsity", *shown, "claim")
    print_table([{name: row[name] for name in columns if name in row} for row in found.rows])
    with writing(found.folder):
        plots = save_plots(found.rows, found.folder, sensitivity=sensitivity)
    earlier = len(found.rows) - found.measured
    kept = f", {earlier} of an earlier run" if earlier else ""
    print(
        f"\nWritten to {found.folder}: sweep.csv, sweep.jsonl and sweep.json ({len(found.rows)} "
        f"points{kept}), {len(plots)} plots"
    )


def _print_measuring(rows: Sequence[dict[str, Any]], options: Namespace) -> None:
    """Print what the predictors are deaf to, what is left out, and what the figures depend on."""
    measured = {name for name in METRICS if any(row.get(name) is not None for row in rows)}
    for sentence in deaf_words(measured):
        print(sentence)
    print_left_out(absent(settings_of(options).metrics).values())
    signatures = list(dict.fromkeys(row["signature"] for row in rows if row.get("signature")))
    try:
        check_signatures(rows)
    except InputError as error:  # such as voices of two languages
        print(f"Note: do not compare these voices with each other. {error}")
    for signature in signatures:
        print(f"Signature: {signature}")
