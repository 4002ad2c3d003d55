"""The tab Heal: the pruned voice learns from the original, is heard on the way, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.measure.predictors import deaf_words
from vits_prune.measure.quality import METRICS, Figure, Interval, measured_by
from vits_prune.progress import SILENT, Progress
from vits_prune.studio import evidence, heal_jobs, plots, renditions, workbench
from vits_prune.studio.descriptions import original_value, plain
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.jobs import until_halted
from vits_prune.studio.request import (
    MINUTES,
    PRUNING,
    SPEAKING,
    TEXTS,
    Order,
    order_of,
    request_of,
    values_of,
)
from vits_prune.study.evaluation import Evaluation
from vits_prune.study.knee import usual_limits
from vits_prune.synthesis.speak import Speech
from vits_prune.ui import tables
from vits_prune.ui.events import QUIET, Page, tickets
from vits_prune.ui.widgets import WAITING, Made, player, widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_PLAYERS = {
    "heal_audio": ("Checkpoint, with the original's durations", "#8d6cc9"),
    "heal_original": ("Original", plots.ORIGINAL),
    "heal_unhealed": ("Pruned", plots.PRUNED),
    "heal_healed": ("Pruned and healed", "#2a9d6f"),
}
_COMPARED = (
    *("cer", "wer", "distillmos", "dnsmos_ovrl", "visqol", "log_mel_db"),
    *("speaker_similarity", "duration_ratio", "duration_drift"),
)
_SHARES = ("cer", "wer")
_HEADS = ("Measure", "Original", "Pruned", "Healed", "Healed minus original")


# Components


def heal_tab() -> Made:
    """Make the tab's components, in the order of the work."""
    made = Made()
    gr.Markdown(
        "The voice as the controls above prune it learns from the original, which speaks sentences"
        " for it: no recordings are needed. Zeros stay zeros, and what was removed stays removed."
    )
    with gr.Row():
        info = "Pruning before and measuring after take extra time"
        label, how = "Training time (minutes)", {"step": 0.5, "info": info}
        made.add("heal_minutes", gr.Slider, 5, label, **_limits(MINUTES), **how)
        how = {"step": 1, "info": "One set at checkpoints, another at the end"}
        made.add("heal_texts", gr.Slider, 6, "Sentences to measure on", **_limits(TEXTS), **how)
        info = "Slow without a GPU: far fewer steps fit into the same time"
        label = "Adversarial: discriminators join in halfway"
        made.add("heal_adversarial", gr.Checkbox, False, label, info=info)
    with gr.Row():
        made.add("heal_start", gr.Button, "Heal", variant="primary")
        made.add("heal_stop", gr.Button, "Stop, keep the best", scale=0, min_width=180)
    made.add("heal_status", gr.Markdown, "", min_height=24)
    gr.Markdown("### While it learns")
    made["heal_course"] = widget("training", "heal-course")
    made.download("heal", "healing")
    how = {"choices": [], "visible": False}
    made.add("heal_checkpoint", gr.Radio, None, "Checkpoints: choose one to hear it", **how)
    made["heal_audio"] = _player("heal_audio", autoplay=True)
    gr.Markdown("### Before and after")
    made.add("heal_heard", gr.Markdown, "The three voices are heard here at the end.")
    with gr.Row():
        for name in ("heal_original", "heal_unhealed", "heal_healed"):
            made[name] = _player(name)
    tables.add_grid(made, "heal_table", "healed")
    made.add("heal_compared", gr.Markdown, "")
    gr.Markdown("### Use the healed voice")
    with gr.Row():
        off: dict[str, Any] = {"interactive": False}
        label = "Put the healed voice on the stage"
        made.add("heal_stage", gr.Button, label, variant="primary", **off)
        made.add("heal_save", gr.Button, "Zip the healed voice", **off)
    made.add("heal_saved", gr.File, None, "The healed voice (zip)", visible=False, **off)
    made["heal_key"] = gr.State()
    made.add("heal_ticket", gr.Textbox, None, visible="hidden")
    return made


def _limits(limits: tuple[float, float]) -> dict[str, float]:
    return {"minimum": limits[0], "maximum": limits[1]}


def _player(name: str, **options: Any) -> gr.Audio:
    label, colour = _PLAYERS[name]
    return player(label, name.replace("_", "-"), colour, visible=False, min_width=200, **options)


# Work


