"""Speak given ids with a Voice in torch: what a bench says, and a saved folder under the bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vits_prune.ship.bench import (
    answer,
    check_counts,
    measure_in_processes,
    read_plan,
)
from vits_prune.synthesis.speak import read_text
from vits_prune.synthesis.stages import (
    Scales,
    encode,
    predict_durations,
    sample_latents,
    speaker_embedding,
)
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.load import load_folder
from vits_prune.voices.voice import Voice, draw_texts, spoken_language

SENTENCES = 5


def plan_of(voice: Voice, count: int = SENTENCES) -> dict[str, Any]:
    """Return what a bench says with a voice, as `read_plan` does.

    English sentences that were never tuned on, or draws from the vocabulary of another language.
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


def waveform_of(voice: Voice, ids: tuple[int, ...], pace: Scales) -> np.ndarray:
    """Return one sentence's waveform, float32 [samples], with the noise of seed 0."""
    with torch.inference_mode():
        conditioning = speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, ids)
        durations, _ = predict_durations(voice, hidden, conditioning, (0, 0), pace, 1 << 30)
        latents = sample_latents(
            voice, means, log_variances, durations, conditioning, (0, 0), pace.noise_scale
        )
        return voice.model.decoder(latents, conditioning)[0, 0].float().cpu().numpy()


class FolderEngine:
    """A saved voice, run by torch on the processor."""

    def __init__(self, folder: Path, threads: int, plan: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._voice = load_folder(folder)
        if self._voice.speakers and plan.get("speaker") is not None:
            self._voice = self._voice.with_speaker(plan["speaker"])
        noise, length, duration_noise = plan["scales"]
        self._pace = Scales(1 / length, noise, duration_noise)
        self.versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}

    def say(self, ids: list[int]) -> int:
        """Speak a sentence and return the number of samples."""
        return len(waveform_of(self._voice, tuple(ids), self._pace))


def bench_saved(
    folder: str | Path, threads: list[int], runs: int = 5, sentences: str | Path | None = None
) -> dict[str, Any]:
    """Measure the folder of a saved voice as `bench` does an ONNX file.

    Raises:
        BenchError: the sentences cannot be used.
        InputError: the folder holds no voice.
    """
    path = Path(folder)
    check_counts(threads, runs)
    plan = read_plan(path, Path(sentences)) if sentences else plan_of(load_folder(path))
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import main; main()"
    return measure_in_processes(path, size, plan, threads, runs, [sys.executable, "-c", code])


def main() -> None:
    """Answer one job of a bench, in a process of its own."""
    answer(FolderEngine)
