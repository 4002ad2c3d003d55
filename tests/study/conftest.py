"""A sweep that nothing disturbed, and what tests compare with it."""

from __future__ import annotations

import csv

import pytest

from tests.voices.hf_factory import make_checkpoint
from vits_prune import PARTS
from vits_prune.study.evaluation import Settings
from vits_prune.study.sweep import VARYING, run_sweep
from vits_prune.study.sweep_engines import VoiceRef
from vits_prune.study.sweep_grid import Grid

TEXTS = ["the birch canoe slid", "on the smooth planks"]
CHEAP = Settings(metrics=("rhythm", "loudness"), noise_seeds=1)
GRID = Grid(scopes=("global", "local"), parts_groups=(PARTS, ("decoder",)), amounts=(0.0, 0.4, 0.8))


def numbers(rows):
    """All but what differs from run to run."""
    return [
        {key: value for key, value in row.items() if not key.startswith(VARYING)} for row in rows
    ]


def table(folder):
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return [{k: _number(v) for k, v in row.items()} for row in numbers(csv.DictReader(file))]


def _number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


@pytest.fixture(scope="session")
def whole(tiny_folder, tmp_path_factory):
    """A sweep that nothing disturbed."""
    return run_sweep(tiny_folder, GRID, TEXTS, CHEAP, tmp_path_factory.mktemp("sweeps") / "whole")


@pytest.fixture(scope="session")
def refs(tiny_folder, tmp_path_factory):
    """A voice, one that does not exist, and another voice."""
    other = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "other", seed=5)
    return VoiceRef(str(tiny_folder)), VoiceRef("./nowhere"), VoiceRef(str(other))
