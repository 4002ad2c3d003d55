"""Shipping behind the page: the voice at hand in every format that fits, as a file to take away, and on its way to the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vits_prune.errors import InputError, LoginError, UnmeasurableError
from vits_prune.progress import Cancelled, Progress
from vits_prune.ship.formats import FORMATS, export_voice, file_stem
from vits_prune.studio import workbench
from vits_prune.studio.jobs import Update, in_background
from vits_prune.studio.request import Request
from vits_prune.threads import ForkSafeLock
from vits_prune.ui import healed
from vits_prune.ui.healed import Healing
from vits_prune.ui.healing import Order
from vits_prune.ui.shipped_healing import measured, write_course
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.ship.export_report import ExportRow
    from vits_prune.ship.hub_push import Pushed

T = TypeVar("T")
Tell = Callable[[str, float], None]

CHOICES = tuple(
    (name, precision) for name, kind in FORMATS.items() for precision in kind.precisions
)
"""Every format with every precision that it has."""
MAX_PARAMETERS = 100_000_000
"""Largest voice that the page writes."""
MAX_SECONDS = 300.0
"""No further format is begun after this."""
RUNS = 1
"""Of each sentence in each timing."""
_LONGEST_PAUSE = 5.0
_MEASURING, _BUNDLING = 0.25, 0.5
"""Shares of a push that are told as done once a healed voice is measured, and once the files are written."""

_work = tempfile.TemporaryDirectory(prefix="vits_prune-ship-")
_writing = ForkSafeLock()


@dataclass(frozen=True)
class Line:
    """A format in the table: its ExportRow, or why there is none."""

    format: str
    precision: str
    row: ExportRow | None
    why: str = ""


@dataclass(frozen=True)
class Packed:
    """A voice as a file to take away."""

    archive: Path
    """The zip."""
    folder: str
    """What it unpacks to."""
    model: str
    """Name of the file that holds the weights."""
    bytes: int
    """Of that file."""
    waveform_error: float | None
    """As in Export."""


@dataclass(frozen=True)
class Parcel:
    """What is to be pushed, and where to."""

    repo: str
    format: str
    precision: str
    private: bool
    read: bool
    """Whether the visitor has read what the licence forbids."""


@dataclass(frozen=True)
class Published:
    """A push that is done."""

    pushed: Pushed
    no_figures: str = ""
    """Why the model card has no measurements, empty where it has them."""


def order_at_hand(which: Any, order: Any) -> Order | None:
    """The healing whose voice is to be shipped, None for the voice as it is pruned.

    Raises:
        InputError: the healed voice is asked for and there is none, or it is forgotten.
    """
    if which != "healed":
        return None
    if not isinstance(order, Order):
        raise InputError(
            "Nothing is healed yet: press Heal in the Heal tab first, or ship the voice as it is pruned."
        )
    if healed.recall(order).voice is None:
        raise InputError(
            "This voice is still being healed: wait for its end, or press Stop in the Heal tab."
        )
    return order


def voice_steps(
    request: Request, order: Order | None, token: str | None
) -> Generator[Update, None, tuple[Voice, Voice]]:
    """Make the voice to be shipped; returns it and its original, both on the CPU.

    Raises:
        InputError: it cannot be made, or is larger than the page writes.
    """
    if order is not None:
        request = order.request
    original = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
    count = sum(parameter.numel() for parameter in original.model.parameters())
    if count > MAX_PARAMETERS:
        raise InputError(
            f"This voice has {count / 1e6:.0f} M parameters and the page writes at most {MAX_PARAMETERS / 1e6:.0f} M: "
            "write it on your own machine, with `python -m vits_prune export`."
        )
    if order is not None:
        return healed.recall(order).voice.to("cpu"), original
    if not (request.spec.amount or request.spec.shape or request.spec.pattern):
        return original, original  # nothing is taken away, and no recipe says that something was
    return (yield from healed.pruning(request, token)).to("cpu"), original


def _first(voice: Voice, request: Request, token: str) -> tuple[Voice | None, Request, str]:
    """Return the voice that a loaded voice was pruned from, the request for it, and where it is None why it cannot be loaded."""
    from vits_prune.ship.reproduce import published

    source = published(voice)
    if source is None:
        return None, request, "its original was a file or folder, which this page cannot open"
    request = dataclasses.replace(request, reference="@".join(filter(None, source)))
    try:
        return (
            workbench.bench.voice(request.reference, request.speaker, token, device="cpu"),
            request,
            "",
        )
    except InputError as error:
        return None, request, f"its original cannot be loaded. {error}"


def name_of(voice: Voice, request: Request, order: Order | None) -> str:
    """A file's name that says which voice it is and what was done to it, such as "joe-second_order-75-healed"."""
    spec = request.spec if order is None else order.request.spec
    how = spec.scope if spec.method == "magnitude" else spec.method
    pruned = f"-{how}-{round(100 * spec.amount)}" if spec.amount or spec.shape else ""
    return f"{file_stem(voice.name)[:60]}{pruned}{'-healed' if order else ''}"


