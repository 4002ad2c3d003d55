from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import audio_utils

from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum


def by_transformers(rate, size, scale):
    bins = size // 2 + 1
    return audio_utils.mel_filter_bank(bins, 20, 0, 8_000.0, rate, None, scale).T


def by_librosa(rate, size, scale):
    import librosa  # takes seconds

    options = {"n_mels": 20, "fmax": 8_000.0, "norm": None, "dtype": np.float64}
    return librosa.filters.mel(sr=rate, n_fft=size, htk=scale == "htk", **options)


@pytest.mark.parametrize("rate", [22_050, 16_000])
@pytest.mark.parametrize(
    "bank", [by_transformers, pytest.param(by_librosa, marks=pytest.mark.slow)]
)
def test_banks_have_the_shape_of_other_libraries(rate, bank):
    for scale in ("slaney", "htk"):
        ours = mel_filter_bank(rate, 1024, 20, scale, 8_000.0)
        theirs = bank(rate, 1024, scale)
        theirs = theirs / theirs.sum(axis=1, keepdims=True)
        wide = slice(4, None) if scale == "htk" else slice(None)  # theirs may be narrower below
        assert np.allclose(ours[wide], theirs[wide], atol=1e-6)


def test_every_filter_hears_something_and_sums_to_one():
    for scale in ("slaney", "htk"):
        bank = mel_filter_bank(8_000, 256, 80, scale)
        assert np.allclose(bank.sum(axis=1), 1)
        with pytest.raises(ValueError, match="read-only"):
            bank[0, 0] = 1


def test_a_sine_has_a_quarter_of_the_size_in_its_bin():
    size, bin_ = 512, 40
    sine = torch.sin(2 * torch.pi * bin_ * torch.arange(4 * size) / size)
    power = power_spectrum(sine[None], size, 128)
    assert power.shape == (1, size // 2 + 1, 13)
    assert power[0, bin_].sqrt().mean().item() == pytest.approx(size / 4, rel=1e-3)
