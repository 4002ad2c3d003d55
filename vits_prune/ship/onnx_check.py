"""An ONNX file held against the voice that it was made of: same ids, no noise, same waveform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vits_prune.errors import InputError
from vits_prune.ship.bench_folder import plan_of, waveform_of
from vits_prune.synthesis.stages import Scales, encode, log_durations, speaker_embedding
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
        InputError: the two differ by more than TOLERANCE, or either says anything but numbers.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise InputError(
            f"onnxruntime cannot load the ONNX file of {voice.name} ({str(error).splitlines()[0][:120]})."
        ) from error
    differences: list[float] = []
    pace = Scales(float(voice.model.speaking_rate), 0.0, 0.0)
    scales = np.array([0, 1 / pace.speaking_rate, 0], np.float32)
    for speaker, ids in _cases(voice):
        one = dataclasses.replace(voice, speaker=speaker)
        feed = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": scales,
        }
        if speaker is not None:
            feed["sid"] = np.array([speaker], np.int64)
        ours = _spoken(one, ids, pace)
        if ours is None:
            continue
        try:
            theirs = session.run(None, feed)[0].reshape(-1)
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run the ONNX file of {voice.name} ({str(error).splitlines()[0][:120]}), so it is not written."
            ) from error
        differences.append(_difference(voice.name, ours, theirs))
    if not differences:
        raise InputError(
            f"The ONNX file of {voice.name} could not be compared with it: its durations are too near to whole numbers."
        )
    return max(differences)


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two samples of one sentence, [samples] each.

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


def _spoken(voice: Voice, ids: tuple[int, ...], pace: Scales) -> np.ndarray | None:
    """What the voice says in torch, [samples]; None where a duration is about to be rounded either way.

    Raises:
        InputError: the voice does not speak.
    """
    try:
        said = waveform_of(voice, ids, pace) if _decided(voice, ids, pace) else None
    except InputError:
        raise
    except (
        ValueError,
        RuntimeError,
        AssertionError,
    ) as error:  # torch's own, of weights that lead to no number
        raise _mute(voice.name) from error
    if said is not None and not np.isfinite(said).all():
        raise _mute(voice.name)
    return said


def _mute(name: str) -> InputError:
    return InputError(
        f"{name} does not speak: its weights lead to what is not a number. Prune or heal its original again."
    )


def _cases(voice: Voice) -> Iterator[tuple[int | None, tuple[int, ...]]]:
    """Speakers and sentences: the first and the last speaker take turns."""
    random = np.random.default_rng(0)
    drawn = [
        tuple(int(i) for i in random.integers(voice.model.config.vocab_size, size=length))
        for length in _LENGTHS
    ]
    sentences = sorted(
        (tuple(sentence["ids"]) for sentence in plan_of(voice)["sentences"]), key=len
    )
    last = len(voice.speakers) - 1
    for place, ids in enumerate([*drawn, sentences[0], sentences[-1]]):
        yield (place % 2 * last if voice.speakers else None), ids


def _decided(voice: Voice, ids: tuple[int, ...], pace: Scales) -> bool:
    """Whether no duration is about to be rounded either way."""
    import torch

    with torch.inference_mode():
        hidden, _, _ = encode(voice, ids)
        frames = (
            torch.exp(
                log_durations(voice.model, hidden, speaker_embedding(voice), (0, 0), pace).double()
            )
            / pace.speaking_rate
        )
    return not bool(((frames - frames.round()).abs() < _UNDECIDED * frames.clamp(min=1)).any())
