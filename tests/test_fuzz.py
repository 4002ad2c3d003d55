"""Hostile and broken input by the hundred, with -m slow by ten thousand.

Every case ends in a result or in one InputError of one sentence: no other exception, no case of
more than ten seconds, no memory beyond 4 GiB, no file outside the folder, no other host asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing import (
    JSON,
    TEXTS,
    change_file,
    changed_header,
    changed_json,
    ends_well,
    mutated,
    mutated_text,
    temporary_files_in,
)
from tests.ship.test_card import evidence_of, facts_of
from tests.study.test_listening import preferences, trials
from tests.study.test_sweep_store import fill, store
from tests.voices.hf_factory import make_checkpoint
from tests.voices.piper_factory import SPEAKERS, TINIEST, make_voice
from vits_prune import InputError, PruneSpec, Shape, load_voice, prune, save_voice
from vits_prune.healing.plan import HealPlan
from vits_prune.healing.recording_files import UnusableError, find_audio, read_rows
from vits_prune.healing.storage import Curve
from vits_prune.ship import bench
from vits_prune.ship.bundle import copy_curves
from vits_prune.ship.card import model_card
from vits_prune.ship.card_figures import check_evidence
from vits_prune.studio.request import (
    FIRST,
    as_command,
    as_python,
    order_of,
    request_of,
    values_of_query,
)
from vits_prune.study.listening_store import pool, read_trials, write_trials
from vits_prune.synthesis.speak import read_text, speak
from vits_prune.synthesis.texts import read_text_file
from vits_prune.ui import api
from vits_prune.voices.checkpoint import read_licence
from vits_prune.voices.hub import parse_repo_id
from vits_prune.voices.sparse_file import decode
from vits_prune.voices.voice import Origin


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Tiny voices and other files in folders, as they are found in the world."""
    home = tmp_path_factory.mktemp("things")
    for name in ("one", "several", "temporary"):
        (home / name).mkdir()
    make_voice(home / "one", TINIEST)
    make_voice(home / "several", SPEAKERS)
    folder = make_checkpoint(home / "h")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\ntags:\n- vits\n---\n# A voice\n")
    voice = load_voice(folder)
    save_voice(voice, home / "saved")
    pruned = prune(voice, PruneSpec(scope="local", amount=0.5, bits=4))
    save_voice(pruned, home / "sparse", "sparse")
    save_voice(prune(voice, PruneSpec(amount=0.5)), home / "sparse-plain", "sparse")
    others = [
        load_voice(make_checkpoint(home / name, **{name: True}))
        for name in ("is_uroman", "phonemize")
    ]
    facts = facts_of(pruned, home / "card", evidence=evidence_of(pruned))
    fill(home / "sweep", [0, 1, 2])
    write_trials([*trials(count=6), *preferences(of=4, first=2)], home / "trials.csv")
    curve = Curve()
    curve.rows = [{"step": step, "seconds": 1.0, "total": 0.5} for step in (10, 20)]
    curve.measured(20, {"measured_cer": 0.1})
    curve.write(home / "curve.csv")
    (home / "metadata.csv").write_text("a|one|One.\nb|two|Two.\n")
    (home / "named.csv").write_text("file_name,transcription\na.wav,One.\n")
    (home / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "One."}\n' * 2)
    board = {"vits_prune_bench": 1, "machine": {"cores": 2}, "model": "m", "bytes": 9}
    (home / "board.json").write_text(json.dumps({**board, "rows": [{"threads": 1, "rtf": 0.1}]}))
    voices = [voice, *others, load_voice(home / "one"), load_voice(home / "several")]
    with temporary_files_in(home / "temporary"):
        yield SimpleNamespace(home=home, voices=voices, facts=facts)


# Texts and values


def text(data, things):
    voice = data.draw(st.sampled_from(things.voices))
    said = data.draw(TEXTS)
    read_text(voice, said)
    if len(said) < 60:
        speak(voice, said)


def text_file(data, things):
    path = things.home / "texts.txt"
    codes = st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32"])
    written = st.builds(lambda one, code: one.encode(code, "surrogatepass"), TEXTS, codes)
    path.write_bytes(data.draw(st.binary(max_size=400) | written))
    read_text_file(path, data.draw(st.none() | st.integers(-1, 5)))


def spec(data, things):
    for kind in (PruneSpec, Shape, HealPlan):
        given = kind.from_dict(changed_json(data, kind().to_dict()))
        assert kind.from_dict(json.loads(given.to_json())) == given


