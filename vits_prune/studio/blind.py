"""Blind listening tests on the page: who hears what, without a way to see it.

What is A, B and X stays here until it is answered. Each sound of a trial is a new file with a
random name and dither of its own, so that neither names, nor sizes, nor bytes tell two apart.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec, prune
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import check_feasible
from vits_prune.studio.evidence import measuring_texts
from vits_prune.studio.request import Request, at_amount
from vits_prune.studio.workbench import listens, trace
from vits_prune.study.listening import Estimate, Hearing, Posterior, name_of
from vits_prune.study.listening_store import (
    Setup,
    Trial,
    checked_listener,
    result_of,
    version,
    write_trials,
)
from vits_prune.synthesis.speak import Speech

TRIALS = (20, 40)
"""Least and most trials of a test."""
AMOUNTS = (
    0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
)  # fmt: skip
FEWER_AMOUNTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""For methods that listen first: each amount takes seconds to a minute."""
MAX_SECONDS = 12.0
_SENTENCES = 5
"""Sentences of a preference, beside the visitor's own: one alone would say little."""
_MAX_GAIN, _PEAK = 10.0, 0.9
_FADE_SECONDS = 0.005
_LOCAL = PruneSpec(scope="local", amount=0.5)
PRESETS = {
    f"{name_of(one, True)} against {name_of(two, True)}": (one, two)
    for one, two in (
        (_LOCAL, PruneSpec("second_order", "local", 0.75)),
        (PruneSpec(amount=0.5), _LOCAL),
        (PruneSpec(amount=0.75), PruneSpec("second_order", "sensitivity", 0.75)),
        (PruneSpec(amount=0.3), PruneSpec("random", amount=0.3)),
    )
}
"""Two settings to choose between, by what the page calls them."""

_tests: Bounded[str, BlindTest] = Bounded(256, lambda _: 1)
_speeches: Bounded[tuple[Any, ...], Speech] = Bounded(
    256 << 20, lambda speech: speech.waveform.nbytes
)


@dataclass(frozen=True)
class Question:
    """One trial before its answer."""

    request: Request
    """Whose text is spoken, with the spec of the first or the pruned side."""
    other: PruneSpec | None
    a: str
    x: str
    """"" where there is no X."""


