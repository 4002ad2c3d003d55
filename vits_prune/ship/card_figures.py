"""The tables of a model card, and Markdown that strangers' words cannot break out of.

The evidence of `evaluate` and `compare` is read from files that anybody may have written: only its
numbers, and words that were escaped, reach the card.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vits_prune.errors import InputError
from vits_prune.measure.predictors import PREDICTORS, deaf_words, without
from vits_prune.measure.quality import (
    METRICS,
    NO_DIFFERENCE,
    NO_FLOOR,
    TOO_FEW,
    UNDECIDED,
    Claim,
    claim,
    strictest,
)
from vits_prune.measure.weights import Size, Sparsity
from vits_prune.ship.formats import Export
from vits_prune.study.signature import check_comparable
from vits_prune.study.sweep_store import plain as jsonable
from vits_prune.synthesis.speak import STAGES
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.voice import Voice

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_VERDICTS = (NO_DIFFERENCE, "worse", "better", "higher", "lower", UNDECIDED, TOO_FEW, NO_FLOOR)
_FIRST = (
    *("wer", "cer", "distillmos", "dnsmos_ovrl", "visqol", "mcd_db"),
    *("speaker_similarity", "duration_ratio", "lufs"),
)
"""The figures that are not folded away, beside those that the claim stands on."""
_OLD = (
    "An older version of vits_prune measured this, whose verdicts of no difference were no claims: "
    "they are undecided here. The figures have no signature: do not compare them with others."
)
_BOTH = ("original", "pruned")
_SIZES = {
    "dense_fp32_bytes": "dense fp32 (MB)",
    "dense_fp16_bytes": "dense fp16 (MB)",
    "sparse_fp32_bytes": "sparse, lossless (MB)",
    "parameters": "parameters (million)",
    "nonzero_parameters": "of them not zero (million)",
}

Evidence = Mapping[str, Any]


def check_evidence(evidence: Evidence, voice: Voice, original: Voice | None = None) -> None:
    """Check that `evaluate --json` or `compare` wrote this about a voice.

    Args:
        evidence: one file's content, or several in one of which each was checked.
        voice: that is to be shipped: its recipe, its origin and its speaker must be the same.
        original: what it is compared with, if that is not the voice's origin.

    Raises:
        InputError: it is about another voice, or is something else.
    """
    if not isinstance(evidence, Mapping) or not any(
        isinstance(evidence.get(key), Mapping) for key in ("figures", "latency")
    ):
        raise InputError("The evidence is not a file of `evaluate --json` or `compare`: give one.")
    measured = evidence.get("recipe")
    if not isinstance(measured, Mapping) or jsonable(measured) != jsonable(voice.recipe):
        raise InputError("The evidence is of a voice with another recipe: give its own file.")
    voices = evidence.get("voices")
    if not isinstance(voices, Mapping):
        _require_same(evidence, (voice,))
        return
    _require_same(voices.get("pruned"), (voice,))
    _require_same(voices.get("original"), (voice, original))
    if voices["original"].get("changed") is True:
        what = "The evidence was measured against a voice that was itself pruned or healed"
        raise InputError(f"{what}: measure against the original.")


def _require_same(measured: Any, voices: Sequence[Voice | None]) -> None:
    """Refuse the identity of another voice; a revision that is not known may be any."""
    if not isinstance(measured, Mapping) or not isinstance(measured.get("reference"), str):
        what = "The evidence does not say which voice was measured"
        raise InputError(f"{what}: use `evaluate --json` or `compare` again.")
    for voice in filter(None, voices):
        revisions = (measured.get("revision"), voice.origin.revision)
        if (
            measured["reference"] == voice.origin.reference
            and measured.get("speaker") == voice.speaker
            and (None in revisions or revisions[0] == revisions[1])
        ):
            return
    said = [plain(measured["reference"], 60)]
    for name in ("revision", "speaker"):
        said += [f"{name} {plain(measured[name], 40)}"] if measured.get(name) is not None else []
    raise InputError(f"The evidence is of another voice ({', '.join(said)}): give its own file.")


def sparsity_markdown(sparsity: Sparsity, original: Sparsity | None) -> str:
    """Return the weights and zeros of each part."""
    zeros = sparsity.zeros() > 0
    titles = ["part", *["weights of the original"] * bool(original), "weights"]
    titles += ["of them zero", "sparsity"] * zeros
    rows = []
    for part in (None, *sparsity.parts):
        weights, none = sparsity.weights(part), sparsity.zeros(part)
        row = ["**whole voice**" if part is None else part.replace("_", " ")]
        row += [f"{original.weights(part):,}"] if original else []
        row.append(f"{weights:,}")
        row += [f"{none:,}", f"{100 * none / max(1, weights):.1f}%"] * zeros
        rows.append(row)
    return table(titles, rows)


def size_markdown(size: Size, original: Size | None, export: Export) -> str:
    """Return the sizes of the voice in the plain formats, and of the file here."""
    both = [original] * bool(original)
    rows = [
        [title, *(f"{getattr(one, name) / 1e6:.2f}" for one in (*both, size))]
        for name, title in _SIZES.items()
    ]
    here = f"**here: {export.format} {export.precision} (MB)**"
    rows.append([here, *[""] * len(both), f"**{export.bytes / 1e6:.2f}**"])
    return table(["", *["original"] * len(both), "this voice"], rows)


def quality(evidence: Evidence) -> str:
    """Return the figures of `evaluate` and what they may claim, "" if there are none."""
    first: list[list[str]] = []
    more: list[list[str]] = []
    measured = _measured(evidence)
    shown = {*_FIRST, *strictest(measured).values()}
    for name in measured:
        metric, figure = METRICS[name], _inside(evidence, "figures", name)
        before, after = (_number(figure, which, "value") for which in _BOTH)
        low, high = (_number(figure, "floor", end) for end in ("low", "high"))
        row = [metric.title + (f" ({metric.unit})" if metric.unit else "")]
        row += [_plain(before), _plain(after), _interval(_inside(figure, "difference"))]
        row.append("" if low is None or high is None else f"{low:.3g} to {high:.3g}")
        row += [_plain(_number(figure, "margin")), _verdict(figure)]
        (first if name in shown else more).append(row)
    if not measured:
        return ""
    titles = ["metric", "original", "this voice", "change [95% interval]"]
    titles += ["noise floor", "margin", "verdict"]
    words = [_claim(evidence).sentence(len(_sentences(evidence))), *_how(evidence, measured)]
    words += [table(titles, first)] if first else []
    if more:
        folded = f"<summary>More figures</summary>\n\n{table(titles, more)}\n\n"
        words.append(f"<details>{folded}</details>")
    words += [*_alarms(evidence), *_cost(evidence)]
    signature = signature_in(evidence)
    signed = f"Signature: {code(signature, _LONGEST_SIGNATURE, cell=False)}"
    return "\n\n".join([*words, signed if signature else _OLD])


def _measured(evidence: Evidence) -> list[str]:
    """Return the metrics that the evidence has a number of, in the order of METRICS."""
    values = {name: _number(evidence, "figures", name, "pruned", "value") for name in METRICS}
    return [name for name, value in values.items() if value is not None]


def _how(evidence: Evidence, measured: Sequence[str]) -> list[str]:
    """Return on what and by what it was measured, what that is deaf to, and when is claimed."""
    on = [f"Measured on {_texts(evidence)[0]}."]
    if "wer" in measured or "cer" in measured:
        model = text(_inside(evidence, "settings", "recogniser").get("model", "?"), 60)
        on.append(f"Word and character errors are those of Whisper ({model}).")
    by = deaf_words(measured)
    another = _number(evidence, "speaker_similarity_of_another_voice")
    if another is not None and "speaker_similarity" in measured:
        what = "Another voice, the original four semitones higher, has the speaker similarity"
        by.append(f"{what} {another:.3g}.")
    by += without(measured)
    rule = (
        "Intervals are 95%, bootstrapped over sentences. The noise floor is what another seed of "
        "the noise does to the original's own figure; a difference is claimed only if the whole "
        "interval lies beyond it. That there is no difference is claimed only if the whole "
        "interval lies within the margin; the rest is undecided."
    )
    listed = "\n".join(f"- {sentence}" for sentence in by)
    return [" ".join(on), *([listed] if by else []), rule]


def _verdict(figure: Mapping[str, Any]) -> str:
    """Return the verdict if it is a known one, else UNDECIDED."""
    said = figure.get("verdict")
    if said == NO_DIFFERENCE and _number(figure, "margin") is None:
        return UNDECIDED  # of an older version, which did not test it
    return said if isinstance(said, str) and said in _VERDICTS else UNDECIDED


def _claim(evidence: Evidence) -> Claim:
    """Return what the verdicts in the table claim together, whatever the evidence itself says."""
    figures = {name: _inside(evidence, "figures", name) for name in _measured(evidence)}
    return claim({name: _verdict(figure) for name, figure in figures.items()})


def signature_in(evidence: Evidence) -> str:
    """Return the signature of the evidence in one line, "" if it has none."""
    said = evidence.get("signature")
    return plain(said, _LONGEST_SIGNATURE) if isinstance(said, str) else ""


def unlike(evidence: Evidence, signatures: Iterable[str]) -> str:
    """Say, as Markdown, if figures with these signatures do not compare with the evidence's."""
    if not _measured(evidence):
        return ""
    own, warning = signature_in(evidence), "Do not compare it with the figures above"
    others = [plain(one, _LONGEST_SIGNATURE) for one in signatures]
    if not own or not all(others) or not others:
        return f"{warning}: one of the two has no signature."
    for other in others:
        try:
            check_comparable(own, other)
        except InputError as error:
            return f"{warning}. {text(error, _LONGEST_SIGNATURE)}"
    return ""


