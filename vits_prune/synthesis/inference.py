"""The stages of VITS inference: text encoder, duration predictor, prior and flow.

Source: Kim et al. 2021, arXiv:2106.06103. The noise comes from numpy's Philox generator, one stream
for each sentence and purpose, row by row. It depends on a seed, and neither on torch's global state
nor on the length of the utterance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.kernels import engine_of
from vits_prune.voices.voice import Voice

MAX_SENTENCE_SECONDS = 60.0
"""Where durations run away, a sentence ends here; later by as much as it is to be said slower."""
MAX_ACTIVATION = 1 << 27
"""Numbers in the largest activation of a sentence (512 MiB of float32). A sentence of 60 seconds of
any published voice stays far below it."""
DURATION_NOISE, PRIOR_NOISE, POSTERIOR_NOISE = 0, 1, 2
"""Purposes of noise. Each has its own stream."""
Part = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Runs a part of a voice, given latents [1, flow_size, frames] and the speaker's conditioning."""


@dataclass(frozen=True)
class Scales:
    """The numbers that steer inference, all of them known. See `Delivery`."""

    speaking_rate: float
    noise_scale: float
    noise_scale_duration: float

    @property
    def longer(self) -> float:
        """How many times as long a limit of seconds is, 1 to 4: for slow speech it moves."""
        return min(4.0, max(1.0, 1.0 / self.speaking_rate))


def draw_noise(key: int | tuple[int, ...], purpose: int, rows: int, columns: int) -> np.ndarray:
    """Return standard normal float32 [rows, columns]; more rows leave the first ones the same.

    The key says what the noise is for, such as (seed, number of the sentence). The purpose is
    DURATION_NOISE, PRIOR_NOISE or POSTERIOR_NOISE.
    """
    sequence = np.random.SeedSequence(key, spawn_key=(purpose,))
    generator = np.random.Generator(np.random.Philox(sequence))
    return generator.standard_normal((rows, columns), dtype=np.float32)


def draw_duration_noise(key: tuple[int, int], tokens: int) -> torch.Tensor:
    """Return the standard normal noise of a sentence's durations, float32 [1, 2, tokens]."""
    return torch.from_numpy(draw_noise(key, DURATION_NOISE, tokens, 2)).T[None]


def draw_prior_noise(key: tuple[int, int], frames: int, channels: int) -> torch.Tensor:
    """Return the standard normal noise of a sentence's prior, float32 [1, channels, frames]."""
    return torch.from_numpy(draw_noise(key, PRIOR_NOISE, frames, channels)).T[None]


def speaker_embedding(voice: Voice) -> torch.Tensor | None:
    """Return [1, speaker_embedding_size, 1], or None for a voice with one speaker."""
    if voice.speaker is None:
        return None
    speaker = torch.tensor([voice.speaker], device=voice.device)
    return voice.model.embed_speaker(speaker).unsqueeze(-1)


