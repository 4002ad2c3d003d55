"""The commands export and push: write a voice as it is used, and publish it on the hub."""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.options import CommandParser, load, texts_of, typed_path
from vits_prune.cli.terminal import ProgressLine
from vits_prune.errors import InputError, NotFoundError
from vits_prune.files import read_json
from vits_prune.progress import Progress
from vits_prune.ship.bench import NEEDS
from vits_prune.ship.licence import Licence, licence_of
from vits_prune.study.evaluation import Settings, evaluate
from vits_prune.synthesis.speak import checked_seed
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.load import EMBEDDED, load_hub, load_voice
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.ship.bundle import Bundle
    from vits_prune.ship.hub_destination import Destination

FORMAT_NAMES = ("dense", "sparse", "onnx", "piper")
PRECISION_NAMES = ("fp32", "fp16", "int8")
_FILES = {
    "--text-file FILE": "measure now on your own sentences, one a line",
    "--curve DIR": "folder of a sweep or a healing whose curve goes into the card",
    "--out DIR": "keep what was pushed in a folder",
}
_SWITCHES = {
    "--private": "make a new repository private",
    "--replace": "push to a repository that holds something else or another voice, too",
    "--yes": "push though the licence forbids something, or is not stated",
    "--dry-run": "write what would be pushed to --out and publish nothing; needs no login",
}
_MAX_EVIDENCE_BYTES = 64 << 20
_NO_OWNER = "your-name"
"""Stands for the owner in a dry run, in which nobody is logged in."""


def add_commands(commands: Any) -> None:
    """Add the commands to an argument parser's subparsers."""
    parser = commands.add_parser(
        "export",
        help="write a voice as a dense or sparse folder, as ONNX, or for Piper",
        description="ONNX and Piper exports are compared with the voice in onnxruntime, and not "
        "written where they differ.",
        run=_export,
    )
    parser.add_voice()
    _add_format(parser)
    parser.add_flag("--no-measure", "write only: no table of size, speed and sound", bool)
    parser.add_out("folder for the files")

    parser = commands.add_parser(
        "push",
        help="publish a voice on the Hugging Face hub with a model card",
        description="Log in first with `hf auth login`. Everything is published in one commit, or "
        "nothing is.",
        run=_push,
    )
    parser.add_voice()
    words = "name or owner/name of a model repository, new or your own"
    parser.add_flag("--repo NAME", words, required=True)
    _add_format(parser)
    words = "the voice that it was made of (default: found by its name, joe or a hub id)"
    parser.add_flag("--original REF", words)
    evidence = parser.add_mutually_exclusive_group()
    words = "what `evaluate --json` wrote, and `compare` (report.json)"
    parser.add_flag("--evidence FILE", words, typed_path, group=evidence, nargs="+")
    words = "measure now: quality on N held-out sentences, and speed"
    parser.add_flag("--texts N", words, int, group=evidence)
    parser.add_flags(typed_path, _FILES)
    parser.add_flag("--samples N", "sentences to listen to", int, default=3)
    parser.add_flag("--seed", "noise of the samples and of what is measured", int, default=0)
    parser.add_flags(bool, _SWITCHES)


def _add_format(parser: CommandParser) -> None:
    words = "dense or sparse folder, onnx, or piper"
    parser.add_flag("--format", words, default="dense", choices=FORMAT_NAMES)
    words = "of the weights; int8 for onnx and piper"
    parser.add_flag("--precision", words, default="fp32", choices=PRECISION_NAMES)


def _check_format(options: Namespace) -> None:
    """Raise InputError if the format that was typed does not have the precision."""
    from vits_prune.ship.formats import FORMATS

    precisions = FORMATS[options.format].precisions
    if options.precision not in precisions:
        raise InputError(f"The format {options.format} has the precisions {', '.join(precisions)}.")