def in_short(evidence: Evidence) -> str:
    """Return what is claimed and the two figures that matter most, "" if none was measured.

    Of those of naturalness it is the strictest that was measured.
    """
    titles = {
        "cer": "character errors",
        "distillmos": PREDICTORS["distillmos"].title,
        "dnsmos_ovrl": "DNSMOS (which hardly hears what pruning does)",
    }
    said = []
    for name in filter(titles.get, strictest(_measured(evidence)).values()):
        before, after = (_number(evidence, "figures", name, which, "value") for which in _BOTH)
        if before is not None and after is not None:
            said.append(f"{titles[name]} {before:.3g} before, {after:.3g} now")
    return f"{'; '.join(said)}; beside the original: {_claim(evidence).verdict}" if said else ""


def latency(evidence: Evidence) -> str:
    """Return the timings of `compare`, "" if there are none."""
    found = _inside(evidence, "latency")
    stages = {stage: f"{stage} (ms)" for stage in STAGES}
    stages |= {"text": "text encoder (ms)", "total": "**all stages** (ms)"}
    timed: dict[str, tuple[tuple[str, ...], float]]
    timed = {title: (("stage_seconds", stage), 1e3) for stage, title in stages.items()}
    timed["real-time factor (seconds a second of speech)"] = (("real_time_factor",), 1.0)
    timed["processor seconds a second of speech"] = (("cpu_seconds_per_audio_second",), 1.0)
    rows = []
    for title, (path, factor) in timed.items():
        spans = [_spread(_inside(found, which, *path), factor) for which in _BOTH]
        rows += [[title, *spans]] if all(spans) else []
    before, after = (_number(found, which, "dense_macs") for which in _BOTH)
    if before is not None and after is not None:
        rows.append(["multiply-accumulates (G)", f"{before / 1e9:.3g}", f"{after / 1e9:.3g}"])
    if not rows:
        return ""
    sparse = [_inside(found, which).get("sparse") for which in _BOTH]
    if all(isinstance(some, list) for some in sparse):
        ran = (text(", ".join(map(str, some or ("nothing",)))) for some in sparse)
        rows.append(["what ran in sparse kernels", *ran])
    runs, threads = (_plain(_number(found, name)) or "?" for name in ("runs", "threads"))
    speed = _spread(_inside(found, "speed_up"), 1.0) or "?"
    device = text(found.get("device", "?"), 60)
    where = f"{device}, {threads} thread{'s' * (threads != '1')}"
    words = (
        f"One sentence, both voices in turn with the same number of frames, in torch on {where}: "
        f"median of {runs} runs (least to most). Times as fast as the original: {speed}. In dense "
        "kernels zeros make nothing faster. The sparse kernels of vits_prune skip them on a CPU; "
        "fewer channels and layers are faster everywhere."
    )
    return f"{words}\n\n{table(['', 'original', 'this voice'], rows)}"


