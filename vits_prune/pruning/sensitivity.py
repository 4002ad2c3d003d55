"""How much an error in a layer's output does to the speech, for all layers at once, by going backwards from the speech.

The speech is its log-mel spectrogram and the logarithms of its durations, f. Errors of a share e of a layer's output, alike in all
channels and positions and independent of each other, change f by e² times sum (∂f/∂y)² var(y). That sum is estimated with random
directions v, for which E (∂(v·f)/∂y)² = sum (∂f/∂y)² (Hutchinson 1989; the Gauss-Newton matrix of Martens 2010): one backward pass each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.pruning.calibration import (
    Step,
    decoder_blocks,
    flow_blocks,
    own_durations,
    sentence_ids,
    stretch_of,
    stretched,
)
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum
from vits_prune.synthesis.stages import encode, log_durations, speaker_embedding
from vits_prune.voices.voice import Voice

SENTENCES, DIRECTIONS = 8, 2
KEPT_BYTES = 64 << 20
"""Results that are kept, of all voices together: about 100 kB for each choice of texts and seed."""
MEL_SCALE, DURATION_SCALE = 0.5, 0.1
"""Errors that count as equally bad: half a neper of log-mel amplitude, a tenth of a token's duration."""
_BANDS, _SIZE, _HOP = 80, 1024, 256

_kept: Bounded[tuple[object, ...], dict[str, np.ndarray]] = Bounded(
    KEPT_BYTES, lambda found: sum(one.nbytes for one in found.values())
)


def output_sensitivity(
    voice: Voice, texts: Sequence[str], seed: int, *, progress: Step | None = None
) -> dict[str, float]:
    """Parameter name -> squared change of the speech per squared relative error of that layer's output, for every prunable layer.

    The sum of `channel_sensitivity` over the layer's channels, and its arguments.
    """
    return {
        name: float(found.sum())
        for name, found in channel_sensitivity(voice, texts, seed, progress=progress).items()
    }


def channel_sensitivity(
    voice: Voice, texts: Sequence[str], seed: int, *, progress: Step | None = None
) -> dict[str, np.ndarray]:
    """Parameter name -> squared change of the speech if that output channel kept nothing but its mean, float64 [channels].

    To the second order, and counted from the unchanged voice: changes of several channels add up only while they are small.

    Args:
        voice: who speaks.
        texts: of which SENTENCES are spoken.
        seed: of the noise and of the directions.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts.
    """
    key = (voice.speaker, tuple(texts), seed, torch.get_num_threads())
    return _kept.get_or_make(
        key,
        lambda: _measure(voice, texts, seed, progress or (lambda _what, _share: None)),
        progress
        and functools.partial(progress, "waiting for another measurement of this voice", 0.0),
        owner=voice.model,
    )