def request(data, things):
    values = {**FIRST, **data.draw(st.dictionaries(st.sampled_from(sorted(FIRST)), JSON))}
    found = request_of(values)
    assert hash(found) == hash(request_of(values))
    heal = {name: data.draw(JSON | st.integers(1, 9)) for name in ("heal_minutes", "heal_texts")}
    order_of(found, "", {**heal, "heal_adversarial": data.draw(JSON)})


def address(data, things):
    names = st.sampled_from(sorted(FIRST)) | st.text(max_size=8)
    given = data.draw(st.dictionaries(names, st.text(max_size=30) | JSON.map(str), max_size=6))
    found = request_of(values_of_query(given))
    assert as_python(found)
    assert as_command(found)


def payload(data, things):
    """What a client sends to the page's endpoints, after Gradio's components."""
    values = {}
    for name, kind, usual in (
        ("voice", gr.Textbox, "joe"),
        ("scope", gr.Textbox, "global"),
        ("amount", gr.Number, 0.3),
        ("parts", gr.JSON, ["flow"]),
        ("method", gr.Textbox, "magnitude"),
        ("spec", gr.JSON, None),
    ):
        sent = data.draw(st.just(usual) | JSON, name)
        if name == "voice" and "/" in str(sent):  # else it is the name of a repository
            sent = usual
        try:
            values[name] = kind(render=False).preprocess(sent)
        except Exception as error:  # Gradio's own refusal
            raise InputError("Gradio refuses it.") from error
    try:
        api.sparsity(**values)
    except gr.Error as error:
        if error.title == "Error":  # what the page calls unforeseen
            raise RuntimeError("unforeseen") from error.__cause__
        raise InputError(error.message) from error


ODD_NAMES = (
    *("../../etc/passwd", "/etc/passwd", "/dev/null", "joe\0", "~", "~nobody/x", ".", "/"),
    *("file:///etc", "a" * 5_000, "\ud800", "CON", "x.onnx", "-rf", "several", "h/config.json"),
    *(r"C:\voices\joe.onnx", r"..\x", "one/voice.onnx", "one/voice.onnx.json", "trials.csv"),
)


def reference(data, things):
    given = data.draw(st.text(max_size=40) | st.sampled_from(ODD_NAMES))
    if not given.startswith((".", "/", "~")):  # else it may be the name of a repository
        given = f"{things.home}/{given}"
    load_voice(given)


def ids(data, things):
    """Speakers of a voice, and names of repositories."""
    odd = JSON | st.sampled_from([0, 1, 2, 3, "0", "2", 1.0, b"0", (0,)])
    load_voice(things.home / data.draw(st.sampled_from(["one", "several", "h"])), data.draw(odd))
    names = st.text(max_size=40) | st.text("ab/.-_@:~ \\%?#", max_size=40)
    name, revision = parse_repo_id(data.draw(st.sampled_from(["", "https://hf.co/"])) +
                                   data.draw(names))  # fmt: skip
    assert not name.startswith("/")
    assert ".." not in f"{name} {revision}"


# Voices


def changed_copy(data, things, kind, name=""):
    """Return a copy of a voice's folder with one file changed."""
    place = Path(tempfile.mkdtemp())
    folder = Path(shutil.copytree(things.home / kind, place / "voice"))
    change_file(data, folder / (name or data.draw(st.sampled_from(sorted(os.listdir(folder))))))
    return folder


def piper(data, things):
    kind = data.draw(st.sampled_from(["one", "several"]))
    folder = changed_copy(data, things, kind)
    try:
        load_voice(folder / "voice.onnx")
    finally:
        shutil.rmtree(folder.parent)


def graph(data, things):
    """A graph that onnx reads, with one thing in it changed."""
    model = onnx.load(things.home / data.draw(st.sampled_from(["one", "several"])) / "voice.onnx")
    inside, number = model.graph, data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 99))
    tensor = data.draw(st.sampled_from(list(inside.initializer)))
    node = data.draw(st.sampled_from(list(inside.node)))
    name = data.draw(st.sampled_from([one.name for one in inside.initializer]) | st.text())
    what = data.draw(st.integers(0, 11), "what")
    if what == 0:
        tensor.dims[:] = [number, *tensor.dims[1:]]
    elif what == 1:
        tensor.raw_data = tensor.raw_data[: data.draw(st.integers(0, 64))]
    elif what == 2:
        tensor.data_type = data.draw(st.integers(0, 30))
    elif what == 3:
        tensor.name = name.encode("utf-8", "ignore").decode()
    elif what == 4 and node.input:
        node.input[0] = name.encode("utf-8", "ignore").decode()
    elif what == 5:
        node.op_type = data.draw(st.sampled_from(["Conv", "Gather", "Loop", "MatMul", "X"]))
    elif what == 6 and node.attribute:
        node.attribute[0].i, node.attribute[0].ints[:] = number, [number]
    elif what == 7:
        inside.node.remove(node)
    elif what == 8:
        inside.initializer.remove(tensor)
    elif what == 9:
        inside.node.append(node)
        inside.input[0].name = data.draw(st.sampled_from(["input", "x", "sid"]))
    elif what == 10:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = data.draw(st.sampled_from(["/etc/passwd", "../x", "voice.onnx.json", ""]))
        tensor.external_data.add(key="location", value=place)
    else:
        del inside.output[:]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(things.home / "several", place, dirs_exist_ok=True)
        Path(place, "voice.onnx").write_bytes(model.SerializeToString())
        load_voice(Path(place, "voice.onnx"))