class BlindTest:
    """One visitor's test: what was answered, and what is asked now.

    Args:
        requests: for each trial, what is spoken; an ABX test has one for all.
        other: the second setting of a preference, None for ABX.
        token: the visitor's.
        setup: what the CSV says of the whole test.
        feedback: whether each answer is followed by whether it was right.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        other: PruneSpec | None,
        token: str | None,
        setup: Setup,
        feedback: bool = False,
    ) -> None:
        self.setup = setup
        self._requests, self._other, self._token = requests, other, token
        self._feedback, self._note = feedback, ""
        self._sides = np.random.default_rng(setup.order_seed).integers(2, size=(setup.planned, 2))
        self._posterior = Posterior(setup.amounts)
        self._trials: list[Trial] = []
        self._ended = False
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._states: Bounded[int | str, dict[str, Any]] = Bounded(2, lambda _: 1)
        self._folder = Path(tempfile.mkdtemp(prefix="vits_prune-blind-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def state(self, progress: Progress = SILENT) -> dict[str, Any]:
        """Return what the page shows now: the trial that waits for its answer, or the result.

        Asked again, it returns the same, with the same files.
        """
        with self._lock:
            over, number = self._over, len(self._trials) + 1
            if not over:
                question, note = self._question(), self._note

        def make() -> dict[str, Any]:
            return self._result() if over else self._trial(question, number, note, progress)

        def wait() -> None:
            progress.report("waiting for this trial", 0.0)

        state = self._states.get_or_make("result" if over else number, make, wait)
        return copy.deepcopy(state)  # the caller may change it

    def _trial(
        self, question: Question, number: int, note: str, progress: Progress
    ) -> dict[str, Any]:
        """Make the sounds of a trial, and begin to prepare the next one."""
        with workbench.bench.hearing():
            sounds = self._sounds(question, number, progress)
        # The page may still load the files of the trial before this one.
        shutil.rmtree(self._folder / f"{number - 2}", ignore_errors=True)
        threading.Thread(target=self._prepare, args=(number,), daemon=True).start()
        self._since = time.monotonic()
        return {
            "state": "trial",
            "kind": self.setup.kind,
            "test": self.setup.test,
            "trial": number,
            "of": self.setup.planned,
            "sounds": sounds,
            "note": note,
        }

    def answer(self, number: object, answer: object) -> None:
        """Take the answer "A" or "B" of a trial; ignore it if that is not the one that is asked."""
        with self._lock:
            now = len(self._trials) + 1
            if self._over or isinstance(number, bool) or number != now:
                return
            if answer not in ("A", "B"):
                raise InputError("Answer A or B.")
            asked, seconds = self._question(), time.monotonic() - self._since
            request = asked.request
            trial = Trial(
                *(self.setup, now, request.text, request.spec, asked.other, asked.a, asked.x),
                *(str(answer), round(seconds, 2)),
            )
            self._trials.append(trial)
            if not self._other:
                self._posterior = self._posterior.after(request.spec.amount, trial.correct)
                self._note = ("That was wrong.", "That was right.")[trial.correct]
            self._note *= self._feedback

    def end(self) -> None:
        """Show the result of what was answered so far."""
        self._ended = True

    @property
    def _over(self) -> bool:
        return self._ended or len(self._trials) >= self.setup.planned

    def _question(self) -> Question:
        number = len(self._trials)
        request, (first, second) = self._requests[number % len(self._requests)], self._sides[number]
        if self._other:
            return Question(request, self._other, ("first", "second")[first], "")
        request = request.at(at_amount(request.spec, self._posterior.next_amount()))
        return Question(request, None, ("original", "pruned")[first], "AB"[second])

    def _sounds(self, question: Question, number: int, progress: Progress) -> dict[str, Any]:
        """Return the new files of a trial by what the page calls them."""
        original = at_amount(question.request.spec, 0.0)
        specs = [question.request.spec, original if question.other is None else question.other]
        pair = [
            spoken(question.request.at(spec), self._token, progress.part(0.5 * i, 0.5 * i + 0.5))
            for i, spec in enumerate(specs)
        ]
        waves = matched([one.waveform for one in pair], self.setup.matched)
        rate = pair[0].sampling_rate
        if question.a in ("original", "second"):
            waves.reverse()
        named = dict(zip("AB", waves, strict=True))
        if question.x:
            named["X"] = named[question.x]
        folder = self._folder / f"{number}"
        folder.mkdir(exist_ok=True)
        return {name: served(_written(wave, rate, folder)) for name, wave in named.items()}

    def _prepare(self, number: int) -> None:
        """Speak, while the listener listens, what the next trials may need.

        Where the method listens first, pruning is dear: only what is asked for is made.
        """
        with self._lock:
            posterior, token = self._posterior, self._token
            if self._other:
                following = self._requests[number % len(self._requests)]
                wanted = [following, following.at(self._other)]
            else:
                request = self._requests[0]
                amounts = list(dict.fromkeys(_ahead(posterior, 2)))
                wanted = [request.at(at_amount(request.spec, amount)) for amount in amounts]
        for one in wanted:
            if listens(one.spec):
                continue
            workbench.bench.let_hearing_pass()
            if len(self._trials) >= number or self._over:
                return  # the next trial prepares for itself
            with contextlib.suppress(InputError):  # the trial itself says it
                spoken(one, token)

    def _result(self) -> dict[str, Any]:
        """Return the sentence, what the page draws, and the CSV."""
        setup, trials = self.setup, self._trials
        shown = {"state": "result", "kind": setup.kind, "test": setup.test}
        if not trials:
            return {**shown, "sentence": "The test ended before the first answer."}
        for folder in self._folder.iterdir():  # of the trials
            shutil.rmtree(folder, ignore_errors=True)
        path = self._folder / f"listening-{setup.kind}-{setup.listener}.csv"
        write_trials(trials, path)
        found = result_of(trials)
        shown |= {"sentence": found.sentence(), "csv": str(path)}
        how = f"{len(trials)} trials, order from seed {setup.order_seed}."
        if not setup.matched:
            how += " The loudness was not matched."
        if isinstance(found, Hearing):
            how += (
                " Upwards: right answers; dashed: guessing; to the right: the amount. Bars and band"
                " hold 95%."
            )
            return {**shown, "how": how, **_picture(found)}
        return {**shown, "how": how, "names": found.names, "share": [*found.share]}


def _picture(found: Hearing) -> dict[str, Any]:
    """Return what the page draws of an ABX test."""
    points = [
        {"amount": amount, "right": one.hits, "of": one.of, "low": one.low, "high": one.high}
        for amount, one in found.shares.items()
    ]
    threshold: Estimate = found.posterior.threshold()
    return {"points": points, "curve": found.posterior.curve(), "threshold": [*threshold]}


def _ahead(posterior: Posterior, depth: int) -> list[float]:
    """Return the amounts that the next answers may lead to, the nearest first."""
    amount = posterior.next_amount()
    if not depth:
        return [amount]
    right, wrong = (_ahead(posterior.after(amount, one), depth - 1) for one in (True, False))
    return [amount, *(one for pair in zip(right, wrong, strict=True) for one in pair)]


# Sounds


def spoken(request: Request, token: str | None, progress: Progress = SILENT) -> Speech:
    """Return what the pruned voice of a request says with the original's durations."""
    bench, spec = workbench.bench, request.spec
    original = bench.original(request, token, progress)
    if spec.idle:
        return original

    def say() -> Speech:
        progress.report(name_of(spec, amount=True), 0.0)
        if listens(spec):  # dear: worth keeping
            pruned = bench.pruned(request, token, progress)
        else:
            pruned = prune(bench.voice_of(request, token), spec)
        return workbench.say(pruned, request, original, progress)

    said = dataclasses.replace(request, timing="own", speaker=request.speaker or None)
    waiting = "waiting for this sound"
    return _speeches.get_or_make((said, trace(token)), say, lambda: progress.report(waiting, 0.0))


