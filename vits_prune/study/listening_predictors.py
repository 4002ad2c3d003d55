"""Whether predictors rank pruned voices as the listeners of blind ABX tests do.

Listeners hear a pruned voice with the original's durations, and at its level unless a test says
otherwise. The predictors judge the same sounds.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy.stats import spearmanr

from vits_prune.errors import InputError
from vits_prune.files import write_file
from vits_prune.measure.closeness import measure_closeness
from vits_prune.measure.predictors import (
    FAMILIES,
    HIGHEST,
    PREDICTORS,
    cautions,
    embed_speaker,
    measure_distillmos,
    usable,
)
from vits_prune.measure.quality import METRICS
from vits_prune.measure.utterances import Listener
from vits_prune.measure.waveform import finite, measure_dnsmos
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import PruneSpec, prune
from vits_prune.study.evaluation import Settings
from vits_prune.study.listening import Share, name_of, share_of
from vits_prune.study.listening_store import Setup, Trial, harmless
from vits_prune.study.signature import signature_of
from vits_prune.synthesis.speak import Delivery, Speech, speak
from vits_prune.voices.load import load_voice
from vits_prune.voices.voice import Voice, spoken_language

LEAST_CONDITIONS = 3
"""Fewer have no rank correlation."""
COMPARED: Mapping[str, str] = MappingProxyType(
    {name: one.title for name, one in PREDICTORS.items()}
    | {name: METRICS[name].title for name in ("log_mel_db", "mcd_db")}
)
"""What is compared with listeners -> its title: the predictors, and distances that need none."""
_MAX_GAIN = 10.0


@dataclass(frozen=True)
class Condition:
    """One pruned voice as it was heard: a spec at its amount, with one seed and one delivery."""

    spec: PruneSpec
    seed: int
    delivery: str
    """As JSON."""
    texts: tuple[str, ...]
    share: Share
    """Of right answers."""
    changes: Mapping[str, float] = field(default_factory=dict)
    """By name in COMPARED: from the original to the pruned voice, as the mean over the texts."""
    signature: str = ""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with the listeners."""

    rho: float | None
    """1 where a predictor finds the more damage the more listeners hear; None where no rank
    correlation exists: too few conditions, or all of them equal."""
    conditions: int


@dataclass(frozen=True)
class Agreement:
    """What listeners answered to one question, and what predictors say of the same sounds."""

    setup: Setup
    """Of the first trial: voice, revision and speaker, and whether levels were matched."""
    name: str
    conditions: tuple[Condition, ...] = ()
    problem: str = ""
    """Why nothing was measured, as a sentence."""
    notes: tuple[str, ...] = ()
    """What limits the figures, in sentences."""

    def correlation(self, name: str) -> Correlation:
        """Return how well a predictor, of COMPARED, ranks the conditions as the listeners do."""
        sign = 1 if name in METRICS and METRICS[name].better == "lower" else -1
        found = [one for one in self.conditions if name in one.changes]
        heard = [one.share.value for one in found]
        damage = [sign * one.changes[name] for one in found]
        if len(found) < LEAST_CONDITIONS or 1 in (len(set(heard)), len(set(damage))):
            return Correlation(None, len(found))
        return Correlation(float(spearmanr(heard, damage).statistic), len(found))


def measure_agreement(trials: Sequence[Trial], progress: Progress = SILENT) -> Agreement:
    """Measure what the listeners to one ABX question heard, beside what they answered.

    Nothing is measured of fewer than 3 amounts, or where the voice cannot be loaded by the
    reference in the trials.
    """
    setup, name = trials[0].setup, name_of(trials[0].spec)
    amounts = len({trial.spec.amount for trial in trials})
    if amounts < LEAST_CONDITIONS:
        why = f"Predictors are compared with listeners from {LEAST_CONDITIONS} amounts on, and"
        return Agreement(setup, name, problem=f"{why} this test has {amounts}.")
    measured = []
    try:
        speaker, revision = setup.speaker or None, setup.revision or None
        progress.report(f"loading {setup.voice}", 0.0)
        voice = load_voice(setup.voice, speaker, revision=revision)
        measure, conditions = _measurer(voice, setup.matched), _conditions(trials)
        for i, one in enumerate(conditions):
            before = f"{setup.voice}: {name_of(one.spec, amount=True)}: "
            part = progress.part(i / len(conditions), (i + 1) / len(conditions), before)
            measured.append(measure(one, part))
    except InputError as error:
        why = f"Predictors cannot be compared with these listeners: {error}"
        return Agreement(setup, name, problem=why)
    notes = cautions(FAMILIES, spoken_language(voice) or "", voice.sampling_rate)
    return Agreement(setup, name, tuple(measured), notes=notes)


