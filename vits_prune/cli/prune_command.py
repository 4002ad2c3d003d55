"""The command prune: a pruned voice as a folder, its steps beside it if asked, and stopped at the knee if asked."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import Progress, add_spec, spec_of
from vits_prune.errors import InputError

if TYPE_CHECKING:
    from vits_prune.pruning import PruneSpec
    from vits_prune.voices.voice import Voice


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    from vits_prune.cli import main as cli  # here, for cli imports this file

    parser = commands.add_parser("prune", help="save a pruned voice to a folder")
    cli.add_voice(parser)
    add_spec(parser)
    parser.add_argument(
        "--keep-steps",
        action="store_true",
        help="with --steps: save each step's voice too, into DIR/step-1 and on",
    )
    parser.add_argument(
        "--until-knee",
        action="store_true",
        help="with --steps: measure each step on held-out sentences and stop at the last that keeps the limits of `knee`",
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=20,
        metavar="N",
        help="with --until-knee: how many sentences (default: %(default)s)",
    )
    parser.add_argument(
        "--text-file",
        type=Path,
        metavar="FILE",
        help="with --until-knee: your own sentences, one a line",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the pruned voice"
    )
    parser.set_defaults(run=_prune)


def _prune(options: argparse.Namespace) -> None:
    from vits_prune.cli import main as cli
    from vits_prune.measure import measure_sparsity
    from vits_prune.voices.saved import save_voice

    spec = spec_of(options)
    if (options.keep_steps or options.until_knee) and len(spec.schedule_amounts()) < 2:
        raise InputError(
            "--keep-steps and --until-knee are for gradual pruning: give --steps, such as --steps 4."
        )
    _check_out(options.out, options.keep_steps)
    voice = cli.load(options)
    keep = _keeper(options.out) if options.keep_steps else None
    pruned = (
        _until_knee(voice, spec, options, keep) if options.until_knee else _steps(voice, spec, keep)
    )
    if keep:
        _save_beside_steps(pruned, options.out)
    else:
        save_voice(pruned, options.out)
    print(
        f"{voice.name} {_what_is_left(voice, pruned, measure_sparsity(pruned).overall)}, saved to {options.out}"
    )


def _check_out(folder: Path, steps: bool) -> None:
    """Tell of a folder that cannot be used before an hour of pruning, not after it."""
    from vits_prune.voices.manifest import MANIFEST
    from vits_prune.voices.saved import check_save_place

    if not folder.is_symlink() and not steps:
        check_save_place(folder)
    if folder.is_dir() and (
        not any(folder.iterdir()) or ((folder / MANIFEST).is_file() and not steps)
    ):
        return
    if folder.exists() or folder.is_symlink():
        what = "is not empty" if steps else "exists and is not a saved voice"
        raise InputError(f"{folder} {what}: give the name of a folder that is new or empty.")


def _what_is_left(voice: Voice, pruned: Voice, sparsity: float) -> str:
    before, after = (sum(p.numel() for p in one.model.parameters()) for one in (voice, pruned))
    smaller = (
        f"with {after / 1e6:.2f} of {before / 1e6:.2f} million parameters" if after < before else ""
    )
    zeros = (
        f"with {100 * sparsity:.1f}% of its weights at zero"
        if sparsity >= 0.001 or not smaller
        else ""
    )
    return ", ".join(filter(None, (smaller, zeros)))


def _keeper(folder: Path) -> Callable[[int, Voice], None]:
    from vits_prune.voices.saved import save_voice

    return lambda number, voice: print(
        f"Step {number}, saved to {save_voice(voice, folder / f'step-{number}')}"
    )


def _steps(voice: Voice, spec: PruneSpec, keep: Callable[[int, Voice], None] | None) -> Voice:
    from vits_prune.pruning.prune import prune_steps

    current = voice
    with Progress() as tell:
        for number, (_, current) in enumerate(prune_steps(voice, spec, progress=tell), 1):
            if keep:
                keep(number, current)
    return current


def _until_knee(
    voice: Voice,
    spec: PruneSpec,
    options: argparse.Namespace,
    keep: Callable[[int, Voice], None] | None,
) -> Voice:
    """The last step that keeps the usual limits, which is told."""
    from vits_prune.measure.quality import METRICS
    from vits_prune.study.evaluation import Settings, prepare_reference
    from vits_prune.study.knee import LIMITS, prune_until_knee
    from vits_prune.synthesis.texts import load_texts, read_text_file

    texts = (
        read_text_file(options.text_file, options.texts).texts
        if options.text_file
        else load_texts(options.texts)
    )
    settings = Settings(
        metrics=tuple({METRICS[limit.metric].family for limit in LIMITS}), noise_seeds=0
    )
    with Progress() as tell:
        reference = prepare_reference(
            voice, texts, settings, progress=lambda what, share: tell(what, 0.1 * share)
        )
        found = prune_until_knee(
            voice,
            spec,
            reference,
            LIMITS,
            on_voice=keep,
            progress=lambda what, share: tell(what, 0.1 + 0.9 * share),
        )
    for step in found.steps:
        changes = [
            f"{one.limit.metric} {one.interval.value:+.3g}"
            if one.interval
            else f"{one.limit.metric} ?"
            for one in step.decisions
        ]
        print(
            f"Amount {step.amount:.3g}: {', '.join(changes)}: {'kept' if step.kept else 'broken'}"
        )
    limits = ", ".join(f"{limit.metric} {limit.change:+g}" for limit in LIMITS)
    if found.voice is None:
        raise InputError(
            f"The first step, amount {found.steps[0].amount:.3g}, breaks the limits ({limits}) already: take smaller steps."
        )
    where = (
        "all steps keep them"
        if found.steps[-1].kept
        else f"amount {found.steps[-1].amount:.3g} breaks them"
    )
    print(
        f"Stopped at amount {found.amount:.3g}: {where} ({limits}; {len(reference.texts)} sentences)."
    )
    return found.voice


def _save_beside_steps(voice: Voice, folder: Path) -> None:
    """Save into a folder that holds the steps already: its files one by one, the manifest last."""
    from vits_prune.voices.saved import MANIFEST, save_voice

    with tempfile.TemporaryDirectory(prefix=".final.", dir=folder) as beside:
        saved = save_voice(voice, Path(beside) / "voice")
        for path in sorted(saved.iterdir(), key=lambda path: path.name == MANIFEST):
            os.replace(path, folder / path.name)
