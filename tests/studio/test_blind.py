"""Blind tests on a tiny voice: what the page gets tells nothing, and every answer counts once."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vits_prune import InputError, PruneSpec
from vits_prune.progress import Progress
from vits_prune.studio import blind
from vits_prune.study.listening_store import read_trials
from vits_prune.ui.tabs import by_ear

OTHER = PruneSpec("random", "global", 0.5)


def begun(request_, **how):
    return blind.start([request_], None, 20, "ann", **how)


def heard(state):
    """The samples of a trial by name: int16, and float64 between -1 and 1."""
    return {
        name: soundfile.read(sound["path"], dtype="int16")[0].astype(float) / 32768
        for name, sound in state["sounds"].items()
    }


def closest(state):
    """What a machine answers that compares X with A and B."""
    waves = heard(state)
    gaps = {side: float(np.abs(waves[side] - waves["X"]).mean()) for side in "AB"}
    return min(gaps, key=gaps.get)


def whole(state, answer):
    """Answer all trials; return the result and the answers given."""
    given = []
    while state["state"] == "trial":
        given.append(answer(state))
        state = blind.take({
            "test": state["test"], "trial": state["trial"], "answer": given[-1],
        })  # fmt: skip
    return state, given


def test_a_listener_who_hears_all_is_found_out_and_the_csv_agrees(request_):
    state, given = whole(begun(request_), closest)
    trials = read_trials(Path(state["csv"]))
    assert [trial.answer for trial in trials] == given
    assert all(trial.correct for trial in trials)
    assert [trial.number for trial in trials] == list(range(1, 21))
    assert "at every amount, from the first, 1%, on" in state["sentence"]
    (setup,) = {trial.setup for trial in trials}
    order = np.random.default_rng(setup.order_seed).integers(2, size=(20, 2))
    assert [trial.a for trial in trials] == [("original", "pruned")[one] for one in order[:, 0]]
    assert [trial.x for trial in trials] == ["AB"[one] for one in order[:, 1]]
    assert {trial.x for trial in trials} == {"A", "B"}
    assert (setup.voice, setup.listener, setup.seed) == ("someone/tiny", "ann", 2)
    assert {trial.text for trial in trials} == {"hi there you"}
    assert {(trial.spec.scope, trial.spec.amount > 0) for trial in trials} == {("local", True)}
    json.dumps(state)
    assert sum(point["of"] for point in state["points"]) == 20


def test_what_the_page_gets_before_the_answer_tells_nothing(request_):
    state = begun(request_)
    assert set(state) == {"state", "kind", "test", "trial", "of", "sounds", "note"}
    files = [Path(sound["path"]) for sound in state["sounds"].values()]
    assert len({file.read_bytes() for file in files}) == 3, "each has dither of its own"
    assert len({file.stat().st_size for file in files}) == 1
    assert len({file.name for file in files}) == 3
    waves = heard(state)
    assert len({len(wave) for wave in waves.values()}) == 1
    levels = [np.sqrt(np.mean(wave**2)) for wave in waves.values()]
    assert np.ptp(levels) < 0.01 * max(levels)
    gap = np.abs(waves["X"] - waves[closest(state)]).max()
    assert 0 < gap <= 4 / 32768, "dither of one step, and no more"


def test_only_the_answer_that_is_asked_counts(request_):
    state = begun(request_)
    first = {"test": state["test"], "trial": 1, "answer": "A"}
    second = blind.take(first)
    assert second["trial"] == 2
    for late in (first, first | {"trial": 7}, first | {"trial": True}, {"test": state["test"]}):
        again = blind.take(late)
        assert again["trial"] == 2
        assert again == second, "the same files"
    with pytest.raises(InputError, match="A or B"):
        blind.take(first | {"trial": 2, "answer": "original"})
    ended = blind.take({"test": state["test"], "end": True})
    assert "1 answers are too few" in ended["sentence"]
    assert len(read_trials(Path(ended["csv"]))) == 1
    assert blind.take(first | {"trial": 2})["sentence"] == ended["sentence"]


def test_a_trial_is_prepared_once_and_its_files_go_with_the_test(request_, monkeypatch):
    prepared = []
    monkeypatch.setattr(blind.BlindTest, "_prepare", lambda self, number: prepared.append(number))
    state = begun(request_)
    folder = Path(state["sounds"]["A"]["path"]).parents[1]
    for _ in range(3):
        assert blind.take({"test": state["test"]}) == state
    blind.take({"test": state["test"], "trial": 1, "answer": "A"})
    last = blind.take({"test": state["test"], "trial": 2, "answer": "A"})
    for thread in threading.enumerate():
        if "_prepare" in thread.name or "<lambda>" in thread.name:
            thread.join()
    assert prepared == [1, 2, 3]
    assert len(list(folder.rglob("*.wav"))) == 6, "of this trial and the one before it"
    ended = blind.take({"test": last["test"], "end": True})
    assert [path.suffix for path in folder.rglob("*")] == [".csv"]
    assert blind.take({"test": last["test"]}) == ended
    blind._tests.clear()
    gc.collect()
    assert not folder.exists()


def test_nothing_is_made_ahead_where_the_method_listens_first(request_, monkeypatch):
    spoken, passed = [], []
    test = begun(request_)["test"]
    found = blind._tests.get(test)
    monkeypatch.setattr(blind, "spoken", lambda request, token: spoken.append(request.spec))
    monkeypatch.setattr(blind.workbench.bench, "let_hearing_pass", lambda: passed.append(1))
    found._prepare(1)
    assert len(spoken) == len(passed) > 0
    del spoken[:]
    spec = dataclasses.replace(request_.spec, scope="sensitivity")
    found._requests = [request_.at(spec)]
    found._prepare(1)
    assert spoken == []


def test_levels_stay_as_they_are_if_that_is_asked_for(request_):
    def gap(**how):
        state = blind.start([request_], None, 20, "", OTHER, **how)
        levels = [np.sqrt(np.mean(wave**2)) for wave in heard(state).values()]
        state = blind.take({"test": state["test"], "trial": 1, "answer": "A"})
        state = blind.take({"test": state["test"], "end": True})
        (trial,) = read_trials(Path(state["csv"]))
        return np.ptp(levels) / max(levels), trial.setup.matched, "not matched" in state["how"]

    (near, *words), (far, *others) = gap(), gap(same_loudness=False)
    assert near < 0.03 < far
    assert (words, others) == ([True, False], [False, True])


def test_a_preference_has_random_sides_and_several_sentences(request_, monkeypatch):
    requests = [dataclasses.replace(request_, text=text) for text in ("hi there", "you")]
    state = blind.start(requests, None, 20, "", OTHER)
    assert set(state["sounds"]) == {"A", "B"}
    first, second = (
        blind.matched([
            blind.spoken(one.at(spec), None).waveform for spec in (request_.spec, OTHER)
        ])[0] for one in requests
    )  # fmt: skip
    wanted = [first, second]

    def prefers_first(state):
        waves, original = heard(state), wanted[(state["trial"] - 1) % 2]
        gaps = {side: float(np.abs(wave - original).mean()) for side, wave in waves.items()}
        return min(gaps, key=gaps.get)

    state, given = whole(state, prefers_first)
    assert state["share"][:2] == [20, 20]
    assert set(given) == {"A", "B"}
    assert state["sentence"].startswith("You chose L1 30% local over random 50% global in 20 of 20")
    trials = read_trials(Path(state["csv"]))
    assert {trial.text for trial in trials} == {"hi there", "you"}
    assert trials[0].setup.listener.startswith("listener-")


def test_feedback_comes_only_if_it_is_asked_for(request_):
    for told, words in ((True, "That was right."), (False, "")):
        state = begun(request_, feedback=told)
        answer = {"test": state["test"], "trial": 1, "answer": closest(state)}
        assert blind.take(answer)["note"] == words


@pytest.mark.parametrize("event", [None, {}, {"test": 7}, {"test": "x"}, {"test": ["a"]}])
def test_what_is_no_test_is_refused(event):
    with pytest.raises(InputError, match="start it again"):
        blind.take(event)


def test_settings_out_of_range_are_refused(request_):
    for trials in (19, 41, 20.5, None, float("nan"), "20"):
        with pytest.raises(InputError, match="20 to 40"):
            blind.start([request_], None, trials)
    with pytest.raises(InputError, match="letters"):
        blind.start([request_], None, 20, "=cmd()")


def test_levels_are_matched_and_silence_stays_silent():
    rng = np.random.default_rng(0)
    loud, soft = 0.5 * rng.standard_normal(1000), 0.1 * rng.standard_normal(1100)
    found = blind.matched([loud, soft])
    assert len(found[1]) == 1000
    assert np.std(found[0]) == pytest.approx(np.std(found[1]), rel=0.01)
    assert max(np.abs(wave).max() for wave in found) <= 0.9
    kept = blind.matched([loud, soft], levels=False)
    was = np.std(loud) / np.std(soft[:1000])
    assert np.std(kept[0]) / np.std(kept[1]) == pytest.approx(was, rel=0.01)
    assert max(np.abs(wave).max() for wave in kept) <= 0.9
    assert not blind.matched([loud, np.zeros(1000)])[1].any()
    assert not np.isnan(blind.matched([np.full(9, np.nan), loud])[0]).any()


def test_the_tab_compares_presets_the_original_and_what_was_remembered(request_):
    values = {"voice": "someone/tiny", "text": "hi there you", "scope": "local", "amount": 0.3}
    values |= {"listen_kind": "preference", "listen_trials": 20, "listen_name": "ann"}
    values |= {"listen_told": False, "listen_kept": None, "listen_level": True}

    def sentence(pair, kept=None):
        asked = values | {"listen_pair": pair, "listen_kept": kept}
        *_, shown = by_ear.start(asked, None, Progress())
        state = blind.take({"test": shown["listen"]["test"], "trial": 1, "answer": "A"})
        return blind.take({"test": state["test"], "end": True})["sentence"]

    assert "the original" in sentence("original")
    assert "random 50% global" in sentence("kept", OTHER)
    assert "L1 50% local" in sentence("L1 50% global against L1 50% local")
    with pytest.raises(InputError, match="Remember settings first"):
        sentence("kept")
    with pytest.raises(InputError, match="Both sides are the same"):
        sentence("kept", request_.spec)
    kept = by_ear.keep(values)
    assert (kept["listen_kept"], kept["listen_pair"]) == (request_.spec, "kept")
