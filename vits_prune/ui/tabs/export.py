"""The tab Export: what each format costs, the voice as a zip file, and a push to the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.pruning.spec import in_words
from vits_prune.ship.formats import FORMATS, file_stem
from vits_prune.ship.licence import licence_of
from vits_prune.studio import push_jobs, ship_jobs, workbench
from vits_prune.studio.descriptions import plain
from vits_prune.studio.jobs import until_halted
from vits_prune.studio.push_jobs import PushRequest
from vits_prune.studio.request import request_of
from vits_prune.studio.ship_jobs import AtHand, Line
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui import tables
from vits_prune.ui.controls import LOADED
from vits_prune.ui.events import QUIET, Page, tickets
from vits_prune.ui.widgets import Made
from vits_prune.voices.architecture import in_plain_layout
from vits_prune.voices.voice import Voice

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]
Halted = Callable[[], bool]

_COSTS = {
    "megabytes": ("Weights", 1, " MB"),
    "share_of_dense_fp32": ("Of dense fp32", 100, "%"),
    "load_ms": ("Loads in", 1, " ms"),
    "real_time_factor": ("Real-time factor", 1, ""),
    "mel_levels_off_db": ("Mel levels off", 1, " dB"),
    "durations_off": ("Durations off", 100, "%"),
}
"""Columns of the table: their heads, factors and units."""
_READING = (
    "Loading and the real-time factor (seconds of computing per second of speech) are onnxruntime's"
    " on this machine, with all cores; mel levels and durations are compared with the voice before"
    " rounding."
)
_UNPUBLISHED = "Stopped: nothing was published."
_AS_PRUNED = ("as the controls above prune it", "pruned")


# Components


def export_tab() -> Made:
    """Make the tab's components, in the order of the work."""
    made = Made()
    gr.Markdown(
        "The voice as the controls above prune it, in the formats that programs read. Zeros save"
        " time where `load_voice` speaks, by sparse kernels (see *Latency*): not in ONNX or Piper."
    )
    how = {"choices": [_AS_PRUNED], "visible": False}
    made.add("ship_which", gr.Radio, "pruned", "Voice", **how)
    gr.Markdown("### What each format costs")
    with gr.Row():
        made.add("ship_compare", gr.Button, "Write and compare all formats", variant="primary")
        made.add("ship_stop", gr.Button, "Stop", scale=0, min_width=120)
    made.add("ship_status", gr.Markdown, "", min_height=24)
    tables.add_grid(made, "ship_table", "formats")
    _add_zip(made)
    _add_push(made)
    made.add("ship_ticket", gr.Textbox, None, visible="hidden")
    return made


def _add_zip(made: Made) -> None:
    gr.Markdown("### Choose a format")
    with gr.Row():
        how = {"choices": list(FORMATS), "info": _format_words("dense"), "scale": 3}
        made.add("ship_format", gr.Radio, "dense", "Format", **how)
        how = {"choices": list(FORMATS["dense"].precisions), "info": "Of the stored weights"}
        made.add("ship_precision", gr.Radio, "fp32", "Precision", scale=2, **how)
    made.add("ship_zip", gr.Button, "Make the zip file", variant="primary")
    made.add("ship_zipping", gr.Markdown, "", min_height=24)
    made.add("ship_file", gr.File, None, "The voice (zip)", interactive=False, visible=False)
    gr.Markdown("### Load it")
    look: dict[str, Any] = {"interactive": False, "visible": False, "lines": 1, "wrap_lines": True}
    look |= {"show_line_numbers": False, "buttons": ["copy"]}
    made.add("ship_python", gr.Code, None, "Python", language="python", **look)
    label = "Shell: on the machine that will speak, in the unpacked folder"
    made.add("ship_shell", gr.Code, None, label, language="shell", **look)