def heal(
    order: Order, token: str | None, pressed: Callable[[int], bool], progress: Progress = SILENT
) -> Shown:
    """Heal, let all three voices speak, then measure.

    Args:
        order: what and how.
        token: the visitor's.
        pressed: whether Stop was pressed so many times: once keeps the best checkpoint so far,
            twice leaves the measuring out too.
        progress: shown as the status.
    """
    yield {**_cleared(), "heal_status": "beginning …"}
    job: HealJob | None = None
    try:
        for job in heal_jobs.heal(order, token, lambda: pressed(1), progress, (gr.Error,)):
            yield {"heal_key": order, **_found(job)}
    except InputError as error:
        yield {"heal_status": plain(str(error), 1_000)}  # stays when the pop-up has gone
        raise
    if job is None:
        yield {"heal_status": "Stopped before healing began."}
        return
    presses = 2 if pressed(1) else 1
    speeches = heal_jobs.speak_all(job, order.request, token, progress)
    result = {"heal_key": order, **_found(job), **_spoken(order, speeches)}
    yield result
    measured = until_halted(
        lambda part: heal_jobs.compare(job, token, part),
        lambda: pressed(presses),
        progress.part(0.0, 1.0, "Healed; measuring: "),
    )
    if measured is None:
        yield {**result, "heal_status": f"Done, without measuring. {_kept_words(job)}"}
    else:
        # All of it once more: Gradio 6.31 forgets what an earlier update put into a tab that was
        # not open.
        yield {**result, **_compared(*measured), "heal_status": f"Done. {_kept_words(job)}"}


def hear_checkpoint(values: Values, token: str | None = None) -> dict[str, Any]:
    """Show what the voice of a checkpoint says.

    Raises:
        InputError: there is no such checkpoint, or it is forgotten.
    """
    step = None if isinstance(values["heal_checkpoint"], bool) else values["heal_checkpoint"]
    checkpoints = heal_jobs.recall(values["heal_key"]).checkpoints
    speech = next((one.speech for one in checkpoints if one.step == step), None)
    if speech is None:
        raise InputError("Choose one of the checkpoints.")
    label = f"{_named(step)}, with the original's durations"
    path = renditions.wav(speech, f"step-{step}")
    return {"heal_audio": gr.Audio(path, label=label, visible=True)}


def save(values: Values, token: str | None = None) -> dict[str, Any]:
    """Show the healed voice's folder as a zip file."""
    order = values["heal_key"]
    voice = heal_jobs.voice_of(order)
    path = renditions.zipped(voice, f"{order.request.spec.method}-healed")
    return {"heal_saved": gr.File(path, visible=True)}


def take_over(values: Values, token: str | None = None) -> dict[str, Any]:
    """Set the controls as the healed voice was pruned."""
    heal_jobs.voice_of(values["heal_key"])
    request = values["heal_key"].request
    speaker = {"speaker": request.speaker} if request.speaker else {}
    return {"voice": request.reference, **speaker, **values_of(request.spec)}


def _cleared() -> dict[str, Any]:
    """Clear what was found by another healing."""
    return {
        **{name: gr.Audio(None, visible=False) for name in _PLAYERS},
        "heal_key": None,
        "heal_course": {"hint": WAITING["training"]},
        "heal_csv": gr.DownloadButton(interactive=False),
        "heal_checkpoint": gr.Radio([], value=None, visible=False),
        "heal_heard": "",
        "heal_compared": "",
        **tables.grid_cleared("heal_table"),
        "heal_stage": gr.Button(interactive=False),
        "heal_save": gr.Button(interactive=False),
        "heal_saved": gr.File(None, visible=False),
    }


def _named(step: int | None) -> str:
    return f"step {step}" if step else "not healed"


