"""Export from the page, without a browser: the table, the zip, and a push to a loopback hub."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants

from tests.nearly import nearly
from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Fault, Repository, serving
from vits_prune import HealPlan, PruneSpec, load_voice, prune, speak
from vits_prune.errors import HubError, InputError, LoginError, NotFoundError
from vits_prune.measure import predictors
from vits_prune.progress import SILENT, Cancelled, Progress
from vits_prune.ship import export_report
from vits_prune.ship.formats import FORMATS
from vits_prune.studio import descriptions, heal_jobs, push_jobs, ship_jobs, workbench
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.heal_stretch import Checkpoint
from vits_prune.studio.request import Order, request_of
from vits_prune.studio.ship_jobs import AtHand
from vits_prune.study import judge
from vits_prune.study.evaluation import Settings, evaluate
from vits_prune.ui.tabs import export
from vits_prune.voices.voice import Origin

TOKEN = "hf_visitor"
VALUES = {
    "voice": "someone/tiny", "speaker": None, "scope": "local", "amount": 0.5,
    "parts": list(PruneSpec().parts), "method": "magnitude", "seed": 2,
    "ship_which": "pruned", "heal_key": None, "ship_format": "sparse", "ship_precision": "fp32",
    "ship_noticed": "someone/tiny", "ship_repo": "small", "ship_private": True, "ship_read": True,
}  # fmt: skip
"""Of all controls that the tab reads."""


@pytest.fixture(scope="module", autouse=True)
def bench(tiny):
    """A workbench whose only voice is the tiny one, loaded."""
    with pytest.MonkeyPatch.context() as patch:
        bench = workbench.Workbench()
        patch.setattr(workbench, "bench", bench)
        patch.setattr(bench, "voice", lambda *_, **__: tiny)
        patch.setattr(bench, "is_loaded", lambda *_: True)
        patch.setattr(judge, "JUDGED_FAMILIES", ("rhythm", "loudness"))  # need no recogniser
        patch.setattr(
            predictors,
            "problem",
            lambda name: f"{name} is not installed." * (name in predictors.OPTIONAL),
        )
        patch.setattr(export_report, "TIMING_ROUNDS", 1)
        yield bench
        heal_jobs.jobs.clear()


@pytest.fixture(scope="module")
def request_(bench):
    return request_of({**VALUES, "text": "hi there you"})


@pytest.fixture(scope="module")
def pruned(bench, request_):
    return bench.pruned(request_)


@pytest.fixture
def order(request_, tiny):
    """A healing that is done."""
    made = Order(request_, HealPlan(), 2, "")
    voice = prune(tiny, PruneSpec("random", amount=0.5))
    entry = {"plan": HealPlan().to_dict(), "steps": 10, "of": 10}
    voice = dataclasses.replace(voice, recipe={**voice.recipe, "healed": [entry]})
    heal_jobs.jobs.put(made.key, HealJob(made, voice=voice))
    return made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub to which "visitor" may write."""
    with serving() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_serverownersecret")
        hub.store = tmp_path / "store"
        hub.accounts = {TOKEN: Account("visitor"), "hf_serverownersecret": Account("owner")}
        hub.store.mkdir()
        yield hub


def never():
    return False


def run(work, halted=never, token=None, messages=None, **changed):
    """Return all updates of one of the tab's runs."""
    told = [] if messages is None else messages
    progress = Progress(lambda message, _: told.append(message))
    return list(work({**VALUES, **changed}, token, halted, progress))


def push(halted=never, token=TOKEN, messages=None, **changed):
    """Return what the page says after a push."""
    return run(export.push, halted, token, messages, **changed)[-1]["ship_pushing"]


def lines(update):
    """Return how many lines the table of formats has in an update."""
    return update.get("ship_table", "").count("<th scope='row'>")


def left_behind():
    return list(Path(ship_jobs.work.name).iterdir())


def unzipped(shown, folder):
    zipfile.ZipFile(shown["ship_file"].value["path"]).extractall(folder)
    (found,) = folder.iterdir()
    return found


# Every format


