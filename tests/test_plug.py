"""A pulled plug: kill -9, a lost power line or a full disk at every write of every command.

Whatever is hit, somebody who comes after reads what was there before or what is new, whole. The
same command again ends with the same result, and nothing is left of the run that was killed.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.plug import KINDS, Plug, forked, hidden, temporary
from tests.study.conftest import CHEAP, TEXTS, numbers
from tests.study.test_budget import candidate
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune, save_voice
from vits_prune.cli.main import main
from vits_prune.kernels import store
from vits_prune.ship.formats import export_voice
from vits_prune.studio.workbench import Workbench
from vits_prune.study.budget import Budget, Solution
from vits_prune.study.budget_solver import save_solution
from vits_prune.study.sweep import run_sweep
from vits_prune.study.sweep_grid import Grid
from vits_prune.voices.manifest import SAVED_FILE


@dataclass(frozen=True)
class Case:
    """A command in a folder."""

    run: Callable[[Path], int | None]
    seen: Callable[[Path], Any]
    """What somebody reads there, None for nothing; it raises if something is half written."""
    before: Callable[[Path], Any] = lambda root: None
    """What was done in the folder before."""
    between: Callable[[Any, Any], bool] = lambda there, new: False
    """Whether what is seen is part of the result and said to be so."""
    kept: Callable[[Path, str], None] = lambda root, said: None
    """Check that what a run reported before it was cut off is there."""


Fault: TypeAlias = tuple[tuple[str, int] | None, int | None]
"""Kind and number of a write, and the size that no file may exceed."""


def writes(kind: str, every: int = 1) -> Iterator[Fault]:
    """A fault of a kind at the first write, the second and so on."""
    for at in range(0, 10_000, every):
        yield (kind, at), None


def sizes(folder: Path) -> Iterator[Fault]:
    """A disk that takes a part of the smallest file alone, of the next too and so on."""
    for size in sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()}):
        if size:
            yield None, size - 1


def forked_in(case: Case, root: Path, fault=None, max_bytes=None):
    plug = Plug(root, *fault) if fault else None
    with temporary(root / "tmp"):
        ended = forked(lambda: case.run(root), plug, max_bytes=max_bytes)
    return ended, not plug or plug.met[0]


def pull(case: Case, place: Path, kind: str, every: int = 1) -> int:
    """Run a case once for each fault of a kind that it meets; return how many those were."""
    fresh, done, found = place / "fresh", place / "done", 0
    (fresh / "tmp").mkdir(parents=True)
    assert forked(lambda: case.before(fresh) and 0).code == 0
    old = case.seen(fresh)
    shutil.copytree(fresh, done)
    whole, _ = forked_in(case, done)
    assert whole.code == 0, whole.said
    new = case.seen(done)
    for fault, most in sizes(done) if kind == "size" else writes(kind, every):
        root = shutil.copytree(fresh, place / f"fault-{found}")
        ended, met = forked_in(case, root, fault, most)
        words = f"{kind} {found}: {ended}"
        assert "Traceback" not in ended.said, words
        there = case.seen(root)
        if ended.code == 0:
            assert there == new, words
            if not met:
                return found  # it has fewer writes than that
        else:
            assert ended.code == (-9 if kind in ("killed", "power") else 2), words
            assert there in (old, new) or case.between(there, new), words
            case.kept(root, ended.said)
        found += 1
        again, _ = forked_in(case, root)
        assert case.seen(root) == new, f"{words}, then {again}"
        if (there, again.code) != (new, 2):  # some refuse to replace what is whole
            assert again.code == 0, f"{words}, then {again}"
            left = [name for name in hidden(root) if not name.startswith("tmp/")]
            assert left == [], words
        shutil.rmtree(root)
    return found


def ends(work: Callable[[], Any]) -> int:
    """The exit code of some work that is no command, as the command line gives it."""
    try:
        work()
    except (InputError, OSError) as error:
        print(error)
        return 2
    return 0


def tree(folder: Path) -> dict[str, str]:
    """The checksum of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".part" not in str(path)
    }


