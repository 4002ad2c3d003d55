"""How much an error in a layer's output changes the speech, for all layers at once.

The speech is its log-mel spectrogram and the logarithms of its durations, f. Errors of a share e of
a layer's output, alike in all channels and positions and independent of each other, change f by e²
times sum (∂f/∂y)² var(y). That sum is estimated with random directions v, for which
E (∂(v·f)/∂y)² = sum (∂f/∂y)² (Hutchinson 1989; the Gauss-Newton matrix of Martens 2010): one
backward pass each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import blocks
from vits_prune.pruning.blocks import State
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum
from vits_prune.synthesis.stages import encode, log_durations, speaker_embedding
from vits_prune.voices.voice import Voice

SENTENCES, DIRECTIONS = 8, 2
KEPT_RESULT_BYTES = 64 << 20
"""Results that are kept: about 100 kB for each voice and choice of texts and seed."""
MEL_SCALE, DURATION_SCALE = 0.5, 0.1
"""Errors that count as equal: half a neper of log-mel amplitude, a tenth of a token's duration."""
_BANDS, _SIZE, _HOP = 80, 1024, 256

_Passed = dict[str, list[torch.Tensor]]
_kept: Bounded[tuple[object, ...], dict[str, np.ndarray]] = Bounded(
    KEPT_RESULT_BYTES, lambda found: sum(one.nbytes for one in found.values())
)


def channel_sensitivity(
    voice: Voice, texts: Sequence[str], seed: int, *, progress: Progress = SILENT
) -> dict[str, np.ndarray]:
    """Return the squared change of the speech if an output channel keeps nothing but its mean.

    By parameter name, float64 [channels], over SENTENCES of the texts. To the second order, and
    counted from the unchanged voice: changes of several channels add up only while they are small.
    """
    return _kept.get_or_make(
        (voice.speaker, tuple(texts), seed, torch.get_num_threads()),
        lambda: _measure(voice, texts, seed, progress),
        functools.partial(progress.report, "waiting for another measurement of this voice", 0.0),
        owner=voice.model,
    )


def _measure(
    voice: Voice, texts: Sequence[str], seed: int, progress: Progress
) -> dict[str, np.ndarray]:
    voice = voice.with_weights({})  # hooks go on a copy: another thread may be speaking
    layers = prunable_layers(voice)
    random, places = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    states = blocks.spoken_states(voice, voice, blocks.sentence_ids(voice, texts), seed, SENTENCES)
    found: dict[str, np.ndarray] = {}
    for layer in layers:
        module = voice.model.get_submodule(layer.name)
        linear = isinstance(module, nn.Linear)
        found[layer.parameter] = np.zeros(module.out_features if linear else module.out_channels)
    for state in progress.track(states, "measuring what errors do to the speech: sentence"):
        with torch.enable_grad(), _recording(voice.model, layers) as (energies, squares):
            for output, scale in speech_of(voice, state, int(places.integers(1 << 30))):
                share = DIRECTIONS * output.numel() * scale**2 * len(states)
                for _ in range(DIRECTIONS):
                    for square in squares.values():
                        square.clear()
                    direction = torch.randn(output.shape, generator=random)
                    (output * direction).sum().backward(retain_graph=True)
                    for layer in layers:
                        if squares[layer.name]:
                            product = sum(squares[layer.name]) * energies[layer.name][-1]
                            found[layer.parameter] += product.double().numpy() / share
    for name, change in found.items():
        if not np.isfinite(change).all():
            raise blocks.not_finite(voice, f"what errors of {name} do to the speech")
    progress.report("measured what errors do to the speech", 1.0)
    return found


@contextlib.contextmanager
def _recording(model: nn.Module, layers: Sequence[Layer]) -> Iterator[tuple[_Passed, _Passed]]:
    """Yield var(y) and the squared gradients of the layers' outputs, by channel."""
    energies: _Passed = {layer.name: [] for layer in layers}
    squares: _Passed = {layer.name: [] for layer in layers}

    def hook(name: str, channels_last: bool) -> Callable[..., torch.Tensor]:
        def record(_module: nn.Module, _given: object, output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:
                output.requires_grad_(True)
                output = output * 1.0  # no leaf: some blocks add to it in place
            channels = output.dim() - 1 if channels_last else 1
            over = tuple(i for i in range(output.dim()) if i != channels)
            energies[name].append(output.detach().var(dim=over, unbiased=False))
            output.register_hook(
                lambda gradient: squares[name].append(gradient.detach().square().sum(dim=over))
            )
            return output

        return record

    modules = {layer.name: model.get_submodule(layer.name) for layer in layers}
    hooks = [
        module.register_forward_hook(hook(name, isinstance(module, nn.Linear)))
        for name, module in modules.items()
    ]
    with blocks.removing(hooks):
        yield energies, squares


def speech_of(voice: Voice, spoken: State, place: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield the log-durations of a sentence and the log-mel spectrogram of a stretch of it.

    Each with the size of an error that counts as one.
    """
    pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
    hidden, means, log_variances = encode(voice, spoken["ids"])
    with _attached(voice.model, hidden):
        logarithms = log_durations(voice.model, hidden, conditioning, spoken["key"], pace)
    yield logarithms, DURATION_SCALE
    prior = {"means": means, "log_variances": log_variances, "conditioning": conditioning}
    state = blocks.stretched({**spoken, **prior}, voice)
    for block in blocks.flow_blocks(voice.model):
        state = block.run(state)
    state = blocks.stretch(state, place)
    for block in blocks.decoder_blocks(voice.model):
        state = block.run(state)
    yield _log_mel(torch.tanh(state["hidden"])[0, 0], voice.sampling_rate), MEL_SCALE


@contextlib.contextmanager
def _attached(model: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """Let gradients pass from a plain duration predictor to the text encoder; its code detaches."""
    if model.config.use_stochastic_duration_prediction:
        yield
        return
    hook = model.duration_predictor.conv_1.register_forward_pre_hook(
        lambda _module, given: given[0] + (hidden - hidden.detach())
    )
    with blocks.removing([hook]):
        yield


def _log_mel(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Log amplitudes in mel bands, [bands, frames], at least -80 dB below full scale."""
    size = min(_SIZE, 2 * (len(waveform) // 2))
    bank = torch.from_numpy(mel_filter_bank(sampling_rate, size, _BANDS).copy()).to(waveform)
    power = power_spectrum(waveform, size, _HOP)
    return 0.5 * torch.log(bank @ power + (1e-4 * size / 4) ** 2)
