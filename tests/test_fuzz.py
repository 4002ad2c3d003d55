"""Hostile and broken input by the hundred, with -m slow by ten thousand.

Every case ends in a result or in one InputError of one line: no other exception, no case of more
than ten seconds, no memory beyond 4 GiB, no file written outside the folder, no other host asked.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.voices.hf_factory import make_checkpoint
from tests.voices.piper_factory import SPEAKERS, TINIEST, make_voice
from vits_prune import InputError, PruneSpec, Shape, load_voice, prune, save_voice
from vits_prune.healing.plan import HealPlan
from vits_prune.studio.request import FIRST, request_of, spec_of, values_of_query
from vits_prune.study.listening_store import read_trials
from vits_prune.synthesis.speak import read_text, speak
from vits_prune.synthesis.texts import read_text_file
from vits_prune.voices.checkpoint import read_licence
from vits_prune.voices.sparse_file import decode

KINDS = 10
IN_THE_SUITE, SLOW = 200 // KINDS, 10_000 // KINDS
_SECONDS = 10
_WIDEST = 4 << 30

watched: list[str] = []
"""What was opened for writing, and whom the process called, while a case runs."""
_watching = [False]


def _watch(event: str, found: tuple[Any, ...]) -> None:
    if not _watching[0]:
        return
    if event == "open" and isinstance(found[0], (str, bytes)) and _writes(found):
        watched.append(os.fsdecode(found[0]))
    elif event == "socket.connect" and isinstance(found[1], tuple):
        watched.append(f"host {found[1][0]}")


def _writes(found: tuple[Any, ...]) -> bool:
    mode, flags = found[1], found[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


sys.addaudithook(_watch)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.text("abc \t\n.,!?'’-–…\u00a0\u2028\u200b\u202e\u0301[]{}()<>_^$0123", max_size=200),
    st.text(st.characters(categories=["Cc", "Cf", "Mn", "So", "Lo", "Zs", "Cn"]), max_size=100),
    st.builds(lambda piece, count: piece * count, st.text(min_size=1, max_size=3),
              st.integers(1, 40_000)),
)  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Tiny voices in folders, as they are found in the world."""
    home = tmp_path_factory.mktemp("things")
    for name in ("one", "several"):
        (home / name).mkdir()
    make_voice(home / "one", TINIEST)
    make_voice(home / "several", SPEAKERS)
    folder = make_checkpoint(home / "h")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\ntags:\n- vits\n---\n# A voice\n")
    voice = load_voice(folder)
    save_voice(voice, home / "saved")
    pruned = prune(voice, PruneSpec(scope="local", amount=0.5, bits=4))
    save_voice(pruned, home / "sparse", "sparse")
    characters = load_voice(folder), load_voice(home / "one"), load_voice(home / "several")
    return home, characters


