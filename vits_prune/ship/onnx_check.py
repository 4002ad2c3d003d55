"""Compare an ONNX file with the voice that it was made of: same ids, no noise, same waveform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.ship.bench_folder import plan_of, waveform_of
from vits_prune.synthesis.stages import Scales, encode, log_durations, speaker_embedding
from vits_prune.voices.voice import Voice

TOLERANCE = 1e-4
"""Largest difference of two samples; full scale is 1."""
_LENGTHS = (1, 2, 9, 40)
"""Ids of the random sentences, the shortest below the window of relative positions."""
_UNDECIDED = 1e-4
"""Durations are rounded up: one so near to a whole number may be rounded otherwise by another
runtime, and says nothing about the graph."""


def check_onnx(path: Path, voice: Voice) -> float:
    """Speak sentences of several lengths in onnxruntime and in torch.

    Args:
        path: the ONNX file.
        voice: what it was made of, with the weights that it computes with.

    Returns:
        The largest difference of two samples.

    Raises:
        InputError: they differ by more than TOLERANCE, or either gives something else than numbers.
    """
    import onnxruntime

    def failed(what: str, error: Exception) -> InputError:
        reason = str(error).splitlines()[0][:120]
        return InputError(f"onnxruntime cannot {what} the ONNX file of {voice.name} ({reason}).")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise failed("load", error) from error
    differences = []
    scales = Scales(float(voice.model.speaking_rate), 0.0, 0.0)
    for speaker, ids in _cases(voice):
        feed = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([0, 1 / scales.speaking_rate, 0], np.float32),
        }
        if speaker is not None:
            feed["sid"] = np.array([speaker], np.int64)
        ours = _spoken(dataclasses.replace(voice, speaker=speaker), ids, scales)
        if ours is None:
            continue
        try:
            theirs = session.run(None, feed)[0].reshape(-1)
        except Exception as error:
            raise failed("run", error) from error
        differences.append(difference(voice.name, ours, theirs))
    if not differences:
        raise InputError(
            f"The ONNX file of {voice.name} could not be compared with it: its durations are too "
            "near to whole numbers."
        )
    return max(differences)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference of two samples of one sentence, [samples] each.

    Raises:
        InputError: it is more than TOLERANCE, or a sample is not a number.
    """
    if ours.size != theirs.size:
        what = f"they differ in length, {theirs.size} samples to {ours.size}"
    elif not np.isfinite(theirs).all():
        what = "it says samples that are not numbers"
    else:
        off = float(np.abs(ours - theirs).max())
        if off <= TOLERANCE:
            return off
        what = f"they differ by {off:.1e}"
    raise InputError(
        f"The ONNX file of {name} does not say what the voice says ({what}), so it is not written."
    )


def _spoken(voice: Voice, ids: tuple[int, ...], scales: Scales) -> np.ndarray | None:
    """What the voice says in torch, [samples]; None if a duration could be rounded either way."""
    mute = InputError(
        f"{voice.name} does not speak: its weights lead to what is not a number. Prune or heal its "
        "original again."
    )
    try:
        said = waveform_of(voice, ids, scales) if _decided(voice, ids, scales) else None
    except InputError:
        raise
    except (ValueError, RuntimeError, AssertionError) as error:  # torch's own, about NaN
        raise mute from error
    if said is not None and not np.isfinite(said).all():
        raise mute
    return said


def _cases(voice: Voice) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Speakers and sentences: the first and the last speaker take turns."""
    random, size = np.random.default_rng(0), voice.model.config.vocab_size
    drawn = [tuple(map(int, random.integers(size, size=length))) for length in _LENGTHS]
    spoken = sorted((tuple(one["ids"]) for one in plan_of(voice)["sentences"]), key=len)
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
