"""Write a Voice in one of the formats in which voices are used.

A Piper voice comes with the .json that Piper reads and the tokens.txt that sherpa-onnx reads.
"""

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
from vits_prune.files import expanded, write_json
from vits_prune.progress import SILENT, Progress
from vits_prune.ship import bench as standalone
from vits_prune.ship.onnx_graph import write_onnx
from vits_prune.ship.torch_reference import bench_plan, check_onnx
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.checkpoint import require_finite
from vits_prune.voices.load import load_folder
from vits_prune.voices.manifest import (
    EXPORT,
    SAVED_FILE,
    WEIGHT_FILES,
    facts_of,
    files_of_save,
    reading_of,
)
from vits_prune.voices.onnx_load import checksums_in, is_export, model_in
from vits_prune.voices.piper_text import TOKENIZER_FILE, PiperTokenizer
from vits_prune.voices.saved import save_voice, written_whole
from vits_prune.voices.voice import Voice, without_masks

EXPORT_FILE = EXPORT.name
"""In a folder that an ONNX export wrote; what has it may be replaced by another export."""
_BLANK, _BEGIN, _END = "_", "^", "$"
_MOST_DROPPED = 0.01
"""Share of espeak-ng's phonemes, in running English, that a fitting voice may lack symbols for."""


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
    """Largest difference of a sample in onnxruntime from torch, with the same weights and no noise;
    None if nothing was converted."""

    @property
    def bytes(self) -> int:
        """Of the file that holds the weights."""
        return self.files[self.model.name]


Written = tuple[str, Voice, float | None]
"""What a format wrote: `Export.model`'s name, `shipped` and `waveform_error`."""


@dataclass(frozen=True)
class Format:
    """A kind of file that a voice can be written to."""

    words: str
    """What it is for."""
    precisions: tuple[str, ...]
    write: Callable[[Voice, Path, str, Any, Progress], Written]
    """Writes a folder in a format and a precision."""


def export_voice(
    voice: Voice,
    folder: str | Path,
    format: str = "dense",
    precision: str = "fp32",
    *,
    progress: Progress = SILENT,
) -> Export:
    """Write a voice in a format. The folder appears whole or not at all.

    Args:
        voice: any voice.
        folder: new, empty, or of an earlier export with nothing else in it, which is replaced.
        format, precision: one of FORMATS, and one of its precisions for the stored weights.
        progress: of the writing.

    Raises:
        InputError: the voice does not fit the format, what was written does not say what the voice
            says, or the folder cannot be written.
    """
    kind = FORMATS.get(format)
    if kind is None:
        raise InputError(f"There is no format {str(format)[:20]!r}: choose {', '.join(FORMATS)}.")
    if precision not in kind.precisions:
        known = ", ".join(kind.precisions)
        raise InputError(f"The format {format} has the precisions {known}, not {precision!r:.22}.")
    target = expanded(folder)
    check_export_place(target)
    manifest = SAVED_FILE if format in WEIGHT_FILES else EXPORT_FILE
    if target.is_dir() and any(target.iterdir()) and not (target / manifest).is_file():
        raise InputError(f"{target} holds an export of another format: give a new folder's name.")
    voice = without_masks(voice.to("cpu"))
    require_finite(voice.model, voice.name)
    model, shipped, error = kind.write(voice, target, format, precision, progress)
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    progress.report("written", 1.0)
    return Export(format, precision, target, target / model, files, shipped, error)


def _write_folder(
    voice: Voice, folder: Path, form: Any, precision: Any, progress: Progress
) -> Written:
    progress.report(f"writing the {form} {precision} folder", 0.1)
    save_voice(voice, folder, form, precision)
    progress.report("reading it back", 0.7)
    return WEIGHT_FILES[form], load_folder(folder), None


