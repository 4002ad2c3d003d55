"""An ONNX file held against the voice that it was made of: same ids, no noise, same waveform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vits_prune.bench.folder import plan_of, waveform_of
from vits_prune.errors import InputError
from vits_prune.synthesis import Pace, encode, log_durations, speaker_embedding
from vits_prune.voices.voice import Voice

TOLERANCE = 1e-4
"""Largest difference of two samples; full scale is 1."""
_LENGTHS = (1, 2, 9, 40)
"""Ids of the sentences drawn at random, the shortest among them shorter than the window of relative positions."""
_UNDECIDED = 1e-4
"""Durations are rounded up: one so near to a whole number may go either way in another runtime, and says nothing about the graph."""


def check_onnx(path: Path, voice: Voice) -> float:
    """Speak sentences of several lengths in onnxruntime and in torch; the largest difference of two samples.

    Args:
        path: the ONNX file.
        voice: what it was made of, with the weights that it computes with.

    Raises:
        InputError: the two differ by more than TOLERANCE.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"onnxruntime cannot load the ONNX file of {voice.name} ({str(error).splitlines()[0][:120]}).") from error
    worst, compared = 0.0, 0
    pace = Pace(float(voice.model.speaking_rate), 0.0, 0.0)
    scales = np.array([0, 1 / pace.speaking_rate, 0], np.float32)
    for speaker, ids in _cases(voice):
        one = dataclasses.replace(voice, speaker=speaker)
        if not _decided(one, ids, pace):
            continue
        feed = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64), "scales": scales}
        if speaker is not None:
            feed["sid"] = np.array([speaker], np.int64)
        ours, theirs = waveform_of(one, ids, pace), session.run(None, feed)[0].reshape(-1)
        same_length = ours.size == theirs.size
        worst, compared = max(worst, float(np.abs(ours - theirs).max()) if same_length else np.inf), compared + 1
        if not worst <= TOLERANCE:
            what = f"by {worst:.1e}" if same_length else f"in length, {theirs.size} samples to {ours.size}"
            raise InputError(f"The ONNX file of {voice.name} does not say what the voice says (they differ {what}), so it is not written.")
    if not compared:
        raise InputError(f"The ONNX file of {voice.name} could not be compared with it: its durations are too near to whole numbers.")
    return worst


def _cases(voice: Voice) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Speakers and sentences: the first and the last speaker take turns."""
    random = np.random.default_rng(0)
    drawn = [tuple(int(i) for i in random.integers(voice.model.config.vocab_size, size=length)) for length in _LENGTHS]
    sentences = sorted((tuple(sentence["ids"]) for sentence in plan_of(voice)["sentences"]), key=len)
    last = len(voice.speakers) - 1
    for place, ids in enumerate([*drawn, sentences[0], sentences[-1]]):
        yield (place % 2 * last if voice.speakers else None), ids


def _decided(voice: Voice, ids: tuple[int, ...], pace: Pace) -> bool:
    """Whether no duration is about to be rounded either way."""
    import torch

    with torch.inference_mode():
        hidden, _, _ = encode(voice, ids)
        frames = torch.exp(log_durations(voice.model, hidden, speaker_embedding(voice), (0, 0), pace).double()) / pace.speaking_rate
    return not bool(((frames - frames.round()).abs() < _UNDECIDED * frames.clamp(min=1)).any())
