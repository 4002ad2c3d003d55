"""Voices that many tests share. They are read-only, as every Voice is: a test that needs another one makes a copy."""

from __future__ import annotations

import os
import signal

import pytest

THREADS = 2 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) < 2 else 1
"""Of torch, in this process, all its threads and those that tests start: samples are compared to the bit. Two cores are shared."""
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # before torch is imported: torch.set_num_threads would hold for one thread alone

from tests.voices.hf_factory import make_checkpoint  # noqa: E402
from vits_prune import load_voice  # noqa: E402

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
