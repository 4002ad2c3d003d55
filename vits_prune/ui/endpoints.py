"""The page's work as named endpoints, for gradio_client, curl and other programs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.comparison import DEFAULT_TEXT, report
from vits_prune.measure import Latency
from vits_prune.ui import steps
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS
from vits_prune.workbench import Spoken


def add_endpoints() -> None:
    """Add /compare and /sparsity to the page's API; must run inside the Blocks.

    Their inputs are components of their own: the page's dropdowns take only what they list at the moment.
    """
    asked = {
        "voice": gr.Textbox(EMBEDDED, label="voice", visible=False),
        "speaker": gr.Textbox("", label="speaker", visible=False),
        "text": gr.Textbox(DEFAULT_TEXT, label="text", visible=False),
        "scope": gr.Textbox("global", label="scope", visible=False),
        "amount": gr.Number(0.3, label="amount", visible=False),
        "parts": gr.JSON(list(PARTS), label="parts", visible=False),
        "seed": gr.Number(0, label="seed", visible=False),
        "timing": gr.Textbox("own", label="timing", visible=False),
    }
    original, pruned = gr.Audio(visible=False, label="original"), gr.Audio(visible=False, label="pruned")
    answer, shares = gr.JSON(visible=False, label="report"), gr.JSON(visible=False, label="sparsity")
    gr.Button(visible=False).click(
        steps.plainly(compare),
        list(asked.values()),
        [original, pruned, answer],
        api_name="compare",
        api_description=compare.__doc__,
        concurrency_id="measure",
        concurrency_limit=1,
    )
    gr.Button(visible=False).click(
        steps.plainly(sparsity),
        [asked[name] for name in ("voice", "scope", "amount", "parts")],
        shares,
        api_name="sparsity",
        api_description=sparsity.__doc__,
        concurrency_limit=4,
    )


def compare(
    voice: str, speaker: str, text: str, scope: str, amount: float, parts: list[str], seed: float, timing: str
) -> tuple[str, str, dict[str, Any]]:
    """Speak a text with a voice and its pruned copy and measure both.

    voice: "joe" or a Hugging Face id of type VITS; speaker: index or name, for voices with several; text: up to 2,000 characters;
    scope: "global" or "local"; amount: 0 to 0.99; parts: of text_encoder, duration_predictor, flow, decoder; seed: 0 to 2**32 - 1;
    timing: "own" or "locked". Returns two 16-bit WAV files, original and pruned, and the report that the command line writes too.
    """
    request = steps.request_of(voice, speaker, text, scope, amount, parts, seed, timing)
    found: dict[str, Any] = {}
    for step in (*steps.hear_steps(request, None), *steps.latency_steps(request, None)):
        found[type(step).__name__] = step
    spoken: Spoken = found["Spoken"]
    latency: Latency = found["Latency"]
    loaded = steps.bench.voice(request.reference, request.speaker)
    answer = report(
        loaded,
        request.text,
        request.seed,
        request.timing,
        {"pruned": [request.spec.to_dict()]},
        (spoken.original, spoken.pruned),
        spoken.sparsity,
        steps.bench.size(request),
        latency,
    )
    return steps.wav(spoken.original, "original"), steps.wav(spoken.pruned, "pruned"), answer


def sparsity(voice: str, scope: str, amount: float, parts: list[str]) -> dict[str, float]:
    """The share of zeros that pruning would give, overall and by part (0 to 1), without speaking."""
    from vits_prune.pruning import PruneSpec

    return steps.bench.preview((voice or "").strip(), PruneSpec(scope=scope, amount=amount, parts=parts or ()))