def _add_push(made: Made) -> None:
    gr.Markdown("### Push to the Hugging Face hub")
    made.add("ship_login", gr.Markdown, push_jobs.login_words(None))
    with gr.Row():
        info = (
            "New, or one that was pushed from here before. It gets the format and precision chosen"
            " above, with a model card."
        )
        how = {"placeholder": "my-small-voice, or owner/my-small-voice", "max_length": 200}
        label = "Name of the repository"
        made.add("ship_repo", gr.Textbox, None, label, info=info, scale=3, **how)
        how = {"info": "Only you can see it", "min_width": 120}
        made.add("ship_private", gr.Checkbox, True, "Private", **how)
    made.add("ship_notice", gr.Markdown, "")
    made.add("ship_read", gr.Checkbox, False, "I have read this", visible=False)
    made["ship_noticed"] = gr.State()
    made.add("ship_push", gr.Button, "Push", variant="primary")
    made.add("ship_pushing", gr.Markdown, "", min_height=24)


def _format_words(name: str) -> str:
    words = FORMATS[name].words
    return words[0].upper() + words[1:]


# What is at hand


def look(values: Values, token: str | None) -> dict[str, Any]:
    """Show which voices there are, what the licence forbids, and how to use what is chosen.

    Nothing is loaded for this.
    """
    healed = ship_jobs.healed_at_hand(values["heal_key"])
    try:
        chosen: AtHand | None = AtHand(_request(values))
    except InputError:  # the controls say it already
        chosen = None
    choices = [_AS_PRUNED]
    if healed:
        same = chosen and chosen.request.reference == healed.request.reference
        other = "" if same else f"{healed.request.reference}, "
        choices.append((f"pruned and healed: {other}{in_words(healed.request.spec)}", "healed"))
        if values["ship_which"] == "healed":
            chosen = healed
    # The choice stays as it is, even if it was made while this looked around.
    gone = {} if healed else {"value": "pruned"}
    shown = {"ship_which": gr.Radio(choices, visible=healed is not None, **gone)}
    if chosen is None or not workbench.bench.is_loaded(chosen.request.reference, token):
        unread = gr.Checkbox(False, visible=False)
        return {**shown, "ship_notice": "", "ship_read": unread, "ship_noticed": None}
    reference, speaker = chosen.request.reference, chosen.request.speaker
    voice = workbench.bench.voice(reference, speaker, token, device="cpu")
    licence = licence_of(voice)
    notice = f"Licence of the weights: {plain(licence.id)}." if licence.id else ""
    if licence.notice:
        notice = f"**Before you share it.** {plain(licence.notice, 1_000)}"
    # What was read for one voice is not read for another.
    unticked = {} if values["ship_noticed"] == reference else {"value": False}
    return {
        **shown,
        "ship_notice": notice,
        "ship_read": gr.Checkbox(visible=licence.needs_consent, **unticked),
        "ship_noticed": reference,
        **_usage(voice, chosen, values["ship_format"], values["ship_precision"]),
    }


def choose_format(values: Values, token: str | None) -> dict[str, Any]:
    """Offer the precisions of the chosen format, then look as `look` does."""
    name = values["ship_format"] if values["ship_format"] in FORMATS else "dense"
    has, wanted = FORMATS[name].precisions, values["ship_precision"]
    kept = wanted if wanted in has else has[0]
    return {
        **look({**values, "ship_format": name, "ship_precision": kept}, token),
        "ship_format": gr.Radio(info=_format_words(name)),
        "ship_precision": gr.Radio(list(has), value=kept),
    }


def _usage(voice: Voice, at_hand: AtHand, format: Any, precision: Any) -> dict[str, Any]:
    """Show how the chosen format is used."""
    if (format, precision) not in ship_jobs.CHOICES:
        return {}
    model = f"{file_stem(voice.name)}.onnx" if format in ("onnx", "piper") else ""
    folder = f"{at_hand.name(voice)}-{format}-{precision}"
    python, shell = ship_jobs.usage(folder, format, model, in_plain_layout(voice.model.config))
    return {
        "ship_python": gr.Code(python, visible=True),
        "ship_shell": gr.Code(shell, visible=True),
    }


