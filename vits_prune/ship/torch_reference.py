"""Speak given ids in torch: for the bench, and to check an ONNX file against its voice.

The check gives onnxruntime and torch the same ids without noise, and compares the waveforms.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.kernels import engine_of, measure_kernels, store, why_missing
from vits_prune.memory import keep_freed_memory
from vits_prune.ship.bench import answer, measure_in_processes, read_plan
from vits_prune.synthesis.inference import (
    Scales,
    encode,
    log_durations,
    parts_of,
    predict_durations,
    sample_prior,
    speaker_embedding,
)
from vits_prune.synthesis.speak import read_text
from vits_prune.synthesis.texts import load_texts
from vits_prune.voices.load import load_voice
from vits_prune.voices.voice import Voice, draw_texts, spoken_language

TOLERANCE = 1e-4
"""Largest difference of two samples; full scale is 1."""
_LENGTHS = (1, 2, 9, 40)
"""Ids of the random sentences, the shortest below the window of relative positions."""
_UNDECIDED = 1e-4
"""Durations are rounded up: one so near to a whole number may be rounded otherwise by another
runtime, and says nothing about the graph."""


def bench_plan(voice: Voice, count: int = 5) -> dict[str, Any]:
    """Return what a bench says with a voice, as `read_plan` does; durations are without noise.

    English sentences that were never tuned on, or draws from the vocabulary of another language.
    """
    english = spoken_language(voice) == "en"
    texts = load_texts(count) if english else draw_texts(voice, count, seed=0)
    found = [sentence for text in texts for sentence in read_text(voice, text)[0]]
    model = voice.model
    return {
        "sampling_rate": voice.sampling_rate,
        "scales": [float(model.noise_scale), 1 / float(model.speaking_rate), 0.0],
        "speaker": voice.speaker,
        "sentences": [{"text": sentence.text, "ids": list(sentence.ids)} for sentence in found],
    }


def waveform_of(
    voice: Voice, ids: tuple[int, ...], pace: Scales, kernels: str = "dense"
) -> np.ndarray:
    """Return one sentence's waveform, float32 [samples], with the noise of seed 0."""
    with torch.inference_mode():
        conditioning = speaker_embedding(voice)
        hidden, means, log_variances = encode(voice, ids)
        durations, _ = predict_durations(voice, hidden, conditioning, (0, 0), pace, 1 << 30)
        latents = sample_prior(means, log_variances, durations, (0, 0), pace.noise_scale)
        flow, decoder = parts_of(voice, kernels, latents.shape[2])
        return decoder(flow(latents, conditioning), conditioning)[0, 0].float().cpu().numpy()


class VoiceEngine:
    """Any voice, run by torch on the processor, and by sparse kernels where those are faster."""

    def __init__(self, path: Path, threads: int, plan: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        for key, times in plan.get("kernels", {}).items():
            store.keep(key, store.Times(*times), steady=False)  # it is on disk, or not steady
        self._voice = load_voice(path.as_posix())
        if self._voice.speakers and plan.get("speaker") is not None:
            self._voice = self._voice.with_speaker(plan["speaker"])
        noise, length, duration_noise = plan["scales"]
        self._pace = Scales(1 / length, noise, duration_noise)
        self._sparse: set[str] = set()
        self.versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}

    def say(self, ids: list[int]) -> int:
        """Speak a sentence and return the number of samples."""
        samples = len(waveform_of(self._voice, tuple(ids), self._pace, "auto"))
        if engine := engine_of(self._voice):
            self._sparse |= engine.sparse_units("auto", samples // self._voice.hop_length)
        return samples

    @property
    def runtime(self) -> str:
        """What ran the sentences so far."""
        if why := why_missing():
            return f"torch, dense: {why}"
        engine = engine_of(self._voice)
        parts = f", {len(self._sparse)} of {len(engine.units)} parts sparse" if engine else ""
        return f"torch{parts or ', dense'}"


def bench_voice(
    reference: str | Path, threads: list[int], runs: int = 5, sentences: str | Path | None = None
) -> dict[str, Any]:
    """Measure what `load_voice` takes as `bench` does an ONNX file.

    Kernels are compiled and timed first, once for a machine, and do not count.
    """
    voice = load_voice(reference)
    plan = read_plan(expanded(reference), expanded(sentences)) if sentences else bench_plan(voice)
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); import {__name__} as it; it.main()"

    def kernel_times(count: int) -> dict[str, Any]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            measure_kernels(voice)
        finally:
            torch.set_num_threads(before)
        return {"kernels": {key: dataclasses.astuple(one) for key, one in store.known().items()}}

    command = [sys.executable, "-c", code]
    return measure_in_processes(expanded(reference), plan, threads, runs, command, kernel_times)