# Every format


def format_steps(voice: Voice, halted: Callable[[], bool]) -> Iterator[Update | list[Line]]:
    """Write the voice in every format, one after the other, and measure each: how far it is, and all Lines so far with each new one.

    A format's files are gone once it is measured. Halted, it ends at once.
    """
    lines: list[Line] = []
    shown = 0
    with contextlib.closing(in_background(lambda tell: _write_all(voice, lines, tell))) as work:
        for step in work:
            if len(lines) > shown:
                shown = len(lines)
                yield list(lines)
            if halted():
                return
            if isinstance(step, Update):
                yield step


def _write_all(voice: Voice, lines: list[Line], tell: Tell) -> None:
    with _turn(tell):
        start = time.monotonic()
        for i, (name, precision) in enumerate(CHOICES):

            def at(what: str, share: float, i: int = i, of: str = f"{name} {precision}") -> None:
                tell(f"{of}: {what}", (i + share) / len(CHOICES))

            if time.monotonic() - start > MAX_SECONDS:
                command = f"python -m vits_prune export --format {name} --precision {precision}"
                why = f"left out: the page writes for {MAX_SECONDS / 60:.0f} minutes; on your own machine: {command}"
                lines.append(Line(name, precision, None, why))
                continue
            at("waiting for those who want to hear", 0.0)
            workbench.bench.let_hearing_pass(_LONGEST_PAUSE)
            lines.append(_line(voice, name, precision, lines, at))


def _line(voice: Voice, name: str, precision: str, before: list[Line], tell: Tell) -> Line:
    """One format, written, measured and removed."""
    from vits_prune.ship.export_report import measure_export

    with tempfile.TemporaryDirectory(dir=_work.name) as folder:
        try:
            export = export_voice(
                voice,
                Path(folder) / name,
                name,
                precision,
                progress=lambda what, share: tell(what, share / 2),
            )
            known = {line.precision: line.row for line in before if line.format == "onnx"}
            twin = known.get(precision) if name == "piper" else None
            if (
                twin is not None
            ):  # the very graph was measured already; only what is beside it differs
                share = export.bytes / 1e6 / twin.megabytes * twin.share
                words = f"the same graph as onnx {precision}" + (
                    f"; {twin.words}" if twin.words else ""
                )
                return Line(
                    name,
                    precision,
                    replace(
                        twin,
                        what=f"piper {precision}",
                        megabytes=export.bytes / 1e6,
                        share=share,
                        words=words,
                    ),
                )
            plain = known.get("fp32")
            rows = measure_export(
                voice,
                export,
                runs=RUNS,
                float32=plain,
                progress=lambda what, share: tell(what, 0.5 + share / 2),
            )
        except InputError as error:
            return Line(name, precision, None, f"does not fit: {error}")
    return Line(name, precision, rows[-1])


@contextlib.contextmanager
def _turn(tell: Tell) -> Iterator[None]:
    """One voice is written at a time: two at once would time each other, and take twice the disk."""
    while not _writing.acquire(timeout=0.2):
        tell("waiting for another export to end", 0.0)
    try:
        yield
    finally:
        _writing.release()


# One file to take away


def pack_steps(
    voice: Voice, name: str, format: str, precision: str, halted: Callable[[], bool]
) -> Iterator[Update | Packed]:
    """One format as a zip file: how far it is, and Packed last. Halted, it ends at once, without.

    Raises:
        InputError: there is no such format, or the voice does not fit it.
    """

    def pack(tell: Tell) -> Packed:
        stem = f"{name}-{format}-{precision}"
        with _turn(tell), tempfile.TemporaryDirectory(dir=_work.name) as folder:
            export = export_voice(
                voice,
                Path(folder) / stem,
                format,
                precision,
                progress=lambda what, share: tell(what, 0.7 * share),
            )
            tell("packing", 0.7)
            archive = shutil.make_archive(
                str(workbench.scratch.folder() / stem), "zip", root_dir=folder, base_dir=stem
            )
            return Packed(
                Path(archive), stem, export.model.name, export.bytes, export.waveform_error
            )

    check_choice(format, precision)
    with contextlib.closing(in_background(pack)) as work:
        for step in work:
            if halted():
                return
            yield step


