"""Voices that many tests share. They are read-only, as every Voice is: a test that needs another one makes a copy."""

from __future__ import annotations

import pytest
import torch

from tests.voices.hf_factory import make_checkpoint
from vits_prune import load_voice

torch.set_num_threads(2)


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
