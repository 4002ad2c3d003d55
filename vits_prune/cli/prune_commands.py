"""The commands compare, layers, prune and budget."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import (
    as_typed,
    load,
    settings_of,
    spec_of,
    texts_in,
    texts_of,
    typed_fields,
)
from vits_prune.cli.terminal import (
    ProgressLine,
    interval_words,
    print_left_out,
    print_table,
    writing,
)
from vits_prune.errors import InputError
from vits_prune.files import names_in, replaced_files, replaced_folder, write_json
from vits_prune.kernels import KERNELS
from vits_prune.measure import measure_sparsity
from vits_prune.measure.cost import count_macs
from vits_prune.measure.predictors import absent
from vits_prune.measure.quality import METRICS
from vits_prune.pruning import PruneSpec, prune
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.spec import METHODS
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.knee import (
    Limit,
    parse_limit,
    prune_until_knee,
    seeds_for,
    usual_limits,
)
from vits_prune.synthesis.speak import Delivery, checked_seed, checked_text, write_wav
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.study.budget import Budget, Candidate, Solution

_LIMITS = {
    "--max-mb MB": "largest file, plain or sparse, in MB of 1,000,000 bytes",
    "--max-latency-ratio RATIO": "longest time over the original's: 0.5 is twice as fast",
    "--max-cer-points POINTS": "character errors more than the original's, per 100",
    "--max-dnsmos-loss LOSS": "how much lower DNSMOS may be, which hardly hears what pruning does: "
    "--limit distillmos=-0.1 is stricter",
}
_SWITCHES = {
    "--keep-steps": "with --steps: save each step's voice too, into DIR/step-1 and on",
    "--until-knee": "with --steps: measure each step on held-out sentences, and stop at the "
    "last that keeps the limits of `knee`",
}


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    words = "speak a text with the original and the pruned voice and measure both"
    parser = commands.add_parser("compare", help=words, run=_compare)
    parser.add_voice()
    parser.add_spec()
    text = "The birch canoe slid on the smooth planks."
    parser.add_flag("--text", "what to say", as_typed, default=text)
    parser.add_flag("--seed", "seed of the noise", int, default=0)
    words = "durations of the pruned voice: its own, or locked to the original's"
    parser.add_flag("--timing", words, default="own", choices=("own", "locked"))
    parser.add_fields(Delivery)
    parser.add_flag("--runs", "timed runs of each voice", int, default=5)
    kernels = "what they are timed with: auto takes what is faster on this machine, part by part"
    parser.add_flag("--kernels", kernels, default=KERNELS[0], choices=KERNELS)
    parser.add_out("folder for the sound, the report and the tables")

    words = "list the layers of a voice, and why some are left alone"
    parser = commands.add_parser("layers", help=words, run=_layers)
    parser.add_voice()
    parser.add_spec(("method", "protect"))
    parser.add_flag("--csv", "as CSV", bool)

    parser = commands.add_parser("prune", help="save a pruned voice to a folder", run=_prune)
    parser.add_voice()
    parser.add_spec()
    parser.add_flags(bool, _SWITCHES)
    parser.add_texts("with --until-knee: how many sentences", default=20)
    parser.add_out("folder for the pruned voice")

    parser = commands.add_parser(
        "budget",
        help="find what to prune so that a voice keeps limits of size, time and quality",
        description="Exit code 0 where all limits are kept, 2 where they cannot be: the nearest "
        "voice is saved all the same.",
        run=_budget,
    )
    parser.add_voice()
    parser.add_flags(float, _LIMITS)
    words = "further limits, as in `knee`"
    parser.add_flag("--limit METRIC=CHANGE", words, default=[], nargs="+")
    parser.add_texts(
        "sentences to choose on, and as many others to verify on (default: 10); half of the lines "
        "of --text-file are for each"
    )
    parser.add_settings()
    parser.add_out("folder, new or empty, for the voice and what was tried")


def _compare(options: Namespace) -> None:
    from vits_prune.study.comparison import compare

    spec, delivery = spec_of(options), Delivery(**typed_fields(options, Delivery))
    text, seed = checked_text(options.text), checked_seed(options.seed)
    voice = load(options)
    how = {"timing": options.timing, "delivery": delivery, "runs": options.runs}
    how["kernels"] = options.kernels
    with ProgressLine() as progress:
        pruned = prune(voice, spec, progress=progress)
    with ProgressLine() as progress:
        comparison = compare(voice, pruned, text, seed, progress=progress, **how)
    tables, report = comparison.tables(), comparison.report()
    with writing(options.out), replaced_files(options.out, last="report.json") as new:
        write_wav(comparison.original, new / "original.wav")
        write_wav(comparison.pruned, new / "pruned.wav")
        for name, table in tables.items():
            table.to_csv(new / f"{name}.csv", index=False)
        write_json(new / "report.json", report)
    print(comparison)
    written = ["original.wav", "pruned.wav", "report.json", *(f"{name}.csv" for name in tables)]
    print(f"\nWritten to {options.out}: {', '.join(written)}")


def _layers(options: Namespace) -> None:
    from vits_prune.study.comparison import layer_table

    spec = PruneSpec(**typed_fields(options, PruneSpec))
    structured = METHODS[spec.method].structured
    voice = load(options)
    if spec.protected or structured:  # the recipe says what is left alone
        voice = dataclasses.replace(voice, recipe={"pruned": [spec.to_dict()]})
    table = layer_table(measure_sparsity(voice))
    if structured:
        reason = "left alone because"
        stays = (table[reason] == "") & ~table["layer"].isin(_with_channels(voice))
        table.loc[stays, reason] = "none of its channels can be taken out"
    print(table.to_csv(index=False) if options.csv else table.to_string(index=False))


def _with_channels(voice: Voice) -> set[str]:
    """Return the layers that lose channels, or can go as a whole, in structured pruning."""
    from vits_prune.pruning.structured.couplings import groups

    found: set[str] = set()
    for group in groups(voice):
        blocks = tuple(f"{module}." for modules in group.blocks for module in modules)
        names = (name for name, _ in voice.model.named_modules())
        found |= {*group.writers, *group.readers}
        found |= {name for name in names if f"{name}.".startswith(blocks)}
    return found


def _prune(options: Namespace) -> None:
    from vits_prune.pruning import prune_steps
    from vits_prune.voices.saved import check_save_place, save_voice

    spec = spec_of(options)
    if (options.keep_steps or options.until_knee) and len(spec.schedule_amounts()) < 2:
        raise InputError("--keep-steps and --until-knee are for gradual pruning: give --steps 4.")
    steps = {f"step-{number}" for number in range(1, 1 + len(spec.schedule_amounts()))}
    if not options.keep_steps:
        check_save_place(options.out)
    elif options.out.is_file() or not names_in(options.out) <= steps:  # steps of a run cut off
        raise InputError(f"{options.out} is not empty: give the name of a new or empty folder.")
    pruned = voice = load(options)

    def keep(number: int, voice: Voice) -> None:
        if options.keep_steps:
            saved = save_voice(voice, options.out / f"step-{number}")
            print(f"Step {number}, saved to {saved}")

    if options.until_knee:
        pruned = _until_knee(voice, spec, options, keep)
    else:
        with ProgressLine() as progress:
            for number, (_, pruned) in enumerate(prune_steps(voice, spec, progress=progress), 1):
                keep(number, pruned)
    if options.keep_steps:
        _save_with_steps(pruned, options.out)
    else:
        save_voice(pruned, options.out)
    before, after = (sum(p.numel() for p in one.model.parameters()) for one in (voice, pruned))
    sparsity = measure_sparsity(pruned).overall
    found = []
    if after < before:
        found.append(f"{after / 1e6:.2f} of {before / 1e6:.2f} million parameters")
    if sparsity >= 0.001 or after >= before:
        found.append(f"{100 * sparsity:.1f}% of its weights at zero")
    with contextlib.suppress(InputError):  # nothing that it can say
        text = texts_for(voice, spec)[0]
        said, (whole, _) = count_macs(voice, text)
        _, (_, left) = count_macs(pruned, text, timing=said)
        found.append(f"{100 * left / whole:.1f}% of its multiply-accumulates left")
    print(f"{voice.name} with {', '.join(found)}, saved to {options.out}")


def _until_knee(
    voice: Voice, spec: PruneSpec, options: Namespace, keep: Callable[[int, Voice], None]
) -> Voice:
    """Return the voice of the last step that keeps the usual limits."""
    limits = usual_limits()
    families = tuple({METRICS[limit.metric].family for limit in limits})
    texts = texts_of(options)
    settings = Settings(metrics=families, noise_seeds=seeds_for(limits))
    with ProgressLine() as progress:
        first, then = progress.part(0.0, 0.1), progress.part(0.1, 1.0)
        reference = prepare_reference(voice, texts, settings, progress=first)
        found = prune_until_knee(voice, spec, reference, limits, on_voice=keep, progress=then)
    for trial in found.steps:
        changes = (
            f"{one.limit.metric} {f'{one.interval.value:+.3g}' if one.interval else '?'}"
            for one in trial.decisions
        )
        verdict = "kept" if trial.kept else "broken"
        print(f"Amount {trial.amount:.3g}: {', '.join(changes)}: {verdict}")
    kept = ", ".join(f"{limit.metric} {limit.change:+g}" for limit in limits)
    if found.voice is None:
        raise InputError(f"The first step breaks the limits ({kept}): take smaller steps.")
    last = found.steps[-1]
    where = "all steps keep them" if last.kept else f"amount {last.amount:.3g} breaks them"
    measured = f"{kept}; {len(reference.texts)} sentences"
    print(f"Stopped at amount {found.amount:.3g}: {where} ({measured}).")
    print_left_out(absent(families).values())
    print(f"Signature: {reference.signature}")
    return found.voice


def _save_with_steps(voice: Voice, folder: Path) -> None:
    """Save into a folder that holds the steps already, whole or not at all."""
    from vits_prune.voices.saved import save_voice

    with writing(folder), replaced_folder(folder) as new:
        saved = save_voice(voice, new / "voice")
        for path in saved.iterdir():
            path.replace(new / path.name)
        saved.rmdir()
        for step in names_in(folder):
            shutil.copytree(folder / step, new / step)


def _budget(options: Namespace) -> None:
    from vits_prune.study.budget_solver import check_empty, save_solution, solve_budget

    budget, settings = _limits(options), settings_of(options)
    texts, held_out = _budget_texts(options)
    check_empty(options.out)
    voice = load(options)
    with ProgressLine() as progress:
        solution = solve_budget(voice, budget, texts, held_out, settings, progress=progress)
    written = save_solution(solution, options.out)
    _print_solution(solution)
    print(f"\nWritten to {options.out}: {', '.join(path.name for path in written)}")
    if not solution.kept:
        raise InputError(
            f"The limits could not all be kept; the nearest voice is in {options.out}/voice."
        )


def _limits(options: Namespace) -> Budget:
    from vits_prune.study.budget import Budget

    quality = [parse_limit(text) for text in options.limit]
    if options.max_cer_points is not None:
        quality.append(Limit("cer", options.max_cer_points / 100))
    if options.max_dnsmos_loss is not None:
        quality.append(Limit("dnsmos_ovrl", -options.max_dnsmos_loss))
    return Budget(options.max_mb, options.max_latency_ratio, tuple(quality))


def _budget_texts(options: Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sentences to choose on, and those to verify on."""
    if options.text_file is None:
        count = 10 if options.texts is None else options.texts
        return load_texts(count, "tuning"), load_texts(count, "held-out")
    count = None if options.texts is None else 2 * options.texts
    found = tuple(dict.fromkeys(texts_in(options.text_file, count)))
    if len(found) < 2:
        raise InputError("The text file holds one sentence: add another to verify on.")
    return found[::2], found[1::2]