def _request(values: Values) -> Any:
    """Return the Request of the controls LOADED. The tab speaks no text of the visitor's."""
    return request_of({**values, "text": DEFAULT_TEXT})


# Work


def _make(at_hand: AtHand, token: str | None, halted: Halted, progress: Progress) -> Any:
    """Return the voice and its original, None if it is halted."""
    return until_halted(lambda part: at_hand.make(token, part), halted, progress)


def _at_hand(values: Values) -> AtHand:
    return ship_jobs.at_hand(_request(values), values["ship_which"], values["heal_key"])


def compare(values: Values, token: str | None, halted: Halted, progress: Progress) -> Shown:
    """Write and measure format after format; each update shows all so far."""
    yield {"ship_status": "beginning …", **tables.grid_cleared("ship_table")}
    at_hand = _at_hand(values)
    made, lines = _make(at_hand, token, halted, progress), []
    for lines in ship_jobs.write_all(made[0], halted, progress) if made else ():
        yield _table(lines)
    if not lines:
        yield {"ship_status": "Stopped before anything was written."}
        return
    what, count = f"**{at_hand.name(made[0])}**", len(ship_jobs.CHOICES)
    done = f"Done: {what}."
    if len(lines) < count:
        done = f"Stopped: {len(lines)} of {count} formats of {what}."
    # All of it once more: Gradio 6.31 forgets what an earlier update put into a tab that was not
    # open.
    yield {**_table(lines), "ship_status": f"{done} {_READING}"}


def _table(lines: list[Line]) -> dict[str, Any]:
    found, shown, words = ship_jobs.rows_of(lines), [], {}
    for row in found:
        name = f"{row['format']} {row['precision']}"
        numbers = [(row[key], factor, unit) for key, (_, factor, unit) in _COSTS.items()]
        shown.append((name, *(_number(*one) for one in numbers)))
        words[name] = row["in_words"].rstrip(".")
    heads = ("Format", *(head for head, *_ in _COSTS.values()))
    drawn = tables.grid("What each format costs", heads, shown, words)
    return tables.grid_shown("ship_table", drawn, pd.DataFrame(found), "formats")


def _number(value: float | None, factor: float, unit: str) -> str:
    return tables.NONE if value is None else tables.number(factor * value) + unit


def zip_file(values: Values, token: str | None, halted: Halted, progress: Progress) -> Shown:
    """Make the zip file of one format."""
    yield {"ship_zipping": "beginning …", "ship_file": gr.File(None, visible=False)}
    format, precision = values["ship_format"], values["ship_precision"]
    packed = None
    try:
        ship_jobs.check_choice(format, precision)
        at_hand = _at_hand(values)
        made = _make(at_hand, token, halted, progress)
        if made is not None:
            voice, name = made[0], at_hand.name(made[0])
            packed = until_halted(
                lambda part: ship_jobs.write_zip(voice, name, format, precision, part),
                halted,
                progress,
            )
    except InputError as error:
        yield {"ship_zipping": plain(str(error), 1_000)}  # stays when the pop-up has gone
        raise
    if packed is None:
        yield {"ship_zipping": "Stopped: no file was made."}
    else:
        yield {
            "ship_zipping": str(packed),
            "ship_file": gr.File(str(packed.archive), visible=True),
            **_usage(voice, at_hand, format, precision),
        }


def push(values: Values, token: str | None, halted: Halted, progress: Progress) -> Shown:
    """Push a voice to the hub with the visitor's own token."""
    yield {"ship_pushing": "beginning …"}
    try:
        yield {"ship_pushing": _push(values, token, halted, progress)}
    except InputError as error:
        yield {"ship_pushing": plain(str(error), 1_000)}
        raise