def _export(options: Namespace) -> None:
    from vits_prune.ship.export_report import measure_export, ship_table
    from vits_prune.ship.formats import check_export_place, check_own_place, export_voice

    _check_format(options)
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
        most = f"{export.waveform_error:.1e} (same weights, no noise)"
        print(f"\nonnxruntime says what torch says: no sample is off by more than {most}.")
    written = (f"{name} ({_size(size)})" for name, size in export.files.items())
    print(f"\nWritten to {export.folder}: {', '.join(written)}")
    if (export.folder / "bench.py").is_file():
        print("On the machine that is to speak: pip install onnxruntime numpy")
        print(f"python bench.py {export.model.name} --threads 1,2")
    else:
        print(f"On the machine that is to speak, with {NEEDS}:")
        print(f"python -m vits_prune bench {export.folder.name} --threads 1,2")


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _push(options: Namespace) -> None:
    try:
        _publish(options)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'Nothing was published.'}", file=sys.stderr)
        raise


def _publish(options: Namespace) -> None:
    """Check what is cheap first: rights come before minutes of measuring."""
    from vits_prune.ship.bundle import check_curve, write_bundle
    from vits_prune.ship.card_figures import check_evidence

    _check(options)
    measures = options.texts is not None or options.text_file is not None
    texts = texts_of(options) if measures else ()
    given = {path: _evidence(path) for path in options.evidence or ()}
    place = None if options.dry_run else _destination(options)
    voice = load(options)
    if place and not options.replace:
        place.require_same(voice.name)
    _require_consent(licence_of(voice), options)
    if options.curve is not None:
        check_curve(options.curve, voice)
    original = _original(voice, options)
    evidence: dict[str, Any] = {}
    for path, found in given.items():
        try:
            check_evidence(found, voice, original)
            if "figures" in evidence and "figures" in found:
                raise InputError("A card has the figures of one `evaluate`: leave this file out.")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        evidence |= found
    if texts:
        evidence = _measured(voice, original, texts, options.seed)
    with tempfile.TemporaryDirectory(prefix="vits_prune-push-") as passing:
        folder = options.out or Path(passing) / "bundle"
        with ProgressLine() as progress:
            names = ("format", "precision", "curve", "samples", "seed")
            choices = {name: getattr(options, name) for name in names}
            repo_id = place.repo_id if place else _repo_id(options.repo)
            choices |= {"original": original, "evidence": evidence or None, "progress": progress}
            bundle = write_bundle(voice, folder, repo_id=repo_id, **choices)
        if place:
            _send(bundle, place, options)
            return
        sizes = [path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file()]
        size = f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
        print(f"Written to {bundle.folder}, nothing was published: {size}; see its README.md")


def _check(options: Namespace) -> None:
    """Raise InputError for what is wrong whatever the voice is."""
    from vits_prune.ship.bundle import MAX_SAMPLES, check_curve, check_place

    _check_format(options)
    if not 0 <= options.samples <= MAX_SAMPLES:
        raise InputError(f"--samples must be from 0 to {MAX_SAMPLES}, not {options.samples}.")
    if options.text_file is not None and options.evidence:
        raise InputError("--text-file is for measuring now: leave it out, or leave out --evidence.")
    if options.dry_run and options.out is None:
        raise InputError("A dry run writes what would be pushed: say where with --out.")
    checked_seed(options.seed)
    _repo_id(options.repo)
    if options.out is not None:
        check_place(options.out)
    if options.curve is not None:
        check_curve(options.curve)


def _repo_id(repo: str) -> str:
    """Return "owner/name" of what was typed, with a stand-in for an owner that was not."""
    try:
        return parse_repo_id(repo if "/" in repo.strip("/") else f"{_NO_OWNER}/{repo}")[0]
    except InputError as error:
        raise InputError(f"{repo[:80]!r} is no name of a repository: give owner/name.") from error


def _evidence(path: Path) -> Mapping[str, Any]:
    unreadable = InputError(
        f"{path} is not what `evaluate --json` or `compare` wrote (report.json): give such a file."
    )
    try:
        found = read_json(path, max_bytes=_MAX_EVIDENCE_BYTES)
    except InputError as error:
        raise unreadable from error
    if not any(isinstance(found.get(key), dict) for key in ("figures", "latency")):
        raise unreadable
    return found


