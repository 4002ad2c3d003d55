"""The Ship tab's work without a browser: every format in a table, the zip that is the voice, and a push to a hub on this machine."""

from __future__ import annotations

import dataclasses
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Fault, Repository, serving
from vits_prune import HealPlan, PruneSpec, load_voice, prune, speak
from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.ship import export_report as report
from vits_prune.ship.formats import FORMATS
from vits_prune.studio import workbench
from vits_prune.study.evaluation import Settings, evaluate
from vits_prune.ui import events, healed, page, ship, shipped, shipped_healing, shipping
from vits_prune.ui.healed import Healing
from vits_prune.ui.healing import Check, Order
from vits_prune.ui.shipped_healing import write_course
from vits_prune.ui.shipping import CHOICES, Packed, Parcel
from vits_prune.voices.voice import Origin

TOKEN = "hf_visitor"
PARCEL = Parcel("small", "sparse", "fp32", private=True, read=True)


@pytest.fixture
def at_hand(request_, monkeypatch):
    """A request of half a tiny voice that is loaded."""
    monkeypatch.setattr(workbench.bench, "is_loaded", lambda *_: True)
    monkeypatch.setattr(healed, "_healings", Bounded(1 << 30, healed._bytes))
    return dataclasses.replace(request_, spec=PruneSpec(scope="local", amount=0.5))


