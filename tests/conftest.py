"""Voices that many tests share. They are read-only, as every Voice is: a test that needs another one makes a copy."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tests.voices.hf_factory import make_checkpoint
from vits_prune import load_voice

THREADS = 2 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) < 2 else 1
"""Of torch, on two cores: pytest's workers share them."""
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of processes that tests start: threads that spin take the other worker's core

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell, which what tests start would inherit
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
