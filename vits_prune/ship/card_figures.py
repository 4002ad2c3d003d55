"""The tables of a model card: zeros, sizes, and the evidence of `evaluate` and `compare`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vits_prune.errors import InputError
from vits_prune.measure.quality import METRICS, NO_DIFFERENCE, NO_FLOOR, TOO_FEW
from vits_prune.measure.weights import Size, Sparsity
from vits_prune.ship.card_history import plain, table, text
from vits_prune.ship.formats import Export
from vits_prune.synthesis.speak import STAGES
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.front_matter import Result
from vits_prune.voices.voice import Voice

_VERDICTS = (NO_DIFFERENCE, "worse", "better", "higher", "lower", TOO_FEW, NO_FLOOR)
_FIRST = ("wer", "cer", "dnsmos_ovrl", "mcd_db", "duration_ratio", "lufs")
"""The figures that are not folded away."""
_STAGES = {
    "text": "text encoder",
    "durations": "durations",
    "flow": "flow",
    "decoder": "decoder",
    "total": "**all stages**",
}
_SIZES = {
    "dense_fp32_bytes": "dense fp32 (MB)",
    "dense_fp16_bytes": "dense fp16 (MB)",
    "sparse_fp32_bytes": "sparse, lossless (MB)",
    "parameters": "parameters (million)",
    "nonzero_parameters": "of them not zero (million)",
}

Evidence = Mapping[str, Any]


def check_evidence(evidence: Evidence, voice: Voice, original: Voice | None = None) -> None:
    """Whether this is what `evaluate --json` or `compare` wrote of a voice: with its recipe, its origin and its speaker.

    Args:
        evidence: one file's content, or several in one of which each was checked.
        voice: that is to be shipped.
        original: what it is compared with, where that goes by another name than the one that the voice came from.

    Raises:
        InputError: it is not.
    """
    if not isinstance(evidence, Mapping) or not any(
        isinstance(evidence.get(key), Mapping) for key in ("figures", "latency")
    ):
        raise InputError(
            "The evidence is not what `evaluate --json` or `compare` writes (report.json): give such a file."
        )
    measured = evidence.get("recipe")
    if not isinstance(measured, Mapping) or not same_recipe(measured, voice.recipe):
        raise InputError(
            "The evidence was measured of a voice with another recipe: measure this one, or give its own file."
        )
    voices = evidence.get("voices")
    if isinstance(voices, Mapping):
        _require_same(voices.get("pruned"), (voice,))
        _require_same(voices.get("original"), (voice, original))
        if voices["original"].get("changed") is True:
            raise InputError(
                "The evidence was measured against a voice that was itself pruned or healed: measure against the one that all began with."
            )
    else:
        _require_same(evidence, (voice,))


def _require_same(measured: Any, voices: Sequence[Voice | None]) -> None:
    """Whether an identity in a report is that of one of these voices; a revision that is not known may be any.

    Raises:
        InputError: it is not, or nothing is said.
    """
    if not isinstance(measured, Mapping) or not isinstance(measured.get("reference"), str):
        raise InputError(
            "The evidence does not say which voice was measured: measure it again with `evaluate --json` or `compare`."
        )
    for voice in voices:
        if (
            voice is None
            or measured["reference"] != voice.origin.reference
            or measured.get("speaker") != voice.speaker
        ):
            continue
        if (
            None in (measured.get("revision"), voice.origin.revision)
            or measured["revision"] == voice.origin.revision
        ):
            return
    said = plain(measured["reference"], 60) + "".join(
        f", {name} {plain(measured[name], 40)}"
        for name in ("revision", "speaker")
        if measured.get(name) is not None
    )
    raise InputError(
        f"The evidence was measured of another voice ({said}): measure this one, or give its own file."
    )


def same_recipe(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recipes say the same, lists and tuples alike."""
    return _listed(one) == _listed(other)


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def sparsity_table(sparsity: Sparsity, original: Sparsity | None) -> str:
    """Weights and zeros by part."""
    rows, zeros = [], sparsity.zeros() > 0
    for part in (None, *sparsity.parts):
        weights, none = sparsity.weights(part), sparsity.zeros(part)
        cells = ["**whole voice**" if part is None else part.replace("_", " ")]
        cells += [f"{original.weights(part):,}"] if original else []
        rows.append(
            [
                *cells,
                f"{weights:,}",
                *([f"{none:,}", f"{100 * none / max(1, weights):.1f}%"] if zeros else []),
            ]
        )
    titles = [
        "part",
        *(["weights of the original"] if original else []),
        "weights",
        *(["of them zero", "sparsity"] if zeros else []),
    ]
    return table(titles, rows)