def _found(job: HealJob) -> dict[str, Any]:
    """Show curves and checkpoints so far, and once it is done what to take away."""
    done = job.voice is not None
    hint = (
        f"Losses on a logarithmic scale. Below: measured on {job.note}; bars are 95% intervals, the"
        " dashed line is the original (of a comparison with it: another seed of the original)."
    )
    signature = f"Signature: {job.signature}" if job.signature else ""
    hint = " ".join(filter(None, (hint, _chosen_by(job), job.unmeasured, signature)))
    choices = [
        (_named(one.step) + " (kept)" * (done and one.step == job.kept), one.step)
        for one in job.checkpoints
        if one.speech
    ]
    found = {
        "heal_course": plots.course_value(job, hint),
        "heal_checkpoint": gr.Radio(choices, visible=True),
    }
    if done:
        path = workbench.scratch.folder() / "healing.csv"
        curve = job.curve(
            lambda one: {
                f"{name}{end}": getattr(figure.pruned, at)
                for name, figure in one.figures.items()
                for end, at in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        )
        curve.write(path)
        found["heal_csv"] = gr.DownloadButton(value=str(path), interactive=True)
        found |= {name: gr.Button(interactive=True) for name in ("heal_stage", "heal_save")}
    return found


def _spoken(order: Order, speeches: list[Speech]) -> dict[str, Any]:
    locked = order.request.timing == "locked"
    timing = "all with the original's durations" if locked else "each with its own rhythm"
    seconds = [speech.audio_seconds for speech in speeches]
    names = ("original", "unhealed", "healed")
    return {
        "heal_heard": f"**{seconds[0]:.2f} s** original, {seconds[1]:.2f} s pruned,"
        f" {seconds[2]:.2f} s healed: {timing}.",
        **{
            f"heal_{name}": gr.Audio(renditions.wav(one, name), visible=True)
            for name, one in zip(names, speeches, strict=True)
        },
    }


def _chosen_by(job: HealJob) -> str:
    """Say what the best checkpoint is chosen by."""
    limits = usual_limits(job.checkpoints[0].figures) if job.checkpoints else ()
    names = [measured_by(one.metric) for one in limits]
    if not names:
        return ""
    by = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"The best checkpoint is the one closest to the original in {by} there."


def _kept_words(job: HealJob) -> str:
    """Say which voice is kept."""
    scores = {one.step: one.score for one in job.checkpoints if one.score is not None}
    minutes = f"{job.seconds / 60:.1f} minutes"
    words = f"The voice of step {job.kept} of {job.of} is kept, healed in {minutes}."
    if job.why:
        words += f" It ended early: {job.why.rstrip('.')}."
    if 0 in scores and job.kept in scores and scores[job.kept] >= scores[0] > 0:
        words += (
            " On the sentences of the checkpoints it is no better than before: train it for longer,"
            " or prune less."
        )
    return words


def _compared(before: Evaluation, after: Evaluation, note: str) -> dict[str, Any]:
    """Show both evaluations as a table to read, and as a file with the plain numbers."""
    shown = []
    for name in _COMPARED:
        if name not in after.figures:
            continue
        was, now = before.figures.get(name), after.figures[name]
        title = "length of the speech" if name == "duration_ratio" else METRICS[name].title
        cells = (
            _original(now),
            _interval(name, was.pruned if was else None),
            _interval(name, now.pruned),
        )
        shown.append((title, *cells, _interval(name, now.difference, change=True)))
    rows = [{"voice": "pruned", **before.to_row()}, {"voice": "healed", **after.to_row()}]
    held_out = "held-out" in note
    words = (
        f"**Healed: {after.claim.sentence(len(after.texts))}**",
        f"Measured on {note}; 95% intervals in brackets. The checkpoint was"
        f" {'not' if held_out else 'also'} chosen by these sentences.",
        *deaf_words(after.figures),
        plain(evidence.gaps(after), 3_000),
        f"Signature: `{after.signature}`",
    )
    table = tables.grid("Before and after healing", _HEADS, shown)
    return {
        "heal_compared": " ".join(filter(None, words)),
        **tables.grid_shown("heal_table", table, pd.DataFrame(rows), "healed"),
    }


def _original(one: Figure) -> str:
    """Return what the original gets: of a distance, what another seed of it gets."""
    value = original_value(one)
    if one.original or value is None:
        return _interval(one.metric.name, one.original)
    return f"{value:.2f} (another seed)"


def _interval(name: str, one: Interval | None, change: bool = False) -> str:
    """Return a number with its interval; shares and the length of the speech in percent."""
    if one is None:
        return ""
    percent, points = name in (*_SHARES, "duration_ratio"), name in _SHARES and change
    scale, sign, digits = 100 if percent else 1, "+" if change else "", 1 if percent else 2
    value, low, high = (
        "" if number is None else f"{scale * number:{sign}.{digits}f}"
        for number in (one.value, one.low, one.high)
    )
    unit = " points" if points else "%" if percent else ""
    return f"{value}{unit}" + (f" [{low}, {high}]" if low and high else "")


# Events

_START = """() => {
  const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
  window.healing = {ticket, presses: 0};
  return ticket;
}"""
_STOP = "() => window.healing ? window.healing.ticket + ':' + ++window.healing.presses : ''"
_CHOSEN = ("heal_minutes", "heal_texts", "heal_adversarial")
FILLS = (
    *_PLAYERS, "heal_status", "heal_key", "heal_course", "heal_csv", "heal_checkpoint",
    "heal_heard", "heal_compared", "heal_table", "heal_table_csv", "heal_stage", "heal_save",
    "heal_saved",
)  # fmt: skip


def wire_heal(page: Page) -> Any:
    """Wire the tab; return the event of a healing's end.

    Stop cancels nothing: a healing ends by itself, with what it has.
    """

    def run(values: Values, token: str | None, progress: Progress) -> Shown:
        order = order_of(request_of(values), workbench.trace(token), values)
        stops = [f"{values['heal_ticket']}:{presses}" for presses in (1, 2)]
        yield from heal(order, token, lambda presses: stops[presses - 1] in tickets, progress)

    ticket = page["heal_ticket"]
    begun = page["heal_start"].click(None, None, ticket, js=_START, **QUIET)
    reads = ("heal_ticket", *SPEAKING, *_CHOSEN)
    ended = begun.then(**page.event(run, reads, FILLS, "heal", status="heal_status"))
    stops = [page["stop"].click, page["heal_stop"].click]
    gr.on(stops, tickets.cancel, ticket, None, js=_STOP, queue=False, **QUIET)
    asked = ("heal_key", "heal_checkpoint")
    page["heal_checkpoint"].input(**page.event(hear_checkpoint, asked, ("heal_audio",), "look"))
    page["heal_save"].click(**page.event(save, ("heal_key",), ("heal_saved",), "look"))
    set_as = page.event(take_over, ("heal_key",), ("voice", "speaker", *PRUNING))
    taken = page["heal_stage"].click(**set_as)
    taken.success(None, js="() => stageRun.speak(true, true)", **QUIET)
    return ended
