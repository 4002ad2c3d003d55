"""The Ship tab: the voice in every format side by side, as a file to take away, and pushed to the hub."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.pruning.spec import in_words
from vits_prune.ship.formats import FORMATS, file_stem
from vits_prune.studio import descriptions, workbench
from vits_prune.studio.request import Request
from vits_prune.ui import shipping
from vits_prune.ui.healing import Order
from vits_prune.ui.shipping import CHOICES
from vits_prune.voices.architecture import in_plain_layout
from vits_prune.voices.voice import Voice

ARRIVED = ("ship_which", "ship_notice", "ship_read", "ship_noticed", "ship_python", "ship_shell")
"""Outputs that `arrived` fills."""
_MOST_NAME = 200
ON_YOUR_OWN = "On your own machine: `hf auth login`, then `python -m vits_prune push --voice DIR --repo NAME`."


def ship_tab() -> dict[str, Any]:
    """The tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "The voice as it is pruned on the left, written in the formats in which voices are used."
    )
    made["ship_which"] = gr.Radio(
        [("as pruned on the left", "pruned")],
        value="pruned",
        visible=False,
        label="Which voice",
        elem_id="ship-which",
    )
    made |= _comparing() | _packing() | _pushing()
    made["ship_ticket"] = gr.Textbox(
        visible="hidden", elem_id="ship-ticket"
    )  # of what was begun last
    return made


def _comparing() -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.Markdown("### Formats beside each other")
    with gr.Row():
        made["ship_compare"] = gr.Button(
            "Write every format that fits and compare",
            variant="primary",
            elem_id="ship-compare",
            scale=3,
        )
        made["ship_stop"] = gr.Button("Stop", elem_id="ship-stop", scale=1, min_width=80)
    made["ship_status"] = gr.Markdown("", elem_id="ship-status", min_height=44)
    made["ship_table"] = gr.Dataframe(
        visible=False,
        interactive=False,
        show_label=False,
        wrap=True,
        elem_id="ship-table",
        buttons=["copy", "fullscreen"],
        max_height=620,
    )
    made["ship_csv"] = gr.DownloadButton(
        "Download formats.csv", size="sm", visible=False, elem_id="ship-csv"
    )
    return made


def _packing() -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.Markdown("### Take it with you")
    with gr.Row():
        made["ship_format"] = gr.Radio(
            list(FORMATS),
            value="dense",
            label="Format",
            info=_format_words("dense"),
            elem_id="ship-format",
            scale=3,
        )
        made["ship_precision"] = gr.Radio(
            list(FORMATS["dense"].precisions),
            value="fp32",
            label="Precision",
            info="Of the stored weights",
            elem_id="ship-precision",
            scale=2,
        )
    made["ship_pack"] = gr.Button("Make the zip file", elem_id="ship-pack")
    made["ship_packing"] = gr.Markdown("", elem_id="ship-packing")
    made["ship_file"] = gr.File(
        label="The voice (zip)", interactive=False, visible=False, elem_id="ship-file"
    )
    made["ship_python"] = _code("python", "Load it", "ship-python")
    made["ship_shell"] = _code(
        "shell", "On the machine that is to speak, in the unpacked folder", "ship-shell"
    )
    return made


def _pushing() -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.Markdown("### Push it to the Hugging Face hub")
    made["ship_login"] = gr.Markdown(login_words(None), elem_id="ship-login")
    with gr.Row():
        made["ship_repo"] = gr.Textbox(
            label="Name of the repository",
            placeholder="my-small-voice, or owner/my-small-voice",
            info="New, or one that was pushed from here before. It gets the format and precision chosen above, with a model card.",
            max_length=_MOST_NAME,
            elem_id="ship-repo",
            scale=3,
        )
        made["ship_private"] = gr.Checkbox(
            True, label="Private", info="Only you can see it", elem_id="ship-private", min_width=120
        )
    made["ship_notice"] = gr.Markdown("", elem_id="ship-notice")
    made["ship_read"] = gr.Checkbox(
        False, label="I have read this", visible=False, elem_id="ship-read"
    )
    made["ship_noticed"] = gr.State()
    made["ship_push"] = gr.Button("Push", elem_id="ship-push")
    made["ship_pushing"] = gr.Markdown("", elem_id="ship-pushing", min_height=44)
    return made


def _code(language: Any, label: str, name: str) -> gr.Code:
    return gr.Code(
        language=language, label=label, interactive=False, visible=False, lines=1, wrap_lines=True, show_line_numbers=False,
        buttons=["copy"], elem_id=name,
    )  # fmt: skip


def _format_words(name: str) -> str:
    words = FORMATS[name].words
    return words[0].upper() + words[1:]


# What is at hand


