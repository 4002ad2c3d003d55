"""Losses of a student against its teacher: spectra, the prior, durations, and discriminators.

The discriminators, of several periods and scales with feature matching, are those of HiFi-GAN
(Kong et al. 2020, arXiv:2010.05646, section 2.3 and appendix B). A GPU affords the paper's width,
two CPU cores a narrow set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from vits_prune.healing.batches import TEXT_ONLY, Batch, Window
from vits_prune.synthesis.inference import predict_log_durations
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum
from vits_prune.threads import ForkSafeLock

RESOLUTIONS = (2048, 512, 128)
"""Windows of the multi-resolution STFT loss, in samples; each overlaps by three quarters."""
LOSS_WEIGHTS = {"waveform": 0.5}
"""Of the losses in their sum, where it is not 1; recordings count like the teacher."""
_MEL_WINDOW, _MEL_BANDS = 1024, 80
_QUIET = 1e-3
"""Level below which differences count less: -60 dB."""
_FLOOR = 1e-5
"""Amplitude that counts as silence: -100 dB of full scale."""

PERIODS = (2, 3, 5, 7, 11)
"""Prime, so that no two see the same samples."""
_SLOPE = 0.1
_GROUPS = 16
_PERIOD_LAYERS = ((32, 5, 3), (128, 5, 3), (512, 5, 3), (1024, 5, 3), (1024, 5, 1))
"""Channels, kernel size and stride of each convolution but the last."""
_SCALE_LAYERS = (
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16),
    (1024, 41, 4, 16), (1024, 41, 1, 16), (1024, 5, 1, 1),
)  # fmt: skip
"""Channels, kernel size, stride and groups."""

Losses: TypeAlias = dict[str, torch.Tensor]
Prior: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Means and logarithms of deviations, [size, tokens, flow_size]."""
DiscriminatorOutput: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""Score [batch, places], 1 for real and 0 for made, and features [_, channels, places] by layer."""

_seeding = ForkSafeLock()


class SpectralLoss(nn.Module):
    """Log-mel L1, and the multi-resolution STFT loss of Parallel WaveGAN.

    Yamamoto et al. 2020, arXiv:1910.11480, section 2.2. Windows longer than the `samples` of a
    waveform are shortened to that.
    """

    def __init__(self, sampling_rate: int, samples: int) -> None:
        super().__init__()
        self.resolutions = tuple(dict.fromkeys(min(size, samples) for size in RESOLUTIONS))
        self.mel_window = min(_MEL_WINDOW, samples)
        for size in {*self.resolutions, self.mel_window}:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        bands = mel_filter_bank(sampling_rate, self.mel_window, _MEL_BANDS)
        self.register_buffer("bands", torch.tensor(bands).float(), persistent=False)

    def forward(self, spoken: torch.Tensor, wanted: torch.Tensor) -> Losses:
        """Return "mel" and "stft" of waveforms [batch, samples].

        "mel" is in nepers, "stft" the log-magnitude L1 in nepers plus spectral convergence.
        """
        both = torch.cat([spoken, wanted]).float()
        mel = torch.log(self.bands @ self._magnitudes(both, self.mel_window) + _FLOOR)
        stft = []
        for size in self.resolutions:
            magnitudes = self._magnitudes(both, size)
            ours, theirs = magnitudes.chunk(2)
            distance, norm = (torch.linalg.vector_norm(one) for one in (ours - theirs, theirs))
            stft.append(_l1(torch.log(magnitudes + _FLOOR)) + distance / norm.clamp_min(1e-3))
        return {"mel": _l1(mel), "stft": torch.stack(stft).mean()}

    def _magnitudes(self, waveforms: torch.Tensor, size: int) -> torch.Tensor:
        """Return amplitudes [batch, bins, frames], 1 for a sine at full scale."""
        window = getattr(self, f"window_{size}")
        power = power_spectrum(waveforms, size, max(1, size // 4), window)
        # The root's slope is infinite at zero: the floor inside it keeps gradients finite.
        return torch.sqrt(power + (_FLOOR * size / 4) ** 2) * (4 / size)


def _l1(both: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of the two halves of a batch."""
    ours, theirs = both.chunk(2)
    return (ours - theirs).abs().mean()