def matched(waves: Sequence[np.ndarray], levels: bool = True) -> list[np.ndarray]:
    """Return sounds with the first's level (RMS), of one length, with room above the peaks.

    Args:
        waves: float32 [samples] each. A silent one stays silent.
        levels: match the levels; if False, all sounds keep their levels relative to each other.
    """
    length = min(map(len, waves))
    found = [np.nan_to_num(wave[:length]).astype(np.float64) for wave in waves]
    if levels:
        rms = [float(np.sqrt(np.mean(wave**2))) for wave in found]
        gains = [min(_MAX_GAIN, rms[0] / one) if one > 1e-6 else 1.0 for one in rms]
        found = [wave * gain for wave, gain in zip(found, gains, strict=True)]
    most = max(float(np.abs(wave).max(initial=0.0)) for wave in found)
    return [wave * min(1.0, _PEAK / most) if most else wave for wave in found]


def _written(wave: np.ndarray, rate: int, folder: Path) -> Path:
    """Write a sound as 16-bit WAV with dither of its own; return the file, named at random."""
    ends = np.minimum(1.0, (np.arange(len(wave)) + 1) / (_FADE_SECONDS * rate))
    random = np.random.default_rng(secrets.randbits(64)).random((2, len(wave)))
    dithered = 32767 * wave * ends * ends[::-1] + random[0] - random[1]
    path = folder / f"{secrets.token_hex(12)}.wav"
    samples = np.clip(np.round(dithered), -32768, 32767).astype(np.int16)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def served(path: Path) -> dict[str, Any]:
    """Return a file as the page's widgets take it: Gradio adds its address."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


# Tests


def start(
    requests: Sequence[Request],
    token: str | None,
    trials: int,
    listener: str = "",
    other: PruneSpec | None = None,
    feedback: bool = False,
    progress: Progress = SILENT,
    same_loudness: bool = True,
) -> dict[str, Any]:
    """Begin a test and return what the page shows first.

    Args:
        requests: what is spoken, trial by trial, in turn. ABX takes the first, at all amounts.
        token: the visitor's.
        trials: how many, within TRIALS.
        listener: pseudonym; empty for a random one.
        other: the second setting of a preference, None for ABX.
        feedback: of ABX: say after each trial whether the answer was right.
        progress: gets the progress of the first trial's sounds.
        same_loudness: match the levels of a trial's sounds.

    Raises:
        InputError: a value is out of range, the text is long, or the voice cannot be pruned so.
    """
    if trials not in range(TRIALS[0], TRIALS[1] + 1):
        raise InputError(f"A test has {TRIALS[0]} to {TRIALS[1]} trials.")
    first, kind = requests[0], "preference" if other else "abx"
    name = checked_listener(listener or f"listener-{secrets.token_hex(3)}")
    voice = workbench.bench.voice_of(first, token, progress=progress.part(0.0, 0.3))
    with workbench.bench.hearing():
        bare = spoken(first.at(at_amount(first.spec, 0.0)), token, progress.part(0.3, 0.5))
    if bare.audio_seconds > MAX_SECONDS:
        raise InputError(
            f"A blind test loops one sentence of at most {MAX_SECONDS:.0f} seconds: "
            "shorten the text."
        )
    for spec in (first.spec, *([other] if other else [])):
        check_feasible(voice, spec)
    setup = Setup(
        kind=kind,
        test=secrets.token_hex(12),
        listener=name,
        voice=first.reference,
        revision=voice.origin.revision or "",
        speaker=first.speaker or "",
        seed=first.seed,
        delivery=json.dumps(vars(first.delivery)),
        order_seed=secrets.randbits(32),
        planned=int(trials),
        amounts=() if other else _row(voice, first.spec),
        version=version(),
        matched=same_loudness,
    )
    found = BlindTest(requests, other, token, setup, feedback)
    _tests.put(setup.test, found)
    return found.state(progress.part(0.5, 1.0))


def _row(voice: Any, spec: PruneSpec) -> tuple[float, ...]:
    """Return the amounts of an ABX test that the voice can be pruned by."""
    slow = listens(spec) or len(spec.schedule_amounts()) > 1
    found = []
    for amount in FEWER_AMOUNTS if slow else AMOUNTS:
        with contextlib.suppress(InputError):
            check_feasible(voice, at_amount(spec, amount))
            found.append(amount)
    if not found:
        raise InputError("This voice cannot be pruned like this at any amount: protect less.")
    return tuple(found)


def sentences_for(request: Request, token: str | None) -> list[Request]:
    """Return a request for its own text and for a few more sentences, so that one does not decide.

    Where the voice is not English, or the text is long, its own sentences take turns.
    """
    voice = workbench.bench.voice_of(request, token)
    texts = dict.fromkeys((request.text, *measuring_texts(voice, request.text, _SENTENCES)[0]))
    return [dataclasses.replace(request, text=text) for text in texts]


def take(event: object, progress: Progress = SILENT) -> dict[str, Any]:
    """Take what the page sends: an answer, "end", or a question about the state; return the state.

    Raises:
        InputError: the test is no longer kept, or the answer is neither A nor B.
    """
    said = event if isinstance(event, dict) else {}
    name = said.get("test")
    found = _tests.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError("This test is no longer kept here: start it again.")
    if said.get("end") is True:
        found.end()
    elif "answer" in said:
        found.answer(said.get("trial"), said["answer"])
    return found.state(progress)
