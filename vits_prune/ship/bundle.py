"""Write everything that a push uploads as one folder: export, model card, samples and curves."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import expanded, read_json
from vits_prune.measure.quality import METRICS
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.spec import METHODS
from vits_prune.ship import formats
from vits_prune.ship.card import CARD_MARK, SAMPLES, CardFacts, Picture, Sample, model_card
from vits_prune.ship.card_figures import check_evidence, code, unlike
from vits_prune.ship.formats import Export, export_voice
from vits_prune.synthesis.speak import checked_seed, speak, write_wav
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.manifest import SAVED_FILE
from vits_prune.voices.saved import written_whole
from vits_prune.voices.voice import Voice, draw_texts, spoken_language

CARD = "README.md"
_OURS = re.compile(r"calibration-texts(-\d+)?\.txt|curve-[a-z_]+\.png|healing\.png")
_SAMPLE = re.compile(r"\d+-(original|pruned)\.wav")
MAX_SAMPLES = 10
_SHOWN = ("cer", "distillmos", "dnsmos_ovrl", "visqol", "duration_ratio")
"""Metrics whose curves of a sweep go into the card."""
_MAX_PICTURE_BYTES, _MAX_TEXT_BYTES = 4 << 20, 64 << 20
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Names of columns as `heal` writes them; dollar signs in a stranger's would draw a formula."""
_MOST_COLUMNS = 24
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Bundle:
    """A folder that is ready to be pushed."""

    folder: Path
    card: str
    """The text of its README.md."""
    export: Export