@pytest.fixture
def order(at_hand, tiny):
    """A healing that has finished."""
    made = Order(at_hand, HealPlan(), 2, "")
    voice = prune(tiny, PruneSpec("random", amount=0.5))
    voice = dataclasses.replace(
        voice,
        recipe={**voice.recipe, "healed": [{"plan": HealPlan().to_dict(), "steps": 10, "of": 10}]},
    )
    healed._healings.put(made.key, Healing(made, voice=voice))
    return made


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub to which "visitor" may write."""
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_serverownersecret")
        monkeypatch.setattr(
            healed, "METRICS", ("rhythm", "loudness")
        )  # of the card: those that need no recogniser
        hub.store, hub.accounts = (
            tmp_path / "store",
            {TOKEN: Account("visitor"), "hf_serverownersecret": Account("owner")},
        )
        hub.store.mkdir()
        yield hub


def never():
    return False


def last_of(walk):
    return list(walk)[-1]


def left_behind():
    return list(Path(shipping._work.name).iterdir())


def test_every_format_is_a_row_and_what_does_not_fit_says_why(at_hand, monkeypatch):
    some = (
        ("dense", "fp32"),
        ("sparse", "fp16"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("piper", "fp32"),
    )
    monkeypatch.setattr(shipped, "CHOICES", some)
    monkeypatch.setattr(shipping, "CHOICES", some)
    monkeypatch.setattr(report, "ROUNDS", 1)
    updates = list(shipped.compare_steps(at_hand, None, never, "pruned", None))
    assert {name for update in updates for name in update} == set(shipped.COMPARED)
    grown = [
        update for update in updates if "ship_table" in update and update["ship_table"].visible
    ]
    assert [len(update["ship_table"].value["data"]) for update in grown] == [1, 2, 3, 4, 5, 5]
    assert any(
        "onnx fp32: comparing it with the voice" in update["ship_status"]
        for update in updates
        if "ship_status" in update
    )
    assert "Done: **tiny-local-50**" in updates[-1]["ship_status"]
    rows = pd.read_csv(updates[-1]["ship_csv"].value["path"]).set_index(["format", "precision"])
    assert list(rows.index) == list(some)
    assert rows.loc[("dense", "fp32"), "megabytes"] > 2 * rows.loc[("sparse", "fp16"), "megabytes"]
    assert rows.loc[("sparse", "fp16"), "mel_levels_off_db"] > 0
    assert rows["load_ms"].notna().tolist() == [False, False, True, True, True]
    assert (
        rows.loc[("onnx", "fp32"), "real_time_factor"]
        == rows.loc[("piper", "fp32"), "real_time_factor"]
    )
    assert rows.loc[("piper", "fp32"), "in_words"].startswith("the same graph as onnx fp32")
    assert "than fp32 (" in rows.loc[("onnx", "int8"), "in_words"]
    assert not any("writing fp32" in update.get("ship_status", "") for update in updates), (
        "the float32 file was timed a moment before"
    )
    assert left_behind() == []


def test_a_format_that_does_not_fit_says_why(tiny_folder, tmp_path):
    uroman = load_voice(make_checkpoint(tmp_path / "uroman", is_uroman=True))
    line = shipping._line(uroman, "piper", "int8", [], lambda *_: None)
    assert line.row is None
    assert "the Piper runtime does not romanise: export it as onnx." in line.why
    shown = shipped._table([line])
    assert shown["ship_table"].value["data"][0][:4] == ["piper int8", "", "", line.why]
    assert left_behind() == []


def test_stopped_it_ends_at_once_and_keeps_the_rows(at_hand):
    seen = []

    def halted():
        return len(seen) > 0

    for update in shipped.compare_steps(at_hand, None, halted, "pruned", None):
        if "ship_table" in update and update["ship_table"].visible:
            seen.append(update)
    assert len(seen) >= 2, "once as it came, once more at the end"
    count = len(seen[-1]["ship_table"].value["data"])
    assert 1 <= count < len(CHOICES)
    assert f"Stopped: {count} of {len(CHOICES)} formats" in seen[-1]["ship_status"]
    with shipping._writing:  # given back at the end of the work
        assert left_behind() == []
    assert (
        last_of(shipped.compare_steps(at_hand, None, lambda: True, "pruned", None))["ship_status"]
        == "Stopped before anything was written."
    )


def test_when_the_time_is_up_the_rest_is_left_out(tiny, monkeypatch):
    monkeypatch.setattr(shipping, "MAX_SECONDS", -1.0)
    lines = last_of(step for step in shipping.format_steps(tiny, never) if isinstance(step, list))
    assert len(lines) == len(CHOICES)
    assert lines[-1].why.endswith("python -m vits_prune export --format piper --precision int8")


def test_one_is_written_at_a_time_and_waiting_can_be_stopped(tiny):
    told = []
    with shipping._writing:
        for step in shipping.pack_steps(tiny, "tiny", "dense", "fp32", lambda: len(told) > 2):
            told.append(step.message)
    assert "waiting for another export to end" in told
    assert any(
        isinstance(step, Packed)
        for step in shipping.pack_steps(tiny, "tiny", "dense", "fp32", never)
    )


@pytest.mark.parametrize("form", FORMATS)
def test_the_zip_is_the_voice(at_hand, tiny, form, tmp_path):
    precision = FORMATS[form].precisions[-1] if form == "sparse" else "fp32"
    shown = last_of(shipped.download_steps(at_hand, None, never, "pruned", None, form, precision))
    assert set(shown) == set(shipped.PACKED)
    stem = f"tiny-local-50-{form}-{precision}"
    archive = Path(shown["ship_file"].value["path"])
    assert archive.name == f"{stem}.zip"
    zipfile.ZipFile(archive).extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == stem
    assert f'load_voice("{stem}")' in shown["ship_python"].value
    voice, pruned = load_voice(folder), workbench.bench.pruned(at_hand)
    np.testing.assert_allclose(
        speak(voice, "hi there").waveform,
        speak(pruned, "hi there").waveform,
        atol=0.05 if precision == "fp16" else 1e-6,
    )
    if form in ("onnx", "piper"):
        assert (folder / "bench.py").is_file()
        assert (
            "pip install onnxruntime numpy && python bench.py tiny.onnx --threads 1,2 --json board.json"
            in shown["ship_shell"].value
        )
        assert "no sample is off by more than" in shown["ship_packing"]
    assert ("python -m piper -m tiny.onnx" in shown["ship_shell"].value) == (form == "piper")
    assert ("VitsModel.from_pretrained" in shown["ship_python"].value) == (form == "dense")
    assert left_behind() == []


def test_the_shell_line_speaks_in_the_stock_piper_runtime(tmp_path):
    import subprocess
    import sys

    voice = load_voice(piper_factory.make_voice(tmp_path, piper_factory.TINIEST))
    *_, packed = shipping.pack_steps(voice, "one", "piper", "fp32", never)
    zipfile.ZipFile(packed.archive).extractall(tmp_path)
    _, shell = ship.use_lines(packed.folder, "piper", packed.model, plain=False)
    line = shell.splitlines()[-1].partition("&& ")[2].replace('"', "").split()
    subprocess.run(
        [sys.executable, *line[1:]], cwd=tmp_path / packed.folder, check=True, capture_output=True
    )
    assert (tmp_path / packed.folder / "hello.wav").stat().st_size > 44


def test_a_zip_that_is_stopped_or_cannot_be_made_says_so(at_hand, monkeypatch):
    assert last_of(
        shipped.download_steps(at_hand, None, lambda: True, "pruned", None, "dense", "fp32")
    )["ship_packing"].startswith("Stopped")
    for form, precision, which, message in (
        ("dense", "int8", "pruned", "Choose a format"),
        ("../up", "fp32", "pruned", "Choose a format"),
        ("dense", "fp32", "healed", "Nothing is healed yet"),
    ):
        with pytest.raises(InputError, match=rf"{message}[^\n]+\.$"):
            list(shipped.download_steps(at_hand, None, never, which, None, form, precision))
    monkeypatch.setattr(shipping, "MAX_PARAMETERS", 10)
    with pytest.raises(InputError, match="python -m vits_prune export"):
        list(shipped.download_steps(at_hand, None, never, "pruned", None, "dense", "fp32"))


def test_the_healed_voice_is_shipped_where_there_is_one(at_hand, order, tmp_path):
    shown = ship.arrived(at_hand, None, "healed", order, None, "dense", "fp32")
    assert shown["ship_which"].visible
    assert [value for _, value in shown["ship_which"].choices] == ["pruned", "healed"]
    archive = last_of(
        shipped.download_steps(at_hand, None, never, "healed", order, "dense", "fp32")
    )["ship_file"].value["path"]
    zipfile.ZipFile(archive).extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "tiny-local-50-healed-dense-fp32"
    expected = speak(healed.recall(order).voice, "hi there").waveform
    np.testing.assert_array_equal(speak(load_voice(folder), "hi there").waveform, expected)
    healed._healings.put(order.key, Healing(order))
    assert not ship.arrived(at_hand, None, "healed", order, None, "dense", "fp32")[
        "ship_which"
    ].visible
    with pytest.raises(InputError, match="still being healed"):
        list(shipped.download_steps(at_hand, None, never, "healed", order, "dense", "fp32"))


def test_the_licence_is_shown_before_and_its_tick_holds_for_one_voice(at_hand, tiny, monkeypatch):
    shown = ship.arrived(at_hand, None, "pruned", None, None, "dense", "fp32")
    assert "states no licence" in shown["ship_notice"]
    assert shown["ship_read"].visible
    seen = shown["ship_noticed"]
    assert "value" not in _sent(
        ship.arrived(at_hand, None, "pruned", None, seen, "dense", "fp32")["ship_read"]
    )
    assert (
        _sent(
            ship.arrived(at_hand, None, "pruned", None, "another/voice", "dense", "fp32")[
                "ship_read"
            ]
        )["value"]
        is False
    )
    free = dataclasses.replace(tiny, origin=Origin("hugging-face", "someone/tiny", None, "cc0-1.0"))
    monkeypatch.setattr(workbench.bench, "voice", lambda *_, **__: free)
    shown = ship.arrived(at_hand, None, "pruned", None, seen, "dense", "fp32")
    assert not shown["ship_read"].visible
    assert "cc0" in shown["ship_notice"]
    hostile = dataclasses.replace(
        tiny,
        origin=Origin("hugging-face", "x", None, "<img src=x onerror=alert(1)>[a](javascript:b)"),
    )
    monkeypatch.setattr(workbench.bench, "voice", lambda *_, **__: hostile)
    notice = ship.arrived(at_hand, None, "pruned", None, None, "dense", "fp32")["ship_notice"]
    assert "<img" not in notice
    assert "](" not in notice


def _sent(component):
    return component.constructor_args


def push(at_hand, tiny, hub, parcel=PARCEL, halted=never, **named):
    seen, order = named.pop("noticed", at_hand.reference), named.pop("order", None)
    which = "healed" if order else "pruned"
    return list(
        shipped.hub_steps(at_hand, named.pop("token", TOKEN), halted, which, order, seen, parcel)
    )


def test_a_push_is_the_voice_with_its_card_under_the_visitors_name(at_hand, tiny, hub):
    updates = push(at_hand, tiny, hub)
    assert f"[visitor/small]({hub.url}/visitor/small)" in updates[-1]["ship_pushing"]
    assert 'load_voice("visitor/small")' in updates[-1]["ship_pushing"]
    assert any("sending" in update["ship_pushing"] for update in updates)
    assert hub.repositories["visitor/small"][0].private
    files = hub.files("visitor/small")
    assert "model.sparse.safetensors" in files
    assert b"visitor/small" in files["README.md"]
    assert b"| duration ratio |" in files["README.md"]
    assert all(
        "serverowner" not in headers.get("authorization", "") for _, _, headers in hub.requests
    )
    voice = load_voice("visitor/small", token=TOKEN)
    np.testing.assert_array_equal(
        speak(voice, "hi there").waveform,
        speak(workbench.bench.pruned(at_hand), "hi there").waveform,
    )
    assert "Pushed to" in push(at_hand, tiny, hub)[-1]["ship_pushing"], (
        "and once more, over what was pushed before"
    )
    assert left_behind() == []


def test_a_healed_voice_is_pushed_with_its_course_and_its_figures(at_hand, tiny, hub, order):
    found = healed.recall(order)
    before = evaluate(
        tiny,
        found.voice,
        ("hi there", "you hi"),
        Settings(metrics=("rhythm", "loudness"), noise_seeds=0),
    )
    found.rows = [{"step": 5, "seconds": 1.0, "mel": 2.0}, {"step": 10, "seconds": 2.0, "mel": 1.0}]
    found.checks = [Check(step, before.figures, 1.0, speak(tiny, "hi")) for step in (0, 10)]
    updates = push(at_hand, tiny, hub, order=order)
    assert "Pushed to" in updates[-1]["ship_pushing"]
    assert any("measuring for the card" in update["ship_pushing"] for update in updates)
    files = hub.files("visitor/small")
    assert files["healing.png"].startswith(b"\x89PNG")
    card = files["README.md"].decode()
    assert "healing.png" in card
    assert "| duration ratio |" in card
    assert "Nothing was measured" not in card
    assert left_behind() == []


def test_a_voice_that_was_pruned_before_is_compared_with_what_all_began_with(
    at_hand, tiny, hub, tmp_path, monkeypatch
):
    first = dataclasses.replace(tiny, origin=Origin("hugging-face", "someone/first", None, "mit"))
    half = prune(first, PruneSpec("random", amount=0.5))
    voices = {"someone/half": half, "someone/first": first}
    monkeypatch.setattr(workbench.bench, "voice", lambda reference, *_, **__: voices[reference])
    request = dataclasses.replace(at_hand, reference="someone/half", spec=PruneSpec(amount=0.0))
    updates = push(request, tiny, hub)
    assert "Pushed to" in updates[-1]["ship_pushing"]
    card = hub.files("visitor/small")["README.md"].decode()
    assert "| duration ratio |" in card
    assert "magnitude (L1), 0%" not in card
    pushed = load_voice("visitor/small", token=TOKEN)
    assert pushed.recipe == half.recipe
    assert "samples/1-original.wav" in hub.files("visitor/small")
    del voices["someone/first"]  # nobody has it any more

    def gone(reference, *_, **__):
        if reference not in voices:
            raise InputError("It is gone.")
        return voices[reference]

    monkeypatch.setattr(workbench.bench, "voice", gone)
    words = push(request, tiny, hub)[-1]["ship_pushing"]
    assert "Pushed to" in words
    assert "Its card has no figures: its original cannot be loaded. It is gone." in words
    card = hub.files("visitor/small")["README.md"].decode()
    assert "| duration ratio |" not in card
    assert "samples/1-original.wav" not in hub.files("visitor/small")


def test_a_voice_that_cannot_be_measured_is_pushed_and_told_to_have_no_figures(
    at_hand, tiny, hub, monkeypatch
):
    monkeypatch.setattr(shipped_healing, "texts_for", lambda *_: (("🙂",), "nothing"))
    words = push(at_hand, tiny, hub)[-1]["ship_pushing"]
    assert "Pushed to" in words
    assert "Its card has no figures: " in words
    assert "Nothing was measured" in hub.files("visitor/small")["README.md"].decode()


def test_other_errors_of_measuring_end_a_push(at_hand, tiny, hub, monkeypatch):
    def broken(*_, **__):
        raise InputError("The recogniser cannot be loaded.")

    monkeypatch.setattr(shipped_healing, "evaluate_against", broken)
    with pytest.raises(InputError, match="recogniser cannot be loaded"):
        push(at_hand, tiny, hub)
    assert "visitor/small" not in hub.repositories or "README.md" not in hub.files("visitor/small")


def test_a_repository_with_token_in_its_name_keeps_its_errors(at_hand, tiny, hub):
    hub.faults.append(Fault("POST", "/commit/", status=503))
    with pytest.raises(InputError) as error:
        push(at_hand, tiny, hub, dataclasses.replace(PARCEL, repo="tokenizer-voice"))
    assert "does not let this page write" not in str(error.value)


def test_a_file_named_tokens_is_not_a_log_in_that_failed(at_hand, tiny, hub):
    hub.faults.append(Fault("POST", "/commit/", status=413, message="tokens.txt is too large"))
    with pytest.raises(InputError, match="is too large"):
        push(at_hand, tiny, hub)


def test_the_course_of_a_healing_is_the_changes_from_the_original(tiny, order, tmp_path):
    found = healed.recall(order)
    assert write_course(found, tmp_path / "none") is None
    figures = evaluate(
        tiny, found.voice, ("hi there", "you hi"), Settings(metrics=("rhythm",), noise_seeds=0)
    ).figures
    found.rows = [{"step": 5, "seconds": 1.0, "mel": 2.0}]
    found.checks = [Check(step, figures, 1.0, speak(tiny, "hi")) for step in (5, 0)]
    rows = pd.read_csv(write_course(found, tmp_path) / "curve.csv")
    assert list(rows["step"]) == [0, 5]
    assert (
        rows["measured_duration_ratio"].tolist()
        == [round(figures["duration_ratio"].difference.value, 5)] * 2
    )
    assert np.isnan(rows["mel"][0])


@pytest.mark.parametrize(
    ("change", "named", "message"),
    [
        ({}, {"token": None}, "Not logged in"),
        ({"repo": ""}, {}, "Give the repository a name"),
        ({"repo": "no/such/name"}, {}, "nothing was published"),
        ({"read": False}, {}, "Read what is said about the licence"),
        ({}, {"noticed": "another/voice"}, "Read what is said about the licence"),
        ({"format": "sparse", "precision": "int8"}, {}, "Choose a format"),
        ({"repo": "someone-else/small"}, {}, "cannot push to someone-else"),
        ({"repo": "visitor/taken"}, {}, "choose another name"),
        ({"repo": "visitor/sung"}, {}, "holds another voice already, 'Alto': choose another name"),
        ({}, {"token": "hf_expired"}, "nothing was published"),
    ],
)
def test_what_cannot_be_pushed_gets_a_sentence_and_nothing_is_published(
    at_hand, tiny, hub, tiny_folder, change, named, message
):
    hub.repositories["visitor/taken"] = [Repository(tiny_folder)]
    hub.publish("visitor/sung", {"vits_prune.json": b'{"name": "Alto"}'})
    with pytest.raises(InputError, match=rf"{message}[^\n]*\.$") as error:
        push(at_hand, tiny, hub, dataclasses.replace(PARCEL, **change), **named)
    assert "hf_" not in str(error.value)
    assert set(hub.repositories) == {"visitor/taken", "visitor/sung"}
    assert left_behind() == []


def test_a_public_repository_and_a_log_in_without_rights_are_told_before_anything_is_written(
    at_hand, tiny, hub, monkeypatch
):
    push(at_hand, tiny, hub, dataclasses.replace(PARCEL, private=False))
    hub.accounts["hf_reads"] = Account("visitor", role="read")
    for token, message in (
        (TOKEN, "is public already.*take the tick from Private"),
        ("hf_reads", "log out and in again"),
    ):
        told = []
        with pytest.raises(InputError, match=message) as error:
            told.extend(
                update["ship_pushing"]
                for update in shipped.hub_steps(
                    at_hand, token, never, "pruned", None, at_hand.reference, PARCEL
                )
            )
        assert "hf auth" not in str(error.value)
        assert not any("writing" in what for what in told)
    assert len(hub.commits) == 1


def test_a_lost_connection_publishes_nothing_and_the_same_push_goes_on(at_hand, tiny, hub):
    hub.faults.append(Fault("POST", "/commit/", status=503))
    with pytest.raises(InputError, match="nothing was published"):
        push(at_hand, tiny, hub)
    assert set(hub.files("visitor/small")) == {".gitattributes"}
    hub.faults.clear()
    words = push(at_hand, tiny, hub)[-1]["ship_pushing"]
    assert "0.0 MB sent" in words, "the large files had arrived"


def test_stopped_while_sending_nothing_is_published(at_hand, tiny, hub):
    told = []

    def halted():
        return any("asking the hub" in what for what in told)

    for update in shipped.hub_steps(
        at_hand, TOKEN, halted, "pruned", None, at_hand.reference, PARCEL
    ):
        told.append(update["ship_pushing"])
    assert told[-1].startswith("Stopped: nothing was published.")
    assert not hub.commits
    assert left_behind() == []


def test_stopped_too_late_it_says_what_was_published(at_hand, tiny, hub):
    late, going = [], threading.Event()

    def before_commit():
        late.append(True)
        assert going.wait(60)

    hub.before_commit = before_commit
    told = []
    for update in shipped.hub_steps(
        at_hand, TOKEN, lambda: bool(late), "pruned", None, at_hand.reference, PARCEL
    ):
        told.append(update["ship_pushing"])
        if "stopping" in told[-1]:
            going.set()
    assert told[-1].startswith("It was too late to stop. Pushed to")
    assert len(hub.commits) == 1


def test_whoever_leaves_leaves_no_files(at_hand, tiny, hub):
    run = shipped.hub_steps(at_hand, TOKEN, never, "pruned", None, at_hand.reference, PARCEL)
    for update in run:
        if "writing" in update["ship_pushing"]:
            break
    run.close()
    give_up = time.monotonic() + 60
    while left_behind() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert left_behind() == []
    assert not hub.commits


def test_the_sign_says_who_is_logged_in_or_what_to_do(monkeypatch):
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    assert "python -m vits_prune push" in ship.login_words(None)
    assert "top of the page" not in ship.login_words(None)
    monkeypatch.setenv("OAUTH_CLIENT_ID", "x")
    assert "top of the page" in ship.login_words(None)
    assert "Logged in as a\\_b" in ship.login_words("a_b")


def test_the_precisions_follow_the_format(at_hand):
    def chosen(form, precision):
        return ship.format_chosen(at_hand, None, "pruned", None, None, form, precision)

    assert [value for _, value in chosen("dense", "int8")["ship_precision"].choices] == [
        "fp32",
        "fp16",
    ]
    assert chosen("dense", "int8")["ship_precision"].value == "fp32"
    assert "dense-fp32" in chosen("dense", "int8")["ship_python"].value
    assert chosen("onnx", "int8")["ship_precision"].value == "int8"
    assert "onnx-int8" in chosen("onnx", "int8")["ship_python"].value


def test_names_say_what_was_done(at_hand, tiny, order):
    odd = dataclasses.replace(tiny, name="../../etc/<b>pässwd</b>")
    assert "/" not in shipping.name_of(odd, at_hand, None)
    assert "<" not in shipping.name_of(odd, at_hand, None)
    whole = dataclasses.replace(at_hand, spec=PruneSpec(amount=0.0))
    assert shipping.name_of(tiny, whole, None) == "tiny"
    assert shipping.name_of(tiny, at_hand, order) == "tiny-local-50-healed"


def test_one_table_at_a_time_and_pushes_in_a_line_of_their_own():
    lines = {one.concurrency_id: one.concurrency_limit for one in page.build().fns.values()}
    assert (lines["ship_compare"], lines["ship_push"]) == (1, 2)
    events.tickets.cancel("begun")
    assert "begun" in events.tickets