def typed(command: str, *arguments: object) -> int:
    return main([command, *map(str, arguments)])


def voice_in(root: Path) -> dict[str, str] | None:
    out = root / "out"
    return load_voice(out) and tree(out) if out.exists() else None


# What is typed, and what is read then


def pruning(voice: Path, amount: float) -> Callable[[Path], int]:
    return lambda root: typed(
        "prune", "--voice", voice, "--scope", "local", "--amount", amount, "--out", root / "out"
    )


def prune_case(voice: Path) -> Case:
    return Case(pruning(voice, 0.5), voice_in)


def prune_over_case(voice: Path) -> Case:
    return Case(pruning(voice, 0.5), voice_in, before=pruning(voice, 0.3))


def save_case(voice: Path) -> Case:
    def save(amount, form):
        pruned = prune(load_voice(voice), PruneSpec(amount=amount))
        return lambda root: save_voice(pruned, root / "out", form, "fp16") and None

    return Case(
        lambda root: ends(lambda: save(0.5, "sparse")(root)), voice_in, before=save(0.3, "dense")
    )


def steps_case(voice: Path) -> Case:
    """Gradual pruning, of which every step that is reported is there."""

    def run(root):
        given = ["--amount", 0.6, "--steps", 2, "--keep-steps", "--out", root / "out"]
        return typed("prune", "--voice", voice, *given)

    def seen(root):
        out = root / "out"
        folders = [out / "step-1", out / "step-2", *([out] if (out / SAVED_FILE).exists() else [])]
        return {one.name: load_voice(one) and tree(one) for one in folders if one.exists()}

    def kept(root, said):
        for step in re.findall(r"Step (\d), saved", said):
            assert load_voice(root / "out" / f"step-{step}")

    return Case(run, seen, between=lambda there, new: there.items() <= new.items(), kept=kept)


def export_case(voice: Path, format: str) -> Case:
    def run(root, precision="fp16"):
        given = ["--format", format, "--precision", precision, "--no-measure"]
        return typed("export", "--voice", voice, *given, "--out", root / "out")

    return Case(run, voice_in, before=lambda root: run(root, "fp32"))


def compare_case(voice: Path) -> Case:
    def run(root, amount=0.5):
        given = ["--amount", amount, "--runs", 1, "--text", "hi", "--out", root / "out"]
        return typed("compare", "--voice", voice, *given)

    def seen(root):
        report, out = root / "out" / "report.json", root / "out"
        if not report.exists():
            return None
        spec = json.loads(report.read_text())["recipe"]
        return {"spec": spec, **{k: v for k, v in tree(out).items() if k.endswith(".wav")}}

    def between(there, new):
        return there is None

    return Case(run, seen, before=lambda root: run(root, 0.3), between=between)


def sweep_case(voice: Path) -> Case:
    def run(root):
        given = ["--text-file", root / "texts.txt", "--metrics", "rhythm", "--noise-seeds", 0]
        given += ["--amount", "0,0.4", "--out", root / "out"]
        return typed("sweep", "--voice", voice, *given)

    def before(root):
        (root / "texts.txt").write_text("\n".join(TEXTS))

    def seen(root):
        table = root / "out" / "sweep.csv"
        lines = table.read_text().splitlines(keepends=True) if table.exists() else []
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        pictures = {k: v for k, v in tree(root / "out").items() if k.endswith((".svg", ".png"))}
        return {"rows": numbers(rows), **pictures}

    def between(there, new):
        rows = new["rows"][: len(there["rows"])]
        return there["rows"] == rows and {**new, **there, "rows": new["rows"]} == new

    return Case(run, seen, before=before, between=between)


def reported_case(voice: Path) -> Case:
    """A sweep that says when a point is done: each is kept from then on."""

    def run(root):
        def say(row):
            print("point", flush=True)

        grid, out = Grid(amounts=(0.4, 0.8)), root / "out"
        return ends(lambda: run_sweep(voice, grid, TEXTS[:1], CHEAP, out, on_point=say))

    def lines(root):
        path = root / "out" / "sweep.jsonl"
        content = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["row"] for line in content if line.endswith(b"\n")]

    def seen(root):
        return numbers(lines(root))

    def kept(root, said):
        assert len(lines(root)) >= said.count("point\n")

    return Case(run, seen, between=lambda there, new: there == new[: len(there)], kept=kept)


