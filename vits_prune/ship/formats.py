"""export_voice: a Voice in one of the formats in which voices are used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.ship import bench as standalone
from vits_prune.ship.bench_folder import plan_of
from vits_prune.ship.onnx_check import check_onnx
from vits_prune.ship.onnx_graph import write_onnx
from vits_prune.ship.piper_settings import piper_settings, sherpa_facts, tokens_file
from vits_prune.synthesis.stages import MAX_SENTENCE_SECONDS
from vits_prune.voices.checkpoint import require_finite
from vits_prune.voices.load import load_folder
from vits_prune.voices.manifest import EXPORT, files_of_save
from vits_prune.voices.manifest import MANIFEST as SAVED
from vits_prune.voices.onnx_facts import facts_of, reading_of
from vits_prune.voices.onnx_load import checksums_in, is_export, model_in
from vits_prune.voices.piper_text import TOKENIZER_FILE, PiperTokenizer
from vits_prune.voices.saved import WEIGHTS, save_voice, written_whole
from vits_prune.voices.voice import Voice

Step = Callable[[str, float], None]
"""Told what is being done and the share that is done, 0 to 1; it may raise to cancel."""
MANIFEST = EXPORT.name
"""In a folder that an ONNX export wrote; what has it may be replaced by another export."""


@dataclass(frozen=True)
class Format:
    """A kind of file that a voice can be written to."""

    words: str
    """What it is for."""
    precisions: tuple[str, ...]
    write: Callable[[Voice, Path, str, Step], Written]
    """Writes the folder."""


@dataclass(frozen=True)
class Written:
    """What a format wrote."""

    model: str
    """Name of the file that holds the weights."""
    shipped: Voice
    """The voice with the weights that the files hold."""
    error: float | None = None
    """How far the ONNX waveform is from it."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    format: str
    precision: str
    folder: Path
    model: Path
    """The file that holds the weights."""
    files: dict[str, int]
    """Bytes by name, of every file."""
    shipped: Voice
    """The voice with the weights that the files hold."""
    waveform_error: float | None
    """Largest difference of a sample in onnxruntime from torch, with the same weights and no noise; None where nothing was converted."""

    @property
    def bytes(self) -> int:
        """Of the file that holds the weights."""
        return self.files[self.model.name]


def export_voice(
    voice: Voice,
    folder: str | Path,
    format: str = "dense",
    precision: str = "fp32",
    *,
    progress: Step | None = None,
) -> Export:
    """Write a voice in a format. The folder appears whole or not at all.

    Args:
        voice: any voice, pruned or not.
        folder: new, empty, or of an earlier export with nothing else in it, which is replaced.
        format: one of FORMATS.
        precision: of the stored weights, one that the format has.
        progress: told of the progress.

    Raises:
        InputError: no such format or precision, the voice does not fit the format, what was written does not say what the voice says, or
            the folder cannot be written.
    """
    kind = FORMATS.get(format)
    if kind is None:
        raise InputError(f"There is no format {str(format)[:20]!r}: choose {', '.join(FORMATS)}.")
    if precision not in kind.precisions:
        raise InputError(
            f"The format {format} has the precisions {', '.join(kind.precisions)}, not {str(precision)[:20]!r}."
        )
    target, tell = Path(folder), progress or (lambda _what, _share: None)
    check_export_place(target)
    _require_kind(target, SAVED if format in WEIGHTS else MANIFEST)
    voice = voice.to("cpu")
    require_finite(voice.model, voice.name)
    written = kind.write(voice, target, precision, tell)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    tell("written", 1.0)
    return Export(
        format, precision, target, target / written.model, files, written.shipped, written.error
    )


def _dense(voice: Voice, folder: Path, precision: str, tell: Step) -> Written:
    return _saved(voice, folder, "dense", precision, tell)


def _sparse(voice: Voice, folder: Path, precision: str, tell: Step) -> Written:
    return _saved(voice, folder, "sparse", precision, tell)


def _saved(voice: Voice, folder: Path, form: Any, precision: Any, tell: Step) -> Written:
    tell(f"writing the {form} {precision} folder", 0.1)
    save_voice(voice, folder, form, precision)
    tell("reading it back", 0.7)
    return Written(WEIGHTS[form], load_folder(folder))


def _onnx(voice: Voice, folder: Path, precision: str, tell: Step) -> Written:
    return _graph(voice, folder, precision, tell, None)


def _piper(voice: Voice, folder: Path, precision: str, tell: Step) -> Written:
    return _graph(voice, folder, precision, tell, piper_settings(voice))


