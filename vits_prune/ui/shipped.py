"""What the Ship tab's three buttons do: every format in a table, one of them as a file, one of them on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.studio import descriptions, speaking
from vits_prune.studio.jobs import Update
from vits_prune.studio.request import Request
from vits_prune.ui import shipping
from vits_prune.ui.healing import Order
from vits_prune.ui.ship import login_words, used_lines
from vits_prune.ui.shipping import CHOICES, Line, Packed, Parcel, Published
from vits_prune.voices.voice import Voice

COMPARED = ("ship_status", "ship_table", "ship_csv")
PACKED = ("ship_packing", "ship_file", "ship_python", "ship_shell")
PUSHED = ("ship_pushing",)
"""Outputs that comparing, packing and pushing fill."""
_WIDTHS = ["125px", "70px", "85px", "255px", "80px", "75px", "95px", "95px"]


# Formats


def compare_steps(
    request: Request, token: str | None, halted: Callable[[], bool], which: Any, order: Any
) -> Iterator[dict[str, Any]]:
    """Write and measure format after format; each update, by the names of COMPARED, shows all so far.

    Args:
        request: whose voice and spec.
        token: the visitor's.
        halted: whether it is to end with what it has.
        which, order: "pruned" or "healed", and the healing.
    """
    yield {
        "ship_status": "beginning …",
        "ship_table": gr.Dataframe(visible=False),
        "ship_csv": gr.DownloadButton(visible=False),
    }
    healing = shipping.order_at_hand(which, order)
    voice = None
    for step in _made(request, healing, token, halted):
        if isinstance(step, Update):
            yield {"ship_status": str(step)}
        else:
            voice, _ = step
    if voice is None:
        yield {"ship_status": "Stopped before anything was written."}
        return
    lines: list[Line] = []
    for step in shipping.format_steps(voice, halted):
        if isinstance(step, Update):
            yield {"ship_status": str(step)}
        else:
            lines = step
            yield _table(lines)
    what = shipping.name_of(voice, request, healing)
    done = (
        f"Done: **{what}**."
        if len(lines) == len(CHOICES)
        else f"Stopped: {len(lines)} of {len(CHOICES)} formats of **{what}**."
    )
    # All that was found, once more: Gradio 6.31 forgets what an earlier update put into a tab that was not open.
    yield {
        **(_table(lines) if lines else {}),
        "ship_status": f"{done} {_READING}" if lines else done,
    }


_READING = (
    "MB are those of the file of the weights. Load and RTF (seconds of computing per second of speech) are onnxruntime's on this machine, "
    "all cores; mel levels and durations are compared with the voice before rounding."
)


def _made(
    request: Request, healing: Order | None, token: str | None, halted: Callable[[], bool]
) -> Iterator[Update | tuple[Voice, Voice]]:
    """The voice to be shipped and its original, last; neither where it is halted."""
    making = shipping.voice_steps(request, healing, token)
    try:
        while not halted():
            yield next(making)
    except StopIteration as ended:
        yield ended.value
    finally:
        making.close()


def _table(lines: list[Line]) -> dict[str, Any]:
    """The table to be read, and the file with the numbers as they are."""
    shown, rows = [], []
    for line in lines:
        row, what = line.row, f"{line.format} {line.precision}"
        if row is None:
            shown.append(dict.fromkeys(_COLUMNS, "") | {"format": what, "in words": line.why})
            rows.append({"format": line.format, "precision": line.precision, "in_words": line.why})
            continue
        sound = row.closeness
        cells = (
            what, f"{row.megabytes:.2f}", f"{100 * row.share:.1f}%", row.words,
            "" if row.load_ms is None else f"{row.load_ms:.0f}",
            "" if row.real_time_factor is None else f"{row.real_time_factor:.3f}",
            "" if sound is None else f"{sound.log_mel_db:.2f}", "" if sound is None else f"{100 * sound.drift:.1f}%",
        )  # fmt: skip
        shown.append(dict(zip(_COLUMNS, cells, strict=True)))
        rows.append({
            "format": line.format, "precision": line.precision, "megabytes": row.megabytes, "share_of_dense_fp32": row.share,
            "load_ms": row.load_ms, "real_time_factor": row.real_time_factor, "mel_levels_off_db": sound and sound.log_mel_db,
            "durations_off": sound and sound.drift, "in_words": row.words,
        })  # fmt: skip
    return {
        "ship_table": gr.Dataframe(pd.DataFrame(shown), visible=True, column_widths=_WIDTHS),
        "ship_csv": gr.DownloadButton(
            value=speaking.csv(pd.DataFrame(rows), "formats"), visible=True
        ),
    }


_COLUMNS = (
    "format",
    "MB",
    "of dense fp32",
    "in words",
    "load (ms)",
    "RTF",
    "mel levels off (dB)",
    "durations off",
)


# One file


def download_steps(
    request: Request,
    token: str | None,
    halted: Callable[[], bool],
    which: Any,
    order: Any,
    format: Any,
    precision: Any,
) -> Iterator[dict[str, Any]]:
    """Make the zip file of one format; updates by the names of PACKED."""
    yield {"ship_packing": "beginning …", "ship_file": gr.File(None, visible=False)}
    try:
        shipping.check_choice(format, precision)
        healing = shipping.order_at_hand(which, order)
        made = None
        for step in _made(request, healing, token, halted):
            if isinstance(step, Update):
                yield {"ship_packing": str(step)}
            else:
                made = step
        if made is not None:
            name = shipping.name_of(made[0], request, healing)
            for step in shipping.pack_steps(made[0], name, format, precision, halted):
                yield (
                    {"ship_packing": str(step)}
                    if isinstance(step, Update)
                    else _packed(made[0], name, step, format, precision)
                )
                if isinstance(step, Packed):
                    return
    except InputError as error:
        yield {"ship_packing": str(error)}  # stays when the pop-up has gone
        raise
    yield {"ship_packing": "Stopped: no file was made."}


def _packed(voice: Voice, name: str, packed: Packed, format: str, precision: str) -> dict[str, Any]:
    words = f"**{packed.model}** in it has {packed.bytes / 1e6:.2f} MB."
    if packed.waveform_error is not None:
        words += f" onnxruntime says what torch says: no sample is off by more than {packed.waveform_error:.0e} (same weights, no noise)."
    return {
        "ship_packing": words,
        "ship_file": gr.File(str(packed.archive), visible=True),
        **used_lines(voice, name, format, precision),
    }


# The hub


def hub_steps(
    request: Request,
    token: str | None,
    halted: Callable[[], bool],
    which: Any,
    order: Any,
    noticed: Any,
    parcel: Parcel,
) -> Iterator[dict[str, Any]]:
    """Push a voice to the hub with the visitor's own token; updates by the names of PUSHED.

    Args:
        request, token, halted, which, order: as for `compare_steps`.
        noticed: of which voice the visitor saw the licence.
        parcel: where to and how.
    """
    yield {"ship_pushing": "beginning …"}
    try:
        yield from _pushed_steps(
            request, token, halted, shipping.order_at_hand(which, order), noticed, parcel
        )
    except InputError as error:
        yield {"ship_pushing": str(error)}
        raise


def _pushed_steps(
    request: Request,
    token: str | None,
    halted: Callable[[], bool],
    healing: Order | None,
    noticed: Any,
    parcel: Parcel,
) -> Iterator[dict[str, Any]]:
    if not token:
        raise InputError(login_words(None).replace("**", "").replace("*", "").replace("`", "'"))
    if not parcel.repo:
        raise InputError("Give the repository a name, such as my-small-voice.")
    made = None
    for step in _made(request, healing, token, halted):
        if isinstance(step, Update):
            yield {"ship_pushing": str(step)}
        else:
            made = step
    if made is None:
        yield {"ship_pushing": _UNPUBLISHED}
        return
    seen = (healing.request if healing else request).reference
    if noticed != seen:
        parcel = dataclasses.replace(parcel, read=False)
    pushing = shipping.push_steps(*made, parcel, request, healing, token, halted)
    try:
        while True:
            yield {"ship_pushing": str(next(pushing))}
    except StopIteration as ended:
        yield {"ship_pushing": _pushed_words(ended.value, parcel, halted())}
    finally:
        pushing.close()


_UNPUBLISHED = "Stopped: nothing was published."


def _pushed_words(published: Published | None, parcel: Parcel, halted: bool) -> str:
    if published is None:
        return f"{_UNPUBLISHED} Where it was new, its repository may be there, empty; the same push again goes on."
    pushed, words = published.pushed, "It was too late to stop. " if halted else ""
    words += f"Pushed to [{descriptions.plain(pushed.repo_id)}]({pushed.url}): {pushed.files} files, {pushed.bytes_sent / 1e6:.1f} MB sent."
    if parcel.format in ("dense", "sparse"):
        words += f' Load it with `load_voice("{pushed.repo_id}")`.'
    if published.no_figures:
        words += f" Its card has no figures: {descriptions.plain(published.no_figures, 400)}"
    return words
