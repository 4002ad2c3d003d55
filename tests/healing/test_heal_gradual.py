from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.healing.conftest import QUICK, TEXTS
from vits_prune import PruneSpec, Shape, measure_sparsity
from vits_prune.healing import heal_steps
from vits_prune.healing.gradual import share_of


def test_each_step_goes_on_from_the_healed_voice(tiny, tmp_path):
    spec = PruneSpec(amount=0.6, steps=2, schedule="linear")
    found = list(
        heal_steps(tiny, spec, dataclasses.replace(QUICK, steps=9), texts=TEXTS, folder=tmp_path)
    )
    assert [amount for amount, _ in found] == pytest.approx([0.3, 0.6])
    for amount, voice in found:
        assert measure_sparsity(voice).overall == pytest.approx(amount, abs=0.01)
    first, last = (dict(voice.model.named_parameters()) for _, voice in found)
    assert all(
        bool((last[name][first[name] == 0] == 0).all())
        for name in first
        if name.endswith("weight") and first[name].ndim > 1
    )
    assert [one["steps"] for one in found[-1][1].recipe["healed"]] == [3, 6]
    assert len(found[-1][1].recipe["pruned"]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"lessons", "step-1", "step-2"}


def test_with_other_threads_each_step_is_pruned_as_before(tiny, tmp_path):
    """What is calibrated rounds by the number of threads; a checkpoint is of one pruned voice alone."""
    plan = dataclasses.replace(QUICK, steps=6, batch=1, checkpoint_every=1)
    spec = PruneSpec(method="second_order", amount=0.5, steps=2, parts=("flow",), texts=TEXTS)
    before, seen = torch.get_num_threads(), []

    class Stop(Exception):
        pass

    def stop(told):
        raise Stop

    try:
        torch.set_num_threads(1)
        with pytest.raises(Stop):
            list(heal_steps(tiny, spec, plan, texts=TEXTS, folder=tmp_path, on_step=stop))
        torch.set_num_threads(2)
        steps = heal_steps(
            tiny,
            spec,
            plan,
            texts=TEXTS,
            folder=tmp_path,
            resume=True,
            on_prune=lambda *_: seen.append(torch.get_num_threads()),
        )
        amount, _ = next(steps)
        assert torch.get_num_threads() == 2, "while the caller looks at a step"
        steps.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert amount < 0.5


def test_structured_steps(tiny):
    spec = PruneSpec(method="structured", amount=0.3, parts=("decoder",), steps=2)
    voices = [
        voice
        for _, voice in heal_steps(tiny, spec, dataclasses.replace(QUICK, steps=4), texts=TEXTS)
    ]
    sizes = [sum(p.numel() for p in voice.model.decoder.parameters()) for voice in (tiny, *voices)]
    assert sizes == sorted(sizes, reverse=True)


def test_one_step_is_pruning_and_healing(tiny):
    spec = PruneSpec(method="structured", shape=Shape(decoder_width=0.5))
    ((_, voice),) = heal_steps(tiny, spec, QUICK, texts=TEXTS)
    assert voice.recipe["healed"][0]["trained"] == ["decoder"]


def test_the_budget_is_shared_out():
    plan = dataclasses.replace(QUICK, steps=50, minutes=10.0)
    assert [share_of(plan, index, 4).steps for index in range(4)] == [10, 10, 10, 20]
    assert sum(share_of(plan, index, 4).minutes for index in range(4)) == pytest.approx(10)
    assert share_of(plan, 0, 1) == plan