def waveform_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the L1 of waveforms [batch, samples] as a share of the wanted one's: 1 is silence."""
    return (spoken.float() - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-3)


def level_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the difference of levels of waveforms [batch, samples], in nepers.

    Without it spectral losses are content with a voice that is too quiet.
    """
    ours, theirs = (
        torch.log(one.float().square().mean(1) + _QUIET**2) / 2 for one in (spoken, wanted)
    )
    return (ours - theirs).abs().mean()


def prior_loss(ours: Prior, wanted: Prior, weights: torch.Tensor) -> torch.Tensor:
    """Return the errors of the prior, L1 and half of the MSE; means in units of the deviation.

    `weights` [size, tokens] are those of the tokens.
    """
    error = torch.cat([(ours[0] - wanted[0]) * torch.exp(-wanted[1]), ours[1] - wanted[1]], -1)
    each = (error.abs() + 0.5 * error.square()).mean(-1)
    return (each * weights).sum() / weights.sum().clamp_min(1e-6)


def duration_loss(ours: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the errors of durations, given as natural logarithms of frames [size, tokens].

    The sum of the frames' Poisson deviance, the L1 of the logarithms, and the error of each
    sentence's length. The deviance is smallest at the mean: L1 alone is content with medians, and
    a sentence of medians is too short.
    """
    ours, wanted = ours.clamp(max=6.0), wanted.clamp(max=6.0)
    frames, wanted_frames = (torch.exp(one) * mask for one in (ours, wanted))
    errors = ours - wanted
    deviance = frames - wanted_frames - wanted_frames * errors
    each = ((3 * deviance + 0.25 * errors.abs()) * mask).sum() / mask.sum().clamp_min(1e-6)
    length = wanted_frames.sum(1)
    return each + ((frames.sum(1) - length).abs() / length.clamp_min(1.0)).mean()


def weighted_sum(losses: Losses) -> torch.Tensor:
    """Return the loss that is trained on."""
    shares = {name: LOSS_WEIGHTS.get(name.removeprefix("recorded_"), 1.0) for name in losses}
    return torch.stack([shares[name] * loss for name, loss in losses.items()]).sum()


