"""The pictures of the lesson: HTML drawn from the loaded voice, or from what was measured on joe.

Each is a function of a Request, of which it uses voice, text and delivery, and the visitor's token.
Numbers are text, which a screen reader reads; what is only drawn has an alternative text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from vits_prune.measure import measure_sparsity
from vits_prune.measure.cost import count_macs
from vits_prune.measure.weights import measure_weights
from vits_prune.pruning import PruneSpec
from vits_prune.pruning.scores import sparsity_preview
from vits_prune.studio import workbench
from vits_prune.studio.renditions import timed_text
from vits_prune.studio.request import Request
from vits_prune.study.comparison import PART_NAMES
from vits_prune.voices.voice import PARTS

Row = tuple[str, float, str, str]
"""Label, value, the value in words, and the colour: "original" or "pruned"."""


# Drawn from the loaded voice


def weights_by_part(request: Request, token: str | None) -> str:
    """Draw how many weights each part of the voice has."""
    found = measure_sparsity(workbench.bench.voice_of(request, token))
    counts = [(PART_NAMES[part], found.weights(part)) for part in PARTS if found.weights(part)]
    rows = [(name, count, _count(count), "original") for name, count in counts]
    return bars(f"Weights of each part, {_count(found.weights())} in all", rows)


def threshold(request: Request, token: str | None) -> str:
    """Draw how many weights have which size, and the threshold of 30% global pruning."""
    bench, request = workbench.bench, request.at(PruneSpec())
    found = measure_weights(bench.voice_of(request, token), bench.pruned(request, token), bins=40)
    tallest, drawn = max(1, int((found.zeroed + found.kept).max())), ""
    for index, both in enumerate(zip(found.zeroed, found.kept, strict=True)):
        foot = 150.0
        for count, colour in zip(both, ("pruned", "original"), strict=True):
            height = 150 * int(count) / tallest
            foot -= height
            drawn += _rect(10 * index, foot, 9, height, colour)
    place = 400 * found.largest_zeroed / found.edges[-1]
    drawn += f'<path d="M{place:.1f} 0V150" stroke="currentColor" stroke-dasharray="4 3"/>'
    share = 100 * found.zeroed.sum() / max(1, (found.zeroed + found.kept).sum())
    limit = _digits(found.largest_zeroed)
    words = (
        f"Orange, left of the dashed line: the {share:.0f}% of the weights between -{limit} and"
        f" {limit}, which become zero. Blue: those that stay. The last column holds all that are"
        " larger still."
    )
    return _figure("How many weights have which size, zero at the left", _svg(drawn, words), words)


def file_sizes(request: Request, token: str | None) -> str:
    """Draw the sizes of the voice's files before and after 30% global pruning."""
    before, after = workbench.bench.size(request.at(PruneSpec()), token)
    sizes = (
        ("original, ordinary file", before.dense_fp32_bytes, "original"),
        ("30% zeros, ordinary file", after.dense_fp32_bytes, "pruned"),
        ("30% zeros, sparse file", after.sparse_fp32_bytes, "pruned"),
        ("original, half precision", before.dense_fp16_bytes, "original"),
    )
    rows = [(name, size, f"{_digits(size / 1e6)} MB", colour) for name, size, colour in sizes]
    return bars("Size of this voice's file", rows, "Each file was written and its bytes counted.")


def multiplications(request: Request, token: str | None) -> str:
    """Draw how many multiplications speaking takes with 90% zeros, and how many are by a zero."""
    bench = workbench.bench
    request = dataclasses.replace(_short(request), spec=PruneSpec(amount=0.9))
    how: dict[str, Any] = {"seed": request.seed, "delivery": request.delivery}
    first, (all_of_them, _) = count_macs(bench.voice_of(request, token), request.text, **how)
    _, (done, useful) = count_macs(bench.pruned(request, token), request.text, timing=first, **how)
    rows = [
        ("original, dense kernels: carried out", all_of_them, _count(all_of_them), "original"),
        ("90% zeros, dense kernels: carried out", done, _count(done), "pruned"),
        ("90% zeros: not by zero", useful, _count(useful), "pruned"),
    ]
    note = f"Counted while this voice said: “{request.text}”"
    return bars("Multiplications to say one sentence", rows, note)