def heal_case(voice: Path) -> Case:
    def before(root):
        save_voice(prune(load_voice(voice), PruneSpec(amount=0.5)), root / "small")
        (root / "texts.txt").write_text("\n".join(TEXTS * 2))

    def run(root):
        given = ["--lessons", 4, "--batch", 1, "--segment", 8, "--evaluations", 0, "--steps", 4]
        given += ["--checkpoint-every", 2, "--texts", root / "texts.txt"]
        begun = any((root / "out-healing").rglob("checkpoint-*.safetensors"))
        more = ["--resume"] if begun else []
        source = ["--voice", voice, "--pruned", root / "small"]
        return typed("heal", *source, *given, *more, "--out", root / "out")

    def seen(root):
        out = root / "out"
        tensors = load_voice(out).model.state_dict() if out.exists() else {}
        return {name: tensor.sum().item() for name, tensor in tensors.items()}

    return Case(run, seen, before=before)


def kernels_case(_voice: Path) -> Case:
    def keep(root, key):
        os.environ["XDG_CACHE_HOME"] = str(root)
        store.keep(key, store.Times(1.0, 0.5, 0.5, 0.1, 0.1))

    def run(root):
        keep(root, "second")
        return 0 if "second" in seen(root) else 2

    def seen(root):
        return sorted(store._read(root / "vits_prune" / "kernels.json"))

    return Case(run, seen, before=lambda root: keep(root, "first"))


def upload_case(voice: Path) -> Case:
    """A visitor's voice on a server that keeps what was uploaded."""

    def before(root):
        export_voice(load_voice(voice), root / "piper", "piper")
        (root / "kept").mkdir()

    def run(root):
        (model,) = (root / "piper").glob("*.onnx")
        kept = root / "kept"
        return ends(lambda: Workbench(folder=kept).keep_upload(model, Path(f"{model}.json")))

    def seen(root):
        kept = [path for path in root.glob("kept/*") if len(path.name) == 64]
        return [load_voice(path / "voice.onnx") and tree(path) for path in kept]

    return Case(run, seen, before=before)


def budget_case(voice: Path) -> Case:
    small = prune(load_voice(voice), PruneSpec(amount=0.8))

    def run(root):
        chosen = dataclasses.replace(candidate(stage="verified"), file="sparse")
        limits = Budget(20, 0.5)
        found = Solution("tiny", limits, chosen, True, (), (chosen,), small, (1, 1), 0.0)
        return ends(lambda: save_solution(found, root / "out"))

    def seen(root):
        out = root / "out"
        return load_voice(out / "voice") and tree(out) if out.exists() else None

    return Case(run, seen)


CASES = {
    "prune": prune_case,
    "prune over": prune_over_case,
    "save": save_case,
    "prune --keep-steps": steps_case,
    **{f"export {one}": lambda voice, one=one: export_case(voice, one)
       for one in ("dense", "sparse", "onnx", "piper")},
    "compare": compare_case,
    "sweep": sweep_case,
    "sweep, reported": reported_case,
    "heal": heal_case,
    "kernel times": kernels_case,
    "upload": upload_case,
    "budget": budget_case,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A voice with plain durations, which cost a tenth of stochastic ones."""
    return make_checkpoint(tmp_path_factory.mktemp("voice") / "tiny", stochastic=False)


@pytest.mark.parametrize(("name", "kind"), [("prune over", "power"), ("sweep, reported", "full")])
def test_at_some_writes(name, kind, plain_folder, tmp_path):
    assert pull(CASES[name](plain_folder), tmp_path, kind, every=15) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "size"])
@pytest.mark.parametrize("name", CASES)
def test_at_every_write(name, kind, plain_folder, tmp_path):
    found = pull(CASES[name](plain_folder), tmp_path, kind)
    print(f"{name}, {kind}: {found} faults")
    assert found