class Distillation(nn.Module):
    """The student's stages against the teacher's, on the same noise and the teacher's durations.

    Parts that are not trained run only where one that learns needs their output.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        trained: Collection[str],
        window: Window,
        sampling_rate: int,
    ) -> None:
        super().__init__()
        self._teacher = (teacher.decoder,)  # not a part of this module: it does not learn
        self.student, self.trained, self.window = student, frozenset(trained), window
        self.spectral = SpectralLoss(sampling_rate, window.segment * window.hop)
        self.needs_text = self.trained != {"decoder"}
        """Whether a batch must hold what comes before the decoder."""

    def forward(
        self, batch: Batch, joint: bool = False
    ) -> tuple[Losses, tuple[torch.Tensor, torch.Tensor] | None]:
        """Return the losses, and if the decoder learns its waveforms and those wanted of it.

        Both are [size, segment * hop].

        The batch is of `draw_batch`, `TextOnlySentences.draw` and `draw_recordings`. With `joint`
        the student's own stages feed its decoder, and the teacher's decoder says what it should
        make of them. No gradient goes back through these latents: spectra of a target that belongs
        to other latents teach a voice to blur.
        """
        conditioning = self._conditioning(batch["speaker"])
        joint = joint and self.needs_text and "decoder" in self.trained
        losses, prior = self._text_losses(batch, joint)
        latents, waveform = batch["latents"], batch["waveform"]
        if joint:
            with torch.no_grad():
                latents = self._flow(batch, prior, conditioning)
                waveform = self._waveform(self._teacher[0], latents, conditioning).float()
        if "flow" in self.trained:
            # On the teacher's prior, or the flow would learn to blur the errors of the student's.
            made = self._flow(batch, None, conditioning)
            frames = self._inside(batch["frame_mask"]).sum().clamp_min(1)
            error = (made.float() - batch["latents"]).abs().sum()
            losses["flow"] = error / (frames * made.shape[1])
        if "decoder" not in self.trained:
            return losses, None
        spoken = self._waveform(self.student.decoder, latents, conditioning)
        losses |= self.spectral(spoken, waveform)
        losses["level"] = level_loss(spoken, waveform)
        losses["waveform"] = waveform_loss(spoken, waveform)
        if "recorded_latents" in batch:
            # Spectra alone, for the phase of a recording is the microphone's.
            conditioning = self._conditioning(batch["recorded_speaker"])
            recorded = self._waveform(self.student.decoder, batch["recorded_latents"], conditioning)
            compared = self.spectral(recorded, batch["recorded_waveform"])
            losses |= {f"recorded_{name}": loss for name, loss in compared.items()}
        return losses, (spoken, waveform)

    def _text_losses(self, batch: Batch, joint: bool) -> tuple[Losses, Prior | None]:
        """Return losses by token, of text-only sentences if any; with `joint` the spoken prior."""
        start = len(TEXT_ONLY)
        text_only = {name[start:]: one for name, one in batch.items() if name.startswith(TEXT_ONLY)}
        rows = text_only or batch
        if "text_encoder" not in self.trained:
            if "duration_predictor" not in self.trained:
                return {}, None
            return {"durations": self._duration_loss(rows, rows["hidden"])}, None
        losses, prior = self._encoder_losses(rows)
        if joint and text_only:
            spoken, prior = self._encoder_losses(batch)
            losses = {name: (loss + spoken[name]) / 2 for name, loss in losses.items()}
        return losses, prior

    def _conditioning(self, speakers: torch.Tensor) -> torch.Tensor | None:
        table = getattr(self.student, "embed_speaker", None)
        return None if table is None else table(speakers).unsqueeze(-1)

    def _encoder_losses(self, batch: Batch) -> tuple[Losses, Prior]:
        mask, wanted = batch["token_mask"], batch["hidden"]
        read = self.student.text_encoder(
            batch["ids"], padding_mask=mask[..., None], attention_mask=mask, return_dict=True
        )
        prior = read.prior_means.float(), read.prior_log_variances.float()
        hidden = read.last_hidden_state
        # Long tokens are heard more, but every token learns.
        weights = mask * (0.5 + batch["weights"])
        error = ((hidden.float() - wanted).abs().mean(-1) * mask).sum()
        # As in VITS, durations do not shape the states that they are predicted from: their
        # gradients are many times the prior's.
        durations = self._duration_loss(batch, hidden.detach())
        return {
            "prior": prior_loss(prior, (batch["means"], batch["log_variances"]), weights),
            "hidden": error / (wanted.abs().mean(-1) * mask).sum().clamp_min(1e-6),
            "durations": durations,
        }, prior

    def _duration_loss(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        mask, conditioning = batch["token_mask"], self._conditioning(batch["speaker"])
        # A spline's bins are found by comparing sums of small numbers: bfloat16 picks wrong ones.
        with torch.autocast(hidden.device.type, enabled=False):
            try:
                states, noise = hidden.float().transpose(1, 2), batch["duration_noise"]
                logarithms = predict_log_durations(
                    self.student, states, mask[:, None], conditioning, noise
                )
            except (ValueError, RuntimeError) as error:  # the spline refuses infinite inputs
                if isinstance(error, RuntimeError) and bool(hidden.isfinite().all()):
                    raise
                # Not an error of this process alone: the others would wait for it.
                return torch.full((), float("nan"), device=hidden.device)
        return duration_loss(logarithms[:, 0], batch["log_durations"], mask)

    def _flow(
        self, batch: Batch, prior: Prior | None, conditioning: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the flow's output [size, flow_size, window.decoded]; prior None: the teacher's."""
        means, deviations = prior or (batch["means"], batch["log_variances"])
        where = batch["frame_tokens"][..., None].expand(-1, -1, means.shape[2])
        noise = batch["noise"].transpose(1, 2) * torch.exp(deviations.gather(1, where))
        sampled, mask = means.gather(1, where) + noise, batch["frame_mask"]
        masked = sampled.transpose(1, 2) * mask
        return self._inside(self.student.flow(masked, mask, conditioning, reverse=True))

    def _inside(self, flowed: torch.Tensor) -> torch.Tensor:
        """Return the frames for which the flow had all its context."""
        edge = self.window.flow
        return flowed[..., edge : flowed.shape[-1] - edge]

    def _waveform(
        self, decoder: nn.Module, latents: torch.Tensor, conditioning: torch.Tensor | None
    ) -> torch.Tensor:
        edge = self.window.decoder * self.window.hop
        spoken = decoder(latents, conditioning)[:, 0]
        return spoken[:, edge : spoken.shape[1] - edge]