def global_against_local(request: Request, token: str | None) -> str:
    """Draw the zeros of each part at 40%, global and local, and how long the speech takes."""
    voice = workbench.bench.voice_of(request, token)
    rows: list[Row] = []
    shares = {
        scope: sparsity_preview(voice, PruneSpec(scope=scope, amount=0.4)) or {}
        for scope in ("global", "local")
    }
    for part in PARTS:
        for scope, found in shares.items():
            if part in found:
                share = 100 * found[part]
                rows.append((f"{PART_NAMES[part]}, {scope}", share, f"{share:.0f}%", "pruned"))
    local = PruneSpec(scope="local", amount=0.4)
    spoken = workbench.bench.hear(
        dataclasses.replace(_short(request), spec=local, timing="own"), token
    )
    before, after = spoken.original.audio_seconds, spoken.pruned.audio_seconds
    note = f"With its own rhythm, original: {before:.2f} s, local 40%: {after:.2f} s."
    return bars("Zeros in each part when 40% of all weights go", rows, note)


def _short(request: Request) -> Request:
    return dataclasses.replace(request, text=timed_text(request.text))


# From what was measured on joe


def criteria(request: Request, token: str | None) -> str:
    """Draw how natural a predictor finds joe, method by method."""
    rows = [
        ("original", 4.35, "4.35", "original"),
        ("L1 global, 30% zeros", 2.75, "2.75", "pruned"),
        ("second order, 75% zeros", 3.99, "3.99", "pruned"),
    ]
    note = "joe, 6 sentences, measured apart, by Distill-MOS: 1 is bad, 5 is excellent."
    return bars("How natural the speech is: a prediction", rows, note, low=1, high=5)


def channels(request: Request, token: str | None) -> str:
    """Draw a weight matrix with scattered zeros, and one without some rows and columns."""
    random, drawn = np.random.default_rng(0), ""
    for row, column in np.ndindex(8, 12):
        gone = random.random() < 0.3
        drawn += _rect(15 * column, 18 * row, 13, 16, "zero" if gone else "pruned")
        if row < 6 and column < 9:
            drawn += _rect(220 + 15 * column, 18 * row, 13, 16, "pruned")
    alt = (
        "Left: 8 rows and 12 columns of squares, some of them empty. Right: 6 full rows of 9"
        " columns, nothing empty."
    )
    words = (
        "Left: 30% of the weights are zero, and the table stays as large as it was. Right: whole"
        " rows and columns are gone, and the table is smaller. joe with half of the decoder's"
        " channels is 1.75 times as fast (nine runs: 1.69 to 1.88), each of the two with its best"
        " kernels."
    )
    return _figure("A table of weights, pruned in two ways", _svg(drawn, alt), words)


def healing(request: Request, token: str | None) -> str:
    """Draw how many letters a recogniser gets wrong more than with joe, before and after."""
    rows = [
        ("half the channels, pruned", 37, "+37", "pruned"),
        ("half the channels, healed", 0.8, "+0.8", "pruned"),
        ("90% zeros, healed 12 steps", 41, "+41", "pruned"),
        ("90% zeros, healed", 3.2, "+3.2", "pruned"),
    ]
    note = (
        "joe, decoder channels or second-order zeros, healed for 15 minutes unless said otherwise."
        " Letters in a hundred that the program Whisper tiny.en hears wrong, more than with"
        " the original. Before and after were counted on different sentences."
    )
    return bars("Letters heard wrong, in a hundred", rows, note)


# Drawing


def bars(
    title: str, rows: Iterable[Row], note: str = "", low: float = 0.0, high: float | None = None
) -> str:
    """Return a table with a bar in each row; bars go from `low` to `high`, or the largest value."""
    rows = list(rows)
    top = high or max((value for _, value, _, _ in rows), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td aria-hidden="true"><span class="{colour}" '
        f'style="width:{100 * (value - low) / (top - low):.1f}%"></span></td>'
        f"<td>{escape(shown)}</td></tr>"
        for label, value, shown, colour in rows
    )
    return _figure(title, f"<table>{lines}</table>", note)


def _figure(title: str, body: str, note: str) -> str:
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}{below}</figure>"


def _svg(drawn: str, words: str) -> str:
    return f'<svg viewBox="0 0 400 150" role="img" aria-label="{escape(words)}">{drawn}</svg>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    place = f'x="{x:g}" y="{y:.1f}" width="{width:g}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}/>'


def _count(number: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{_digits(number / size)} {word}"
    return f"{number:,.0f}"


def _digits(number: float) -> str:
    """Return three significant digits, zeros at the end too."""
    return f"{number:#.3g}".rstrip(".")