def size_table(size: Size, original: Size | None, export: Export) -> str:
    """Sizes of the voice in the plain formats, and of the file here."""
    rows = []
    for name, title in _SIZES.items():
        before = [f"{getattr(original, name) / 1e6:.2f}"] if original else []
        rows.append([title, *before, f"{getattr(size, name) / 1e6:.2f}"])
    here = f"**here: {export.format} {export.precision} (MB)**"
    rows.append([here, *([""] if original else []), f"**{export.bytes / 1e6:.2f}**"])
    return table(["", *(["original"] if original else []), "this voice"], rows)


def quality(evidence: Evidence) -> str:
    """The figures of `evaluate`, "" where there are none."""
    rows: dict[bool, list[list[str]]] = {True: [], False: []}
    for name, metric in METRICS.items():
        figure = _inside(evidence, "figures", name)
        value = _number(_inside(figure, "pruned"), "value")
        if value is None:
            continue
        floor = [_number(_inside(figure, "floor"), end) for end in ("low", "high")]
        verdict = figure.get("verdict")
        rows[name in _FIRST].append([
            metric.title + (f" ({metric.unit})" if metric.unit else ""),
            _plain(_number(_inside(figure, "original"), "value")), _plain(value), _interval(_inside(figure, "difference")),
            "" if None in floor else f"{floor[0]:.3g} to {floor[1]:.3g}", verdict if verdict in _VERDICTS else "",
        ])  # fmt: skip
    if not any(rows.values()):
        return ""
    settings = _inside(evidence, "settings")
    model = text(_inside(settings, "recogniser").get("model", "?"), 60)
    words = (
        f"{_texts(evidence)[0]}. Word and character errors are those of Whisper ({model}); DNSMOS P.835 predicts opinions, trained on "
        "noisy speech, not on synthesis. Intervals are 95%, bootstrapped over sentences. The noise floor is what another seed of the noise "
        "does to the original's own figure; a difference is claimed only where the whole interval lies beyond it."
    )
    titles = ["metric", "original", "this voice", "change [95% interval]", "noise floor", "verdict"]
    more = (
        f"<details><summary>More figures</summary>\n\n{table(titles, rows[False])}\n\n</details>"
        if rows[False]
        else ""
    )
    return "\n\n".join(
        filter(
            None,
            (
                words,
                table(titles, rows[True]) if rows[True] else "",
                more,
                _alarms(evidence),
                _cost(evidence),
            ),
        )
    )


def in_short(evidence: Evidence) -> str:
    """The two figures that matter most, "" where they were not measured."""
    said = []
    for name, title in (("cer", "character errors"), ("dnsmos_ovrl", "DNSMOS")):
        before, after = (
            _number(_inside(evidence, "figures", name, which), "value")
            for which in ("original", "pruned")
        )
        if before is not None and after is not None:
            said.append(f"{title} {before:.3g} before, {after:.3g} now")
    return "; ".join(said)


