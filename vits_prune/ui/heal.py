"""The Heal tab: the pruned voice is trained back on what the original says, watched and heard while it learns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.healing.training_curve import Curve
from vits_prune.measure.quality import METRICS
from vits_prune.measure.statistics import Interval
from vits_prune.studio import speaking, workbench
from vits_prune.studio.jobs import Update
from vits_prune.studio.request import Request
from vits_prune.studio.workbench import trace
from vits_prune.study.evaluation import Evaluation
from vits_prune.ui import healed
from vits_prune.ui.course import course_value
from vits_prune.ui.healed import Healing
from vits_prune.ui.healing import LEAST_MINUTES, MOST_MINUTES, Order, plan_of
from vits_prune.ui.tabs.results import player
from vits_prune.ui.widgets import WAITING, widget

LEAST_TEXTS, MOST_TEXTS = 2, 20
SHOWN = (
    "heal_status", "heal_key", "heal_course", "heal_csv", "heal_checkpoint", "heal_audio", "heal_heard", "heal_original", "heal_unhealed",
    "heal_healed", "heal_compared", "heal_table", "heal_table_csv", "heal_save", "heal_saved",
)  # fmt: skip
"""Outputs that healing fills."""
_TABLED = ("cer", "wer", "dnsmos_ovrl", "duration_ratio", "duration_drift")
_SHARES = ("cer", "wer")


def heal_tab() -> dict[str, Any]:
    """The tab's components."""
    gr.Markdown(
        "The voice as it is pruned on the left learns from the original, which speaks sentences for it: no recordings are needed. Zeros "
        "stay zeros, and what was removed stays removed. Stopped early, the best so far is kept."
    )
    return {
        **_asked(),
        **_found(),
        "heal_key": gr.State(),
        "heal_ticket": gr.Textbox(visible="hidden", elem_id="heal-ticket"),
    }


def _asked() -> dict[str, Any]:
    """What the visitor sets and presses."""
    made: dict[str, Any] = {}
    with gr.Row():
        made["heal_minutes"] = gr.Slider(
            LEAST_MINUTES,
            MOST_MINUTES,
            value=5,
            step=0.5,
            label="Minutes of learning",
            info="Pruning before and measuring after come on top",
            elem_id="heal-minutes",
        )
        made["heal_texts"] = gr.Slider(
            LEAST_TEXTS,
            MOST_TEXTS,
            value=6,
            step=1,
            label="Sentences to measure on",
            info="Some at checkpoints, others at the end",
            elem_id="heal-texts",
        )
    made["heal_adversarial"] = gr.Checkbox(
        False,
        label="Adversarial: discriminators join in halfway",
        info="Slow without a GPU: the same minutes then hold far fewer steps",
        elem_id="heal-adversarial",
    )
    with gr.Row():
        made["heal_start"] = gr.Button("Heal", variant="primary", elem_id="heal-start", scale=3)
        made["heal_stop"] = gr.Button(
            "Stop, keep the best", elem_id="heal-stop", scale=1, min_width=160
        )
    return made


def _found() -> dict[str, Any]:
    """What healing fills."""
    made: dict[str, Any] = {}
    made["heal_status"] = gr.Markdown("", elem_id="heal-status", min_height=44)
    made["heal_course"] = widget("course", "heal-course")
    made["heal_csv"] = gr.DownloadButton(
        "Download healing.csv", size="sm", interactive=False, elem_id="heal-csv"
    )
    made["heal_checkpoint"] = gr.Radio(
        [], label="Checkpoints: choose one to hear it", visible=False, elem_id="heal-checkpoint"
    )
    made["heal_audio"] = player(
        "Checkpoint, with the original's durations",
        "heal-audio",
        "#8d6cc9",
        visible=False,
        min_width=200,
        autoplay=True,
    )
    made["heal_heard"] = gr.Markdown("", elem_id="heal-heard")
    with gr.Row():
        made["heal_original"] = player(
            "Original", "heal-original", "#2f7ed8", visible=False, min_width=200
        )
        made["heal_unhealed"] = player(
            "Pruned", "heal-unhealed", "#e4572e", visible=False, min_width=200
        )
        made["heal_healed"] = player(
            "Pruned and healed", "heal-healed", "#2a9d6f", visible=False, min_width=200
        )
    made["heal_compared"] = gr.Markdown("", elem_id="heal-compared")
    made["heal_table"] = gr.Dataframe(
        visible=False, interactive=False, show_label=False, wrap=True, elem_id="heal-table"
    )
    made["heal_table_csv"] = gr.DownloadButton(
        "Download healed.csv", size="sm", visible=False, elem_id="heal-table-csv"
    )
    made["heal_save"] = gr.Button(
        "Make the healed voice's folder", interactive=False, elem_id="heal-save"
    )
    made["heal_saved"] = gr.File(
        label="Folder of the healed voice (zip)",
        interactive=False,
        visible=False,
        elem_id="heal-saved",
    )
    return made


