"""The page's work as named endpoints, for gradio_client, curl and other programs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.measure import Latency
from vits_prune.pruning import PruneSpec
from vits_prune.studio.workbench import Spoken
from vits_prune.study.comparison import DEFAULT_TEXT, Comparison
from vits_prune.ui import steps
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS


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
        "method": gr.Textbox("magnitude", label="method", visible=False),
        "spec": gr.JSON(None, label="spec", visible=False),
    }
    original, pruned = (
        gr.Audio(visible=False, label="original"),
        gr.Audio(visible=False, label="pruned"),
    )
    answer, shares = (
        gr.JSON(visible=False, label="report"),
        gr.JSON(visible=False, label="sparsity"),
    )
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
        [asked[name] for name in ("voice", "scope", "amount", "parts", "method", "spec")],
        shares,
        api_name="sparsity",
        api_description=sparsity.__doc__,
        concurrency_limit=4,
    )


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

    voice: "joe" or a Hugging Face id of type VITS; speaker: index or name, for voices with several; text: up to 2,000 characters;
    scope: "global", "local" or "sensitivity"; amount: 0 to 0.99; parts: of text_encoder, duration_predictor, flow, decoder; seed: 0 to
    2**32 - 1; timing: "own" or "locked"; method: "magnitude", "random", "activation", "second_order" or "structured", where all but the
    first two listen to the voice first and take up to minutes; spec: a whole PruneSpec as a JSON object (as in the report) instead of
    scope, amount, parts and method, with 8 steps and 60 texts at most. Returns two 16-bit WAV files, original and pruned, and the report
    that the command line writes too.
    """
    request = steps.request_of(
        voice, speaker, text, spec_asked(scope, amount, parts, method, spec), seed, timing
    )
    for _ in steps.pruning_steps(request, None):
        pass
    found: dict[str, Any] = {}
    for step in (*steps.hear_steps(request, None), *steps.latency_steps(request, None)):
        found[type(step).__name__] = step
    spoken: Spoken = found["Spoken"]
    steps.bench.remember(request, spoken)
    latency: Latency = found["Latency"]
    voices = (
        steps.bench.voice(request.reference, request.speaker),
        steps.bench.pruned(request, None),
    )
    comparison = Comparison(
        request.text, request.seed, request.timing, voices, spoken.original, spoken.pruned, spoken.sparsity, steps.bench.size(request),
        latency,
    )  # fmt: skip
    return (
        steps.wav(spoken.original, "original"),
        steps.wav(spoken.pruned, "pruned"),
        comparison.report(),
    )


def sparsity(
    voice: str,
    scope: str,
    amount: float,
    parts: list[str],
    method: str = "magnitude",
    spec: dict[str, Any] | None = None,
) -> dict[str, float]:
    """The share of zeros that pruning would give, overall and by part (0 to 1), without speaking.

    method and spec: as in /compare, as far as the weights alone tell the answer: the method "magnitude" with scope "global" or "local",
    nothing protected, no floor and no pattern. For all others /compare prunes and reports it.
    """
    asked = spec_asked(scope, amount, parts, method, spec)
    found = steps.bench.preview((voice or "").strip(), asked)
    if found is None:
        raise InputError("Only pruning itself can tell the sparsity of this spec: ask /compare.")
    return found


def spec_asked(scope: str, amount: float, parts: list[str], method: str, spec: Any) -> PruneSpec:
    """The PruneSpec of a call: `spec` where it is given, else the other four.

    Raises:
        InputError: it cannot be used.
    """
    if spec is not None:
        return PruneSpec.from_dict(spec)
    return PruneSpec(method=method, scope=scope, amount=amount, parts=parts or ())