def test_every_format_is_a_row_of_the_table(monkeypatch):
    some = (
        ("dense", "fp32"), ("sparse", "fp16"), ("onnx", "fp32"), ("onnx", "int8"),
        ("piper", "fp32"),
    )  # fmt: skip
    monkeypatch.setattr(ship_jobs, "CHOICES", some)
    messages = []
    updates = run(export.compare, messages=messages)
    assert {name for one in updates for name in one} == set(export.RUNS["ship_compare"][2])
    assert [count for count in map(lines, updates) if count] == [1, 2, 3, 4, 5, 5]
    assert any("onnx fp32: comparing it with the voice" in message for message in messages)
    assert "Done: **tiny-local-50**" in updates[-1]["ship_status"]
    rows = pd.read_csv(updates[-1]["ship_table_csv"].value["path"]).set_index(
        ["format", "precision"]
    )
    assert list(rows.index) == list(some)
    assert rows.loc[("dense", "fp32"), "megabytes"] > 2 * rows.loc[("sparse", "fp16"), "megabytes"]
    assert rows.loc[("sparse", "fp16"), "mel_levels_off_db"] > 0
    assert rows["load_ms"].notna().tolist() == [False, False, True, True, True]
    factors = rows["real_time_factor"]
    assert factors[("onnx", "fp32")] == factors[("piper", "fp32")]
    assert rows.loc[("piper", "fp32"), "in_words"].startswith("the same graph as onnx fp32")
    assert "than fp32 (" in rows.loc[("onnx", "int8"), "in_words"]
    assert not any("writing fp32" in message for message in messages), "it was timed a moment ago"
    assert left_behind() == []


def test_a_format_that_does_not_fit_says_why(tmp_path, monkeypatch):
    uroman = load_voice(make_checkpoint(tmp_path / "uroman", is_uroman=True))
    monkeypatch.setattr(workbench.bench, "voice", lambda *_, **__: uroman)
    monkeypatch.setattr(ship_jobs, "CHOICES", (("piper", "int8"),))
    shown = run(export.compare, amount=0)[-1]
    assert "<b>piper int8</b>: does not fit: " in shown["ship_table"]
    assert "the Piper runtime does not romanise: export it as onnx." in shown["ship_table"]
    assert shown["ship_table"].count("<td>–</td>") == 6
    assert left_behind() == []


def test_stopped_it_ends_at_once_and_keeps_the_rows():
    seen = []
    updates = export.compare(VALUES, None, lambda: bool(seen), SILENT)
    for update in updates:
        if lines(update):
            seen.append(update)
    assert len(seen) >= 2, "once as it came, once more at the end"
    count, total = lines(seen[-1]), len(ship_jobs.CHOICES)
    assert 1 <= count < total
    assert f"Stopped: {count} of {total} formats" in seen[-1]["ship_status"]
    with ship_jobs.one_at_a_time.turn():  # given back at the end of the work
        assert left_behind() == []
    words = run(export.compare, lambda: True)[-1]["ship_status"]
    assert words == "Stopped before anything was written."


def test_when_the_time_is_up_the_rest_is_left_out(tiny, monkeypatch):
    monkeypatch.setattr(ship_jobs, "MAX_SECONDS", -1.0)
    *_, lines = ship_jobs.write_all(tiny, never, SILENT)
    assert len(lines) == len(ship_jobs.CHOICES)
    assert lines[-1].why.endswith("python -m vits_prune export --format piper --precision int8")


def waits(messages):
    return any(one.startswith(f"{ship_jobs.WAITING}: place 1") for one in messages)


def test_one_voice_is_written_at_a_time_and_waiting_can_be_stopped():
    messages, kind = [], {"ship_format": "dense"}
    with ship_jobs.one_at_a_time.turn():
        shown = run(export.zip_file, lambda: waits(messages), None, messages, **kind)
    assert shown[-1]["ship_zipping"].startswith("Stopped")


# One file


def test_the_zip_is_the_voice(pruned, tmp_path):
    for form in FORMATS:
        precision = FORMATS[form].precisions[-1] if form == "sparse" else "fp32"
        shown = run(export.zip_file, ship_format=form, ship_precision=precision)[-1]
        assert set(shown) == set(export.RUNS["ship_zip"][2])
        stem = f"tiny-local-50-{form}-{precision}"
        folder = unzipped(shown, tmp_path / form)
        assert folder.name == stem
        python, shell = shown["ship_python"].value, shown["ship_shell"].value
        assert f'load_voice("{stem}")' in python
        voice, tolerance = load_voice(folder), 0.05 if precision == "fp16" else 1e-6
        said, expected = (speak(one, "hi there").waveform for one in (voice, pruned))
        np.testing.assert_allclose(said, expected, atol=tolerance)
        if form in ("onnx", "piper"):
            assert (folder / "bench.py").is_file()
            assert "numpy && python bench.py tiny.onnx --threads 1,2 --json board.json" in shell
            assert "no sample is off by more than" in shown["ship_zipping"]
        assert ("python -m piper -m tiny.onnx" in shell) == (form == "piper")
        assert ("VitsModel.from_pretrained" in python) == (form == "dense")
    assert left_behind() == []


