"""The page's work as named endpoints, for gradio_client, curl and other programs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import SILENT
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.scores import sparsity_preview
from vits_prune.studio import workbench
from vits_prune.studio.renditions import hear, time_both, wav
from vits_prune.studio.request import request_of
from vits_prune.study.comparison import DEFAULT_TEXT, Comparison
from vits_prune.ui.events import LANES, sentences
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
            ("scope", gr.Textbox, "global"),
            ("amount", gr.Number, 0.3),
            ("parts", gr.JSON, list(PARTS)),
            ("seed", gr.Number, 0),
            ("timing", gr.Textbox, "own"),
            ("method", gr.Textbox, "magnitude"),
            ("spec", gr.JSON, None),
        )
    }
    original, pruned = hidden(gr.Audio, "original"), hidden(gr.Audio, "pruned")
    report, shares = hidden(gr.JSON, "report"), hidden(gr.JSON, "sparsity")
    some = [asked[name] for name in ("voice", "scope", "amount", "parts", "method", "spec")]
    for work, inputs, outputs, lane in (
        (compare, list(asked.values()), [original, pruned, report], LANES["measure"]),
        (sparsity, some, shares, {"concurrency_limit": 4}),
    ):
        named = {"api_name": work.__name__, "api_description": work.__doc__}
        gr.Button(visible=False).click(work, inputs, outputs, **named, **lane)


def compare(
    voice: str,
    speaker: str,
    text: str,
    scope: str,
    amount: float,
    parts: list[str],
    seed: float,
    timing: str,
    method: str = "magnitude",
    spec: dict[str, Any] | None = None,
) -> tuple[str, str, dict[str, Any]]:
    """Speak a text with a voice and its pruned copy and measure both.

    voice: "joe" or a Hugging Face id of type VITS; speaker: index or name, for voices with
    several; text: up to 2,000 characters; scope: "global", "local" or "sensitivity"; amount:
    0 to 0.99; parts: of text_encoder, duration_predictor, flow, decoder; seed: 0 to 2**32 - 1;
    timing: "own" or "locked"; method: "magnitude", "random", "activation", "second_order" or
    "structured", where all but the first two listen to the voice first and take up to minutes;
    spec: a whole PruneSpec as a JSON object (as in the report) instead of scope, amount, parts and
    method, with 8 steps and 60 texts at most. Returns two 16-bit WAV files, original and pruned,
    and the report that the command line writes too.
    """
    with sentences():
        said = {"voice": voice, "speaker": speaker, "text": text, "seed": seed, "timing": timing}
        request = request_of(said, _spec(scope, amount, parts, method, spec))
        bench, spoken = workbench.bench, hear(request, None)
        latency = time_both(request, None, SILENT)
        comparison = Comparison(
            request.text,
            request.seed,
            request.timing,
            (bench.voice_of(request), bench.pruned(request)),
            spoken.original,
            spoken.pruned,
            spoken.sparsity,
            bench.size(request),
            latency,
        )
        return (wav(spoken.original, "original"), wav(spoken.pruned, "pruned"), comparison.report())


def sparsity(
    voice: str,
    scope: str,
    amount: float,
    parts: list[str],
    method: str = "magnitude",
    spec: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Return the share of zeros that pruning would give, overall and by part, without speaking.

    method and spec: as in /compare, as far as the weights alone give the answer: the method
    "magnitude" with scope "global" or "local", nothing protected, no floor and no pattern. For all
    others /compare prunes and reports it. Shares are 0 to 1.
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
