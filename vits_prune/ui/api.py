"""The page's work as named endpoints, for gradio_client, curl and other programs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import SILENT
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.scores import sparsity_preview
from vits_prune.studio import workbench
from vits_prune.studio.renditions import hear, measuring, time_both, wav
from vits_prune.studio.request import request_of
from vits_prune.study.comparison import DEFAULT_TEXT, Comparison
from vits_prune.ui.events import sentences
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS


def add_endpoints() -> None:
    """Add /compare and /sparsity to the page's API. Call it inside the Blocks.

    Their inputs are components of their own: the page's dropdowns take only what they list.
    """

    def hidden(kind: Any, label: str, value: Any = None) -> Any:
        return kind(value, label=label, visible=False)

    asked = {
        name: hidden(kind, name, value)
        for name, kind, value in (
            ("voice", gr.Textbox, EMBEDDED),
            ("speaker", gr.Textbox, ""),
            ("text", gr.Textbox, DEFAULT_TEXT),
            ("scope", gr.Textbox, PruneSpec.scope),
            ("amount", gr.Number, PruneSpec.amount),
            ("parts", gr.JSON, list(PARTS)),
            ("seed", gr.Number, 0),
            ("timing", gr.Textbox, "own"),
            ("method", gr.Textbox, PruneSpec.method),
            ("spec", gr.JSON, None),
        )
    }
    # Gradio 6.31's own schema for JSON is empty, which MCP refuses.
    names = {"type": "array", "items": {"type": "string", "enum": list(PARTS)}}
    asked["parts"].api_info = lambda: names
    asked["spec"].api_info = lambda: {"anyOf": [{"type": "object"}, {"type": "null"}]}
    original, pruned = hidden(gr.Audio, "original"), hidden(gr.Audio, "pruned")
    report, shares = hidden(gr.JSON, "report"), hidden(gr.JSON, "sparsity")
    some = [asked[name] for name in ("voice", "scope", "amount", "parts", "method", "spec")]
    for work, inputs, outputs, lane in (
        (compare, list(asked.values()), [original, pruned, report], {"concurrency_limit": 4}),
        (sparsity, some, shares, {"concurrency_limit": 4}),
    ):
        gr.Button(visible=False).click(work, inputs, outputs, api_name=work.__name__, **lane)


def compare(
    voice: str,
    speaker: str,
    text: str,
    scope: str,
    amount: float,
    parts: list[str],
    seed: float,
    timing: str,
    method: str = PruneSpec.method,
    spec: dict[str, Any] | None = None,
) -> tuple[str, str, dict[str, Any]]:
    """Speak a text with a voice and its pruned copy and measure both.

    A method but "magnitude" and "random" listens to the voice first, which takes up to minutes.

    Args:
        voice: "joe" or a Hugging Face id of type VITS
        speaker: index or name, for voices with several
        text: up to 2,000 characters
        scope: "global", "local" or "sensitivity"
        amount: share of the weights that become zero, 0 to 0.99
        parts: of text_encoder, duration_predictor, flow, decoder
        seed: 0 to 2**32 - 1
        timing: "own" or "locked" (the pruned voice uses the original's durations)
        method: "magnitude", "random", "activation", "second_order" or "structured"
        spec: whole PruneSpec, as in the report, in place of scope, amount, parts and method

    Returns:
        original: 16-bit WAV file
        pruned: 16-bit WAV file
        report: what the command line writes too
    """
    with sentences():
        said = {"voice": voice, "speaker": speaker, "text": text, "seed": seed, "timing": timing}
        request = request_of(said, _spec(scope, amount, parts, method, spec))
        bench, spoken = workbench.bench, hear(request, None)
        with measuring.turn():
            size, latency = bench.size(request), time_both(request, None, SILENT)
        comparison = Comparison(
            request.text,
            request.seed,
            request.timing,
            (bench.voice_of(request), bench.pruned(request)),
            spoken.original,
            spoken.pruned,
            spoken.sparsity,
            size,
            latency,
        )
        return (wav(spoken.original, "original"), wav(spoken.pruned, "pruned"), comparison.report())


def sparsity(
    voice: str,
    scope: str,
    amount: float,
    parts: list[str],
    method: str = PruneSpec.method,
    spec: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Return the share of zeros that pruning would give, 0 to 1, overall and by part.

    Nothing is spoken. Only the method "magnitude" with scope "global" or "local", nothing
    protected, no floor and no pattern can be told in advance: /compare prunes and reports all
    others.

    Args:
        voice: "joe" or a Hugging Face id of type VITS
        scope: "global" or "local"
        amount: share of the weights that become zero, 0 to 0.99
        parts: of text_encoder, duration_predictor, flow, decoder
        method: "magnitude"
        spec: whole PruneSpec, in place of the other four
    """
    with sentences():
        asked = _spec(scope, amount, parts, method, spec)
        found = sparsity_preview(workbench.bench.voice((voice or "").strip()), asked)
        if found is None:
            raise InputError("Only pruning itself can tell the sparsity of it: ask /compare.")
        return dict(found)


def _spec(scope: str, amount: float, parts: Any, method: str, spec: Any) -> PruneSpec:
    """Return the PruneSpec of a call: `spec` where it is given, else the other four."""
    if spec is not None:
        return PruneSpec.from_dict(spec)
    return PruneSpec(method=method, scope=scope, amount=amount, parts=parts or ())
