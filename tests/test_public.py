"""The public names. lint-imports checks the rules for imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vits_prune


def test_every_public_name_resolves():
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
        "heal",
        "HealData",
        "HealPlan",
        "HealResult",
        "HealRun",
        "JudgeSettings",
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
        "import sys, vits_prune, vits_prune.cli.main; heavy = 'torch transformers gradio pandas';"
        "print([name for name in heavy.split() if name in sys.modules]);"
        "[getattr(vits_prune, n) for n in vits_prune.__all__]; import vits_prune.studio.workbench;"
        "print('torch' in sys.modules, 'gradio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "True False", ""]


def test_the_lines_of_the_package_docstring_work(capsys):
    lines = vits_prune.__doc__.strip().splitlines()[-4:]
    assert lines[0].startswith("from vits_prune import")
    exec("\n".join(lines), {})
    shown = capsys.readouterr().out
    assert "The birch canoe slid on the smooth planks." in shown
    assert all(word in shown for word in ("whole voice", "30.0", "real-time factor", "sparse"))
