"""What is heard of a difference: spectral losses of waveforms, and errors of the prior and of durations in units of their own."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from vits_prune.healing.batches import READ, Batch, Window
from vits_prune.synthesis.noise import predict_log_durations

RESOLUTIONS = (2048, 512, 128)

"""Windows of the multi-resolution STFT loss, in samples; four of them overlap everywhere."""

_MEL_WINDOW = 1024

_BANDS = 80

_QUIET = 1e-3

"""Level below which differences count less: -60 dB."""

_FLOOR = 1e-5

"""Amplitude of full scale that counts as silence: -100 dB."""


class Hearing(nn.Module):
    """Log-mel L1, and the multi-resolution STFT loss (Parallel WaveGAN, Yamamoto et al. 2020, arXiv:1910.11480, section 2.2)."""

    def __init__(self, sampling_rate: int, samples: int) -> None:
        """
        Args:
            sampling_rate: of the waveforms, which mel bands depend on.
            samples: of a waveform; windows that are longer are shortened to it.
        """
        super().__init__()
        self.resolutions = tuple(dict.fromkeys(min(size, samples) for size in RESOLUTIONS))
        self.mel_window = min(_MEL_WINDOW, samples)
        for size in {*self.resolutions, self.mel_window}:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        self.register_buffer(
            "bands", mel_bands(sampling_rate, self.mel_window, _BANDS), persistent=False
        )

    def forward(self, spoken: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scalars "mel" (nepers) and "stft" (log-magnitude L1 in nepers plus spectral convergence) of waveforms [batch, samples]."""
        both = torch.cat([spoken, wanted]).float()
        mel = torch.log(self.bands @ self._magnitudes(both, self.mel_window) + _FLOOR)
        stft = []
        for size in self.resolutions:
            magnitudes = self._magnitudes(both, size)
            ours, theirs = magnitudes.chunk(2)
            convergence = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(
                theirs
            ).clamp_min(1e-3)
            stft.append(_l1(torch.log(magnitudes + _FLOOR)) + convergence)
        return {"mel": _l1(mel), "stft": torch.stack(stft).mean()}

    def _magnitudes(self, waveforms: torch.Tensor, size: int) -> torch.Tensor:
        """Amplitudes [batch, bins, frames], 1 for a sine at full scale."""
        window = getattr(self, f"window_{size}")
        spectrum = torch.stft(
            waveforms, size, max(1, size // 4), window=window, center=False, return_complex=True
        )
        # The square root's slope at zero is infinite: the floor inside it keeps gradients finite.
        power = torch.view_as_real(spectrum).square().sum(-1)
        return torch.sqrt(power + (_FLOOR * size / 4) ** 2) * (4 / size)


def waveform_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 of waveforms [batch, samples] as a share of the wanted one's: 1 is as bad as silence."""
    return (spoken.float() - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-3)


def prior_loss(
    means: torch.Tensor,
    deviations: torch.Tensor,
    wanted_means: torch.Tensor,
    wanted_deviations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Errors of means and log-deviations [batch, tokens, channels], those of means in units of the wanted deviation: L1 and half of MSE.

    Args:
        weights: of each token, [batch, tokens].
    """
    error = torch.cat(
        [(means - wanted_means) * torch.exp(-wanted_deviations), deviations - wanted_deviations], -1
    )
    each = (error.abs() + 0.5 * error.square()).mean(-1)
    return (each * weights).sum() / weights.sum().clamp_min(1e-6)


def level_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Difference of the levels of waveforms [batch, samples], in nepers: spectral losses alone are content with too quiet a voice."""
    ours, theirs = (
        torch.log(one.float().square().mean(1) + _QUIET**2) / 2 for one in (spoken, wanted)
    )
    return (ours - theirs).abs().mean()


def duration_loss(
    logarithms: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Errors of durations given as natural logarithms [batch, tokens]: Poisson deviance of the frames, L1 of the logarithms, and the error
    of each sentence's length.

    The deviance is smallest at the mean; L1 alone is content with medians, and a sentence of medians is too short.
    """
    logarithms, wanted = logarithms.clamp(max=6.0), wanted.clamp(max=6.0)
    ours, theirs = (torch.exp(one) * mask for one in (logarithms, wanted))
    errors = logarithms - wanted
    each = (
        (3 * (ours - theirs - theirs * errors) + 0.25 * errors.abs()) * mask
    ).sum() / mask.sum().clamp_min(1e-6)
    lengths = (ours.sum(1) - theirs.sum(1)).abs() / theirs.sum(1).clamp_min(1.0)
    return each + lengths.mean()


def mel_bands(sampling_rate: int, window: int, bands: int) -> torch.Tensor:
    """Triangles equally wide on the mel scale (O'Shaughnessy 1987) up to half the sampling rate, [bands, bins], each summing to 1."""
    highest = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, bands + 2, dtype=torch.float64) / 2595) - 1)
    # No triangle is narrower than two bins: the lowest would fall between them and hear nothing.
    width = sampling_rate / window
    centre = edges[1:-1, None]
    rise, fall = (
        (edges[1:-1] - edges[:-2]).clamp_min(width)[:, None],
        (edges[2:] - edges[1:-1]).clamp_min(width)[:, None],
    )
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * width
    found = torch.minimum((bins - centre) / rise + 1, (centre - bins) / fall + 1).clamp_min(0)
    return (found / found.sum(1, keepdim=True)).float()


def _l1(both: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the two halves of a batch."""
    ours, theirs = both.chunk(2)
    return (ours - theirs).abs().mean()


WEIGHTS = {
    "prior": 1.0,
    "hidden": 1.0,
    "durations": 1.0,
    "flow": 1.0,
    "mel": 1.0,
    "stft": 1.0,
    "waveform": 0.5,
    "level": 1.0,
}

"""Of the losses in their sum; recordings' count like the teacher's."""


class Exercise(nn.Module):
    """A student's stages beside the teacher's on the same noise and the teacher's durations.

    Args:
        student: the pruned model.
        trained: its parts that learn; the others run only where one that learns needs what they make.
        window: how much of a sentence a step sees.
        sampling_rate: of the waveform.
    """

    def __init__(
        self, student: nn.Module, trained: Collection[str], window: Window, sampling_rate: int
    ) -> None:
        super().__init__()
        self.student, self.trained, self.window = student, frozenset(trained), window
        self.hearing = Hearing(sampling_rate, window.segment * window.hop)

    @property
    def needs_text(self) -> bool:
        """Whether a batch must hold what goes before the decoder."""
        return self.trained != {"decoder"}

    def forward(
        self, batch: Batch, own: bool = False
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Losses, and the waveform [size, segment * hop] that the decoder spoke (None where it does not learn).

        Args:
            batch: of `draw_batch`, of `Readings.draw`, and of `draw_clips` where there are recordings.
            own: whether the decoder is given what the student's stages before it make, not what the teacher's do.
        """
        conditioning = self._conditioning(batch["speaker"])
        own = own and self.needs_text and "decoder" in self.trained
        losses, prior = self._text(batch, own)
        latents = batch["latents"]
        if own:
            latents = self._flow(batch, prior, conditioning)
        if (
            "flow" in self.trained
        ):  # judged on the teacher's prior: it cannot undo what the student's lacks, and would learn to blur
            made = self._flow(batch, None, conditioning)
            frames = self._inside(batch["frame_mask"]).sum().clamp_min(1)
            losses["flow"] = (made.float() - batch["latents"]).abs().sum() / (
                frames * made.shape[1]
            )
        if "decoder" not in self.trained:
            return losses, None
        spoken = self._speak(latents, conditioning)
        losses |= self.hearing(spoken, batch["waveform"])
        losses["level"] = level_loss(spoken, batch["waveform"])
        if not own:  # with latents of its own no phase matches, and silence would be the best answer (joe at 90% zeros: 3.8 dB quieter)
            losses["waveform"] = waveform_loss(spoken, batch["waveform"])
        if "recorded_latents" in batch:
            losses |= self._recorded(batch)
        return losses, spoken

    def _text(
        self, batch: Batch, own: bool
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
        """Losses of what goes by token, from sentences that are only read where there are such; with `own` the prior of those said."""
        only_read = {
            name.removeprefix(READ): tensor
            for name, tensor in batch.items()
            if name.startswith(READ)
        }
        rows = only_read or batch
        if "text_encoder" not in self.trained:
            durations = "duration_predictor" in self.trained
            return {
                "durations": self._durations(
                    rows, rows["hidden"], self._conditioning(rows["speaker"])
                )
            } if durations else {}, None
        losses, prior = self._read(rows, self._conditioning(rows["speaker"]))
        if own and only_read:
            said, prior = self._read(batch, self._conditioning(batch["speaker"]))
            losses = {name: (loss + said[name]) / 2 for name, loss in losses.items()}
        return losses, prior

    def _conditioning(self, speakers: torch.Tensor) -> torch.Tensor | None:
        table = getattr(self.student, "embed_speaker", None)
        return None if table is None else table(speakers).unsqueeze(-1)

    def _read(
        self, batch: Batch, conditioning: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Losses of text encoder and durations, and the prior's means and log-deviations [size, tokens, flow_size]."""
        mask = batch["token_mask"]
        read = self.student.text_encoder(
            input_ids=batch["ids"],
            padding_mask=mask[..., None],
            attention_mask=mask,
            return_dict=True,
        )
        means, deviations, hidden = (
            read.prior_means.float(),
            read.prior_log_variances.float(),
            read.last_hidden_state,
        )
        weights = mask * (
            0.5 + batch["weights"]
        )  # what is spoken long is heard long; but nothing goes unlearnt
        losses = {
            "prior": prior_loss(means, deviations, batch["means"], batch["log_variances"], weights),
            "hidden": ((hidden.float() - batch["hidden"]).abs().mean(-1) * mask).sum()
            / (batch["hidden"].abs().mean(-1) * mask).sum().clamp_min(1e-6),
            # As in VITS: durations are read off the states and do not shape them. Their gradients are many times the prior's.
            "durations": self._durations(batch, hidden.detach(), conditioning),
        }
        return losses, (means, deviations)

    def _durations(
        self, batch: Batch, hidden: torch.Tensor, conditioning: torch.Tensor | None
    ) -> torch.Tensor:
        mask = batch["token_mask"]
        # A spline's bins are found by comparing sums of small numbers: bfloat16 would pick wrong ones.
        with torch.autocast(hidden.device.type, enabled=False):
            try:
                logarithms = predict_log_durations(
                    self.student,
                    hidden.float().transpose(1, 2),
                    mask[:, None],
                    conditioning,
                    batch["duration_noise"],
                )
            except (
                ValueError,
                RuntimeError,
            ) as error:  # the spline does not take what is no number
                if isinstance(error, RuntimeError) and bool(hidden.isfinite().all()):
                    raise
                # No error of this process alone: the others would wait for it where losses are averaged.
                return torch.full((), float("nan"), device=hidden.device)
        return duration_loss(logarithms[:, 0], batch["log_durations"], mask)

    def _flow(
        self,
        batch: Batch,
        prior: tuple[torch.Tensor, torch.Tensor] | None,
        conditioning: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the student's flow makes of a sampled prior, the teacher's where none is given: [size, flow_size, window.decoded]."""
        means, deviations = prior or (batch["means"], batch["log_variances"])
        where = batch["frame_tokens"][..., None].expand(-1, -1, means.shape[2])
        stretched = means.gather(1, where) + batch["noise"].transpose(1, 2) * torch.exp(
            deviations.gather(1, where)
        )
        mask = batch["frame_mask"]
        return self._inside(
            self.student.flow(stretched.transpose(1, 2) * mask, mask, conditioning, reverse=True)
        )

    def _inside(self, flowed: torch.Tensor) -> torch.Tensor:
        """The frames [..., window.decoded] of [..., window.flowed] that the flow had all its context for."""
        edge = self.window.flow
        return flowed[..., edge : flowed.shape[-1] - edge]

    def _speak(self, latents: torch.Tensor, conditioning: torch.Tensor | None) -> torch.Tensor:
        edge = self.window.decoder * self.window.hop
        spoken = self.student.decoder(latents, conditioning)[:, 0]
        return spoken[:, edge : spoken.shape[1] - edge]

    def _recorded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses against real speech. Its waveform's phase is the microphone's: only spectra are compared."""
        spoken = self._speak(
            batch["recorded_latents"], self._conditioning(batch["recorded_speaker"])
        )
        heard = self.hearing(spoken, batch["recorded_waveform"])
        return {f"recorded_{name}": loss for name, loss in heard.items()}


def weighted_sum(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """What is trained on."""
    return torch.stack(
        [WEIGHTS.get(name.removeprefix("recorded_"), 1.0) * loss for name, loss in losses.items()]
    ).sum()