@pytest.mark.slow
def test_the_shell_line_speaks_in_the_stock_piper_runtime(tmp_path):
    voice = load_voice(piper_factory.make_voice(tmp_path, piper_factory.TINIEST))
    packed = ship_jobs.write_zip(voice, "one", "piper", "fp32", SILENT)
    zipfile.ZipFile(packed.archive).extractall(tmp_path)
    _, shell = ship_jobs.usage(packed.folder, "piper", packed.model, plain=False)
    line = shell.splitlines()[-1].partition("&& ")[2].replace('"', "").split()
    folder = tmp_path / packed.folder
    subprocess.run([sys.executable, *line[1:]], cwd=folder, check=True, capture_output=True)
    assert (folder / "hello.wav").stat().st_size > 44


def test_a_zip_that_cannot_be_made_says_so(monkeypatch):
    for form, precision, which, message in (
        ("dense", "int8", "pruned", "Choose a format"),
        ("../up", "fp32", "pruned", "Choose a format"),
        ("dense", "fp32", "healed", "Nothing is healed yet"),
    ):
        with pytest.raises(InputError, match=rf"{message}[^\n]+\.$"):
            run(export.zip_file, ship_format=form, ship_precision=precision, ship_which=which)
    monkeypatch.setattr(descriptions, "MAX_PARAMETERS", 10)
    with pytest.raises(InputError, match="python -m vits_prune export"):
        run(export.zip_file)


def test_the_healed_voice_is_shipped_if_there_is_one(order, tmp_path):
    healed = {**VALUES, "ship_which": "healed", "heal_key": order}
    shown = export.look(healed, None)["ship_which"]
    assert shown.visible
    assert [value for _, value in shown.choices] == ["pruned", "healed"]
    folder = unzipped(run(export.zip_file, **healed)[-1], tmp_path)
    assert folder.name == "tiny-local-50-healed-sparse-fp32"
    expected = speak(heal_jobs.recall(order).voice, "hi there").waveform
    assert nearly(speak(load_voice(folder), "hi there").waveform, expected)
    heal_jobs.jobs.put(order.key, HealJob(order))
    assert not export.look(healed, None)["ship_which"].visible
    with pytest.raises(InputError, match="still being healed"):
        run(export.zip_file, **healed)


# What the tab says


def test_the_licence_is_shown_and_its_tick_holds_for_one_voice(tiny, monkeypatch):
    def looked(noticed="someone/tiny"):
        shown = export.look({**VALUES, "ship_noticed": noticed}, None)
        return shown, shown["ship_read"].constructor_args

    shown, ticked = looked(None)
    assert "states no licence" in shown["ship_notice"]
    assert shown["ship_read"].visible
    assert shown["ship_noticed"] == "someone/tiny"
    assert "value" not in looked()[1]
    assert looked("another/voice")[1]["value"] is ticked["value"] is False
    for licence in ("cc0-1.0", "<img src=x onerror=alert(1)>[a](javascript:b)"):
        origin = Origin("hugging-face", "someone/tiny", None, licence)
        voice = dataclasses.replace(tiny, origin=origin)
        monkeypatch.setattr(workbench.bench, "voice", lambda *_, voice=voice, **__: voice)
        shown, _ = looked()
        assert ("cc0" in shown["ship_notice"]) == (licence == "cc0-1.0")
        assert shown["ship_read"].visible == (licence != "cc0-1.0")
        assert "<img" not in shown["ship_notice"]
        assert "](" not in shown["ship_notice"]


def test_the_page_says_who_is_logged_in_or_what_to_do(monkeypatch):
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    assert "python -m vits_prune push" in push_jobs.login_words(None)
    assert "top of the page" not in push_jobs.login_words(None)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert "top of the page" in push_jobs.login_words(None)
    assert "Logged in as a\\_b" in push_jobs.login_words("a_b")


def test_the_precisions_follow_the_format():
    for form, kept, precisions in (
        ("dense", "fp32", ["fp32", "fp16"]),
        ("onnx", "int8", ["fp32", "fp16", "int8"]),
    ):
        shown = export.choose_format(
            {**VALUES, "ship_format": form, "ship_precision": "int8"}, None
        )
        assert [value for _, value in shown["ship_precision"].choices] == precisions
        assert shown["ship_precision"].value == kept
        assert f"{form}-{kept}" in shown["ship_python"].value


def test_names_say_what_was_done(request_, tiny, order):
    odd = dataclasses.replace(tiny, name="../../etc/<b>pässwd</b>")
    assert not set("/<") & set(AtHand(request_).name(odd))
    assert AtHand(request_.at(PruneSpec(amount=0.0))).name(tiny) == "tiny"
    assert AtHand(request_, heal_jobs.recall(order)).name(tiny) == "tiny-local-50-healed"


