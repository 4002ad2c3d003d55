"""Sentences about voices and what pruning does to them, in Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.measure import Latency, Size
from vits_prune.measure.closeness import log_mel
from vits_prune.measure.cost import macs_per_weight
from vits_prune.measure.quality import Figure, measured_by
from vits_prune.measure.waveform import finite
from vits_prune.pruning.layers import Layer, LayerMatrix, chosen_layers, prunable_layers
from vits_prune.pruning.scores import sparsity_preview, zeros_wanted
from vits_prune.pruning.spec import METHODS, SCOPES, PruneSpec, Shape
from vits_prune.pruning.structured.couplings import group_counts, sizes, sizes_of
from vits_prune.pruning.structured.cut import cut, shape_for, survivor
from vits_prune.studio import workbench
from vits_prune.studio.workbench import Spoken, listens
from vits_prune.study.comparison import PART_NAMES, is_faster, speed_of, what_was_lost
from vits_prune.voices.architecture import empty_model
from vits_prune.voices.voice import PARTS, Voice

SLOW = "It listens to the voice first: 10 to 60 seconds once, less for another amount."
MAX_PARAMETERS = 100_000_000
"""Largest voice that the page heals, which takes seven times its memory, or writes."""
LABELS = {
    "cer": ("Letters misheard, of 100", 100.0),
    "wer": ("Words misheard, of 100", 100.0),
    "distillmos": ("Distill-MOS, 1 to 5", 1.0),
    "dnsmos_ovrl": ("DNSMOS, 1 to 5", 1.0),
    "visqol": ("ViSQOL, 1 to 5", 1.0),
    "log_mel_db": ("Log-mel distance, dB", 1.0),
    "mcd_db": ("Mel-cepstral distortion, dB", 1.0),
    "f0_rmse_cents": ("Pitch error, cents", 1.0),
    "speaker_similarity": ("Speaker, 0 to 1", 1.0),
}
"""Metrics of the table of quality: what the page calls each, and the factor to that unit."""
_PRESS = "Pruning runs when you press Speak."


def plain(text: str, longest: int = 120) -> str:
    """Return text from outside so that Markdown shows it and does nothing else."""
    return "".join(
        f"\\{c}" if c in "\\`*_{}[]()<>#+!|~$&" else " " if c.isspace() else c
        for c in text[:longest]
    )


def method_words(method: str, scope: str) -> str:
    """Return what a method does, in two sentences, and that it is slow where it is."""
    known = METHODS.get(method)
    if known is None:
        return ""
    if known.calibrated:
        return f"{known.words} *{SLOW}*"
    listening = not known.structured and scope == "sensitivity"
    return known.words + (f" *The scope sensitivity needs calibration. {SLOW}*" * listening)


def lesson_words(spec: PruneSpec) -> str:
    """Return what a method does, with what its scope or pattern means."""
    method = METHODS[spec.method]
    how = f"Scope {spec.scope}: {SCOPES[spec.scope]}."
    if method.structured:
        how = "Its neighbours lose the same channels, so rows and columns are missing."
    elif spec.neighbours:
        keep, of = spec.neighbours
        how = f"At most {keep} of every {of} neighbouring input channels stay."
    return f"### {method.title}\n{method.words} {how}"


def voice_words(voice: Voice) -> str:
    """Return the size of a voice, what loading alone saved, and its licence."""
    cut, licence = voice.free_cut, voice.origin.licence
    total = sum(parameter.numel() for parameter in voice.model.parameters())
    saved = "Free cut: nothing, this export holds only what runs."
    if cut.parameters:
        share = 100 * cut.parameters / (total + cut.parameters)
        saved = (
            f"Free cut: {cut.parameters / 1e6:.1f} M parameters ({cut.bytes / 1e6:.0f} MB,"
            f" {share:.0f}%) never run at inference and are left out; not one sample changes."
        )
    return (
        f"**{plain(voice.name)}**: {total / 1e6:.1f} M parameters, {voice.sampling_rate / 1000:g}"
        f" kHz. {saved} Licence of the weights: {licence or 'not stated; look it up before use'}."
    )


def happened(
    spoken: Spoken, size: tuple[Size, Size] | None = None, latency: Latency | None = None
) -> str:
    """Say what pruning did: to the weights, the file, the time and the sound.

    Args:
        spoken: what both voices said.
        size: of both, where it is measured.
        latency: of both, where it is measured.
    """
    found = [_weights_words(spoken)]
    if size:
        found.append(_size_words(*size))
    if latency:
        found.append(_speed_words(latency))
    return " ".join([*found, *_sound_words(spoken)])


def _weights_words(spoken: Spoken) -> str:
    (whole, left), after = (one.weights() for one in spoken.sparsity), spoken.sparsity[1]
    if left != whole:
        counts = f"{left / 1e6:.1f} of {whole / 1e6:.1f} million are left"
        return f"{1 - left / whole:.0%} of the weights are gone: {counts}."
    zeros = after.zeros()
    counts = f"{zeros / 1e6:.1f} of {whole / 1e6:.1f} million"
    return (
        f"{after.overall:.0%} of the weights are zero: {counts}." if zeros else "No weight is zero."
    )


def _size_words(before: Size, after: Size) -> str:
    dense, pruned, packed, sparse = (
        getattr(one, f"{kind}_fp32_bytes") / 1e6
        for kind in ("dense", "sparse")
        for one in (before, after)
    )
    if pruned < 0.995 * dense:
        return f"The file shrinks from {dense:.1f} to {pruned:.1f} MB ({pruned / dense - 1:+.0%})."
    words = f"The plain file stays at {dense:.1f} MB"
    if sparse < 0.995 * packed:
        words += f"; the sparse format shrinks from {packed:.1f} to {sparse:.1f} MB"
        words += f" ({sparse / packed - 1:+.0%})"
    return f"{words}."


def _speed_words(latency: Latency) -> str:
    if is_faster(latency):
        how = ", as its kernels skip the zeros" if latency.pruned.sparse else ""
        return f"It speaks {speed_of(latency):.1f} times as fast{how}."
    runs = f"{latency.speed_up.low:.2f} to {latency.speed_up.high:.2f} times the speed, run by run"
    if latency.pruned.sparse or latency.pruned.dense_macs < latency.original.dense_macs:
        return f"It is not clearly faster ({runs})."
    return (
        f"It is not faster: dense kernels ran, where a zero costs what any number costs ({runs})."
    )


def _sound_words(spoken: Spoken) -> Iterator[str]:
    original, pruned = spoken.original, spoken.pruned
    if spoken.aligned:
        rate = original.sampling_rate
        first, second = (log_mel(finite(one.waveform), rate) for one in (original, pruned))
        moved = 20 / np.log(10) * float(np.abs(second - first).mean())
        yield f"The sound moved {moved:.1f} dB from the original (mean of its mel bands)."
    elif change := round(100 * (pruned.audio_seconds / original.audio_seconds - 1)):
        yield f"It lasts {abs(change)}% {'longer' if change > 0 else 'shorter'} than the original."
    else:
        yield "It lasts as long as the original."
    yield from what_was_lost(original, pruned)


def figure_words(one: Figure, other_voice: float | None = None) -> str:
    """Return what one figure means, as a sentence with its verdict.

    `other_voice` is the speaker similarity that another voice gets.
    """
    name, value, unit, scale, form = one.metric.name, one.pruned.value, one.metric.unit, 1.0, ".2f"
    change, floor = one.difference.value if one.difference else 0.0, one.floor
    more, less, own = "above", "below", original_value(one)
    if one.metric.family == "intelligibility":
        (_, scale), form, more, less = LABELS[name], ".1f", "more than", "fewer than"
        what = "letters" if name == "cer" else "words"
        said = f"Words: {scale * value:{form}} of 100 {what} are misheard"
    elif name == "speaker_similarity":
        others = {"the original itself": own, "another voice": other_voice}
        beside = ", ".join(f"{who} {one:.2f}" for who, one in others.items() if one is not None)
        said = f"Speaker: similarity {value:.2f} of 1 to the original's next sentence ({beside})"
    elif unit.startswith("predicted opinion"):
        what = "Closeness" if name == "visqol" else "Naturalness"
        said = f"{what} by {measured_by(name)}: {value:.2f} of 5 points predicted"
    else:
        form = ".3g"
        what = "Pitch" if name == "f0_rmse_cents" else f"Closeness by {one.metric.title}"
        said = f"{what}: {value:{form}} {unit} away from the original"
    if one.metric.kind == "voice" and one.metric.family != "speaker":
        moved = f"{scale * abs(change):{form}}"
        same, way = not float(moved), more if change > 0 else less
        said += ", as with the original" if same else f", {moved} {way} the original"
    if floor is None or own is None:
        return f"{said}: {one.verdict}."
    seed = f"another seed changes it by {scale * floor.high:{form}}"
    if one.metric.kind == "distance":
        gets = f"is {own:{form}} away" if one.metric.better == "lower" else f"gets {own:{form}}"
        seed = f"another seed of the original {gets}"
    margin = "" if one.margin is None else f", margin {scale * one.margin:{form}}"
    return f"{said}; {seed}{margin}: {one.verdict}."


def original_value(one: Figure) -> float | None:
    """Return what the original gets: of a distance, its farthest other seed, if there is one."""
    if one.metric.kind == "distance" and one.floor:
        return one.floor.low if one.metric.better == "higher" else one.floor.high
    return one.original.value if one.original else None


# Before pruning


def readout(reference: str, spec: PruneSpec, token: str | None) -> str:
    """Return the line under the slider: the sparsity that a spec will give. It never calibrates.

    Raises:
        InputError: the spec does not fit the voice.
    """
    bench = workbench.bench
    if not bench.is_loaded(reference, token):
        return "Sparsity is shown once the voice is loaded."
    voice = bench.voice(reference, token=token, device="cpu")
    found = sparsity_preview(voice, spec)
    if found is None:
        return forecast_words(voice, spec)
    parts = [f"{PART_NAMES[part]} {100 * found[part]:.1f}%" for part in PARTS if part in found]
    words, costs = f"Sparsity: **{100 * found['overall']:.1f}%** of the whole voice", _costs(voice)
    saved = sparsity_preview(voice, spec, costs) if costs else None
    if saved:
        words += f", which leaves {_macs(1 - saved['overall'])}"
    return f"{words}  \n{' · '.join(parts)}"


def _costs(voice: Voice) -> Mapping[str, float]:
    """Return the arithmetic of a weight of each layer; nothing of a voice that cannot speak."""
    try:
        return macs_per_weight(voice)
    except InputError:
        return {}


def _macs(share: float) -> str:
    return f"**{100 * share:.1f}%** of the multiply-accumulates"


def forecast_words(voice: Voice, spec: PruneSpec) -> str:
    """Return what is known before pruning, or why the voice cannot be pruned so."""
    try:
        structured = METHODS[spec.method].structured
        return _structured(voice, spec) if structured else _unstructured(voice, spec)
    except InputError as error:
        return str(error)


def check_feasible(voice: Voice, spec: PruneSpec) -> None:
    """Raise InputError if the voice cannot lose so much: protected layers and a floor cap it."""
    if METHODS[spec.method].structured:
        sizes(voice.model.config, spec.shape or shape_for(voice, spec))
    elif spec.cost == PruneSpec.cost:  # else only speaking tells
        zeros_wanted(voice, spec, chosen_layers(voice, spec))


def _grouped(voice: Voice, spec: PruneSpec) -> tuple[Layer, ...]:
    """Return the layers that are pruned. Raises InputError if a pattern does not fit one."""
    chosen = chosen_layers(voice, spec)
    if spec.neighbours is None:
        return chosen
    for layer in chosen:
        matrix = LayerMatrix(voice.model.get_submodule(layer.name))
        inputs = matrix.channels(torch.empty(matrix.shape, device="meta")).shape[1]
        if inputs % spec.neighbours[1]:
            cannot = f"input channels, which the pattern {spec.pattern} cannot group"
            raise InputError(f"{layer.name} has {inputs} {cannot}: leave it alone too.")
    return chosen


def _unstructured(voice: Voice, spec: PruneSpec) -> str:
    chosen, costs = _grouped(voice, spec), _costs(voice)
    everything, every_mac = _weigh(prunable_layers(voice), costs)
    mine, my_macs = _weigh(chosen, costs)
    if spec.cost != PruneSpec.cost:
        if not costs:
            return _PRESS
        left = _macs(1 - zeros_wanted(voice, spec, chosen, costs) / every_mac)
        words = f"Leaves {left}; the share of the weights shows once pruned.{_rounded(spec)}"
        return f"{words}  \n{_PRESS}"
    wanted = round(spec.amount * mine) if spec.pattern else zeros_wanted(voice, spec, chosen)
    words = f"Sparsity: **{100 * wanted / everything:.1f}%** of the whole voice"
    if costs and (spec.pattern or spec.scope == "local" or not wanted):  # the same of every layer
        words += f", which leaves {_macs(1 - wanted / mine * my_macs / every_mac)}."
    else:
        words += "; the share of the multiply-accumulates shows once pruned."
    layers = prunable_layers(voice, spec.parts)
    named = [
        name
        for name in spec.protected
        if any(PruneSpec(protect=(name,)).protects(layer.name) for layer in layers)
    ]
    if named:
        shown = ", ".join(f"`{name[:60].replace('`', '')}`" for name in named[:6])
        words += f" Protected: {shown}; the rest loses {100 * wanted / mine:.1f}%."
    words += _rounded(spec)
    return f"{words}  \n{_PRESS}" if listens(spec) else words


def _rounded(spec: PruneSpec) -> str:
    return f" Rounding to {spec.bits} bits may make more zeros." if spec.bits else ""


def _weigh(layers: Sequence[Layer], costs: Mapping[str, float]) -> tuple[int, float]:
    """Return the weights of layers and their multiply-accumulates per frame, 0 without costs."""
    macs = sum(layer.weights * costs.get(layer.parameter, 0.0) for layer in layers)
    return sum(layer.weights for layer in layers), macs


def _structured(voice: Voice, spec: PruneSpec) -> str:
    config, shape = voice.model.config, spec.shape or shape_for(voice, spec)
    now, then = sizes_of(config), sizes(config, shape)
    changed = []
    for name, words in _SIZES.items():
        before, after = (
            "/".join(map(str, size)) if isinstance(size, tuple) else str(size)
            for size in (getattr(now, name), getattr(then, name))
        )
        if before != after:
            changed.append(f"{words} {before} → **{after}**")
    if not changed:
        return f"Nothing goes: all levers are at their full length.  \n{_PRESS}"
    return f"{' · '.join(changed)}{_left_by(voice, shape)}  \n{_PRESS}"


def _left_by(voice: Voice, shape: Shape) -> str:
    """Return what a shape leaves of the weights and of the arithmetic: any cut of it tells."""
    blank = dataclasses.replace(voice, model=empty_model(voice.model.config))
    counts = group_counts(blank, sizes(voice.model.config, shape))
    kept = {group: tuple(range(count)) for group, count in counts.items()}
    small, before, costs = cut(blank, kept), prunable_layers(voice), _costs(voice)
    weights = dict(small.model.named_parameters())
    survivors = {layer: survivor(blank, small, kept, layer.name) for layer in before}
    after = [
        dataclasses.replace(layer, weights=weights[f"{one.name}.weight"].numel())
        for layer, one in survivors.items()
        if one
    ]
    (whole, macs), (left, macs_left) = _weigh(before, costs), _weigh(after, costs)
    share = f"  \nLeaves **{100 * left / whole:.1f}%** of the weights"
    return f"{share} and {_macs(macs_left / macs)}." if costs else f"{share}."


_SIZES = {
    "initial_channels": "decoder channels",
    "inner_channels": "channels inside residual blocks",
    "ffn_channels": "feed-forward channels",
    "branches": "branches a stage",
    "encoder_layers": "encoder layers",
    "flows": "coupling layers",
    "wavenet_layers": "WaveNet layers",
}


def check_size(voice: Voice, verb: str, command: str) -> None:
    """Raise InputError if a voice is too large for the page to heal or write it."""
    count = sum(parameter.numel() for parameter in voice.model.parameters())
    if count > MAX_PARAMETERS:
        raise InputError(
            f"This voice has {count / 1e6:.0f} M parameters and the page {verb}s at most"
            f" {MAX_PARAMETERS / 1e6:.0f} M: {verb} it on your own machine, with `python -m"
            f" vits_prune {command}`."
        )