def _write_graph(
    voice: Voice, folder: Path, form: str, precision: str, progress: Progress
) -> Written:
    """Write the ONNX file, what its readers need next to it, and the bench."""
    settings = piper_settings(voice) if form == "piper" else {}
    with written_whole(folder, EXPORT_FILE) as place:
        progress.report("writing the graph", 0.05)
        if not settings:
            voice.tokenizer.save(str(place))
        plan = bench_plan(voice)
        facts = facts_of(voice, form, precision, _reading(settings, place))
        facts |= sherpa_facts(voice, settings) if settings else {}
        inside = json.dumps(plan, ensure_ascii=False, separators=(",", ":"))
        if len(inside) <= standalone.MAX_METADATA:
            facts[standalone.METADATA] = inside
        graph = write_onnx(voice, precision, facts)
        model = place / f"{file_stem(voice.name)}.onnx"
        model.write_bytes(graph.data)
        progress.report("comparing it with the voice, in onnxruntime", 0.2)
        shipped = voice.with_weights(graph.rounded) if graph.rounded else voice
        error = check_onnx(model, shipped)
        progress.report("writing what goes with it", 0.9)
        # The .json of the Piper runtime may be edited: it has no checksum.
        checksums = EXPORT.checksums([model] if settings else place.iterdir())
        if settings:
            write_json(place / f"{model.name}.json", settings, indent=1)
            (place / "tokens.txt").write_text(tokens_file(settings), encoding="utf-8")
        sentences = {**plan, "sha256": checksums[model.name]}
        write_json(standalone.sentences_beside(model), sentences, indent=1)
        shutil.copyfile(Path(standalone.__file__), place / "bench.py")
        about = {
            "name": voice.name,
            "format": form,
            "precision": precision,
            "waveform_error": error,
            EXPORT.entry: checksums,
            "origin": dataclasses.asdict(voice.origin),
            "recipe": dict(voice.recipe),
        }
        EXPORT.write(place, about)
    return model.name, shipped, error


def _reading(settings: dict[str, Any], folder: Path) -> str:
    """The checksum of what turns text into ids, in Piper's settings or the tokenizer's folder."""
    if settings:
        return reading_of(PiperTokenizer(settings))
    own = (folder / TOKENIZER_FILE).is_file()
    return reading_of(PiperTokenizer.load(folder) if own else folder)


def check_export_place(folder: Path) -> None:
    """Raise InputError if a folder holds anything but what an earlier export or save wrote."""
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        others = held - files_of_ours(folder) if held else set()
    except OSError as error:
        what = f"{folder} cannot be read ({error.strerror})"
        raise InputError(f"{what}: give a new folder's name.") from error
    if others and others == held:
        raise InputError(f"{folder} exists and is not a saved voice: give a new folder.")
    if others:
        what = f"{folder} holds {min(others)[:80]!r}, which no export wrote"
        raise InputError(f"{what} and which would be removed: give a new folder's name.")


def check_own_place(reference: str, folder: Path) -> None:
    """Raise InputError if the voice that is exported was loaded from this folder."""
    source = expanded(reference)
    own = (source.resolve(), source.resolve().parent)
    if source.exists() and folder.exists() and folder.resolve() in own:
        what = f"{folder} is the folder of the voice itself, which would be removed"
        raise InputError(f"{what}: give a new folder's name.")


def files_of_ours(folder: Path) -> set[str]:
    """Return the files of a folder that a save or an export wrote; none for any other folder."""
    if (folder / SAVED_FILE).is_file():
        return files_of_save(folder)
    with contextlib.suppress(InputError):
        if (folder / EXPORT_FILE).is_file() and is_export(folder) and (model := model_in(folder)):
            sentences = standalone.sentences_beside(model).name
            others = {f"{model.name}.json", "tokens.txt", sentences, "bench.py", EXPORT_FILE}
            return {*checksums_in(folder), *others}
    return set()


def write_float32_twin(voice: Voice, export: Export, folder: Path) -> Path:
    """Write the float32 graph of an exported voice with the export's sentences, to be timed."""
    model = folder / export.model.name
    model.write_bytes(write_onnx(voice.to("cpu")).data)
    plan = standalone.read_plan(export.model)
    plan.pop("sha256", None)
    write_json(standalone.sentences_beside(model), plan, indent=1)
    return model


