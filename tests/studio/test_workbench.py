"""The caches behind the page: what they keep for whom, and what can be pickled."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.forked import in_fork
from tests.nearly import nearly
from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Repository, serving
from vits_prune import PruneSpec, prune, speak
from vits_prune.errors import InputError
from vits_prune.measure import Latency, measure_latency
from vits_prune.progress import Progress
from vits_prune.pruning import scores
from vits_prune.studio import workbench
from vits_prune.studio.jobs import Update
from vits_prune.studio.request import Request
from vits_prune.studio.workbench import Spoken, Workbench
from vits_prune.synthesis.speak import Delivery

TINY, GATED = "someone/tiny-vits", "someone/gated-vits"
TEXT = "hi there"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("voices")
    return {TINY: make_checkpoint(base / "tiny"), GATED: make_checkpoint(base / "gated", seed=1)}


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_serverownersecret")
    with serving() as server:
        server.repositories[TINY] = [Repository(folders[TINY])]
        server.repositories[GATED] = [Repository(folders[GATED], gated=True)]
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def bench(hub, tmp_path):
    (tmp_path / "uploads").mkdir()
    return Workbench(tmp_path / "uploads")


@pytest.fixture(scope="module")
def piper_files(tmp_path_factory):
    path = piper_factory.make_voice(tmp_path_factory.mktemp("piper"), piper_factory.TINIEST)
    return path, path.with_name(path.name + ".json")


def heard(bench: Workbench, request: Request, token: str | None = None) -> Spoken:
    return bench.hear(request, token)


# Speaking


def test_hearing_reports_what_it_does(bench, folders):
    request = Request(TINY, "one two. three four.", PruneSpec(amount=0.5), seed=3)
    told = []
    spoken = bench.hear(request, progress=Progress(lambda *update: told.append(update)))
    fractions = [fraction for _, fraction in told]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert fractions == sorted(fractions)
    said = " ".join(message for message, _ in told)
    assert "loading" in said
    assert "original" in said
    assert "pruned" in said
    voice = bench.voice(TINY)
    assert nearly(spoken.original.waveform, speak(voice, request.text, 3).waveform)
    assert nearly(
        spoken.pruned.waveform, speak(prune(voice, request.spec), request.text, 3).waveform
    )
    assert spoken.sparsity[0].overall == 0
    assert spoken.sparsity[1].overall == pytest.approx(0.5, abs=1e-3)


def test_the_original_speaks_once_and_is_sorted_once_for_all_amounts(bench, monkeypatch):
    speaking, sorting = [], []

    def counted(voice, *arguments, **named):
        speaking.append(not voice.recipe)
        return real(voice, *arguments, **named)

    class Sorted(scores.SortedMagnitudes):
        def __init__(self, voice):
            sorting.append(voice)
            super().__init__(voice)

    real = workbench.speak
    monkeypatch.setattr(workbench, "speak", counted)
    monkeypatch.setattr(scores, "SortedMagnitudes", Sorted)
    first, second = (
        heard(bench, Request(TINY, TEXT, PruneSpec(amount=amount))) for amount in (0.3, 0.7)
    )
    assert speaking == [False, True, False]
    assert len(sorting) == 1
    assert first.original is second.original
    assert not nearly(first.pruned.waveform, second.pruned.waveform)
    again = heard(bench, Request(TINY, TEXT, PruneSpec(amount=0.3), seed=1))
    assert speaking == [False, True, False, False, True]
    assert not nearly(again.original.waveform, first.original.waveform)


def test_locked_timing_is_sample_aligned(bench):
    spoken = heard(bench, Request(TINY, TEXT, PruneSpec(amount=0.9), timing="locked"))
    assert len(spoken.original.waveform) == len(spoken.pruned.waveform)
    np.testing.assert_array_equal(spoken.original.durations, spoken.pruned.durations)


def test_what_was_spoken_is_remembered_for_that_request_and_that_visitor(bench):
    request = Request(TINY, TEXT)
    spoken = heard(bench, request)
    bench.remember(request, spoken, "a token")
    assert bench.recall(request, "a token") is spoken
    assert bench.recall(request) is None
    assert bench.recall(dataclasses.replace(request, seed=1), "a token") is None


def test_preview_and_size_agree_with_the_pruned_voice(bench):
    request = Request(TINY, TEXT, PruneSpec(scope="local", amount=0.4))
    spoken = heard(bench, request)
    preview = scores.sparsity_preview(bench.voice(TINY), request.spec)
    assert preview["overall"] == spoken.sparsity[1].overall
    assert {part: preview[part] for part in spoken.sparsity[1].parts} == spoken.sparsity[1].parts
    original, pruned = bench.size(request)
    assert original.parameters == pruned.parameters
    assert original.nonzero_parameters - pruned.nonzero_parameters >= spoken.sparsity[1].zeros()


# Visitors and their tokens


def test_a_voice_loaded_with_a_token_is_not_found_without_it(bench, hub):
    voice = bench.voice(GATED, token="let-me-in")
    assert bench.is_loaded(GATED, "let-me-in")
    assert bench.voice(GATED, token="let-me-in") is voice
    for other in (None, "", "let-me-in-too"):
        assert not bench.is_loaded(GATED, other)
        with pytest.raises(InputError, match=r"restricted|access|gated|log in"):
            bench.voice(GATED, token=other)
    sent = {headers.get("authorization") for _, _, headers in hub.requests}
    assert sent == {None, "Bearer let-me-in", "Bearer let-me-in-too"}, "never the server's own"


@pytest.mark.parametrize(
    "reference",
    [
        "/etc/passwd",
        "../../x",
        "file:///etc/passwd",
        "upload:../../x",
        "upload:" + "0" * 64,
        "upload:",
    ],
)
def test_a_reference_is_no_path(bench, hub, reference):
    with pytest.raises(InputError):
        bench.voice(reference)
    assert hub.requests == []


def test_a_folder_of_the_server_is_no_voice(bench, folders, monkeypatch):
    monkeypatch.chdir(folders[TINY].parent.parent)
    here = f"{folders[TINY].parent.name}/tiny"
    assert Path(here).is_dir()
    with pytest.raises(InputError, match="no model"):
        bench.voice(here)


# Uploads


def test_an_upload_is_kept_under_a_name_that_says_nothing_of_the_server(bench, piper_files):
    reference, voice = bench.keep_upload(*piper_files)
    assert reference.startswith("upload:")
    assert "/" not in reference
    assert (voice.name, voice.origin.reference) == ("your voice", "upload")
    assert bench.voice(reference) is voice
    assert bench.keep_upload(*piper_files)[0] == reference
    assert all(path.is_file() for path in piper_files), "what was given is copied"
    assert heard(bench, Request(reference, "hi", PruneSpec(amount=0.2))).original.waveform.any()


def test_an_upload_that_is_no_voice_leaves_nothing_behind(bench, piper_files, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot be used"):
        bench.keep_upload(tmp_path / "bad.onnx", piper_files[1])
    assert list((tmp_path / "uploads").iterdir()) == []


def test_an_upload_that_is_too_large_is_not_read(bench, piper_files, tmp_path, monkeypatch):
    monkeypatch.setattr(
        workbench, "MAX_UPLOAD_BYTES", sum(path.stat().st_size for path in piper_files) - 1
    )
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(InputError, match="larger than"):
        bench.keep_upload(*piper_files)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_old_uploads_are_forgotten(hub, piper_files, tmp_path):
    kept, references = tmp_path / "kept", []
    kept.mkdir()
    # Voices are forgotten at once, so that only the kept files count.
    bench = Workbench(kept, voices_bytes=1, uploads=2)
    for number in range(3):
        config = tmp_path / f"{number}.json"
        config.write_text(
            piper_files[1].read_text(encoding="utf-8") + " " * number, encoding="utf-8"
        )
        references.append(bench.keep_upload(piper_files[0], config)[0])
    assert len(list(kept.iterdir())) == 2
    with pytest.raises(InputError, match="no longer kept here: upload its two files again"):
        bench.voice(references[0])
    for reference in references[1:]:
        assert bench.voice(reference).name == "your voice"


def test_packed_kernels_count_among_the_bytes_of_a_voice(bench):
    request = Request(TINY, TEXT, PruneSpec(scope="local", amount=0.5), kernels="sparse")
    voice = bench.pruned(request)
    weights = workbench.voice_bytes(voice)
    assert weights == 4 * sum(one.numel() for one in voice.model.parameters())
    heard(bench, request)
    nonzero = sum(
        int(one.count_nonzero())
        for one in (*voice.model.flow.parameters(), *voice.model.decoder.parameters())
    )
    packed = workbench.voice_bytes(voice) - weights
    assert 4 * nonzero < packed < 20 * nonzero
    assert workbench.voice_bytes(voice, voice) == weights + packed


# To a worker and back


def test_all_that_crosses_to_a_worker_pickles(bench):
    request = Request(
        TINY,
        TEXT,
        PruneSpec(scope="local", amount=0.25, parts=("flow",)),
        7,
        "locked",
        Delivery(1.5, 0.3, None),
        "",
    )
    assert pickle.loads(pickle.dumps(request)) == request
    assert hash(pickle.loads(pickle.dumps(request))) == hash(request)
    assert pickle.loads(pickle.dumps(Update("speaking", 0.5))) == Update("speaking", 0.5)
    spoken = heard(bench, request)
    again = pickle.loads(pickle.dumps(spoken))
    assert nearly(again.pruned.waveform, spoken.pruned.waveform)
    np.testing.assert_array_equal(again.original.durations, spoken.original.durations)
    assert again.sparsity == spoken.sparsity
    latency = measure_latency(bench.voice(TINY), bench.pruned(request), TEXT, runs=1)
    assert isinstance(latency, Latency)
    assert pickle.loads(pickle.dumps(latency)) == latency
    error = pickle.loads(pickle.dumps(InputError("One sentence.")))
    assert isinstance(error, InputError)
    assert str(error) == "One sentence."


def test_measuring_waits_while_somebody_waits_to_hear():
    bench = Workbench()
    passed = threading.Event()
    with bench.hearing():
        thread = threading.Thread(target=lambda: (bench.let_hearing_pass(), passed.set()))
        thread.start()
        assert not passed.wait(0.2)
    assert passed.wait(10)
    thread.join()


def test_nobody_waits_to_hear_in_a_worker():
    """It is forked while visitors of the page wait."""
    bench = Workbench()
    with bench.hearing():
        assert in_fork(lambda: bench.let_hearing_pass(600.0)) is None


def test_what_a_worker_spoke_is_kept_by_the_page(bench, monkeypatch):
    """The page keeps what a ZeroGPU worker returns: the original does not speak again."""
    request = Request(TINY, TEXT, PruneSpec(amount=0.3))
    worker, page = bench, Workbench()
    spoken = heard(worker, request)
    page.remember(request, spoken)
    speaking = []
    real = workbench.speak
    monkeypatch.setattr(
        workbench,
        "speak",
        lambda voice, *args, **named: speaking.append(voice) or real(voice, *args, **named),
    )
    again = heard(page, dataclasses.replace(request, spec=PruneSpec(amount=0.7)))
    assert again.original is spoken.original
    assert len(speaking) == 1


def test_an_upload_is_hashed_piece_by_piece(bench, piper_files, monkeypatch):
    expected = hashlib.sha256(b"".join(path.read_bytes() for path in piper_files)).hexdigest()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    monkeypatch.setattr(bench, "voice", lambda reference: None)
    assert bench.keep_upload(*piper_files)[0] == f"upload:{expected}"


def test_one_who_waits_for_the_same_pruned_voice_can_leave(bench, monkeypatch):
    """Both ask for a voice that needs no calibration, which would let one in at a time."""
    request = Request(TINY, TEXT, PruneSpec(amount=0.3))
    inside, go_on = threading.Event(), threading.Event()
    real = workbench.prune_steps

    def slow(*args, **named):
        inside.set()
        assert go_on.wait(60)
        return real(*args, **named)

    class Gone(Exception):
        pass

    def leave(what, share):
        raise Gone

    monkeypatch.setattr(workbench, "prune_steps", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.steps, request)
        try:
            assert inside.wait(60)
            with pytest.raises(Gone):
                bench.steps(request, progress=Progress(leave))
        finally:
            go_on.set()
        assert len(first.result(60)) == 1


def test_one_who_waits_for_the_same_loading_voice_can_leave(bench, monkeypatch):
    request = Request(TINY, TEXT, PruneSpec(amount=0.3))
    inside, go_on = threading.Event(), threading.Event()
    load = bench._load

    def slow(*args):
        inside.set()
        assert go_on.wait(60)
        return load(*args)

    class Gone(Exception):
        pass

    def leave(what, share):
        assert what == "waiting for the same voice"
        raise Gone

    monkeypatch.setattr(bench, "_load", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.voice, TINY)
        try:
            assert inside.wait(60)
            for ask in (partial(bench.voice, TINY), partial(bench.steps, request)):
                with pytest.raises(Gone):
                    ask(progress=Progress(leave))
        finally:
            go_on.set()
        assert first.result(60).name
