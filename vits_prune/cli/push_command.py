"""The command push: a voice, its model card and its samples to the Hugging Face hub, in one commit."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.cli.export_command import FORMAT_NAMES, PRECISION_NAMES
from vits_prune.cli.options import Progress
from vits_prune.errors import InputError
from vits_prune.progress import Progress as Listened

if TYPE_CHECKING:
    from vits_prune.ship.bundle import Bundle
    from vits_prune.ship.hub_destination import Destination
    from vits_prune.ship.licence import Licence
    from vits_prune.voices.voice import Voice

_MAX_EVIDENCE_BYTES = 64 << 20
_NO_OWNER = "your-name"
"""Stands for the owner in a dry run, which asks nobody who is logged in."""


def add_commands(commands: Any) -> None:
    """Add the command to an argument parser's subparsers."""
    from vits_prune.cli import main as cli  # here, for cli imports this file

    parser = commands.add_parser(
        "push",
        help="publish a voice on the Hugging Face hub with a model card",
        description="Log in first with `hf auth login`. Everything is published in one commit, or nothing is.",
    )
    cli.add_voice(parser)
    parser.add_argument(
        "--repo",
        required=True,
        metavar="NAME",
        help="name or owner/name of a model repository, new or your own",
    )
    parser.add_argument(
        "--format",
        choices=FORMAT_NAMES,
        default="dense",
        help="as in export (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        default="fp32",
        help="of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--original",
        metavar="REF",
        help="the voice that it was made of (default: found by its name, joe or a hub id)",
    )
    evidence = parser.add_mutually_exclusive_group()
    evidence.add_argument(
        "--evidence",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="what `evaluate --json` wrote, and `compare` (report.json)",
    )
    evidence.add_argument(
        "--texts",
        type=int,
        metavar="N",
        help="measure now: quality on N held-out sentences, and speed",
    )
    parser.add_argument(
        "--text-file",
        type=Path,
        metavar="FILE",
        help="with --texts: your own sentences, one a line",
    )
    parser.add_argument(
        "--curve",
        type=Path,
        metavar="DIR",
        help="folder of a sweep or a healing whose curve goes into the card",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=3,
        metavar="N",
        help="sentences to listen to (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="noise of the samples and of what is measured (default: %(default)s)",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="push to a repository that holds something else or another voice, too",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="push though the licence forbids something, or is not stated",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write what would be pushed to --out and publish nothing; needs no login",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep what was pushed in a folder")
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    try:
        _publish(options)
    except KeyboardInterrupt as stopped:
        print("\n" + (str(stopped) or "Nothing was published."), file=sys.stderr)
        raise


def _publish(options: argparse.Namespace) -> None:
    """The command, cheap checks first: rights before minutes of measuring."""
    from vits_prune.cli import main as cli
    from vits_prune.ship.bundle import check_curve, write_bundle
    from vits_prune.ship.licence import licence_of

    given = _checked(options)
    place = None if options.dry_run else _destination(options)
    voice = cli.load(options)
    if place and not options.replace:
        place.require_same(voice.name)
    _consent(licence_of(voice), options)
    if options.curve is not None:
        check_curve(options.curve, voice)
    original = _original(voice, options)
    evidence = _together(given, voice, original)
    if options.texts is not None or options.text_file is not None:
        evidence = _measured(voice, original, options)
    repo = place.repo_id if place else _named(options.repo)
    with _folder(options) as folder:
        with Progress() as tell:
            bundle = write_bundle(
                voice, folder, repo_id=repo, format=options.format, precision=options.precision, original=original,
                evidence=evidence or None, curve=options.curve, samples=options.samples, seed=options.seed, progress=tell,
            )  # fmt: skip
        if place is None:
            print(f"Written to {bundle.folder}, nothing was published: {_files(bundle)}")
        else:
            _send(bundle, place, options)


def _checked(options: argparse.Namespace) -> dict[Path, Mapping[str, Any]]:
    """What can be known to be wrong before anything is loaded; the evidence of each file.

    Raises:
        InputError: something is.
    """
    from vits_prune.ship.bundle import MAX_SAMPLES, check_curve, check_place
    from vits_prune.ship.formats import FORMATS
    from vits_prune.synthesis.speak import checked_seed

    if options.precision not in FORMATS[options.format].precisions:
        raise InputError(
            f"The format {options.format} has the precisions {', '.join(FORMATS[options.format].precisions)}."
        )
    if not 0 <= options.samples <= MAX_SAMPLES:
        raise InputError(
            f"--samples must be a whole number from 0 to {MAX_SAMPLES}, not {options.samples}."
        )
    if options.text_file is not None and options.evidence:
        raise InputError("--text-file is for measuring now: leave it out, or leave out --evidence.")
    if options.dry_run and options.out is None:
        raise InputError("A dry run writes what would be pushed: say where with --out.")
    checked_seed(options.seed)
    _named(options.repo)
    if options.out is not None:
        check_place(options.out)
    if options.curve is not None:
        check_curve(options.curve)
    if options.texts is not None or options.text_file is not None:
        _texts(options)
    return {path: _evidence(path) for path in options.evidence or ()}


def _named(repo: str) -> str:
    """ "owner/name" of what was typed, with a stand-in for the owner where none was.

    Raises:
        InputError: it is no name.
    """
    from vits_prune.voices.hub import parse_repo_id

    whole = "/" in repo.strip("/")
    try:
        return parse_repo_id(repo if whole else f"{_NO_OWNER}/{repo}")[0]
    except InputError as error:
        raise InputError(
            f"{repo[:80]!r} is no name of a repository: write name or owner/name, such as joe-small."
        ) from error


def _evidence(path: Path) -> Mapping[str, Any]:
    unreadable = InputError(
        f"{path} is not what `evaluate --json` or `compare` wrote (report.json): give such a file."
    )
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_EVIDENCE_BYTES + 1)
        found = json.loads(content) if len(content) <= _MAX_EVIDENCE_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable from error
    if not isinstance(found, dict) or not any(
        isinstance(found.get(key), dict) for key in ("figures", "latency")
    ):
        raise unreadable
    return found