def results(evidence: Evidence) -> list[EvalResult]:
    """Return the figures that the hub's own table takes."""
    from huggingface_hub import EvalResult

    words, identifier = _texts(evidence)
    found = []
    for name in ("wer", "cer"):
        value = _number(evidence, "figures", name, "pruned", "value")
        title = f"{METRICS[name].title} (of a speech recogniser)"
        if value is not None:
            figures = name, round(value, 5)
            task = "text-to-speech"
            found.append(EvalResult(task, identifier, words, *figures, metric_name=title))
    return found


def _texts(evidence: Evidence) -> tuple[str, str]:
    """What was spoken: in words, and as an identifier."""
    said = [row.get("text") for row in _sentences(evidence)[:10_000] if isinstance(row, Mapping)]
    if said and set(map(str, said)) <= set(load_texts(None, "held-out")):
        return f"{len(said)} held-out Harvard sentences (IEEE 1969)", "harvard-sentences"
    return f"{len(said) or 'Some'} sentences of its maker's choice", "own-sentences"


def _sentences(evidence: Evidence) -> list[Any]:
    rows = evidence.get("sentences")
    return rows if isinstance(rows, list) else []


def _alarms(evidence: Evidence) -> list[str]:
    count, alarms = len(_sentences(evidence)), _inside(evidence, "alarms")
    numbers = {text(kind, 40): _number(alarms, kind) for kind in list(alarms)[:20]}
    raised = [f"{kind}: {number:g} of {count}" for kind, number in numbers.items() if number]
    return [f"Speech failures: {', '.join(raised)}."] * bool(raised)