def _print_solution(solution: Solution) -> None:
    def row(one: Candidate) -> dict[str, Any]:
        breaks = "" if one.stage == "cut" else ", ".join(solution.budget.broken(one)) or "nothing"
        return {
            "what": one.words,
            "stage": one.stage,
            "MB": f"{one.mb:.1f}",
            "time": f"{one.latency_ratio.median:.2f}",
            **{name: f"{interval.value:+.3g}" for name, interval in one.quality.items()},
            "breaks": breaks,
        }

    print_table([row(one) for one in solution.tried])
    print("", *solution.sentences, sep="\n")
    chosen, ratio = solution.chosen, solution.chosen.latency_ratio
    print(
        f"\nVerified on {solution.texts[1]} held-out sentences:\n"
        f"  {chosen.mb:.2f} MB ({chosen.file} file), {chosen.parameters / 1e6:.2f} million "
        "parameters\n"
        f"  {ratio.median:.2f} of the original's time (runs: {ratio.low:.2f} to {ratio.high:.2f}), "
        f"{chosen.macs_ratio:.2f} of its arithmetic"
    )
    for name, interval in chosen.quality.items():
        print(f"  {name} {interval_words(interval)}")
    for spec in solution.chosen.specs:
        print(f"  {spec.to_json()}")
    judged = [METRICS[limit.metric].family for limit in solution.budget.judged]
    print_left_out(absent(judged).values())
    print(f"Signature: {chosen.signature}")