def file_stem(name: str) -> str:
    """Return a voice's name as the name of a file, "owner/voice" as "owner-voice"."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-")[:80] or "voice"


_PLAIN, _ROUNDED = ("fp32", "fp16"), ("fp32", "fp16", "int8")
_DENSE = "safetensors, which load_voice and, for that family, VitsModel.from_pretrained open"
_SPARSE = "safetensors without zeros, rounded weights in their few bits, for load_voice"
_ONNX = "one ONNX graph, for onnxruntime"
_PIPER = "an ONNX graph with what the Piper runtime and sherpa-onnx read"
FORMATS = {
    "dense": Format(_DENSE, _PLAIN, _write_folder),
    "sparse": Format(_SPARSE, _PLAIN, _write_folder),
    "onnx": Format(_ONNX, _ROUNDED, _write_graph),
    "piper": Format(_PIPER, _ROUNDED, _write_graph),
}
"""The formats by name."""


def piper_settings(voice: Voice) -> dict[str, Any]:
    """Return the contents of the .json, with what a Piper voice's own .json states.

    Raises:
        InputError: the Piper runtime cannot read text to this voice.
    """
    config, own = voice.model.config, voice.tokenizer.piper_settings()
    if own["phoneme_type"] == "espeak":
        symbols = {symbol: list(ids) for symbol, ids in voice.tokenizer.symbols.items()}
        if own["phoneme_id_map"] != symbols:  # made for the export, not the voice's own
            _require_symbols(voice, own)
    return {
        "audio": {"sample_rate": voice.sampling_rate, "quality": "custom", **own.get("audio", {})},
        "phoneme_type": own["phoneme_type"],
        "espeak": own.get("espeak", {"voice": ""}),
        "phoneme_id_map": own["phoneme_id_map"],
        **({"vowel_clusters": own["vowel_clusters"]} if "vowel_clusters" in own else {}),
        "inference": {
            "noise_scale": float(voice.model.noise_scale),
            "length_scale": round(1 / float(voice.model.speaking_rate), 12),
            "noise_w": float(voice.model.noise_scale_duration),
        },
        "phoneme_map": {},
        "num_symbols": config.vocab_size,
        "num_speakers": config.num_speakers,
        "speaker_id_map": {name: index for index, name in enumerate(voice.speakers)},
        "default_speaker_id": voice.speaker or 0,
        "hop_length": voice.hop_length,
        "language": own.get("language") or {"code": _language(voice)},
        "dataset": own.get("dataset", voice.name),
        "piper_version": own.get("piper_version", "1.0.0"),
    }


def _require_symbols(voice: Voice, reading: dict[str, Any]) -> None:
    """Raise InputError if a voice lacks symbols for many phonemes of running English."""
    said = dropped = 0
    reader = PiperTokenizer(reading)
    for text in load_texts(20):
        for sentence in reader.sentences(text):
            said += len(sentence.ids) // 2
            dropped += len(sentence.dropped)
    if dropped > _MOST_DROPPED * said:
        what = f"{voice.name} lacks symbols for many of espeak-ng's phonemes, which Piper reads"
        raise InputError(f"{what}: export it as onnx.")


def _language(voice: Voice) -> str:
    """ "en_US" of "en-us"; what the tokenizer says if it is no such tag."""
    import langcodes

    named = voice.tokenizer.language
    try:
        return langcodes.standardize_tag(named or "und").replace("-", "_")
    except langcodes.LanguageTagError:
        return str(named)[:20]


def tokens_file(settings: dict[str, Any]) -> str:
    """Return tokens.txt for sherpa-onnx, a symbol and its id on each line.

    For a voice of phonemes sherpa-onnx wants an id for each of `^ _ $`: begin and end are one more
    blank if the voice has none. A voice of characters has those apart (see `sherpa_facts`), and
    sherpa-onnx reads its text in lower case.
    """
    ids = settings["phoneme_id_map"]
    apart = (_BLANK, _BEGIN, _END) if settings["phoneme_type"] == "text" else ()
    return "".join(
        f"{symbol} {(ids[symbol] or ids[_BLANK])[0]}\n"
        for symbol in ids
        if symbol not in apart and (symbol == " " or len(symbol) == len(symbol.strip()) == 1)
    )


def sherpa_facts(voice: Voice, settings: dict[str, Any]) -> dict[str, str]:
    """Return what sherpa-onnx reads in the ONNX file's metadata."""
    language = settings["language"]
    facts = {
        "model_type": "vits",
        "comment": "piper",
        "language": language.get("name_english") or language.get("code", "und"),
        "voice": settings["espeak"]["voice"],
        "has_espeak": str(int(settings["phoneme_type"] == "espeak")),
        "n_speakers": str(voice.model.config.num_speakers),
        "sample_rate": str(voice.sampling_rate),
    }
    if settings["phoneme_type"] == "text":
        # It puts the ids together itself: begin, blank, each character with a blank after it, end.
        ids = settings["phoneme_id_map"]
        ends = {"bos_id": ids[_BEGIN], "eos_id": ids[_END]}
        both = all(ends.values())
        facts |= {
            "frontend": "characters",
            "add_blank": "1",
            "blank_id": str(ids[_BLANK][0]),
            "use_eos_bos": str(int(both)),
        }
        facts |= {name: str(given[0]) for name, given in ends.items()} if both else {}
    return facts