def _conditions(trials: Sequence[Trial]) -> list[Condition]:
    """Return what was heard, by rising amount, and how often it was heard."""
    groups: dict[tuple[PruneSpec, int, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.spec, trial.setup.seed, trial.setup.delivery].append(trial)
    found = [
        Condition(
            *heard,
            tuple(dict.fromkeys(trial.text for trial in own)),
            share_of(sum(trial.correct for trial in own), len(own)),
        )
        for heard, own in groups.items()
    ]
    return sorted(found, key=lambda one: (one.spec.amount, one.seed, one.delivery))


def _measurer(voice: Voice, matched: bool) -> Callable[[Condition, Progress], Condition]:
    """Return what measures conditions of a voice; the original of a text is measured once."""
    there = usable()

    def opinions(sound: np.ndarray, rate: int) -> dict[str, float]:
        found = {}
        if "dnsmos" in there:
            found["dnsmos"] = measure_dnsmos(sound, rate).ovrl
        if "distillmos" in there:
            found["distillmos"] = measure_distillmos(sound, rate)
        return found

    @functools.lru_cache(maxsize=16)
    def original(text: str, seed: int, delivery: Delivery) -> tuple[Speech, dict[str, float]]:
        speech = speak(voice, text, seed, delivery)
        return speech, opinions(finite(speech.waveform), speech.sampling_rate)

    def changes(pruned: Voice, text: str, seed: int, delivery: Delivery) -> dict[str, float]:
        speech, before = original(text, seed, delivery)
        rate, first = speech.sampling_rate, finite(speech.waveform)
        second = finite(speak(pruned, text, seed, delivery, timing=speech).waveform)
        if matched:
            second = _at_level_of(first, second)
        now = opinions(second, rate)
        found = {name: now[name] - before[name] for name in now}
        close = measure_closeness(first, second, rate, pitch=False, visqol="visqol" in there)
        found |= {"log_mel_db": close.log_mel_db, "mcd_db": close.mcd_db}
        if close.visqol is not None:
            found["visqol"] = close.visqol - HIGHEST
        if "resemblyzer" in there:
            one, two = (embed_speaker(sound, rate) for sound in (first, second))
            found["resemblyzer"] = float(one @ two) - 1
        return found

    def measure(one: Condition, progress: Progress) -> Condition:
        delivery = _delivery(one.delivery)
        settings = Settings(seed=one.seed, metrics=FAMILIES, noise_seeds=0, delivery=delivery)
        listener = Listener(FAMILIES, settings.recogniser, "", predictors=there)
        pruned = prune(voice, one.spec, progress=progress.part(0.0, 0.5))
        said = progress.part(0.5, 1.0).track(one.texts, "sentence")
        rows = [changes(pruned, text, one.seed, delivery) for text in said]
        measured = {
            name: float(np.mean([row[name] for row in rows if name in row]))
            for name in COMPARED
            if any(name in row for row in rows)
        }
        how = f"timing:original|levels:{'matched' if matched else 'own'}"
        signature = f"{signature_of(one.texts, (one.seed,), delivery, listener)}|{how}"
        return dataclasses.replace(one, changes=measured, signature=signature)

    return measure


def _at_level_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the second sound at the RMS of the first, as blind tests play it."""
    one, two = (float(np.sqrt(np.mean(np.square(sound)))) for sound in (first, second))
    return second * min(_MAX_GAIN, one / two) if two > 1e-6 else second


def _delivery(said: str) -> Delivery:
    try:
        return Delivery(**json.loads(said))
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{said[:60]!r} is no delivery: the file was changed by hand.") from error


def write_agreements(agreements: Sequence[Agreement], path: Path) -> None:
    """Write a row for each condition as CSV.

    Raises:
        OSError: the disk does not take the file.
    """
    rows = [_row(found, one) for found in agreements for one in found.conditions]
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(rows[0]) if rows else (), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(path, file.getvalue())


def _row(found: Agreement, one: Condition) -> dict[str, str]:
    setup, spec = found.setup, one.spec
    words = {
        **{name: getattr(setup, name) for name in ("voice", "revision", "speaker")},
        "method": spec.method,
        "scope": spec.scope,
        "spec": json.dumps(spec.to_dict(), ensure_ascii=False),
        "delivery": one.delivery,
        "signature": one.signature,
    }
    numbers = {
        "amount": spec.amount,
        "seed": one.seed,
        "matched": int(setup.matched),
        "texts": len(one.texts),
        "trials": one.share.of,
        "right": one.share.hits,
        "share": one.share.value,
        **{f"{name}_change": one.changes.get(name, "") for name in COMPARED},
    }
    row = {name: harmless(cell) for name, cell in words.items()}
    return row | {name: str(cell) for name, cell in numbers.items()}