def _push(values: Values, token: str | None, halted: Halted, progress: Progress) -> str:
    at_hand = _at_hand(values)
    repo = str(values["ship_repo"] or "").strip()
    if not token:
        raise InputError(push_jobs.login_words(None).replace("*", "").replace("`", "'"))
    if not repo:
        raise InputError("Give the repository a name, such as my-small-voice.")
    made = _make(at_hand, token, halted, progress)
    if made is None:
        return _UNPUBLISHED
    read = bool(values["ship_read"]) and values["ship_noticed"] == at_hand.request.reference
    format, private = values["ship_format"], bool(values["ship_private"])
    asked = PushRequest(repo, format, values["ship_precision"], private, read)
    published = push_jobs.push(at_hand, made, asked, token, halted, progress)
    if published is None:
        return (
            f"{_UNPUBLISHED} If its repository was new, it may be there, empty; the same push again"
            " goes on."
        )
    return ("It was too late to stop. " if halted() else "") + published.words(format)


# Events

_BEGIN = """() => {
  const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
  (window.shipping = window.shipping || []).push(ticket);
  return ticket;
}"""
_STOP = """() => {
  const begun = (window.shipping || []).join(' ');
  window.shipping = [];
  return begun;
}"""
_MOST_TICKETS = 100
_FORM = ("ship_format", "ship_precision")
_VOICE = (*LOADED, "ship_which", "heal_key")
_LOOKED = (*_VOICE, "ship_noticed", *_FORM)
LOOK_FILLS = ("ship_which", "ship_notice", "ship_read", "ship_noticed", "ship_python", "ship_shell")
RUNS: dict[str, tuple[Callable[..., Shown], tuple[str, ...], tuple[str, ...], int]] = {
    "ship_compare": (compare, (), ("ship_status", "ship_table", "ship_table_csv"), 1),
    "ship_zip": (zip_file, _FORM, ("ship_zipping", "ship_file", *LOOK_FILLS[-2:]), 2),
    "ship_push": (
        push,
        (*_FORM, "ship_noticed", "ship_repo", "ship_private", "ship_read"),
        ("ship_pushing",),
        2,
    ),
}
"""What each button runs, reads besides the voice, and fills (the status first), and how many run at
once, in a lane of its own: nobody waits for another's upload."""


def wire_export(demo: gr.Blocks, page: Page, healed: Any) -> None:
    """Wire the tab. Stop cancels nothing: a run that is halted ends by itself, with what it has.

    Args:
        demo: the page.
        page: its components.
        healed: the event of a healing's end.
    """
    # One after the other, in the order of asking: otherwise an older answer could stay.
    lane: dict[str, Any] = {
        "queue": True,
        "concurrency_id": "ship_look",
        "concurrency_limit": 1,
        "trigger_mode": "multiple",
    }
    looking = page.event(look, _LOOKED, LOOK_FILLS, **lane)
    opened = [page["ship_tab"].select, page["facts"].change, page["readout"].change]
    gr.on([*opened, page["ship_which"].input, page["ship_precision"].input], **looking)
    healed.then(**looking)
    choosing = page.event(choose_format, _LOOKED, (*_FORM, *LOOK_FILLS), **lane)
    page["ship_format"].input(**choosing)

    def greet(profile: gr.OAuthProfile | None) -> str:
        return push_jobs.login_words(profile.username if profile else None)

    demo.load(greet, None, page["ship_login"], queue=False, show_progress="hidden", **QUIET)
    for button, (work, reads, fills, limit) in RUNS.items():
        begun = page[button].click(None, None, page["ship_ticket"], js=_BEGIN, **QUIET)
        lane = {"concurrency_id": button, "concurrency_limit": limit}
        reads = ("ship_ticket", *_VOICE, *reads)
        begun.then(**page.event(_run(work), reads, fills, "work", status=fills[0], **lane))
    stops = [page["stop"].click, page["ship_stop"].click]
    gr.on(stops, _halt_all, page["ship_ticket"], None, js=_STOP, queue=False, **QUIET)


def _run(work: Callable[..., Shown]) -> Callable[..., Shown]:
    def run(values: Values, token: str | None, progress: Progress) -> Shown:
        yield from work(values, token, lambda: values["ship_ticket"] in tickets, progress)

    return run


def _halt_all(begun: Any) -> None:
    for ticket in str(begun or "").split()[:_MOST_TICKETS]:
        tickets.cancel(ticket)