class _Discriminator(nn.Module):
    """Convolutions with leaky ReLUs between them, and a last one that scores.

    `spectral` divides weights by their largest singular value (Miyato et al. 2018,
    arXiv:1802.05957) instead of weight norm, as the paper does at the full rate.
    """

    def __init__(self, layers: Iterable[tuple[int, ...]], width: float, spectral: bool) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        self.layers = nn.ModuleList()
        inputs = 1
        for full, kernel, stride, *groups in layers:
            outputs = max(_GROUPS, round(full * width / _GROUPS) * _GROUPS)
            layer = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, 1, *groups)
            self.layers.append(norm(layer))
            inputs = outputs
        self.score = norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, states: torch.Tensor) -> DiscriminatorOutput:
        features = []
        for layer in self.layers:
            states = functional.leaky_relu(layer(states), _SLOPE)
            features.append(states)
        states = self.score(states)
        return states.flatten(1), [*features, states]


class PeriodDiscriminator(_Discriminator):
    """Sees every `period`-th sample, and so what repeats.

    The paper folds the waveform into two dimensions and convolves along one of them. Here the
    columns are rows of a batch of one-dimensional convolutions: the same numbers, faster.
    """

    def __init__(self, period: int, width: float) -> None:
        super().__init__(_PERIOD_LAYERS, width, spectral=False)
        self.period = period

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        """Return the output for [batch, 1, samples]."""
        batch, _, samples = waveform.shape
        if missing := -samples % self.period:  # a shorter waveform has nothing to mirror
            mode = "reflect" if missing < samples else "replicate"
            waveform = functional.pad(waveform, (0, missing), mode)
        columns = waveform.view(batch, -1, self.period).transpose(1, 2)
        score, features = super().forward(columns.reshape(batch * self.period, 1, -1))
        return score.reshape(batch, -1), features


class Discriminators(nn.Module):
    """The discriminators of all periods and scales.

    Args:
        width: share of the paper's channels, above 0 to 1 (70 million parameters); each layer gets
            a multiple of 16 channels.
        periods: one discriminator each.
        scales: number of scales, each at half the rate of the one before.
        seed: of the first weights; torch's global generator is left as it was.
    """

    def __init__(
        self, width: float = 1.0, periods: Sequence[int] = PERIODS, scales: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        with _seeding, torch.random.fork_rng(devices=[]):  # all threads share torch's generator
            torch.default_generator.manual_seed(seed)
            self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
            self.scales = nn.ModuleList(
                _Discriminator(_SCALE_LAYERS, width, spectral=index == 0) for index in range(scales)
            )

    def forward(self, waveform: torch.Tensor) -> list[DiscriminatorOutput]:
        """Return the output for [batch, 1, samples] of each discriminator, periods first."""
        outputs = [discriminator(waveform) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            if index:
                waveform = functional.avg_pool1d(waveform, 4, 2, padding=2)
            outputs.append(discriminator(waveform))
        return outputs


def discriminator_loss(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> torch.Tensor:
    """Return what the discriminators minimise (least squares, Mao et al. 2017, arXiv:1611.04076).

    `fake` judges the student's waveforms, detached from the student.
    """
    return _total(
        (1 - true.float()).square().mean() + made.float().square().mean()
        for (true, _), (made, _) in zip(real, fake, strict=True)
    )


def generator_loss(fake: Sequence[DiscriminatorOutput]) -> torch.Tensor:
    """Return what the student minimises for its waveforms to pass as real."""
    return _total((1 - score.float()).square().mean() for score, _ in fake)


def feature_loss(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> torch.Tensor:
    """Return the feature matching loss: mean absolute differences, summed over all layers.

    No gradient goes to the real waveform. The paper weighs this by 2, and log-mel by 45.
    """
    return _total(
        functional.l1_loss(made.float(), true.detach().float())
        for (_, true_features), (_, made_features) in zip(real, fake, strict=True)
        for true, made in zip(true_features, made_features, strict=True)
    )


def _total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses)).sum()
