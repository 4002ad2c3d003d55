"""Voices that many tests share. They are read-only, as every Voice is: a test that needs another one makes a copy."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.voices.hf_factory import make_checkpoint
from vits_prune import load_voice

THREADS = 1
"""Of torch, in this process and in those that tests start: samples are compared to the bit."""
torch.set_num_threads(THREADS)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background of a shell, which what tests start would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def joe():
    """The real voice."""
    return load_voice("joe")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random checkpoint in transformers' layout."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The voice of that checkpoint."""
    return load_voice(tiny_folder)