def latency(evidence: Evidence) -> str:
    """The timings of `compare`, "" where there are none."""
    found = _inside(evidence, "latency")
    rows = []
    for stage in (*STAGES, "total"):
        spans = [
            _spread(_inside(found, which, "stage_seconds", stage), 1e3)
            for which in ("original", "pruned")
        ]
        if all(spans):
            rows.append([f"{_STAGES[stage]} (ms)", *spans])
    for name, title in (
        ("real_time_factor", "real-time factor (seconds a second of speech)"),
        ("cpu_seconds_per_audio_second", "processor seconds a second of speech"),
    ):
        spans = [_spread(_inside(found, which, name), 1.0) for which in ("original", "pruned")]
        if all(spans):
            rows.append([title, *spans])
    macs = [_number(_inside(found, which), "dense_macs") for which in ("original", "pruned")]
    if None not in macs:
        rows.append(["multiply-accumulates (G)", *(f"{one / 1e9:.3g}" for one in macs)])
    if not rows:
        return ""
    runs, threads = (_plain(_number(found, name)) for name in ("runs", "threads"))
    speed = _spread(_inside(found, "speed_up"), 1.0)
    words = (
        f"One sentence, both voices in turn with the same number of frames, in torch on {text(found.get('device', '?'), 60)}, "
        f"{threads or '?'} threads: median of {runs or '?'} runs (least to most). Times as fast as the original: {speed or '?'}. "
        "Zeros alone make nothing faster in dense kernels; fewer channels and layers do."
    )
    return f"{words}\n\n{table(['', 'original', 'this voice'], rows)}"


def results(evidence: Evidence) -> list[Result]:
    """The figures that the hub's own table takes."""
    found = []
    for name in ("wer", "cer"):
        value = _number(_inside(evidence, "figures", name, "pruned"), "value")
        if value is not None:
            title = f"{METRICS[name].title} (of a speech recogniser)"
            found.append(Result(name, title, round(value, 5), *_texts(evidence)))
    return found


def _texts(evidence: Evidence) -> tuple[str, str]:
    """What was spoken: in words, and as an identifier."""
    rows = evidence.get("sentences")
    said = (
        [row.get("text") for row in rows[:10_000] if isinstance(row, Mapping)]
        if isinstance(rows, list)
        else []
    )
    if said and set(map(str, said)) <= set(load_texts(None, "held-out")):
        return f"{len(said)} held-out Harvard sentences (IEEE 1969)", "harvard-sentences"
    return f"{len(said) or 'Some'} sentences of its maker's choice", "own-sentences"


def _alarms(evidence: Evidence) -> str:
    rows = evidence.get("sentences")
    count = len(rows) if isinstance(rows, list) else 0
    raised = {
        plain(kind, 40): number
        for kind in list(_inside(evidence, "alarms"))[:20]
        if (number := _number(evidence["alarms"], kind))
    }
    return (
        f"Speech failures: {', '.join(f'{text(kind)}: {number:g} of {count}' for kind, number in raised.items())}."
        if raised
        else ""
    )


def _cost(evidence: Evidence) -> str:
    costs = [
        _number(_inside(evidence, "cost", which), "cpu_seconds_per_audio_second")
        for which in ("original", "pruned")
    ]
    return (
        ""
        if None in costs
        else f"A second of speech took {costs[0]:.3g} processor seconds (original) and {costs[1]:.3g} (this voice)."
    )


def _inside(values: Any, *path: str) -> Mapping[str, Any]:
    """The object at the end of a path, an empty one where there is none."""
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not abs(value) < 1e15
        or not math.isfinite(value)
    ):
        return None
    return value


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(values: Mapping[str, Any]) -> str:
    value, low, high = (_number(values, name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{value:+.3g}" + ("" if low is None or high is None else f" [{low:+.3g}, {high:+.3g}]")


def _spread(values: Mapping[str, Any], factor: float) -> str:
    numbers = [_number(values, name) for name in ("median", "low", "high")]
    return (
        ""
        if None in numbers
        else "{:.3g} ({:.3g} to {:.3g})".format(
            *(factor * one for one in numbers if one is not None)
        )
    )