def encode(voice: Voice, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the text encoder.

    Returns:
        Hidden states [1, hidden, tokens]; prior means and log-variances, each
        [1, tokens, flow_size].
    """
    output = voice.model.text_encoder(
        input_ids=torch.tensor([ids], device=voice.device),
        padding_mask=torch.ones(1, len(ids), 1, dtype=voice.model.dtype, device=voice.device),
        attention_mask=None,
        return_dict=True,
    )
    return output.last_hidden_state.transpose(1, 2), output.prior_means, output.prior_log_variances


def predict_durations(
    voice: Voice,
    hidden: torch.Tensor,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    scales: Scales,
    most_frames: int,
) -> tuple[np.ndarray, bool]:
    """Return the frames of each token, int64 [tokens], and whether the sentence was cut short.

    Args:
        voice: the voice that speaks.
        hidden: of the text encoder, [1, hidden, tokens].
        conditioning: of the speaker, [1, speaker_embedding_size, 1], or None.
        key: seed and number of the sentence.
        scales: speaking rate and noise.
        most_frames: limit on the sum, besides MAX_SENTENCE_SECONDS and MAX_ACTIVATION.
    """
    logarithms = log_durations(voice.model, hidden, conditioning, key, scales)
    frames = torch.ceil(torch.exp(logarithms) * (1.0 / scales.speaking_rate))[0, 0]
    longest = int(scales.longer * MAX_SENTENCE_SECONDS * voice.sampling_rate / voice.hop_length)
    limit = max(1, min(most_frames, longest, MAX_ACTIVATION // _widest_frame(voice)))
    # A heavily pruned predictor may answer with anything. NaN becomes one frame.
    finite = torch.nan_to_num(frames.double(), nan=1.0, posinf=float(limit)).clamp(0, limit)
    bounded = finite.cpu().numpy().astype(np.int64)
    cut_short = bool(bounded.sum() > limit or (frames > limit).any())
    durations = np.diff(np.minimum(np.cumsum(bounded), limit), prepend=0)
    if durations.sum() == 0:
        durations[-1] = 1
    return durations, cut_short


def log_durations(
    model: torch.nn.Module,
    hidden: torch.Tensor,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    scales: Scales,
) -> torch.Tensor:
    """Return `predict_log_durations` of one sentence with the noise of its key, [1, 1, tokens]."""
    mask, noise = torch.ones_like(hidden[:, :1]), None
    if model.config.use_stochastic_duration_prediction:
        noise = draw_duration_noise(key, hidden.shape[2]).to(hidden) * scales.noise_scale_duration
    return predict_log_durations(model, hidden, mask, conditioning, noise)


def predict_log_durations(
    model: torch.nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor,
    conditioning: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Return natural logarithms of frames at a speaking rate of 1, [batch, 1, tokens].

    Gradients are recorded where torch records them. Those of a plain predictor end before the
    hidden states, because transformers detaches these.

    Args:
        model: the model of a voice.
        hidden: of the text encoder, [batch, hidden, tokens].
        mask: 1 where there is a token, [batch, 1, tokens].
        conditioning: of the speaker, [batch, speaker_embedding_size, 1], or None.
        noise: scaled, [batch, 2, tokens]; a plain predictor ignores it.
    """
    predictor = model.duration_predictor
    if not model.config.use_stochastic_duration_prediction:
        return predictor(hidden, mask, conditioning)
    # VitsStochasticDurationPredictor.forward(reverse=True), which draws its noise itself.
    states = predictor.conv_pre(hidden)
    if conditioning is not None:
        states = states + predictor.cond(conditioning)
    states = predictor.conv_proj(predictor.conv_dds(states, mask)) * mask
    assert noise is not None
    flows = list(reversed(predictor.flows))
    for flow in [*flows[:-2], flows[-1]]:
        noise, _ = flow(torch.flip(noise, [1]), mask, global_conditioning=states, reverse=True)
    return noise[:, :1]


def sample_latents(
    voice: Voice,
    means: torch.Tensor,
    log_variances: torch.Tensor,
    durations: np.ndarray,
    conditioning: torch.Tensor | None,
    key: tuple[int, int],
    noise_scale: float,
) -> torch.Tensor:
    """Return `sample_prior` after the flow ran backwards over it, [1, flow_size, frames]."""
    latents = sample_prior(means, log_variances, durations, key, noise_scale)
    return run_flow(voice, latents, conditioning)


def run_flow(
    voice: Voice, latents: torch.Tensor, conditioning: torch.Tensor | None
) -> torch.Tensor:
    """Run the flow backwards over a sample of the prior, [1, flow_size, frames]."""
    return voice.model.flow(latents, torch.ones_like(latents[:, :1]), conditioning, reverse=True)


def parts_of(voice: Voice, kernels: str, frames: int) -> tuple[Part, Part]:
    """Return what runs the flow backwards and what runs the decoder, over so many frames.

    `kernels` is one of KERNELS; where there are no sparse ones, both run dense.
    """
    engine = engine_of(voice, kernels)
    sparse = engine.sparse_units(kernels, frames) if engine else frozenset()
    if engine and sparse:
        flow = functools.partial(engine.run_flow, sparse=sparse)
        return flow, functools.partial(engine.run_decoder, sparse=sparse)
    return functools.partial(run_flow, voice), voice.model.decoder


def sample_prior(
    means: torch.Tensor,
    log_variances: torch.Tensor,
    durations: np.ndarray,
    key: tuple[int, int],
    noise_scale: float,
) -> torch.Tensor:
    """Return a sample of the prior, stretched to the durations, [1, flow_size, frames].

    Args:
        means, log_variances: of the prior, [1, tokens, flow_size].
        durations: frames of each token, int64 [tokens].
        key: seed and number of the sentence.
        noise_scale: standard deviations of noise.
    """
    repeats = torch.from_numpy(durations).to(means.device)
    mean, deviation = (
        one[0].repeat_interleave(repeats, dim=0).T[None] for one in (means, log_variances)
    )
    noise = draw_prior_noise(key, mean.shape[2], mean.shape[1]).to(mean)
    return mean + noise * torch.exp(deviation) * noise_scale


def _widest_frame(voice: Voice) -> int:
    """Return the numbers in the largest activation, per frame."""
    config = voice.model.config
    initial, samples = config.upsample_initial_channel, np.cumprod(config.upsample_rates).tolist()
    stages = (count * (initial // 2**stage) for stage, count in enumerate(samples, 1))
    return max(config.flow_size, 2 * config.hidden_size, initial, *stages)