def order_of(
    request: Request, token: str | None, minutes: Any, texts: Any, adversarial: Any
) -> Order:
    """What the tab's controls ask for.

    Raises:
        InputError: one of them is out of range.
    """
    known = (
        isinstance(texts, (int, float))
        and not isinstance(texts, bool)
        and LEAST_TEXTS <= texts <= MOST_TEXTS
    )
    if not known:
        raise InputError(f"Give {LEAST_TEXTS} to {MOST_TEXTS} sentences to measure on.")
    return Order(request, plan_of(minutes, adversarial, request.seed), int(texts), trace(token))


def heal_steps(
    request: Request,
    token: str | None,
    halted: Callable[[str], bool],
    minutes: Any,
    texts: Any,
    adversarial: Any,
) -> Iterator[dict[str, Any]]:
    """Heal, then let all three voices speak, then measure; each update by the names of SHOWN.

    Args:
        request: whose voice, spec and text.
        token: the visitor's.
        halted: whether "healing" is to end with what it has, or "measuring" without a table.
        minutes, texts, adversarial: of the tab's controls.
    """
    yield from ordered_steps(order_of(request, token, minutes, texts, adversarial), token, halted)


def ordered_steps(
    order: Order, token: str | None, halted: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """As heal_steps, of an Order."""
    yield _cleared()
    found: Healing | None = None
    try:
        with contextlib.closing(
            healed.healing_steps(order, token, lambda: halted("healing"))
        ) as run:
            for step in run:
                if isinstance(step, Healing):
                    found = step
                    yield {"heal_key": order, **_shown(found)}
                elif found is None and halted("healing"):
                    yield {"heal_status": "Stopped before healing began."}
                    return
                else:
                    yield {"heal_status": str(step)}
    except InputError as error:
        yield {"heal_status": str(error)}  # stays when the pop-up has gone
        raise
    stopped = halted("healing")
    result: dict[str, Any] = {"heal_key": order, **_shown(found)}
    for step in healed.spoken_steps(found, order.request, token):
        if isinstance(step, Update):
            yield {"heal_status": str(step)}
        else:
            result |= _spoken(order.request, step, found)
    yield result
    # Stopped once the best is kept; pressed once more there is no table either.
    for step in healed.compared_steps(found, order.request, token):
        if halted("measuring" if stopped else "healing"):
            yield {**result, "heal_status": f"Done, without measuring. {_kept_words(found)}"}
            return
        if isinstance(step, Update):
            yield {"heal_status": f"Healed; measuring: {step}"}
        else:
            # All that was found, once more: Gradio 6.31 forgets what an earlier update put into a tab that was not open.
            yield {**result, **_compared(*step), "heal_status": f"Done. {_kept_words(found)}"}


def checkpoint_steps(order: Order | None, step: Any) -> dict[str, Any]:
    """What the voice of a checkpoint said.

    Raises:
        InputError: there is no such checkpoint, or it is forgotten.
    """
    check = next(
        (
            one
            for one in healed.recall(order).checks
            if one.step == step and not isinstance(step, bool)
        ),
        None,
    )
    if check is None or check.speech is None:
        raise InputError("Choose one of the checkpoints.")
    label = f"{_named(check.step)}, with the original's durations"
    return {
        "heal_audio": gr.Audio(
            speaking.wav(check.speech, f"step-{check.step}"), label=label, visible=True
        )
    }


def healed_folder(order: Order | None) -> str:
    """The healed voice's folder as a zip file for a download button.

    Raises:
        InputError: nothing was healed, or it is forgotten.
    """
    if order is None:
        raise InputError("Nothing is healed yet: press Heal first.")
    voice = healed.recall(order).voice
    if voice is None:
        raise InputError("This voice is still being healed: wait for its end, or press Stop.")
    return speaking.zipped(voice, f"{order.request.spec.method}-healed")


def _cleared() -> dict[str, Any]:
    """What was found of another healing goes."""
    gone = {
        name: gr.Audio(None, visible=False)
        for name in ("heal_audio", "heal_original", "heal_unhealed", "heal_healed")
    }
    return {
        **gone,
        "heal_status": "beginning …",
        "heal_key": None,
        "heal_course": {"hint": WAITING["course"]},
        "heal_csv": gr.DownloadButton(interactive=False),
        "heal_checkpoint": gr.Radio([], value=None, visible=False),
        "heal_heard": "",
        "heal_compared": "",
        "heal_table": gr.Dataframe(visible=False),
        "heal_table_csv": gr.DownloadButton(visible=False),
        "heal_save": gr.Button(interactive=False),
        "heal_saved": gr.File(None, visible=False),
    }


def _named(step: int) -> str:
    return f"step {step}" if step else "not healed"


def _shown(found: Healing) -> dict[str, Any]:
    """Curves and checkpoints so far."""
    kept = found.kept if found.voice is not None else None
    hint = (
        f"Losses on a logarithmic scale. Below: measured on {found.note}, bars are 95% intervals, dashed is the original. "
        f"The best checkpoint is chosen by character errors and DNSMOS there. {found.unmeasured}"
    ).strip()
    shown: dict[str, Any] = {
        "heal_course": course_value(
            found.rows, [(one.step, one.figures) for one in found.checks], found.of, kept, hint
        )
    }
    choices = [
        (_named(one.step) + (" (kept)" if one.step == kept else ""), one.step)
        for one in found.checks
        if one.speech
    ]
    shown["heal_checkpoint"] = gr.Radio(choices, visible=True)
    if found.voice is not None:
        shown["heal_csv"] = gr.DownloadButton(value=_course_csv(found), interactive=True)
        shown["heal_save"] = gr.Button(interactive=True)
    return shown


def _course_csv(found: Healing) -> str:
    """Losses and measurements as the command line writes them, with the ends of the intervals."""
    curve = Curve()
    curve.rows = [dict(row) for row in found.rows]
    for check in found.checks:
        figures = {name: one.pruned for name, one in check.figures.items()}
        ends = {
            f"measured_{name}{end}": getattr(one, at)
            for name, one in figures.items()
            for end, at in _ENDS
        }
        row = next((row for row in curve.rows if row["step"] == check.step), None)
        if row is None:
            curve.rows.append({"step": check.step, **ends})
        else:
            row |= ends
    curve.rows.sort(key=lambda row: row["step"])
    path = workbench.scratch.folder() / "healing.csv"
    curve.write(path)
    return str(path)


_ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def _spoken(request: Request, speeches: tuple[Any, ...], found: Healing) -> dict[str, Any]:
    names = ("original", "unhealed", "healed")
    timing = (
        "all with the original's durations"
        if request.timing == "locked"
        else "each with its own rhythm"
    )
    seconds = [speech.audio_seconds for speech in speeches]
    words = f"**{seconds[0]:.2f} s** original, {seconds[1]:.2f} s pruned, {seconds[2]:.2f} s healed: {timing}."
    players = {
        f"heal_{name}": gr.Audio(speaking.wav(one, name), visible=True)
        for name, one in zip(names, speeches, strict=True)
    }
    return {**players, "heal_heard": words}


def _kept_words(found: Healing) -> str:
    """Which voice it is."""
    scores = {one.step: one.score for one in found.checks if one.score is not None}
    words = f"The voice of step {found.kept} of {found.of} is kept, healed in {found.seconds / 60:.1f} minutes."
    if found.why:
        words += f" It ended early: {found.why.rstrip('.')}."
    if 0 in scores and found.kept in scores and scores[found.kept] >= scores[0] > 0:
        words += " On the sentences it was watched on it is no better than before: give it more minutes, or prune less."
    return words


def _compared(before: Evaluation, after: Evaluation, note: str) -> dict[str, Any]:
    """The table of both, to be read, and the file with the numbers as they are."""
    shown = []
    for name in _TABLED:
        if name not in after.figures:
            continue
        was, now = before.figures[name], after.figures[name]
        shown.append({
            "measure": "length of the speech" if name == "duration_ratio" else METRICS[name].title,
            "original": _interval(name, now.original),
            "pruned": _interval(name, was.pruned),
            "healed": _interval(name, now.pruned),
            "healed minus original": _interval(name, now.difference, change=True),
        })  # fmt: skip
    rows = [
        {"voice": voice, **one.to_row()} for voice, one in (("pruned", before), ("healed", after))
    ]
    chosen = "by none of which" if "held-out" in note else "by which, for want of others,"
    words = [
        f"**Before and after**, on {note}, {chosen} the checkpoint was chosen; 95% intervals in brackets."
    ]
    if "dnsmos_ovrl" in after.figures:
        words.append("DNSMOS was trained on noisy speech, not on synthesis.")
    return {
        "heal_compared": " ".join([*words, *after.unmeasured.values()]),
        "heal_table": gr.Dataframe(
            pd.DataFrame(shown),
            visible=True,
            column_widths=["120px", "125px", "150px", "150px", "165px"],
        ),
        "heal_table_csv": gr.DownloadButton(
            value=speaking.csv(pd.DataFrame(rows), "healed"), interactive=True, visible=True
        ),
    }


def _interval(name: str, one: Interval | None, change: bool = False) -> str:
    """A number with its interval, shares and the length of the speech in percent."""
    if one is None:
        return ""
    percent, points = name in (*_SHARES, "duration_ratio"), name in _SHARES and change
    values = [
        None if value is None else 100 * value if percent else value
        for value in (one.value, one.low, one.high)
    ]
    sign, digits = "+" if change else "", 1 if percent else 2
    value, low, high = ("" if number is None else f"{number:{sign}.{digits}f}" for number in values)
    unit = " points" if points else "%" if percent else ""
    return f"{value}{unit}" + (f" [{low}, {high}]" if low and high else "")