# The hub


def test_a_push_is_the_voice_with_its_card_under_the_visitors_name(hub, pruned):
    messages = []
    words = push(messages=messages)
    assert f"[visitor/small]({hub.url}/visitor/small)" in words
    assert 'load_voice("visitor/small")' in words
    assert any("sending" in message for message in messages)
    assert hub.repositories["visitor/small"][0].private
    files = hub.files("visitor/small")
    assert "model.sparse.safetensors" in files
    assert b"visitor/small" in files["README.md"]
    assert b"| duration ratio |" in files["README.md"]
    sent = [headers.get("authorization", "") for _, _, headers in hub.requests]
    assert not any("serverowner" in one for one in sent)
    said = speak(load_voice("visitor/small", token=TOKEN), "hi there").waveform
    assert nearly(said, speak(pruned, "hi there").waveform)
    assert "Pushed to" in push(), "and once more, over what was pushed before"
    assert left_behind() == []


def test_a_healed_voice_is_pushed_with_its_course_and_figures(hub, tiny, order, tmp_path):
    job = heal_jobs.recall(order)
    assert push_jobs.write_course(job, tmp_path / "none") is None
    settings = Settings(metrics=("rhythm",), noise_seeds=0)
    figures = evaluate(tiny, job.voice, ("hi there", "you hi"), settings).figures
    job.rows = [{"step": 5, "seconds": 1.0, "mel": 2.0}, {"step": 10, "seconds": 2.0, "mel": 1.0}]
    speech = speak(tiny, "hi")
    job.checkpoints = [Checkpoint(step, 10, figures, 1.0, speech) for step in (5, 0)]
    rows = pd.read_csv(push_jobs.write_course(job, tmp_path) / "curve.csv")
    assert list(rows["step"]) == [0, 5, 10]
    change = round(figures["duration_ratio"].difference.value, 5)
    assert rows["measured_duration_ratio"].tolist()[:2] == [change] * 2
    assert np.isnan(rows["mel"][0])
    messages = []
    assert "Pushed to" in push(messages=messages, ship_which="healed", heal_key=order)
    assert any("measuring for the card" in message for message in messages)
    files = hub.files("visitor/small")
    assert files["healing.png"].startswith(b"\x89PNG")
    card = files["README.md"].decode()
    assert "healing.png" in card
    assert "| duration ratio |" in card
    assert "Nothing was measured" not in card
    assert left_behind() == []


def test_a_voice_that_was_pruned_before_is_compared_with_its_first_original(hub, tiny, monkeypatch):
    first = dataclasses.replace(tiny, origin=Origin("hugging-face", "someone/first", None, "mit"))
    half = prune(first, PruneSpec("random", amount=0.5))
    voices = {"someone/half": half, "someone/first": first}

    def voice(reference, *_, **__):
        if reference not in voices:
            raise NotFoundError("It is gone.")
        return voices[reference]

    monkeypatch.setattr(workbench.bench, "voice", voice)
    asked = {"voice": "someone/half", "ship_noticed": "someone/half", "amount": 0.0}
    assert "Pushed to" in push(**asked)
    card = hub.files("visitor/small")["README.md"].decode()
    assert "| duration ratio |" in card
    assert "magnitude (L1), 0%" not in card
    assert load_voice("visitor/small", token=TOKEN).recipe == half.recipe
    assert "samples/1-original.wav" in hub.files("visitor/small")
    del voices["someone/first"]  # nobody has it any more
    words = push(**asked)
    assert "Pushed to" in words
    assert "Its card has no figures: its original cannot be loaded. It is gone." in words
    assert "| duration ratio |" not in hub.files("visitor/small")["README.md"].decode()
    assert "samples/1-original.wav" not in hub.files("visitor/small")


def test_an_original_that_the_hub_does_not_hand_over_now_ends_the_push(hub, tiny, monkeypatch):
    first = dataclasses.replace(tiny, origin=Origin("hugging-face", "someone/first", None, "mit"))
    half = prune(first, PruneSpec("random", amount=0.5))

    def voice(reference, *_, **__):
        if reference == "someone/half":
            return half
        raise trouble

    monkeypatch.setattr(workbench.bench, "voice", voice)
    asked = {"voice": "someone/half", "ship_noticed": "someone/half", "amount": 0.0}
    for trouble in (HubError("The connection was lost."), LoginError("Log in again.")):
        with pytest.raises(type(trouble), match=str(trouble)):
            push(ship_repo="other", **asked)
    assert "visitor/other" not in hub.repositories
    assert left_behind() == []