def login_words(user: str | None) -> str:
    """The sign whether the visitor is logged in: as whom, or what to do."""
    if user:
        return f"**Logged in as {descriptions.plain(user)}**: what you push goes to your own account, with your own rights."
    if os.environ.get("OAUTH_CLIENT_ID"):
        return f"**Not logged in**: press *Log in* at the top of the page first. {ON_YOUR_OWN}"
    return f"**Not logged in**: this page has no log-in. {ON_YOUR_OWN}"


def arrived(
    request: Request | None,
    token: str | None,
    which: Any,
    order: Any,
    noticed: Any,
    format: Any,
    precision: Any,
) -> dict[str, Any]:
    """Whether there is a healed voice, what its licence forbids, and how what is chosen is used; never loads anything.

    Args:
        request: whose voice and spec, None where they cannot be used.
        token: the visitor's.
        which, order: "pruned" or "healed", and the healing.
        noticed: of which voice the licence was shown last.
        format, precision: that are chosen.
    """
    healing = _finished(order)
    which = which if healing else "pruned"
    shown: dict[str, Any] = {"ship_which": _which(request, healing, which)}
    at_hand = healing.request if which == "healed" and healing else request
    if at_hand is None or not workbench.bench.is_loaded(at_hand.reference, token):
        return {
            **shown,
            "ship_notice": "",
            "ship_read": gr.Checkbox(False, visible=False),
            "ship_noticed": None,
        }
    from vits_prune.ship.licence import licence_of

    voice = workbench.bench.voice(at_hand.reference, at_hand.speaker, token, device="cpu")
    licence = licence_of(voice)
    named = f"Licence of the weights: {descriptions.plain(licence.id)}." if licence.id else ""
    notice = (
        f"**Before you share it.** {descriptions.plain(licence.notice, 1_000)}"
        if licence.notice
        else named
    )
    ticked = (
        {} if noticed == at_hand.reference else {"value": False}
    )  # read for one voice is not read for another
    return {
        **shown,
        "ship_notice": notice,
        "ship_read": gr.Checkbox(visible=licence.needs_consent, **ticked),
        "ship_noticed": at_hand.reference,
        **used_lines(
            voice,
            shipping.name_of(voice, at_hand, healing if which == "healed" else None),
            format,
            precision,
        ),
    }


def format_chosen(
    request: Request | None,
    token: str | None,
    which: Any,
    order: Any,
    noticed: Any,
    format: Any,
    precision: Any,
) -> dict[str, Any]:
    """As `arrived`, with the precisions that a format has, in place of those of another."""
    name = format if format in FORMATS else "dense"
    has = FORMATS[name].precisions
    kept = precision if precision in has else has[0]
    return {
        **arrived(request, token, which, order, noticed, name, kept),
        "ship_format": gr.Radio(info=_format_words(name)),
        "ship_precision": gr.Radio(list(has), value=kept),
    }


def _finished(order: Any) -> Order | None:
    """The healing, where it has a voice."""
    try:
        return shipping.order_at_hand("healed", order)
    except InputError:
        return None


def _which(request: Request | None, healing: Order | None, which: str) -> gr.Radio:
    choices = [("as pruned on the left", "pruned")]
    if healing:
        other = (
            ""
            if request and healing.request.reference == request.reference
            else f"{healing.request.reference}, "
        )
        choices.append((f"pruned and healed: {other}{in_words(healing.request.spec)}", "healed"))
    return gr.Radio(choices, value=which, visible=healing is not None)


def used_lines(voice: Voice, name: str, format: Any, precision: Any) -> dict[str, Any]:
    """The code blocks that say how what is chosen is used."""
    if (format, precision) not in CHOICES:
        return {}
    model = f"{file_stem(voice.name)}.onnx" if format in ("onnx", "piper") else ""
    python, shell = use_lines(
        f"{name}-{format}-{precision}", format, model, plain=in_plain_layout(voice.model.config)
    )
    return {
        "ship_python": gr.Code(python, visible=True),
        "ship_shell": gr.Code(shell, visible=True),
    }


def use_lines(folder: str, format: str, model: str, plain: bool) -> tuple[str, str]:
    """Lines of Python and of a shell that use a shipped voice.

    Args:
        folder: what the zip unpacks to.
        format: one of FORMATS.
        model: name of the .onnx, "" where there is none.
        plain: whether transformers opens the dense folder.
    """
    python = f'from vits_prune import load_voice\n\nvoice = load_voice("{folder}")'
    if plain and format == "dense":
        python += f'\n\n# or in plain transformers\nfrom transformers import VitsModel\n\nmodel = VitsModel.from_pretrained("{folder}")'
    if not model:
        return (
            python,
            "# with vits_prune installed there\npython -m vits_prune bench . --threads 1,2 --json board.json",
        )
    shell = (
        f"pip install onnxruntime numpy && python bench.py {model} --threads 1,2 --json board.json"
    )
    if format == "piper":
        shell += f'\n\n# the stock Piper runtime\npip install piper-tts && python -m piper -m {model} -f hello.wav -- "Hello."'
    return python, shell
