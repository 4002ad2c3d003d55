"""What hostile input is made of, and what a case may do: strategies, mutations, a watchman."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from vits_prune import InputError

_SECONDS = 10.0
"""Of the processors, not of the clock: a busy machine is no fault."""
_WIDEST = 4 << 30

_found: list[str] = []
_watching = [False]
# Audit events, and which of their arguments is written to (the last is its folder), or asked for.
_WRITTEN = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.chmod"), 0),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), 1),
}
_HOSTS = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0}


def _watch(event: str, given: tuple[Any, ...]) -> None:
    if not _watching[0]:
        return
    if event == "open" and isinstance(given[0], (str, bytes)) and _writes(given):
        _found.append(os.path.abspath(os.fsdecode(given[0])))
    elif event in _WRITTEN and isinstance(given[_WRITTEN[event]], (str, bytes)):
        there = f"/proc/self/fd/{given[-1]}" if given[-1] >= 0 else "."
        path = os.path.join(os.path.realpath(there), os.fsdecode(given[_WRITTEN[event]]))
        _found.append(os.path.normpath(path))
    elif event == "socket.connect" and isinstance(given[1], tuple):
        _found.append(f"host {given[1][0]}")
    elif event in _HOSTS:
        _found.append(f"host {given[0]}")


def _writes(given: tuple[Any, ...]) -> bool:
    mode, flags = given[1], given[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


sys.addaudithook(_watch)


def ends_well(case: Callable[..., None], home: Path, *arguments: Any) -> None:
    """Run a case, which may raise one InputError of one sentence and nothing else.

    It takes less than ten seconds and 4 GiB, writes nowhere but into the folder `home`, which
    holds the folder of temporary files too, and asks no other host.
    """
    _found.clear()
    said, late = "A result.", []

    def overdue(*_: object) -> None:
        late.append(case)
        raise TimeoutError("the case takes too long")

    signal.signal(signal.SIGPROF, overdue)
    _forget_peak()
    before = _memory("VmRSS")
    _watching[0] = True
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        case(*arguments)
    except InputError as error:
        said = str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _watching[0] = False
    assert not late
    assert said.endswith((".", "?", "…")), said[:300]
    assert len(said.splitlines()) == 1, said[:300]
    assert len(said) < 1_000, said[:300]
    assert "Traceback" not in said, said[:300]
    caches = str(Path.home() / ".cache")
    mine = (str(home), caches, "/dev/null", "host 127.", "host localhost")
    outside = [one for one in _found if not one.startswith(mine) and "__pycache__" not in one]
    assert not [one for one in outside if ".hypothesis" not in one]
    assert _memory("VmHWM") - before < _WIDEST


def _forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes, elsewhere than on Linux the peak."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Let the process make its temporary files in a folder."""
    kept, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = kept


# Values and texts

ODD_VALUES = st.sampled_from(
    [-1, 0, 2**31, 2**63, 2**64, 1e308, float("nan"), True, "", "\ud800", "\0", "1", "F64", "../x"]
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD_VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
BLOCK = 128
"""Characters that lie together: Unicode's blocks begin and end at such places, nearly all."""


def _of_a_block(number: int) -> st.SearchStrategy[str]:
    characters = st.integers(number * BLOCK, number * BLOCK + BLOCK - 1).map(chr)
    return st.lists(characters, min_size=1, max_size=40).map("".join)


_MIXED = "abc \t\n.,!?'’-–…\u00a0\u2028\u200b\u200d\u202e\u2066\u0301\ufe0f[]{}()<>_^$0123"
TEXTS = st.one_of(
    st.text(max_size=200),
    st.integers(0, 0x110000 // BLOCK - 1).flatmap(_of_a_block),  # halves of letters too
    st.lists(st.integers(0, 0x3000 // BLOCK).flatmap(_of_a_block), max_size=6).map(" ".join),
    st.text(_MIXED, max_size=200),
    st.text(st.characters(categories=["Cc", "Cf", "Mn", "So", "Lo", "Zs", "Cn"]), max_size=100),
    st.builds(lambda piece, count: (piece * count)[:100_000],
              st.text(min_size=1, max_size=3) | st.sampled_from(_MIXED),
              st.integers(1, 100_000)),
)  # fmt: skip


# Mutations


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """Return a file of which some bytes are others, missing, doubled, or gone."""
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


def mutated_text(data: st.DataObject, content: str) -> bytes:
    """Return a text of which some stretches are missing, doubled, or something else."""
    found = content
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.integers(0, len(found)), "at")
        end = at + data.draw(st.integers(0, 12), "length")
        put = data.draw(st.sampled_from(["", "", found[at:end] * 2, '"', ",", "\n", "\0"]) | TEXTS)
        found = found[:at] + put[:5_000] + found[end:]
    return found.encode("utf-8", "surrogatepass")


def changed_json(data: st.DataObject, values: Any) -> Any:
    """Return a JSON object of which one entry, at any depth, is another value or missing."""
    if isinstance(values, list) and values and data.draw(st.integers(0, 3)):
        place = data.draw(st.integers(0, len(values) - 1))
        return [*values[:place], changed_json(data, values[place]), *values[place + 1 :]]
    if isinstance(values, dict) and values and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(values)))
        if data.draw(st.integers(0, 4)) == 0:
            return {name: one for name, one in values.items() if name != key}
        return {**values, key: changed_json(data, values[key])}
    return data.draw(JSON)


def changed_header(data: st.DataObject, content: bytes) -> bytes:
    """Return a safetensors file with an entry of its header changed."""
    size = int.from_bytes(content[:8], "little")
    changed = changed_json(data, json.loads(content[8 : 8 + size]))
    header = json.dumps(changed).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def change_file(data: st.DataObject, path: Path) -> None:
    """Change a file in place, as JSON or as a header of safetensors where it is such a one."""
    content, whole = path.read_bytes(), data.draw(st.booleans(), "as what it is")
    if whole and path.suffix == ".json":
        content = json.dumps(changed_json(data, json.loads(content))).encode()
    elif whole and path.suffix == ".safetensors":
        content = changed_header(data, content)
    else:
        content = mutated(data, content)
    path.write_bytes(content)