def ends_well(case, *arguments) -> None:
    """Run a case, which may raise one InputError of one line and nothing else."""
    watched.clear()
    before = _peak()
    _watching[0] = True
    said = "a result"
    try:
        case(*arguments)
    except InputError as error:
        said = str(error)
    finally:
        _watching[0] = False
    assert len(said.splitlines()) == 1, said[:300]
    mine = (tempfile.gettempdir(), str(Path.home() / ".cache"), "/dev/", "host 127.")
    others = [one for one in watched if ".hypothesis" not in one]
    assert not [one for one in others if not one.startswith(mine)]
    assert _peak() - before < _WIDEST  # other tests of this process have peaks of their own


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """A file of which some bytes are others, missing, doubled, or gone."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4), "changes")):
        at = data.draw(st.integers(0, max(0, len(found) - 1)), "at")
        kind = data.draw(st.sampled_from(["byte", "cut", "insert", "double", "header"]), "kind")
        if kind == "byte" and found:
            found[at] = data.draw(st.integers(0, 255), "value")
        elif kind == "cut":
            del found[at : at + data.draw(st.integers(1, 1 << 12), "length")]
        elif kind == "insert":
            found[at:at] = data.draw(st.binary(max_size=40), "bytes")
        elif kind == "double":
            found[at:at] = found[at : at + 64]
        else:
            found[: min(8, len(found))] = data.draw(st.binary(min_size=8, max_size=8), "head")
    return bytes(found)


def changed_json(data: st.DataObject, values: Any) -> Any:
    """A JSON object of which one entry, at any depth, is another value or missing."""
    if isinstance(values, dict) and values and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(values)))
        if data.draw(st.integers(0, 4)) == 0:
            return {name: one for name, one in values.items() if name != key}
        return {**values, key: changed_json(data, values[key])}
    return data.draw(JSON)


# The kinds


def text(data, home, voices):
    voice = data.draw(st.sampled_from(voices))
    said = data.draw(TEXTS)
    read_text(voice, said)
    if len(said) < 60:
        speak(voice, said)


def text_file(data, home, voices):
    path = home / "texts.txt"
    path.write_bytes(data.draw(st.binary(max_size=400) | TEXTS.map(lambda one: one.encode("utf-16",
                     "surrogatepass"))))  # fmt: skip
    read_text_file(path)


def spec(data, home, voices):
    for kind in (PruneSpec, Shape, HealPlan):
        given = kind.from_dict(changed_json(data, kind().to_dict()))
        assert kind.from_dict(json.loads(given.to_json())) == given


def request(data, home, voices):
    values = {**FIRST, **data.draw(st.dictionaries(st.sampled_from(sorted(FIRST)), JSON))}
    spec_of(values)
    request_of(values)


def address(data, home, voices):
    names = st.sampled_from(sorted(FIRST)) | st.text(max_size=8)
    given = data.draw(st.dictionaries(names, st.text(max_size=30) | JSON.map(str), max_size=6))
    request_of(values_of_query(given))


ODD = (
    *("../../etc/passwd", "/etc/passwd", "/dev/null", "joe\0", "~", "~nobody/x", ".", "/"),
    *("file:///etc", "a" * 5_000, "\ud800", "CON", "x.onnx", "-rf", "several", "h/config.json"),
)


def reference(data, home, voices):
    given = data.draw(st.text(max_size=40) | st.sampled_from(ODD))
    if not given.startswith((".", "/", "~")):  # else it may be the name of a repository
        given = f"{home}/{given}"
    load_voice(given)


def piper(data, home, voices):
    kind = data.draw(st.sampled_from(["one", "several"]))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(home / kind, Path(place, "voice")))
        _change(data, folder, data.draw(st.sampled_from(["voice.onnx", "voice.onnx.json"])))
        load_voice(folder / "voice.onnx")


def checkpoint(data, home, voices):
    kind = data.draw(st.sampled_from(["h", "saved", "sparse"]))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(home / kind, Path(place, "voice")))
        _change(data, folder, data.draw(st.sampled_from(sorted(os.listdir(folder)))))
        load_voice(folder)


def sparse(data, home, voices):
    [path] = (home / "sparse").glob("*.safetensors")
    decode(mutated(data, path.read_bytes()))


def tables(data, home, voices):
    path = home / "table.csv"
    columns = "test,voice,text,spec,healed,kind,x,answer,seconds\n"
    path.write_bytes(data.draw(st.binary(max_size=300) | TEXTS.map(lambda one: (columns + one)
                     .encode("utf-8", "surrogatepass"))))  # fmt: skip
    card = home / "README.md"
    front = data.draw(st.text(max_size=200))
    card.write_text(f"---\nlicense: {front}\n---\n", encoding="utf-8", errors="surrogatepass")
    read_licence(card)
    read_trials(path)


def _change(data: st.DataObject, folder: Path, name: str) -> None:
    path = folder / name
    if path.suffix == ".json" and data.draw(st.booleans()):
        content = json.dumps(changed_json(data, json.loads(path.read_text(encoding="utf-8"))))
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(mutated(data, path.read_bytes()))


CASES = (
    *(text, text_file, spec, request, address),
    *(reference, piper, checkpoint, sparse, tables),
)
assert len(CASES) == KINDS


def run(things, case, count: int) -> None:
    home, voices = things

    @settings(
        max_examples=count,
        deadline=1_000 * _SECONDS,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.data())
    def cases(data):
        ends_well(case, data, home, voices)

    cases()


@pytest.mark.parametrize("case", CASES)
def test_some_hostile_input_ends_well(things, case):
    run(things, case, IN_THE_SUITE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_much_hostile_input_ends_well(things, case):
    run(things, case, SLOW)