def test_only_a_voice_that_cannot_be_measured_is_pushed_without_figures(hub, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(push_jobs, "measuring_texts", lambda *_: (("🙂",), "nothing"))
        words = push()
    assert "Pushed to" in words
    assert "Its card has no figures: " in words
    assert "Nothing was measured" in hub.files("visitor/small")["README.md"].decode()

    def broken(*_, **__):
        raise InputError("The recogniser cannot be loaded.")

    monkeypatch.setattr(push_jobs, "evaluate_against", broken)
    with pytest.raises(InputError, match="recogniser cannot be loaded"):
        push(ship_repo="other")
    assert "visitor/other" not in hub.repositories


def test_only_a_log_in_that_failed_asks_to_log_in_again(hub):
    for repo, fault in (
        ("tokenizer-voice", {"status": 503}),
        ("small", {"status": 413, "message": "tokens.txt is too large"}),
    ):
        hub.faults.append(Fault("POST", "/commit/", **fault))
        with pytest.raises(InputError) as error:
            push(ship_repo=repo)
        assert "does not let this page write" not in str(error.value)
        assert fault.get("message", "nothing was published") in str(error.value)
        hub.faults.clear()


def test_what_cannot_be_pushed_gets_a_sentence_and_nothing_is_published(hub, tiny_folder):
    hub.repositories["visitor/taken"] = [Repository(tiny_folder)]
    hub.publish("visitor/sung", {"vits_prune.json": b'{"name": "Alto"}'})
    for changed, message in (
        ({"token": None}, "Not logged in"),
        ({"ship_repo": ""}, "Give the repository a name"),
        ({"ship_repo": "no/such/name"}, "nothing was published"),
        ({"ship_read": False}, "Read what is said about the licence"),
        ({"ship_noticed": "another/voice"}, "Read what is said about the licence"),
        ({"ship_precision": "int8"}, "Choose a format"),
        ({"ship_repo": "someone-else/small"}, "cannot push to someone-else"),
        ({"ship_repo": "visitor/taken"}, "choose another name"),
        ({"ship_repo": "visitor/sung"}, "holds another voice already, 'Alto': choose another name"),
        ({"token": "hf_expired"}, "nothing was published"),
    ):
        with pytest.raises(InputError, match=rf"{message}[^\n]*\.$") as error:
            push(**changed)
        assert "hf_" not in str(error.value)
    assert set(hub.repositories) == {"visitor/taken", "visitor/sung"}
    assert left_behind() == []


def test_a_public_repository_and_missing_rights_are_found_before_anything_is_written(hub):
    push(ship_private=False)
    hub.accounts["hf_reads"] = Account("visitor", role="read")
    for token, message in (
        (TOKEN, "is public already.*take the tick from Private"),
        ("hf_reads", "log out and in again"),
    ):
        messages = []
        with pytest.raises(InputError, match=message) as error:
            push(token=token, messages=messages)
        assert "hf auth" not in str(error.value)
        assert not any("writing" in one for one in messages)
    assert len(hub.commits) == 1


def test_a_lost_connection_publishes_nothing_and_the_same_push_goes_on(hub):
    hub.faults.append(Fault("POST", "/commit/", status=503))
    with pytest.raises(InputError, match="nothing was published"):
        push()
    assert set(hub.files("visitor/small")) == {".gitattributes"}
    hub.faults.clear()
    assert "0.0 MB sent" in push(), "the large files had arrived"


def test_stopped_while_sending_nothing_is_published(hub):
    messages = []
    words = push(lambda: "asking the hub" in messages, messages=messages)
    assert words.startswith("Stopped: nothing was published.")
    assert not hub.commits
    assert left_behind() == []


def test_stopped_too_late_it_says_what_was_published(hub):
    late, going = [], threading.Event()

    def before_commit():
        late.append(True)
        assert going.wait(60)

    def listen(message, _fraction):
        if message == "stopping":
            going.set()

    hub.before_commit = before_commit
    *_, last = export.push(VALUES, TOKEN, lambda: bool(late), Progress(listen))
    assert last["ship_pushing"].startswith("It was too late to stop. Pushed to")
    assert len(hub.commits) == 1


def test_whoever_leaves_leaves_no_files(hub):
    messages = []
    progress = Progress(
        lambda message, _: messages.append(message),
        lambda: any("writing" in message for message in messages),
    )
    with pytest.raises(Cancelled):
        list(export.push(VALUES, TOKEN, never, progress))
    give_up = time.monotonic() + 60
    while left_behind() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert left_behind() == []
    assert not hub.commits