def _together(
    given: Mapping[Path, Mapping[str, Any]], voice: Voice, original: Voice | None
) -> dict[str, Any]:
    """The evidence of all files in one, each checked on its own before.

    Raises:
        InputError: a file tells of another voice.
    """
    from vits_prune.ship.card_figures import check_evidence

    for path, found in given.items():
        try:
            check_evidence(found, voice, original)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return {key: value for found in given.values() for key, value in found.items()}


def _destination(options: argparse.Namespace) -> Destination:
    """Where it goes, checked.

    Raises:
        InputError: nobody is logged in, there are no rights, or something else is there.
    """
    from vits_prune.ship.hub_destination import check_destination

    place = check_destination(options.repo)
    if place.holds == "other" and not options.replace:
        raise InputError(
            f"{place.repo_id} holds something that vits_prune did not push: give another name, or --replace to push beside it and over "
            "files of the same names."
        )
    if options.private and place.private is False:
        raise InputError(
            f"{place.repo_id} is public already: give another name, or leave out --private."
        )
    return place


def _consent(licence: Licence, options: argparse.Namespace) -> None:
    """Show what the licence says, and ask where it forbids something or nobody knows.

    Raises:
        InputError: the answer is no, or nobody is there to ask.
    """
    if licence.notice:
        print(f"Licence: {licence.notice}", file=sys.stderr)
    if not licence.needs_consent or options.yes or options.dry_run:
        return
    if not sys.stdin.isatty():
        raise InputError(
            "Nothing was published: the licence needs your consent, so read the lines above and give --yes to push all the same."
        )
    try:
        answer = input("Push it all the same? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError(
            "Nothing was published: push again and answer y, or give --yes, where you may share this voice."
        )


