"""What the page's events share: which inputs make a Request, whose token comes along, and which runs are not wanted any more."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import gradio as gr

from vits_prune.studio.workbench import Request
from vits_prune.ui import controls, steps
from vits_prune.ui.stoppable import Halts

DELIVERED = (
    "voice",
    "speaker",
    "text",
    "seed",
    "timing",
    "speaking_rate",
    "noise_scale",
    "noise_scale_duration",
)
SPEAKING = (*DELIVERED, *controls.NAMES)
"""The inputs that make a Request, in the order of `request_from`."""
LOADED = ("voice", "speaker", *controls.NAMES)
QUIET: dict[str, Any] = {"api_visibility": "private"}

halts = Halts()


def request_from(values: Sequence[Any]) -> Request:
    """The Request of the inputs SPEAKING.

    Raises:
        InputError: one of them cannot be used.
    """
    voice, speaker, text, *rest = values[: len(DELIVERED)]
    return steps.request_of(
        voice, speaker, text, controls.spec_of(*values[len(DELIVERED) :]), *rest
    )


def signed(function: Any, names: Sequence[str] = SPEAKING, progress: bool = False) -> Any:
    """Give a function of (*inputs, token) the signature that Gradio reads, so that it hands over the visitor's token."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    parameters.append(inspect.Parameter("oauth", kind, annotation=gr.OAuthToken | None))
    if progress:
        parameters.append(inspect.Parameter("progress", kind, default=gr.Progress()))
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {"oauth": gr.OAuthToken | None}
    return function