def _measure(voice: Voice, texts: Sequence[str], seed: int, tell: Step) -> dict[str, np.ndarray]:
    voice = voice.with_weights(
        {}
    )  # hooks go on a copy: another thread may be speaking with this voice
    layers = prunable_layers(voice)
    random, places = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    sentences = sentence_ids(voice, texts)
    sentences = sentences[:: max(1, len(sentences) // SENTENCES)][:SENTENCES]
    found: dict[str, np.ndarray] = {
        layer.parameter: np.zeros(_outputs(voice, layer)) for layer in layers
    }
    for index, ids in enumerate(sentences):
        tell("measuring what errors do to the speech", index / len(sentences))
        key = (seed, index)
        durations = own_durations(voice, ids, key)
        with torch.enable_grad(), _listening(voice.model, layers) as heard:
            for output, scale in _speech(voice, ids, key, durations, int(places.integers(1 << 30))):
                for _ in range(DIRECTIONS):
                    for gradient in heard.gradients.values():
                        gradient.clear()
                    direction = torch.randn(output.shape, generator=random)
                    (output * direction).sum().backward(retain_graph=True)
                    for layer in layers:
                        change = heard.change(layer.name)
                        found[layer.parameter] += change / (
                            DIRECTIONS * output.numel() * scale**2 * len(sentences)
                        )
    for name, change in found.items():
        if not np.isfinite(change).all():
            raise InputError(
                f"{name} of {voice.name} makes what is no finite number when it speaks: the voice is broken."
            )
    tell("measured what errors do to the speech", 1.0)
    return found


def _outputs(voice: Voice, layer: Layer) -> int:
    module = voice.model.get_submodule(layer.name)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


class _Heard:
    """What passed through the layers, forwards and backwards."""

    def __init__(self) -> None:
        self.energies: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, list[torch.Tensor]] = {}

    def change(self, name: str) -> np.ndarray | float:
        """By channel, var(y) times the sum of squared gradients."""
        if not self.gradients.get(name):
            return 0.0
        return (sum(self.gradients[name]) * self.energies[name]).double().numpy()


@contextlib.contextmanager
def _listening(model: nn.Module, layers: Sequence[Layer]) -> Iterator[_Heard]:
    heard = _Heard()

    def hook(name: str, channels_last: bool) -> Callable[..., torch.Tensor]:
        def listen(_module: nn.Module, _given: object, output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:
                output.requires_grad_(True)
                output = output * 1.0  # no leaf: some blocks add to it in place
            over = tuple(
                i for i in range(output.dim()) if i != (output.dim() - 1 if channels_last else 1)
            )
            heard.energies[name] = output.detach().var(dim=over, unbiased=False)
            gradients = heard.gradients.setdefault(name, [])
            output.register_hook(
                lambda gradient: gradients.append(gradient.detach().square().sum(dim=over))
            )
            return output

        return listen

    hooks = [
        model.get_submodule(layer.name).register_forward_hook(
            hook(layer.name, isinstance(model.get_submodule(layer.name), nn.Linear))
        )
        for layer in layers
    ]
    try:
        yield heard
    finally:
        for one in hooks:
            one.remove()


def _speech(
    voice: Voice, ids: tuple[int, ...], key: tuple[int, int], durations: np.ndarray, place: int
) -> Iterator[tuple[torch.Tensor, float]]:
    """What a sentence comes to, and what counts as one unit of error in it: log-durations, then a stretch's log-mel spectrogram."""
    pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
    hidden, means, log_variances = encode(voice, ids)
    with _attached(voice.model, hidden):
        logarithms = log_durations(voice.model, hidden, conditioning, key, pace)
    yield logarithms, DURATION_SCALE
    state = {
        "means": means,
        "log_variances": log_variances,
        "durations": durations,
        "key": key,
        "conditioning": conditioning,
    }
    state = stretched(state, voice)
    for block in flow_blocks(voice.model):
        state = block.run(voice.model, state)
    (state,) = stretch_of([state], place)
    for block in decoder_blocks(voice.model):
        state = block.run(voice.model, state)
    yield _log_mel(torch.tanh(state["hidden"])[0, 0], voice.sampling_rate), MEL_SCALE


@contextlib.contextmanager
def _attached(model: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """Let gradients pass from a plain duration predictor to the text encoder: in training, and so in its code, they do not."""
    if model.config.use_stochastic_duration_prediction:
        yield
        return
    hook = model.duration_predictor.conv_1.register_forward_pre_hook(
        lambda _module, given: given[0] + (hidden - hidden.detach())
    )
    try:
        yield
    finally:
        hook.remove()


def _log_mel(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Return logarithms of amplitudes in mel bands, [bands, frames]; -80 dB below full scale is the floor."""
    size = min(_SIZE, 2 * (len(waveform) // 2))
    bank = torch.from_numpy(mel_filter_bank(sampling_rate, size, _BANDS).copy()).to(waveform)
    power = power_spectrum(waveform, size, _HOP)
    return 0.5 * torch.log(bank @ power + (1e-4 * size / 4) ** 2)