def _cost(evidence: Evidence) -> list[str]:
    name = "cpu_seconds_per_audio_second"
    before, after = (_number(evidence, "cost", which, name) for which in _BOTH)
    if before is None or after is None:
        return []
    took = f"{before:.3g} processor seconds (original) and {after:.3g} (this voice)"
    return [f"A second of speech took {took}."]


def _inside(values: Any, *path: str) -> Mapping[str, Any]:
    """The object at the end of a path, an empty one if there is none."""
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _number(values: Any, *path: str) -> float | None:
    """The number at the end of a path, None if there is none."""
    value = _inside(values, *path[:-1]).get(path[-1])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        return None
    return value if math.isfinite(value) else None


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(values: Mapping[str, Any]) -> str:
    value, low, high = (_number(values, name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{value:+.3g}" + ("" if low is None or high is None else f" [{low:+.3g}, {high:+.3g}]")


def _spread(values: Mapping[str, Any], factor: float) -> str:
    middle, low, high = (_number(values, name) for name in ("median", "low", "high"))
    if middle is None or low is None or high is None:
        return ""
    return f"{factor * middle:.3g} ({factor * low:.3g} to {factor * high:.3g})"


# Markdown

LONGEST = 300
"""Characters that are left of a stranger's text."""
_LONGEST_SIGNATURE = 1_000
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$^])")
_LINKS = (("://", ": //"), ("www.", "www ."), ("@", " at "))
"""What renderers turn into links, even if it is escaped."""
_JOINERS = "\u200c\u200d"
"""Letters of Persian and of Indic scripts are joined by these."""


def plain(words: object, longest: int = LONGEST) -> str:
    """Return one line without control characters, marks of direction and the like, cut short."""
    line = " ".join(str(words)[: 4 * longest].split())
    kept = "".join(one for one in line if one in _JOINERS or unicodedata.category(one)[0] != "C")
    return kept if len(kept) <= longest else f"{kept[: longest - 1]}…"


def text(words: object, longest: int = LONGEST) -> str:
    """Return words for a line or a cell of a table: no markup, no HTML, no link."""
    line = plain(words, longest)
    for link, instead in _LINKS:
        line = re.sub(re.escape(link), instead, line, flags=re.IGNORECASE)
    return html.escape(_SPECIAL.sub(r"\\\1", line), quote=False)


def code(words: object, longest: int = LONGEST, cell: bool = True) -> str:
    """Return code for a line, or with `cell` for a cell of a table.

    What it cannot hold is replaced.
    """
    kept = plain(words, longest).replace("`", "'")
    return f"`{(kept.replace('|', '/') if cell else kept) or '?'}`"


def block(lines: Iterable[str], language: str = "") -> str:
    """Return lines of code, our own or commands that were checked: none may hold a fence."""
    body = "\n".join(lines)
    if "```" in body or "~~~" in body:
        raise ValueError("a fence within a fenced block")
    return f"```{language}\n{body}\n```"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Return a table of cells that are Markdown already; numbers stand on the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(titles) - 1))]
    lines = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