def _destination(options: Namespace) -> Destination:
    """Return where it goes; raise InputError if it may not go there."""
    from vits_prune.ship.hub_destination import check_destination

    place = check_destination(options.repo)
    if place.holds == "other" and not options.replace:
        what = f"{place.repo_id} holds something that vits_prune did not push"
        raise InputError(f"{what}: give another name, or --replace to push over it.")
    if options.private and place.private is False:
        raise InputError(f"{place.repo_id} is public already: leave out --private, or rename.")
    return place


def _require_consent(licence: Licence, options: Namespace) -> None:
    """Show the licence, and ask where it forbids something or is not stated."""
    if licence.notice:
        print(f"Licence: {licence.notice}", file=sys.stderr)
    if not licence.needs_consent or options.yes or options.dry_run:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise InputError("Nothing was published: the licence above needs your consent, give --yes.")
    try:
        answer = input("Push it all the same? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError("Nothing was published: push again and answer y, or give --yes.")


def _original(voice: Voice, options: Namespace) -> Voice | None:
    """Return the voice to compare with; None if there is none, or if it is not to be found."""
    from vits_prune.ship.reproduce import published

    if options.original is not None:
        return load_voice(options.original)
    if not voice.recipe:
        return None
    source, why = published(voice), "it was a file or folder: name it with --original"
    if source is not None:
        try:
            # A folder here may have the name of a hub id.
            load_original = load_voice if source[0] == EMBEDDED else load_hub
            return load_original(source[0], revision=source[1])
        except NotFoundError as error:
            why = str(error)
    what = f"The original of {voice.name} is not at hand, and the card compares with nothing"
    print(f"{what}: {why}", file=sys.stderr)
    return None


def _measured(
    voice: Voice, original: Voice | None, texts: tuple[str, ...], seed: int
) -> dict[str, Any]:
    """Return quality and speed, as `evaluate` and `compare` give them."""
    from vits_prune.study.comparison import compare

    if original is None:
        raise InputError("There is no original to measure against: give --original, or no --texts.")
    if voice.speakers:
        original = original.with_speaker(voice.speaker)
    settings = Settings(seed=seed)
    with ProgressLine() as progress:
        first, then = progress.part(0.0, 0.8), progress.part(0.8, 1.0)
        quality = evaluate(original, voice, texts, settings, progress=first)
        speed = compare(original, voice, texts[0], seed, progress=then)
    return {**quality.to_dict(), "latency": speed.report()["latency"]}


def _send(bundle: Bundle, place: Destination, options: Namespace) -> None:
    from vits_prune.ship.hub_push import push_folder

    arrived = False
    with ProgressLine() as progress:

        def listen(message: str, fraction: float) -> None:
            nonlocal arrived
            arrived = fraction >= 1
            progress.report(message, fraction)

        try:
            how = {"private": options.private, "replace": options.replace}
            pushed = push_folder(bundle.folder, place.repo_id, progress=Progress(listen), **how)
        except KeyboardInterrupt as error:
            if not arrived:
                raise
            # the hub makes the commit whether or not somebody waits for its answer
            raise KeyboardInterrupt(
                f"It is not known whether the voice was published: look at {place.url}, and push "
                "again where it is not there."
            ) from error
    sent = f"{pushed.bytes_sent / 1e6:.1f} MB of them sent now (commit {pushed.commit[:12]})"
    print(f"Published at {pushed.url}: {pushed.files} files, {sent}")
    if bundle.export.format in ("dense", "sparse"):
        print(f'load_voice("{pushed.repo_id}") loads it.')
    else:
        print(f"hf download {pushed.repo_id} --local-dir voice fetches it; see its card.")
    if options.out is not None:
        print(f"What was pushed is kept in {bundle.folder}")
