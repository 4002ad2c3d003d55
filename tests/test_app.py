"""The Space's entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT = """
import app, gradio
from vits_prune.studio import workbench
assert isinstance(app.demo, gradio.Blocks)
assert not workbench.bench.is_loaded("joe")
public = [one for one in app.demo.fns.values() if one.api_visibility == "public"]
names = {one.api_name for one in public}
assert names == {"compare", "sparsity"}, names
import os
print("built in", os.getcwd())
"""


def test_it_is_short():
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) < 40


def test_importing_it_builds_the_page_and_loads_no_voice():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "built in" in done.stdout
