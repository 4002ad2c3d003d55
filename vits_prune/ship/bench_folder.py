"""A saved voice's folder under the bench: torch instead of onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vits_prune.errors import InputError
from vits_prune.ship.bench import BenchError, read_plan
from vits_prune.synthesis.speak import (
    Pace,
    encode,
    predict_durations,
    read_text,
    sample_latents,
    speaker_embedding,
)
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.language import draw_texts, spoken_language
from vits_prune.voices.load import load_folder
from vits_prune.voices.voice import Voice

SENTENCES = 5


def plan_of(voice: Voice, count: int = SENTENCES) -> dict[str, Any]:
    """What a bench says with a voice: English sentences that were never tuned on, for other languages draws from the vocabulary.

    Durations are without noise, so that every run of a sentence has the same length.
    """
    texts = (
        load_texts(count) if spoken_language(voice) == "en" else draw_texts(voice, count, seed=0)
    )
    found = [sentence for text in texts for sentence in read_text(voice, text)[0]]
    model = voice.model
    return {
        "sampling_rate": voice.sampling_rate,
        "scales": [float(model.noise_scale), 1 / float(model.speaking_rate), 0.0],
        "speaker": voice.speaker,
        "sentences": [{"text": sentence.text, "ids": list(sentence.ids)} for sentence in found],
    }


def folder_plan(folder: Path, sentences: str | None) -> dict[str, Any]:
    """The plan of a folder's own voice, or the one in a file.

    Raises:
        BenchError: the folder holds no voice that can be loaded, or the file does not say what to say.
    """
    if sentences:
        return read_plan(folder, Path(sentences))
    try:
        return plan_of(load_folder(folder))
    except InputError as error:
        raise BenchError(str(error)) from None


class FolderEngine:
    """A saved voice, run by torch on the processor."""

    def __init__(self, folder: Path, threads: int, plan: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(threads)
        try:
            self._voice = load_folder(folder)
        except InputError as error:
            raise BenchError(str(error)) from None
        if self._voice.speakers and plan.get("speaker") is not None:
            self._voice = self._voice.with_speaker(plan["speaker"])
        noise, length, duration_noise = plan["scales"]
        self._pace = Pace(1 / length, noise, duration_noise)
        self.versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}

    def say(self, ids: list[int]) -> int:
        """Speak a sentence; the number of samples."""
        return len(waveform_of(self._voice, tuple(ids), self._pace))


def waveform_of(voice: Voice, ids: tuple[int, ...], pace: Pace) -> np.ndarray:
    """What a voice says for one sentence's ids, float32 [samples], with the noise of seed 0."""
    import torch

    with torch.inference_mode():
        conditioning = speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, ids)
        durations, _ = predict_durations(voice, hidden, conditioning, (0, 0), pace, 1 << 30)
        latents = sample_latents(
            voice, means, log_variances, durations, conditioning, (0, 0), pace.noise_scale
        )
        return voice.model.decoder(latents, conditioning)[0, 0].float().cpu().numpy()
