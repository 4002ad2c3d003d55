"""Voices that many tests share. They are read-only, as every Voice is."""

from __future__ import annotations

import os
import signal

THREADS = 1
"""Of torch, here and in all that tests start: samples are compared to the bit."""
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # read when torch is imported, for all its threads

import pytest
import torch

from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice
from vits_prune.kernels import store
from vits_prune.studio import workbench
from vits_prune.studio.request import Request

torch.set_num_threads(THREADS)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: what tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """Give torch its number of threads again: the recogniser's library changes it."""
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


store._read_from.append(store.path())  # what was measured on this machine before is not read


@pytest.fixture(autouse=True)
def dense_until_measured(request):
    """Forget which kernels are faster, but on the page: samples are compared to the bit."""
    if "ui" not in request.path.parts:
        store._known.clear()


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


@pytest.fixture
def request_(tiny, monkeypatch):
    """A Request of the page for that voice, with a workbench of its own behind it."""
    bench = workbench.Workbench()
    monkeypatch.setattr(workbench, "bench", bench)
    monkeypatch.setattr(bench, "voice", lambda *args, **named: tiny)
    spec = PruneSpec(scope="local", amount=0.3)
    return Request("someone/tiny", "hi there you", spec, seed=2, timing="locked")
