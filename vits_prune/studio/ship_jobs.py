"""Shipping from the page: the voice at hand in every format that it fits, or in one as a zip."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.ship.bench import NEEDS
from vits_prune.ship.formats import FORMATS, export_voice, file_stem
from vits_prune.studio import heal_jobs, workbench
from vits_prune.studio.descriptions import check_size
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.jobs import until_halted
from vits_prune.studio.request import Request
from vits_prune.threads import WaitingLine
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from vits_prune.ship.export_report import ExportRow

CHOICES = tuple((name, one) for name, kind in FORMATS.items() for one in kind.precisions)
"""Every format with every precision that it has."""
MAX_SECONDS = 300.0
"""No further format is begun after this."""
RUNS = 1
"""Of each sentence in each timing."""
_LONGEST_PAUSE = 5.0

work = tempfile.TemporaryDirectory(prefix="vits_prune-ship-")
"""A folder for each voice that is being written."""
one_at_a_time = WaitingLine()
"""Held while a voice is written: two at once would time each other, and take twice the disk."""
WAITING = "waiting for another export to end"


@dataclass(frozen=True)
class AtHand:
    """What to ship: the pruned voice of a request, or the healed one of a job."""

    request: Request
    job: HealJob | None = None

    def name(self, voice: Voice) -> str:
        """Return a file name that says what was done, such as "joe-second_order-75-healed"."""
        spec = self.request.spec
        how = spec.scope if spec.method == "magnitude" else spec.method
        pruned = f"-{how}-{round(100 * spec.amount)}" if spec.amount or spec.shape else ""
        return f"{file_stem(voice.name)[:60]}{pruned}{'-healed' if self.job else ''}"

    def make(self, token: str | None, progress: Progress) -> tuple[Voice, Voice]:
        """Return the voice to ship and its original, both on the CPU.

        Raises:
            InputError: the voice cannot be made, or is larger than the page writes.
        """
        request, spec = self.request, self.request.spec
        original = workbench.bench.voice(request.reference, request.speaker, token, device="cpu")
        check_size(original, "write", "export")
        if self.job and self.job.voice:
            return self.job.voice.to("cpu"), original
        if spec.idle:
            return original, original  # its recipe must not say that something was pruned
        return workbench.bench.pruned(request, token, progress).to("cpu"), original


def at_hand(request: Request, which: Any, order: Any) -> AtHand:
    """Return what to ship.

    Args:
        request: of the controls.
        which: "healed", or "pruned" as the controls say.
        order: of the last healing.

    Raises:
        InputError: the healed voice is asked for and is not there.
    """
    if which != "healed":
        return AtHand(request)
    heal_jobs.voice_of(order)
    return AtHand(order.request, heal_jobs.recall(order))


def healed_at_hand(order: Any) -> AtHand | None:
    """Return the healed voice of an order to ship, None if there is none."""
    try:
        heal_jobs.voice_of(order)
        return AtHand(order.request, heal_jobs.recall(order))
    except InputError:
        return None


def check_choice(format: Any, precision: Any) -> None:
    """Raise InputError if a format does not have a precision."""
    if (format, precision) not in CHOICES:
        raise InputError("Choose a format, and a precision that it has.")


# Every format


@dataclass(frozen=True)
class Line:
    """A format in the table: what was measured, or why nothing was."""

    format: str
    precision: str
    row: ExportRow | None
    why: str = ""


def write_all(voice: Voice, halted: Callable[[], bool], progress: Progress) -> Iterator[list[Line]]:
    """Write and measure a voice in one format after the other; yield all lines so far each time.

    A format's files are removed once it is measured. Halted, this ends at once.
    """
    lines: list[Line] = []
    start = time.monotonic()
    for i, (name, precision) in enumerate(CHOICES):
        if time.monotonic() - start > MAX_SECONDS:
            why = (
                f"left out: the page writes for {MAX_SECONDS / 60:.0f} minutes; on your own"
                f" machine: python -m vits_prune export --format {name} --precision {precision}"
            )
            lines.append(Line(name, precision, None, why))
        else:
            count = len(CHOICES)
            part = progress.part(i / count, (i + 1) / count, f"{name} {precision}: ")
            line = until_halted(partial(write_line, voice, name, precision, lines), halted, part)
            if line is None:
                return
            lines.append(line)
        yield list(lines)


def write_line(
    voice: Voice, name: str, precision: str, before: list[Line], progress: Progress
) -> Line:
    """Write, measure and remove one format; `before` are the lines of this voice so far."""
    from vits_prune.ship.export_report import measure_export

    progress.report("waiting for those who want to hear", 0.0)
    workbench.bench.let_hearing_pass(_LONGEST_PAUSE)
    known = {line.precision: line.row for line in before if line.format == "onnx"}
    turn, what = one_at_a_time.turn(progress, WAITING), f"{name} {precision}"
    with turn, tempfile.TemporaryDirectory(dir=work.name) as folder:
        writing, measuring = progress.part(0.0, 0.5), progress.part(0.5, 1.0)
        try:
            export = export_voice(voice, Path(folder) / name, name, precision, progress=writing)
            twin = known.get(precision) if name == "piper" else None
            if twin is not None:  # the graph is measured already, only the files around it differ
                megabytes = export.bytes / 1e6
                words = "; ".join(filter(None, (f"the same graph as onnx {precision}", twin.words)))
                share = twin.share * megabytes / twin.megabytes
                row = replace(twin, what=what, megabytes=megabytes, share=share, words=words)
                return Line(name, precision, row)
            rows = measure_export(
                voice, export, runs=RUNS, float32=known.get("fp32"), progress=measuring
            )
        except InputError as error:
            return Line(name, precision, None, f"does not fit: {error}")
    return Line(name, precision, rows[-1])


def rows_of(lines: list[Line]) -> list[dict[str, Any]]:
    """Return the lines as numbers, None where nothing was measured, and words."""
    rows = []
    for line in lines:
        row, sound = line.row, line.row and line.row.closeness
        rows.append({
            "format": line.format,
            "precision": line.precision,
            "megabytes": row and row.megabytes,
            "share_of_dense_fp32": row and row.share,
            "load_ms": row and row.load_ms,
            "real_time_factor": row and row.real_time_factor,
            "mel_levels_off_db": sound and sound.log_mel_db,
            "durations_off": sound and sound.drift,
            "in_words": row.words if row else line.why,
        })  # fmt: skip
    return rows


# One file to take away


@dataclass(frozen=True)
class Zip:
    """A voice as a zip file."""

    archive: Path
    folder: str
    """What it unpacks to."""
    model: str
    """Name of the file that holds the weights."""
    bytes: int
    """Of that file."""
    waveform_error: float | None
    """As in Export."""

    def __str__(self) -> str:
        words = f"**{self.model}** in it has {self.bytes / 1e6:.2f} MB."
        if self.waveform_error is not None:
            words += (
                " onnxruntime says what torch says: no sample is off by more than"
                f" {self.waveform_error:.0e} (same weights, no noise)."
            )
        return words


def write_zip(voice: Voice, name: str, format: str, precision: str, progress: Progress) -> Zip:
    """Write one format as a zip file.

    Raises:
        InputError: there is no such format, or the voice does not fit it.
    """
    check_choice(format, precision)
    stem = f"{name}-{format}-{precision}"
    turn = one_at_a_time.turn(progress, WAITING)
    with turn, tempfile.TemporaryDirectory(dir=work.name) as folder:
        export = export_voice(
            voice, Path(folder) / stem, format, precision, progress=progress.part(0.0, 0.7)
        )
        progress.report("packing", 0.7)
        base = str(workbench.scratch.folder() / stem)
        archive = shutil.make_archive(base, "zip", root_dir=folder, base_dir=stem)
        return Zip(Path(archive), stem, export.model.name, export.bytes, export.waveform_error)


def usage(folder: str, format: str, model: str, plain: bool) -> tuple[str, str]:
    """Return lines of Python and of a shell that use a shipped voice.

    Args:
        folder: what the zip unpacks to.
        format: one of FORMATS.
        model: name of the .onnx file, "" if there is none.
        plain: whether transformers opens the dense folder.
    """
    python = f'from vits_prune import load_voice\n\nvoice = load_voice("{folder}")'
    if plain and format == "dense":
        python += (
            "\n\n# or in plain transformers\nfrom transformers import VitsModel\n\n"
            f'model = VitsModel.from_pretrained("{folder}")'
        )
    options = "--threads 1,2 --json board.json"
    if not model:
        return python, f"# with {NEEDS} there\npython -m vits_prune bench . {options}"
    shell = f"pip install onnxruntime numpy && python bench.py {model} {options}"
    if format == "piper":
        shell += (
            "\n\n# the stock Piper runtime\npip install piper-tts && python -m piper"
            f' -m {model} -f hello.wav -- "Hello."'
        )
    return python, shell