def check_choice(format: Any, precision: Any) -> None:
    """Whether a format and a precision go together.

    Raises:
        InputError: they do not.
    """
    if (format, precision) not in CHOICES:
        raise InputError("Choose a format, and a precision that it has.")


# To the hub


def push_steps(
    voice: Voice,
    original: Voice,
    parcel: Parcel,
    request: Request,
    order: Order | None,
    token: str,
    halted: Callable[[], bool],
) -> Generator[Update, None, Published | None]:
    """Write all that belongs on the hub and push it in one commit; returns what was published, None where it was halted and nothing was.

    Args:
        voice: what is pushed.
        original: what it is compared with.
        parcel: where to and how.
        request: how it was pruned.
        order: the healing whose voice it is, whose course and figures go into the card.
        token: the visitor's own; no other is ever used.
        halted: whether it is to end. What has been published by then stays, and is returned.

    Raises:
        InputError: the licence's notice was not read, the visitor may not write there, the format does not fit, or the hub refuses.
    """
    from vits_prune.ship.licence import licence_of

    check_choice(parcel.format, parcel.precision)
    if licence_of(voice).needs_consent and not parcel.read:
        raise InputError(
            "Read what is said about the licence of this voice and tick the box under it, then push again."
        )
    found_healed = healed.recall(order) if order else None
    gone = threading.Event()

    def work(tell: Tell) -> Published:
        def tell_or_stop(what: str, share: float) -> None:
            if gone.is_set():
                raise Cancelled
            tell(what, share)

        return _push(voice, original, parcel, request, found_healed, token, tell_or_stop)

    found: Any = None
    try:
        for found in in_background(work):
            if halted():
                gone.set()  # and wait: only the end tells whether anything was published
            if isinstance(found, Update):
                yield Update("stopping", found.fraction) if gone.is_set() else found
    except Cancelled:
        return None
    return found


def _push(
    voice: Voice,
    original: Voice,
    parcel: Parcel,
    request: Request,
    healing: Healing | None,
    token: str,
    tell: Tell,
) -> Published:
    from vits_prune.ship.bundle import write_bundle
    from vits_prune.ship.hub_destination import check_destination
    from vits_prune.ship.hub_push import push_folder

    tell("asking the hub", 0.0)
    with _for_visitors(parcel.repo):
        destination = check_destination(parcel.repo, token=token)
    if destination.holds == "other":
        raise InputError(
            f"{destination.repo_id} holds other files already: choose another name, so that nothing of them is lost."
        )
    if destination.holds_another(voice.name):
        raise InputError(
            f"{destination.repo_id} holds another voice already, {destination.voice!r}: choose another name, so that it is not lost; "
            "nothing was published."
        )
    if parcel.private and destination.private is False:
        raise InputError(
            f"{destination.repo_id} is public already: make it private at {destination.url}/settings first, choose another name, or take "
            "the tick from Private; nothing was published."
        )
    with tempfile.TemporaryDirectory(dir=_work.name) as folder:
        evidence, begun, why_not = None, 0.0, ""
        curve = write_course(healing, Path(folder) / "course") if healing else None
        table, base = healing, original
        if original.recipe:
            table, (base, request, why_not) = (
                None,
                _first(original, healing.order.request if healing else request, token),
            )
        if voice.recipe and base is not None:
            begun = _MEASURING
            try:
                evidence = measured(
                    voice, table, request, token, lambda what, share: tell(what, _MEASURING * share)
                )
            except UnmeasurableError as error:
                why_not = str(error)
        with _turn(tell):
            bundle = write_bundle(
                voice, Path(folder) / "bundle", repo_id=destination.repo_id, format=parcel.format, precision=parcel.precision,
                original=base, evidence=evidence, curve=curve,
                progress=lambda what, share: tell(what, begun + (_BUNDLING - begun) * share),
            )  # fmt: skip

        sending = Progress.of(tell).part(_BUNDLING, 1.0)
        sending.report("sending", 0.0)
        with _for_visitors(destination.repo_id):
            pushed = push_folder(
                bundle.folder,
                destination.repo_id,
                token=token,
                private=parcel.private,
                progress=sending,
            )
    return Published(pushed, why_not)


@contextlib.contextmanager
def _for_visitors(repo: str) -> Iterator[None]:
    """Say what a visitor can do where the hub refuses their log-in: they have no token and no command line here."""
    try:
        yield
    except LoginError as error:
        raise LoginError(
            f"Hugging Face does not let this page write to {repo[:80]}: log out and in again at the top of the page, and choose a new "
            "name, for it may write only to repositories that it made; nothing was published."
        ) from error