def _graph(
    voice: Voice, folder: Path, precision: str, tell: Step, settings: dict[str, Any] | None
) -> Written:
    """The ONNX file, what its readers need beside it, and the bench."""
    stem, form = file_stem(voice.name), "piper" if settings else "onnx"
    with written_whole(folder, MANIFEST) as beside:
        tell("writing the graph", 0.05)
        if not settings:
            voice.tokenizer.save(str(beside))
        reading = reading_of(PiperTokenizer(settings) if settings else _tokenizer_in(beside))
        facts = facts_of(voice, form, precision, reading) | (
            sherpa_facts(voice, settings) if settings else {}
        )
        plan = plan_of(voice)
        inside = json.dumps(plan, ensure_ascii=False, separators=(",", ":"))
        if (
            len(inside) <= standalone.MAX_METADATA
        ):  # so that the bench needs nothing beside the file
            facts |= {standalone.METADATA: inside}
        written = write_onnx(voice, precision, most_frames=_most_frames(voice), facts=facts)
        model = beside / f"{stem}.onnx"
        model.write_bytes(written.data)
        tell("comparing it with the voice, in onnxruntime", 0.2)
        shipped = voice.with_weights(written.rounded) if written.rounded else voice
        error = check_onnx(model, shipped)
        tell("writing what goes beside it", 0.9)
        if settings:
            _write_json(beside / f"{stem}.onnx.json", settings)
            (beside / "tokens.txt").write_text(tokens_file(settings), encoding="utf-8")
        whole = [
            path for path in sorted(beside.iterdir()) if not settings or path == model
        ]  # the Piper runtime's .json may be edited
        checksums = EXPORT.checksums(whole)
        _write_json(standalone.sentences_beside(model), {**plan, "sha256": checksums[model.name]})
        shutil.copyfile(Path(standalone.__file__), beside / "bench.py")
        about = {
            "name": voice.name,
            "format": form,
            "precision": precision,
            "waveform_error": error,
            EXPORT.entry: checksums,
            "origin": dataclasses.asdict(voice.origin),
            "recipe": dict(voice.recipe),
        }
        EXPORT.write(beside, about)
    return Written(model.name, shipped, error)


def _tokenizer_in(folder: Path) -> Path | PiperTokenizer:
    """What reads text, in a folder that it was saved to."""
    return PiperTokenizer.load(folder) if (folder / TOKENIZER_FILE).is_file() else folder


def check_export_place(folder: Path) -> None:
    """Refuse a folder that an export would take something from: what it replaces it removes.

    Raises:
        InputError: the folder holds anything but what an earlier export or save wrote, or cannot be read.
    """
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if not held:
            return
        others = held - files_of_ours(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}): give the name of a new folder."
        ) from error
    if others == held:
        raise InputError(
            f"{folder} exists and is not a saved voice: give the name of a folder that is new, empty or was saved before."
        )
    if others:
        raise InputError(
            f"{folder} holds {sorted(others)[0][:80]!r}, which no export wrote and which would be removed: give the name of a new folder, "
            "or take it out."
        )


def _require_kind(folder: Path, manifest: str) -> None:
    """Refuse to put an export in the place of one of another kind.

    Raises:
        InputError: the folder holds one.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / manifest).is_file():
        raise InputError(
            f"{folder} holds an export of another format: give the name of a new folder."
        )


def check_own_place(reference: str, folder: Path) -> None:
    """Refuse to write an export over the folder of the voice that is exported.

    Args:
        reference: what the voice was loaded from.
        folder: where the export is to go.

    Raises:
        InputError: it is the voice's own folder, or the one with its file.
    """
    source = Path(reference).expanduser()
    if (
        source.exists()
        and folder.exists()
        and folder.resolve() in (source.resolve(), source.resolve().parent)
    ):
        raise InputError(
            f"{folder} is the folder of the voice itself, which would be removed: give the name of a new folder."
        )


def files_of_ours(folder: Path) -> set[str]:
    """The files of a folder that a save or an export wrote, by what it wrote of them; empty for any other folder."""
    if (folder / SAVED).is_file():
        return files_of_save(folder)
    if (folder / MANIFEST).is_file() and is_export(folder):
        with contextlib.suppress(InputError):
            model = model_in(folder)
            if model is not None:
                beside = {
                    f"{model.name}.json",
                    "tokens.txt",
                    standalone.sentences_beside(model).name,
                    "bench.py",
                    MANIFEST,
                }
                return {*checksums_in(folder), *beside}
    return set()


def write_float32_twin(voice: Voice, export: Export, folder: Path) -> Path:
    """The float32 graph of an exported voice with the export's sentences beside it, to be timed with it; nothing is checked or measured."""
    model = folder / export.model.name
    model.write_bytes(write_onnx(voice.to("cpu"), "fp32", most_frames=_most_frames(voice)).data)
    plan = standalone.read_plan(export.model)
    _write_json(
        standalone.sentences_beside(model),
        {key: value for key, value in plan.items() if key != "sha256"},
    )
    return model


def _most_frames(voice: Voice) -> int:
    return int(MAX_SENTENCE_SECONDS * voice.sampling_rate / voice.hop_length)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_stem(name: str) -> str:
    """A voice's name as the name of a file, "owner/voice" as "owner-voice"."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-")[:80] or "voice"


FORMATS = {
    "dense": Format(
        "safetensors, which load_voice and, for that family, VitsModel.from_pretrained open",
        ("fp32", "fp16"),
        _dense,
    ),
    "sparse": Format("safetensors without the zeros, for load_voice", ("fp32", "fp16"), _sparse),
    "onnx": Format("one ONNX graph, for onnxruntime", ("fp32", "fp16", "int8"), _onnx),
    "piper": Format(
        "an ONNX graph with what the Piper runtime and sherpa-onnx read",
        ("fp32", "fp16", "int8"),
        _piper,
    ),
}
"""The formats by name."""
