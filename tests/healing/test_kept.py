from __future__ import annotations

import pytest

from tests.healing.conftest import QUICK, TEXTS, Scores, same_weights
from vits_prune import InputError, speak
from vits_prune.healing import best, heal

SCORES = {5: 2.0, 10: 1.0, 12: 3.0}


class Stop(Exception):
    pass


def stopping(told):
    if told.step == 7:
        raise Stop


def test_the_best_of_a_folder_is_what_healing_gave_back(tiny, sparse, tmp_path):
    healed = heal(sparse, tiny, TEXTS, QUICK, tmp_path, judge=Scores(lambda step, _: SCORES[step]))
    kept = best(tmp_path, sparse)
    assert kept.recipe == healed.recipe
    assert kept.recipe["healed"][-1]["steps"] == 10
    assert same_weights(kept, healed) == []
    assert speak(kept, TEXTS[0]).waveform.tolist() == speak(healed, TEXTS[0]).waveform.tolist()


def test_the_newest_where_none_was_measured_and_why_it_ended(tiny, sparse, tmp_path):
    with pytest.raises(Stop):
        heal(sparse, tiny, TEXTS, QUICK, tmp_path, on_step=stopping)
    kept = best(str(tmp_path), sparse, stopped="by hand")
    done = kept.recipe["healed"][-1]
    assert (done["steps"], done["of"], done["stopped"], done["plan"]) == (
        7,
        12,
        "by hand",
        QUICK.to_dict(),
    )
    assert kept.recipe["pruned"] == sparse.recipe["pruned"]
    assert same_weights(kept, sparse)


def test_nothing_where_there_is_nothing(sparse, tmp_path):
    assert best(tmp_path, sparse) is None
    assert best(tmp_path / "missing", sparse) is None


def test_another_voice_is_refused(tiny, sparse, smaller, tmp_path):
    heal(sparse, tiny, TEXTS, QUICK, tmp_path)
    with pytest.raises(InputError, match="give the pruned voice that was healed"):
        best(tmp_path, smaller)
