"""One step's work as a module: a batch goes in, losses come out. Data-parallel training wraps it whole."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from vits_prune.durations import predict_log_durations
from vits_prune.healing.batches import READ, Batch, Window
from vits_prune.healing.losses import Hearing, duration_loss, level_loss, prior_loss, waveform_loss

WEIGHTS = {"prior": 1.0, "hidden": 1.0, "durations": 1.0, "flow": 1.0, "mel": 1.0, "stft": 1.0, "waveform": 0.5, "level": 1.0}
"""Of the losses in their sum; recordings' count like the teacher's."""


class Exercise(nn.Module):
    """A student's stages beside the teacher's on the same noise and the teacher's durations.

    Args:
        student: the pruned model.
        trained: its parts that learn; the others run only where one that learns needs what they make.
        window: how much of a sentence a step sees.
        sampling_rate: of the waveform.
    """

    def __init__(self, student: nn.Module, trained: Collection[str], window: Window, sampling_rate: int) -> None:
        super().__init__()
        self.student, self.trained, self.window = student, frozenset(trained), window
        self.hearing = Hearing(sampling_rate, window.segment * window.hop)

    @property
    def needs_text(self) -> bool:
        """Whether a batch must hold what goes before the decoder."""
        return self.trained != {"decoder"}

    def forward(self, batch: Batch, own: bool = False) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
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
        if "flow" in self.trained:  # judged on the teacher's prior: it cannot undo what the student's lacks, and would learn to blur
            made = self._flow(batch, None, conditioning)
            frames = self._inside(batch["frame_mask"]).sum().clamp_min(1)
            losses["flow"] = (made.float() - batch["latents"]).abs().sum() / (frames * made.shape[1])
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

    def _text(self, batch: Batch, own: bool) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
        """Losses of what goes by token, from sentences that are only read where there are such; with `own` the prior of those said."""
        only_read = {name.removeprefix(READ): tensor for name, tensor in batch.items() if name.startswith(READ)}
        rows = only_read or batch
        if "text_encoder" not in self.trained:
            durations = "duration_predictor" in self.trained
            return {"durations": self._durations(rows, rows["hidden"], self._conditioning(rows["speaker"]))} if durations else {}, None
        losses, prior = self._read(rows, self._conditioning(rows["speaker"]))
        if own and only_read:
            said, prior = self._read(batch, self._conditioning(batch["speaker"]))
            losses = {name: (loss + said[name]) / 2 for name, loss in losses.items()}
        return losses, prior

    def _conditioning(self, speakers: torch.Tensor) -> torch.Tensor | None:
        table = getattr(self.student, "embed_speaker", None)
        return None if table is None else table(speakers).unsqueeze(-1)

    def _read(self, batch: Batch, conditioning: torch.Tensor | None) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Losses of text encoder and durations, and the prior's means and log-deviations [size, tokens, flow_size]."""
        mask = batch["token_mask"]
        read = self.student.text_encoder(input_ids=batch["ids"], padding_mask=mask[..., None], attention_mask=mask, return_dict=True)
        means, deviations, hidden = read.prior_means.float(), read.prior_log_variances.float(), read.last_hidden_state
        weights = mask * (0.5 + batch["weights"])  # what is spoken long is heard long; but nothing goes unlearnt
        losses = {
            "prior": prior_loss(means, deviations, batch["means"], batch["log_variances"], weights),
            "hidden": ((hidden.float() - batch["hidden"]).abs().mean(-1) * mask).sum()
            / (batch["hidden"].abs().mean(-1) * mask).sum().clamp_min(1e-6),
            # As in VITS: durations are read off the states and do not shape them. Their gradients are many times the prior's.
            "durations": self._durations(batch, hidden.detach(), conditioning),
        }
        return losses, (means, deviations)

    def _durations(self, batch: Batch, hidden: torch.Tensor, conditioning: torch.Tensor | None) -> torch.Tensor:
        mask = batch["token_mask"]
        # A spline's bins are found by comparing sums of small numbers: bfloat16 would pick wrong ones.
        with torch.autocast(hidden.device.type, enabled=False):
            try:
                logarithms = predict_log_durations(
                    self.student, hidden.float().transpose(1, 2), mask[:, None], conditioning, batch["duration_noise"]
                )
            except (ValueError, RuntimeError) as error:  # the spline does not take what is no number
                if isinstance(error, RuntimeError) and bool(hidden.isfinite().all()):
                    raise
                # No error of this process alone: the others would wait for it where losses are averaged.
                return torch.full((), float("nan"), device=hidden.device)
        return duration_loss(logarithms[:, 0], batch["log_durations"], mask)

    def _flow(self, batch: Batch, prior: tuple[torch.Tensor, torch.Tensor] | None, conditioning: torch.Tensor | None) -> torch.Tensor:
        """What the student's flow makes of a sampled prior, the teacher's where none is given: [size, flow_size, window.decoded]."""
        means, deviations = prior or (batch["means"], batch["log_variances"])
        where = batch["frame_tokens"][..., None].expand(-1, -1, means.shape[2])
        stretched = means.gather(1, where) + batch["noise"].transpose(1, 2) * torch.exp(deviations.gather(1, where))
        mask = batch["frame_mask"]
        return self._inside(self.student.flow(stretched.transpose(1, 2) * mask, mask, conditioning, reverse=True))

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
        spoken = self._speak(batch["recorded_latents"], self._conditioning(batch["recorded_speaker"]))
        heard = self.hearing(spoken, batch["recorded_waveform"])
        return {f"recorded_{name}": loss for name, loss in heard.items()}


def weighted_sum(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """What is trained on."""
    return torch.stack([WEIGHTS.get(name.removeprefix("recorded_"), 1.0) * loss for name, loss in losses.items()]).sum()