def checkpoint(data, things):
    kind = data.draw(st.sampled_from(["h", "saved", "sparse", "is_uroman", "phonemize"]))
    folder = changed_copy(data, things, kind)
    try:
        load_voice(folder)
    finally:
        shutil.rmtree(folder.parent)


def header(data, things):
    folder = changed_copy(data, things, data.draw(st.sampled_from(["h", "saved"])),
                          "model.safetensors")  # fmt: skip
    try:
        load_voice(folder)
    finally:
        shutil.rmtree(folder.parent)


def sparse(data, things):
    [path] = (things.home / data.draw(st.sampled_from(["sparse", "sparse-plain"]))).glob("*.safet*")
    change = data.draw(st.sampled_from([mutated, changed_header]))
    decode(change(data, path.read_bytes()))


# Tables, curves and cards


def tables(data, things):
    path = things.home / "table.csv"
    path.write_bytes(mutated_text(data, (things.home / "trials.csv").read_text()))
    pool(read_trials(path))
    for name in ("metadata.csv", "named.csv", "metadata.jsonl"):
        with tempfile.TemporaryDirectory() as place:
            there = Path(place, name.replace("named", "metadata"))
            there.write_bytes(mutated_text(data, (things.home / name).read_text()))
            rows, _ = read_rows(Path(place))
            for row in rows[:3]:
                with contextlib.suppress(UnusableError):
                    assert find_audio(Path(place).resolve(), row).is_relative_to(place)


def sweeps(data, things):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(things.home / "sweep", Path(place, "sweep")))
        path = folder / data.draw(st.sampled_from(["sweep.jsonl", "sweep.json", "sweep.csv"]))
        path.write_bytes(mutated_text(data, path.read_text()))
        copy_curves(folder, Path(place))
        with store(folder):
            pass


def curves(data, things):
    path = things.home / "changed.csv"
    path.write_bytes(mutated_text(data, (things.home / "curve.csv").read_text()))
    Curve.read(path, max_rows=data.draw(st.none() | st.integers(0, 3)))
    board = things.home / "changed.json"
    content = json.loads((things.home / "board.json").read_text())
    board.write_text(json.dumps(changed_json(data, content)))
    try:
        assert bench.table(bench.merge([str(board)]))
    except bench.BenchError as error:
        raise InputError(str(error)) from error


def card(data, things):
    path, front = things.home / "README.md", data.draw(TEXTS | JSON.map(str))
    path.write_bytes(f"---\nlicense: {front}\n---\n".encode("utf-8", "surrogatepass"))
    stated = read_licence(path)
    voice = things.facts.voice
    names = st.text(max_size=60) | st.none()
    origin = Origin("hugging-face", data.draw(st.text(max_size=60)), data.draw(names), stated)
    voice = dataclasses.replace(voice, origin=origin, name=data.draw(st.text(max_size=40)))
    evidence = changed_json(data, evidence_of(voice))
    if isinstance(evidence, dict):
        check_evidence(evidence, voice)
        facts = dataclasses.replace(things.facts, voice=voice, evidence=evidence)
        assert model_card(facts).startswith("---\n")


CASES = (
    *(text, text_file, spec, request, address, payload, reference, ids),
    *(piper, graph, checkpoint, header, sparse, tables, sweeps, curves, card),
)
IN_THE_SUITE, SLOW = -(-200 // len(CASES)), -(-10_000 // len(CASES))


def run(things, case, count: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.data())
    def cases(data):
        ends_well(case, things.home, data, things)

    cases()


@pytest.mark.parametrize("case", CASES)
def test_some_hostile_input_ends_well(things, case):
    run(things, case, IN_THE_SUITE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_much_hostile_input_ends_well(things, case):
    run(things, case, SLOW)