def write_bundle(
    voice: Voice,
    folder: str | Path,
    *,
    repo_id: str,
    format: str = "dense",
    precision: str = "fp32",
    original: Voice | None = None,
    evidence: Mapping[str, Any] | None = None,
    curve: str | Path | None = None,
    samples: int = 3,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Bundle:
    """Write what a push uploads, and nothing else. The folder appears whole or not at all.

    Args:
        voice: what to ship.
        folder: new, empty, or an earlier bundle, which is replaced.
        repo_id: "owner/name", where it is to go: the card's links lead there.
        format, precision: as `export_voice` takes them.
        original: the voice that it was made of, for the comparison; None leaves it out of the card.
        evidence: what `evaluate --json` or `compare` wrote of this voice, or both in one.
        curve: the folder of a sweep, or of a healing (with curve.csv).
        samples: sentences to listen to, 0 to 10.
        seed: of their noise.

    Raises:
        InputError: what does not fit together, or the folder cannot be written.
    """
    target, chosen = expanded(folder), _chosen_repository(repo_id)
    if isinstance(samples, bool) or not isinstance(samples, int) or not 0 <= samples <= MAX_SAMPLES:
        what = f"a whole number from 0 to {MAX_SAMPLES}, not {str(samples)[:40]!r}"
        raise InputError(f"The number of samples must be {what}.")
    seed, voice = checked_seed(seed), voice.to("cpu")
    original = original and _fitting(voice, original.to("cpu"))
    if evidence is not None:
        check_evidence(evidence, voice, original)
    if curve is not None:
        check_curve(expanded(curve), voice)
    with written_whole(target, check_place(target)) as beside:
        export = export_voice(voice, beside, format, precision, progress=progress.part(0, 0.4))
        speaking = progress.part(0.4, 0.95)
        spoken = _speak(export.shipped, original, beside, samples, seed, speaking)
        pictures = () if curve is None else copy_curves(expanded(curve), beside, evidence or {})
        facts = CardFacts(chosen, voice, export, original, spoken, seed, evidence, pictures)
        progress.report("writing the model card", 0.95)
        card = model_card(facts)
        for name, content in {**facts.reproduction.files, CARD: card}.items():
            (beside / name).write_text(content, encoding="utf-8")
    progress.report("written", 1.0)
    export = dataclasses.replace(export, folder=target, model=target / export.model.name)
    return Bundle(target, card, export)


def _chosen_repository(repo_id: str) -> str:
    named, revision = parse_repo_id(repo_id)
    if revision is not None:
        raise InputError("A push goes to the main branch: leave the revision out of the name.")
    return named


def check_place(folder: Path) -> str:
    """Return the file by which an earlier bundle is known.

    Raises:
        InputError: the folder holds something else.
    """
    manifests = [name for name in (SAVED_FILE, formats.EXPORT_FILE) if (folder / name).is_file()]
    if manifests and CARD_MARK.encode() in _read(folder / CARD, _MAX_TEXT_BYTES):
        if others := _others_in(folder):
            what = f"{folder} holds {min(others)[:80]!r}, which no bundle has"
            raise InputError(f"{what} and which would be removed: give a new folder's name.")
        return manifests[0]
    with contextlib.suppress(OSError):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return SAVED_FILE
    raise InputError(f"{folder} exists and is no earlier bundle: give a new folder's name.")


def _others_in(folder: Path) -> set[str]:
    """What is in the folder of an earlier bundle that no bundle writes."""
    ours = formats.files_of_ours(folder) | {CARD}
    names = {path.name for path in folder.iterdir()} - ours
    found = {name for name in names if not _OURS.fullmatch(name)}
    samples = folder / SAMPLES
    if SAMPLES in found and samples.is_dir() and not samples.is_symlink():
        found.remove(SAMPLES)
        names = {path.name for path in samples.iterdir()}
        found |= {f"{SAMPLES}/{name}" for name in names if not _SAMPLE.fullmatch(name)}
    return found


def _fitting(voice: Voice, original: Voice) -> Voice:
    """The original, with the speaker of the voice; InputError if the voice was not made of it."""
    if original.recipe:
        what = f"{original.name} was itself pruned or healed"
        raise InputError(f"{what}: give the first original of {voice.name}, or none.")
    facts = {
        "sampling rate": lambda one: one.sampling_rate,
        "vocabulary": lambda one: one.model.config.vocab_size,
        "number of speakers": lambda one: len(one.speakers),
    }
    for what, fact in facts.items():
        mine, other = fact(voice), fact(original)
        if mine != other:
            why = f"{voice.name} was not made of {original.name}"
            raise InputError(f"{why} (its {what} is {mine}, not {other}): give its own, or none.")
    return original.with_speaker(voice.speaker)


def sample_texts(voice: Voice, count: int) -> tuple[str, ...]:
    """Return English sentences that were never tuned on, or draws from another vocabulary."""
    if spoken_language(voice) == "en":
        return load_texts(count) if count else ()
    with contextlib.suppress(InputError):
        return draw_texts(voice, count, seed=0) if count else ()
    return ()


def _speak(
    voice: Voice, original: Voice | None, folder: Path, count: int, seed: int, progress: Progress
) -> tuple[Sample, ...]:
    """Speak the samples into files."""
    found: list[Sample] = []
    voices = {"original": original, "pruned": voice}
    for number, text in enumerate(progress.track(sample_texts(voice, count), "speaking sample"), 1):
        files: dict[str, str | None] = dict.fromkeys(voices)
        for which, one in voices.items():
            progress.raise_if_cancelled()
            if one is not None:
                (folder / SAMPLES).mkdir(exist_ok=True)
                files[which] = f"{SAMPLES}/{number}-{which}.wav"
                speech = speak(one, text, seed)
                write_wav(speech, folder / f"{files[which]}")
        found.append(Sample(text, str(files["pruned"]), files["original"]))
    return tuple(found)


def check_curve(source: Path, voice: Voice | None = None) -> None:
    """Raise InputError if a folder has no curve, or a healing's and the voice was not healed."""
    course = (source / "curve.csv").is_file()
    if not course and not any((source / f"curve-{name}.png").is_file() for name in _SHOWN):
        what = f"{source} has no curve"
        raise InputError(f"{what}: give the folder of a `sweep`, or of a healing (DIR-healing).")
    if course and voice is not None and not voice.recipe.get("healed"):
        what = f"{source} has the course of a healing, and {voice.name} was not healed"
        raise InputError(f"{what}: leave the curve out, or push the healed voice.")


def copy_curves(
    source: Path, folder: Path, evidence: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Picture, ...]:
    """Put the pictures of a sweep's folder, or the curve of a healing, into a bundle.

    Their words say so if they were measured otherwise than the `evidence` of the card.
    """
    check_curve(source)
    found: list[Picture] = []
    for metric in _SHOWN:
        name = f"curve-{metric}.png"
        content = _read(source / name, _MAX_PICTURE_BYTES)
        if content.startswith(_PNG):
            (folder / name).write_bytes(content)
            words = "" if found else _words_of_sweep(source, evidence)
            found.append(Picture(name, f"{METRICS[metric].title} against amount", words))
    if (source / "curve.csv").is_file():
        found.append(_healing(source, folder, evidence))
    return tuple(found)


def _healing(source: Path, folder: Path, evidence: Mapping[str, Any]) -> Picture:
    """The curve drawn from its curve.csv: a picture of strangers could hold a script."""
    from vits_prune.healing.storage import MAX_DRAWN_ROWS, Curve, curve_figure

    what = f"{source / 'curve.csv'} is not the course of a healing"
    unreadable = InputError(f"{what}: give the folder that `heal` wrote.")
    try:
        curve = Curve.read(source / "curve.csv", max_rows=10 * MAX_DRAWN_ROWS)
    except DamagedFileError as error:
        raise unreadable from error
    every = dict.fromkeys(name for row in curve.rows for name in row)
    names = [name for name in every if _COLUMN.fullmatch(name)][:_MOST_COLUMNS]
    rows = [{name: row[name] for name in names if name in row} for row in curve.rows]
    if len(names) < 2 or "step" not in names:
        raise unreadable
    name, title = "healing.png", "losses by step; below, changes from the original in quality"
    try:
        curve_figure(rows, title).savefig(folder / name)
    except (ValueError, OverflowError) as error:  # numbers that cannot be drawn
        raise unreadable from error
    words = "The course of its healing: each loss, and what was measured of the checkpoints."
    measured = any(one.startswith("measured_") for one in names)
    warning = unlike(evidence, [curve.signature]) if measured else ""
    return Picture(name, "losses against steps", f"{words} {warning}".rstrip())


def _words_of_sweep(source: Path, evidence: Mapping[str, Any]) -> str:
    """What a sweep's pictures show, as Markdown."""
    manifest: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        manifest = read_json(source / "sweep.json", max_bytes=_MAX_TEXT_BYTES)
    voice, texts = manifest.get("voice"), manifest.get("texts")
    name = voice.get("name") if isinstance(voice, dict) else None
    count = f" over {len(texts)} sentences" if isinstance(texts, list) else ""
    of = f" of {code(name, 80)}" if name else ""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError, csv.Error):
        text = _read(source / "sweep.csv", _MAX_TEXT_BYTES).decode("utf-8")
        rows = list(csv.DictReader(text.splitlines()))
    used = {row.get("method") for row in rows}
    methods = ", ".join(METHODS[method].title for method in METHODS if method in used)
    by = f" by {methods}" if methods else ""
    what = f"A sweep of amounts{of}{count}: pruned{by} to each amount on its own, without healing."
    warning = unlike(evidence, dict.fromkeys(row.get("signature") or "" for row in rows))
    return f"{what} {warning}".rstrip()


def _read(path: Path, most: int) -> bytes:
    """A file's content, nothing if there is none or more than a bound."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError:
        return b""
    return content if len(content) <= most else b""
