"""What "Speak with both" sets off: pruning, hearing, and what is measured of it; each step yields values of the page's outputs by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import in_words
from vits_prune.studio.jobs import Doing
from vits_prune.studio.workbench import Request
from vits_prune.study import tables
from vits_prune.ui import steps, teaching


def _doing(step: Doing) -> dict[str, Any]:
    return {"status": f"{step.what} … {100 * step.share:.0f}%"}


def pruned(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    for step in steps.pruning_steps(request, token):
        yield {"status": f"{in_words(request.spec)}: {step.what} … {100 * step.share:.0f}%"}
    yield {"status": "pruned; speaking comes next …", "asked": request}


def heard(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    """Sound, and the sparsity of what is heard; what was measured for other settings goes."""
    for step in steps.hear_steps(request, token):
        if isinstance(step, Doing):
            yield _doing(step)
            continue
        steps.bench.remember(request, step, token)
        sparsity, layers = (
            tables.sparsity_table(*step.sparsity),
            tables.layer_table(step.sparsity[1]),
        )
        yield {
            "status": "Both have spoken; measuring comes next.",
            "summary": steps.heard_words(request, step),
            "original": steps.wav(step.original, "original"),
            "pruned": steps.wav(step.pruned, "pruned"),
            "flip": steps.flip_value(step),
            "rendition": _renditions(request),
            "rendition_audio": gr.Audio(None, visible=False),
            **_table("sparsity", sparsity),
            **_table("layers", layers),
            **{name: tables.EMPTY[name] for name in ("size", "latency")},
            **{f"{name}_csv": gr.DownloadButton(interactive=False) for name in ("size", "latency")},
        }


def _renditions(request: Request) -> gr.Radio:
    """The steps of gradual pruning to choose from, out of sight where there is one only."""
    amounts = request.spec.schedule_amounts()
    how = "of the channels gone" if METHODS[request.spec.method].structured else "zeros"
    choices = [(f"step {i + 1}: {100 * amount:.1f}% {how}", i) for i, amount in enumerate(amounts)]
    return gr.Radio(choices, value=None, visible=len(amounts) > 1)


def rendition(request: Request, token: str | None, index: Any) -> Iterator[dict[str, Any]]:
    if isinstance(index, bool) or not isinstance(index, int):
        raise InputError("Choose one of the steps.")
    for step in steps.rendition_steps(request, token, index):
        if isinstance(step, Doing):
            yield _doing(step)
        else:
            label = f"Step {index + 1} of {len(request.spec.schedule_amounts())}, with the original's durations"
            audio = gr.Audio(steps.wav(step, f"step-{index + 1}"), label=label, visible=True)
            yield {"status": f"Done: step {index + 1} speaks.", "rendition_audio": audio}


def drawn(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    yield {"status": "drawing …"}
    spectrograms, bars, histogram = steps.pictures(request, token)
    found: dict[str, Any] = {"spectrograms": spectrograms, "bars": bars, "histogram": histogram}
    for step in teaching.taught(request, token):
        found |= step
        if "matrix" not in step:
            yield step
    yield found


def weighed(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    yield {"status": "writing each file format to see its size …"}
    yield _table("size", tables.size_table(*steps.bench.size(request, token)))


def timed(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    for step in steps.latency_steps(request, token):
        if isinstance(step, Doing):
            yield _doing(step)
        else:
            what = (
                ""
                if steps.timed_text(request.text) == request.text.strip()
                else " on the beginning of the text"
            )
            done = f"Done. Latency: {step.runs} runs of each voice in turn{what}, {step.threads} threads, {step.device}."
            yield {
                "status": done,
                **_table("latency", tables.latency_table(step, request.spec.pattern)),
            }


def _table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """A table and its download."""
    return {
        name: table,
        f"{name}_csv": gr.DownloadButton(value=steps.csv(table, name), interactive=True),
    }


_TABLES = ("sparsity", "layers", "size", "latency")
HEARD = (
    "summary",
    "original",
    "pruned",
    "flip",
    "rendition",
    "rendition_audio",
    *(name + end for name in _TABLES for end in ("", "_csv")),
)
MEASURED = (
    (drawn, ("spectrograms", "bars", "histogram", "lesson", "matrix_layer", "matrix")),
    (weighed, ("size", "size_csv")),
    (timed, ("latency", "latency_csv")),
)
"""What "Speak with both" sets off after hearing, and which outputs each step fills."""