def main() -> None:
    """Answer one job of a bench, in a process of its own."""
    from vits_prune.voices import onnx_load, saved  # noqa: F401 - not counted as loading the voice

    why_missing()  # loads the kernels, which is not counted either
    keep_freed_memory()
    answer(VoiceEngine)


def check_onnx(path: Path, voice: Voice) -> float:
    """Return the largest difference of two samples of an ONNX file and the voice that it computes.

    Raises:
        InputError: it is more than TOLERANCE, or either gives something else than numbers.
    """
    import onnxruntime

    def failed(what: str, error: Exception) -> InputError:
        reason = str(error).splitlines()[0][:120]
        return InputError(f"onnxruntime cannot {what} the ONNX file of {voice.name} ({reason}).")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise failed("load", error) from error
    differences = []
    scales = Scales(float(voice.model.speaking_rate), 0.0, 0.0)
    for speaker, ids in _cases(voice):
        feed = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([0, 1 / scales.speaking_rate, 0], np.float32),
            **({} if speaker is None else {"sid": np.array([speaker], np.int64)}),
        }
        ours = _spoken(dataclasses.replace(voice, speaker=speaker), ids, scales)
        if ours is None:
            continue
        try:
            theirs = session.run(None, feed)[0].reshape(-1)
        except Exception as error:
            raise failed("run", error) from error
        differences.append(difference(voice.name, ours, theirs))
    if not differences:
        what = "could not be compared with it: its durations are too near to whole numbers"
        raise InputError(f"The ONNX file of {voice.name} {what}.")
    return max(differences)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference of two waveforms [samples]; InputError if over TOLERANCE."""
    if ours.size != theirs.size:
        what = f"they differ in length, {theirs.size} samples to {ours.size}"
    elif not np.isfinite(theirs).all():
        what = "it says samples that are not numbers"
    else:
        off = float(np.abs(ours - theirs).max())
        if off <= TOLERANCE:
            return off
        what = f"they differ by {off:.1e}"
    said = f"The ONNX file of {name} does not say what the voice says"
    raise InputError(f"{said} ({what}), so it is not written.")


def _spoken(voice: Voice, ids: tuple[int, ...], scales: Scales) -> np.ndarray | None:
    """What the voice says in torch, [samples]; None if a duration could be rounded either way."""
    try:
        if not _decided(voice, ids, scales):
            return None
        said = waveform_of(voice, ids, scales)
        if np.isfinite(said).all():
            return said
    except InputError:
        raise
    except (ValueError, RuntimeError, AssertionError):  # torch's own, about NaN
        pass
    raise InputError(f"{voice.name} does not speak (NaN): prune or heal its original again.")


def _cases(voice: Voice) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Speakers and sentences: the first and the last speaker take turns."""
    random, size = np.random.default_rng(0), voice.model.config.vocab_size
    drawn = [tuple(map(int, random.integers(size, size=length))) for length in _LENGTHS]
    spoken = sorted((tuple(one["ids"]) for one in bench_plan(voice)["sentences"]), key=len)
    last = len(voice.speakers) - 1
    for place, ids in enumerate([*drawn, spoken[0], spoken[-1]]):
        yield (place % 2 * last if voice.speakers else None), ids


def _decided(voice: Voice, ids: tuple[int, ...], scales: Scales) -> bool:
    """Whether no duration could be rounded either way."""
    with torch.inference_mode():
        hidden, _, _ = encode(voice, ids)
        speaker = speaker_embedding(voice)
        logs = log_durations(voice.model, hidden, speaker, (0, 0), scales).double()
        frames = torch.exp(logs) / scales.speaking_rate
    return not bool(((frames - frames.round()).abs() < _UNDECIDED * frames.clamp(min=1)).any())
