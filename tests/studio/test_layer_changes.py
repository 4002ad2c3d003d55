"""What pruning did to each layer, and the weights of one, on an uploaded tiny voice."""

from __future__ import annotations

import numpy as np
import pytest

from tests.voices import piper_factory
from vits_prune import PruneSpec
from vits_prune.errors import InputError
from vits_prune.studio import renditions, workbench
from vits_prune.studio.request import Request
from vits_prune.studio.workbench import Workbench


@pytest.fixture
def upload(tmp_path, monkeypatch):
    path = piper_factory.make_voice(tmp_path, piper_factory.TINIEST)
    monkeypatch.setattr(workbench, "bench", Workbench())
    return workbench.bench.keep_upload(path, path.with_name(path.name + ".json"))[0]


@pytest.mark.parametrize("method", ["magnitude", "structured"])
def test_each_layer_shows_zeros_and_what_is_gone(upload, method):
    request = Request(upload, "hi", PruneSpec(method, amount=0.5, texts=("hi there",)))
    changes, after = renditions.layer_changes(request, None)
    structured = method == "structured"
    prunable = [one for one in changes if one.layer.prunable]
    left = sum(round(one.layer.weights * (1 - one.share)) for one in prunable)
    assert left == after.weights() - after.zeros()
    assert any(one.cut for one in prunable) == structured
    for one in prunable:
        pair, weights = renditions.layer_weights(request, None, one.layer.name)
        gone = np.isnan(pair.after)
        assert gone.any() == (structured and pair.shape_after != pair.layer.shape)
        assert weights.kept.sum() + weights.zeroed.sum() == one.layer.weights
        assert weights.zeroed.sum() == round(one.share * one.layer.weights)
        if not structured:
            kept = pair.after != 0
            np.testing.assert_array_equal(pair.after[kept], pair.before[kept])
    with pytest.raises(InputError, match="no layer"):
        renditions.layer_weights(request, None, "/etc/passwd")