def _original(voice: Voice, options: argparse.Namespace) -> Voice | None:
    """The voice to compare with, None where there is none or it cannot be had, which is said."""
    from vits_prune.ship.reproduce import published
    from vits_prune.voices.load import load_voice

    if options.original is not None:
        return load_voice(options.original)
    if not voice.recipe:
        return None
    source, why = published(voice), "it was a file or folder: name it with --original"
    if source is not None:
        try:
            return load_voice(source[0], revision=source[1])
        except InputError as error:
            why = str(error)
    print(
        f"The original of {voice.name} is not at hand, and the card compares with nothing: {why}",
        file=sys.stderr,
    )
    return None


def _texts(options: argparse.Namespace) -> tuple[str, ...]:
    from vits_prune.synthesis.texts import load_texts, read_text_file

    return (
        load_texts(options.texts)
        if options.text_file is None
        else read_text_file(options.text_file, options.texts).texts
    )


def _measured(voice: Voice, original: Voice | None, options: argparse.Namespace) -> dict[str, Any]:
    """Quality and speed beside the original's, as `evaluate` and `compare` give them.

    Raises:
        InputError: there is no original.
    """
    from vits_prune.study.comparison import compare
    from vits_prune.study.evaluation import Settings, evaluate

    if original is None:
        raise InputError(
            "There is no original to measure against: name it with --original, or leave out --texts."
        )
    texts = _texts(options)
    if voice.speakers:
        original = original.with_speaker(voice.speaker)
    with Progress() as tell:
        quality = evaluate(
            original,
            voice,
            texts,
            Settings(seed=options.seed),
            progress=lambda what, done: tell(what, 0.8 * done),
        )
        speed = compare(
            original,
            voice,
            texts[0],
            options.seed,
            progress=lambda what, done: tell(what, 0.8 + 0.2 * done),
        )
    return {**quality.to_dict(), "latency": speed.report()["latency"]}


@contextlib.contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    """Where the bundle is written: the folder to keep, or one that goes when it was pushed."""
    if options.out is not None:
        yield options.out
        return
    with tempfile.TemporaryDirectory(prefix="vits_prune-push-") as place:
        yield Path(place) / "bundle"


def _send(bundle: Bundle, place: Destination, options: argparse.Namespace) -> None:
    from vits_prune.ship.hub_push import push_folder

    with Progress() as tell:
        arrived = False

        def listen(message: str, fraction: float) -> None:
            nonlocal arrived
            arrived = fraction >= 1
            tell(message, fraction)

        try:
            pushed = push_folder(
                bundle.folder,
                place.repo_id,
                private=options.private,
                replace=options.replace,
                progress=Listened(listen),
            )
        except KeyboardInterrupt as error:
            if not arrived:
                raise
            # All was sent, so the commit may be on its way, and the hub makes it whether or not somebody waits for the answer.
            raise KeyboardInterrupt(
                f"It is not known whether the voice was published: look at {place.url}, and push again where it is not there."
            ) from error
    print(
        f"Published at {pushed.url}: {pushed.files} files, {pushed.bytes_sent / 1e6:.1f} MB of them sent now (commit {pushed.commit[:12]})"
    )
    if bundle.export.format in ("dense", "sparse"):
        print(f'load_voice("{pushed.repo_id}") loads it.')
    else:
        print(
            f"hf download {pushed.repo_id} --local-dir voice fetches it; how it speaks is on its card."
        )
    if options.out is not None:
        print(f"What was pushed is kept in {bundle.folder}")


def _files(bundle: Bundle) -> str:
    size = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    count = sum(path.is_file() for path in bundle.folder.rglob("*"))
    return f"{count} files, {size / 1e6:.1f} MB; the model card is {bundle.folder / 'README.md'}"
