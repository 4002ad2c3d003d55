"""Naturalness as a predictor of listeners' opinions hears it: DNSMOS P.835."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure.signals import RATE, at_16_khz, available_cores

if TYPE_CHECKING:
    import onnxruntime

CAVEAT = (
    "DNSMOS was trained on recordings with noise and on what noise suppressors made of them, not on synthetic speech: read it as a change "
    "against the same voice, not as a listener's score."
)
_WINDOW = int(9.01 * RATE)
# From raw outputs to opinion scores, highest power first: the polynomials of the reference implementation.
_SIG = (-0.08397278, 1.22083953, 0.0052439)
_BAK = (-0.13166888, 1.60915514, -0.39604546)
_OVRL = (-0.06766283, 1.11546468, 0.04602535)
_sessions: Bounded[str, onnxruntime.InferenceSession] = Bounded(1, lambda _: 1, survives_fork=False)
_pools: Bounded[int, ThreadPoolExecutor] = Bounded(2, lambda _: 1, survives_fork=False)


@dataclass(frozen=True)
class Dnsmos:
    """Predicted opinions, about 1 (bad) to 5 (excellent)."""

    sig: float
    """Quality of the speech itself."""
    bak: float
    """Freedom from background noise."""
    ovrl: float
    """Quality overall."""


def measure_dnsmos(waveform: np.ndarray, sampling_rate: int, threads: int | None = None) -> Dnsmos:
    """DNSMOS P.835 (Reddy et al. 2022, arXiv:2110.01763), the non-personalised model, as Microsoft's reference implementation computes it.

    A short utterance is repeated to at least 9.01 s; sound is scored in windows of 9.01 s a second apart and averaged. Windows go through
    the network one by one, a core each (it gains nothing from batches, nor from several cores to a window): a score depends on its own
    sound alone.

    Args:
        waveform: float [samples].
        sampling_rate: samples per second.
        threads: windows scored at a time; None for as many as there are cores for this process.

    Raises:
        InputError: the predictor is not installed.
    """
    session, pool = _session(), _pool(threads or available_cores())
    windows = _windows(at_16_khz(waveform, sampling_rate))
    raw = np.concatenate(
        list(pool.map(lambda window: session.run(None, {"input_1": window[None]})[0], windows))
    )
    scores = (
        float(np.mean(np.polyval(curve, raw[:, i].astype(np.float64))))
        for i, curve in enumerate((_SIG, _BAK, _OVRL))
    )
    return Dnsmos(*scores)


def _windows(audio: np.ndarray) -> np.ndarray:
    """float32 [windows, 144160]."""
    while len(audio) < _WINDOW:
        audio = np.append(audio, audio)
    starts = range(0, (int(np.floor(len(audio) / RATE) - 9.01) + 1) * RATE, RATE)
    # The reference cuts at int((index + 9.01) * 16000) and passes over what comes out short.
    pieces = [audio[start : int((start // RATE + 9.01) * RATE)][:_WINDOW] for start in starts]
    return np.stack([piece for piece in pieces if len(piece) == _WINDOW]).astype(np.float32)


def _session() -> onnxruntime.InferenceSession:
    return _sessions.get_or_make("", _open)


def _open() -> onnxruntime.InferenceSession:
    import onnxruntime

    # The package is not imported: that needs librosa and requests, which the network does not.
    found = importlib.util.find_spec("speechmos")
    path = (
        Path(found.submodule_search_locations[0], "dnsmos_models", "sig_bak_ovr.onnx")
        if found
        else None
    )
    if path is None or not path.is_file():
        raise InputError("The DNSMOS predictor is not installed: pip install speechmos==0.0.1.1.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _pool(threads: int) -> ThreadPoolExecutor:
    return _pools.get_or_make(
        threads, lambda: ThreadPoolExecutor(threads, thread_name_prefix="dnsmos")
    )
