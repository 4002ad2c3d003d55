"""The public names, and the rules of the house that can be read off the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vits_prune

PACKAGE = Path(vits_prune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BELOW = {
    "errors": set(),
    "noise": set(),
    "voices": {"noise", "errors"},
    "durations": {"noise"},
    "synthesis": {"durations", "noise", "voices", "errors"},
    "sound": {"synthesis", "voices", "errors"},
    "pruning": {"texts", "synthesis", "voices", "errors"},
    "measure": {"pruning.layers", "pruning.protection", "synthesis", "voices", "errors"},
    "tables": {"measure", "pruning", "synthesis", "voices", "errors"},
    "comparison": {"tables", "measure", "pruning", "synthesis", "voices", "errors"},
    "background": set(),
    "caches": set(),
    "workbench": {
        "background",
        "caches",
        "comparison",
        "tables",
        "sound",
        "measure",
        "pruning",
        "synthesis",
        "voices",
        "errors",
    },
    "texts": {"synthesis", "voices", "errors"},
    "evaluation": {"measure", "synthesis", "voices", "errors"},
    "sweep": {"evaluation", "texts", "measure", "pruning", "synthesis", "voices", "errors"},
    "budget": {"sweep", "evaluation", "measure", "pruning", "voices", "errors"},
    "healing": {"texts", "pruning", "synthesis", "durations", "voices", "errors"},
    "study": {"healing", "sweep", "evaluation", "texts", "measure", "pruning", "voices", "errors"},
    "bench": {"texts", "synthesis", "voices", "errors"},
    "ship": {
        "bench",
        "healing",
        "sound",
        "texts",
        "measure",
        "pruning",
        "synthesis",
        "voices",
        "errors",
    },
    "cli_ship": {"cli", "cli_progress", "ship", "bench", "measure", "voices", "errors"},
    "cli_push": {
        "cli",
        "cli_progress",
        "cli_ship",
        "comparison",
        "evaluation",
        "ship",
        "synthesis",
        "texts",
        "voices",
        "errors",
    },
    "cli_progress": set(),
    "cli_spec": {"texts", "pruning", "voices", "errors"},
    "cli_prune": {
        "cli",
        "cli_progress",
        "cli_spec",
        "sweep",
        "evaluation",
        "texts",
        "measure",
        "pruning",
        "voices",
        "errors",
    },
    "cli_evidence": {
        "cli",
        "cli_progress",
        "cli_spec",
        "sweep",
        "evaluation",
        "texts",
        "measure",
        "pruning",
        "voices",
        "errors",
    },
    "cli_budget": {
        "cli",
        "cli_progress",
        "budget",
        "sweep",
        "evaluation",
        "texts",
        "measure",
        "voices",
        "errors",
    },
    "cli_heal": {
        "cli",
        "cli_healing",
        "cli_progress",
        "cli_prune",
        "cli_spec",
        "healing",
        "texts",
        "pruning",
        "voices",
        "errors",
    },
    "cli_healing": {"cli_progress", "study", "healing", "voices", "errors"},
    "cli": {
        "cli_budget",
        "cli_evidence",
        "cli_heal",
        "cli_progress",
        "cli_prune",
        "cli_push",
        "cli_ship",
        "cli_spec",
        "workbench",
        "comparison",
        "tables",
        "sound",
        "measure",
        "pruning",
        "synthesis",
        "voices",
        "errors",
    },
    "ui": {
        "background",
        "caches",
        "healing",
        "study",
        "ship",
        "workbench",
        "sweep",
        "evaluation",
        "texts",
        "comparison",
        "tables",
        "sound",
        "measure",
        "pruning",
        "synthesis",
        "voices",
        "errors",
    },
    "__main__": {"cli"},
    "__init__": {
        "comparison",
        "study",
        "healing",
        "measure",
        "pruning",
        "synthesis",
        "voices",
        "errors",
    },
}
"""Part of the house -> the parts that it may import, besides itself."""


def layer_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Dotted names of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_public_name_resolves():
    assert set(vits_prune.__all__) == set(vits_prune._HOMES)
    for name in vits_prune.__all__:
        assert getattr(vits_prune, name) is not None
    assert dir(vits_prune) == sorted(vits_prune.__all__)
    assert {
        "load_voice",
        "Voice",
        "PruneSpec",
        "prune",
        "speak",
        "Speech",
        "compare",
        "Comparison",
        "save_voice",
    } <= set(vits_prune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vits_prune.nothing  # noqa: B018


def test_public_functions_and_classes_are_documented():
    for name in vits_prune.__all__:
        value = getattr(vits_prune, name)
        if callable(value):
            assert value.__doc__, name
            assert value.__doc__ != f"{name}()"


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, vits_prune, vits_prune.cli.main; print([m for m in ('torch', 'transformers', 'gradio', 'pandas') if m in sys.modules]);"
        "[getattr(vits_prune, n) for n in vits_prune.__all__]; import vits_prune.studio.workbench;"
        "print('torch' in sys.modules, 'gradio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "True False", ""]


def test_the_three_lines_of_the_package_docstring_work(capsys):
    lines = vits_prune.__doc__.strip().splitlines()[-3:]
    assert lines[0].startswith("from vits_prune import")
    exec("\n".join(lines), {})
    shown = capsys.readouterr().out
    assert "The birch canoe slid on the smooth planks." in shown
    assert all(word in shown for word in ("whole voice", "30.0", "real-time factor", "sparse"))


def test_every_part_of_the_house_is_known():
    assert {layer_of(path) for path in FILES} == set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_arrows_point_down(path):
    layer = layer_of(path)
    for name in imports(path):
        package, _, target = name.partition(".")
        if package != "vits_prune" or target.split(".")[0] == layer:
            continue
        if (
            target.split(".")[0] not in BELOW
        ):  # a name of the package itself, which fetches it from below
            assert layer in ("ui", "cli"), f"{layer} imports {name} from the top of the house"
            continue
        assert any(f"{target}.".startswith(f"{allowed}.") for allowed in BELOW[layer]), (
            f"{layer} imports {name}"
        )


@pytest.mark.parametrize(
    ("library", "home"),
    [("gradio", "ui"), ("spaces", "ui")]
    + [
        (name, "voices")
        for name in (
            "huggingface_hub",
            "onnx",
            "transformers",
            "phonemizer",
            "espeakng_loader",
            "uroman",
        )
    ],
)
def test_libraries_that_one_part_alone_knows(library, home):
    users = {
        layer_of(path)
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users == {home}


def test_pictures_are_drawn_by_the_page_the_sweep_the_budget_and_the_healing_alone():
    assert {
        layer_of(path)
        for path in FILES
        if any(name.split(".")[0] == "matplotlib" for name in imports(path))
    } == {
        "budget",
        "healing",
        "sweep",
        "ui",
    }
