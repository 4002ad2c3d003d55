"""evaluate: a pair of voices over a set of texts -> Evaluation. The original is measured once, whatever it is compared with."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vits_prune.errors import InputError, UnmeasurableError
from vits_prune.measure.alarms import KINDS, same_tokens
from vits_prune.measure.closeness import Melody, track_melody
from vits_prune.measure.energy import Cost, CostMeter
from vits_prune.measure.quality import FAMILIES, METRICS, RULE, Figure, columns, conclude
from vits_prune.measure.recognition import Recogniser, spoken_language, why_unheard
from vits_prune.measure.statistics import METHOD
from vits_prune.measure.utterances import Listener, Utterance, closeness_of, measure_utterance
from vits_prune.synthesis.speak import (
    MAX_SEED,
    Delivery,
    Speech,
    checked_seed,
    checked_text,
    read_text,
    speak,
)
from vits_prune.voices.voice import Voice

MAX_NOISE_SEEDS = 16
Step = Callable[[str, float], None]
"""Told what is being done and the share that is done (0 to 1); it may raise to cancel."""


@dataclass(frozen=True)
class Settings:
    """How quality is measured: frozen, and everything that the numbers depend on besides the voices and the texts.

    Raises:
        InputError: a value is out of range.
    """

    seed: int = 0
    """Noise of both voices, and of the bootstrap."""
    metrics: tuple[str, ...] = FAMILIES
    """Families of metrics, of FAMILIES."""
    recogniser: Recogniser = field(default_factory=Recogniser)
    noise_seeds: int = 2
    """How many other seeds the original is spoken with for the noise floor; 0 for no floor and no verdicts."""
    delivery: Delivery = Delivery()
    threads: int | None = None
    """Of the predictors; None for as many as there are cores. Rounding may depend on it (the seventh digit), as on torch's threads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_seed(self.seed))
        chosen = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        unknown = [name for name in chosen if name not in FAMILIES]
        if unknown or not chosen:
            what = (
                f"There is no metric {str(unknown[0])[:40]!r}"
                if unknown
                else "Nothing is to be measured"
            )
            raise InputError(f"{what}: choose from {', '.join(FAMILIES)}.")
        object.__setattr__(self, "metrics", tuple(name for name in FAMILIES if name in chosen))
        count = self.noise_seeds
        if (
            isinstance(count, bool)
            or not isinstance(count, int)
            or not 0 <= count <= MAX_NOISE_SEEDS
        ):
            raise InputError(
                f"The number of noise seeds must be a whole number from 0 to {MAX_NOISE_SEEDS}, not {str(count)[:40]!r}."
            )

    @property
    def other_seeds(self) -> tuple[int, ...]:
        return tuple((self.seed + 1 + i) % (MAX_SEED + 1) for i in range(self.noise_seeds))


@dataclass(frozen=True, eq=False)
class Reference:
    """An original measured once, to be compared with any number of voices. It can be pickled."""

    name: str
    settings: Settings
    texts: tuple[str, ...]
    listener: Listener
    speeches: tuple[Speech, ...]
    """The original's, one a text."""
    utterances: tuple[Utterance, ...]
    melodies: tuple[Melody, ...]
    """F0 of the original's speech, empty where closeness is not measured."""
    others: tuple[tuple[Utterance, ...], ...]
    """The original with each other seed: the noise floor."""
    cost: Cost
    unmeasured: dict[str, str]
    """Family of metrics -> why it was left out."""
    notes: tuple[str, ...]
    seconds: float
    """Wall-clock seconds that making this took."""
    identity: dict[str, Any] = field(default_factory=dict)
    """As `identity_of` gives it."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of a pair of voices."""

    names: tuple[str, str]
    """Original and pruned."""
    recipe: dict[str, Any]
    """What was done to the pruned voice's weights."""
    settings: Settings
    texts: tuple[str, ...]
    figures: dict[str, Figure]
    """By metric, in the order of METRICS; without those that could not be measured."""
    utterances: tuple[tuple[Utterance, ...], tuple[Utterance, ...]]
    """Original's and pruned voice's, one a text."""
    alarms: dict[str, int]
    """By kind: utterances of the pruned voice that raised it."""
    alarms_of_original: dict[str, float]
    """By kind: the same of the original, mean over its seeds, the noise floor's included."""
    costs: tuple[Cost, Cost]
    unmeasured: dict[str, str]
    """Family of metrics, or one metric -> why it was left out, in a sentence."""
    notes: tuple[str, ...]
    seconds: float = field(default=0.0)
    """Wall-clock seconds that it took, without the Reference."""
    identities: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    """Original's and pruned voice's, as `identity_of` gives them."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values. All but "cost" is the same in every run with the same settings."""
        return {
            "original": self.names[0],
            "pruned": self.names[1],
            "voices": dict(zip(("original", "pruned"), self.identities, strict=True)),
            "recipe": self.recipe,
            "settings": {
                **dataclasses.asdict(self.settings),
                "metrics": list(self.settings.metrics),
            },
            "interval": METHOD,
            "rule": RULE,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "alarms": self.alarms,
            "alarms_of_original": self.alarms_of_original,
            "sentences": self.rows(),
            "unmeasured": self.unmeasured,
            "notes": list(self.notes),
            "cost": {
                "seconds": self.seconds,
                "original": dataclasses.asdict(self.costs[0]),
                "pruned": dataclasses.asdict(self.costs[1]),
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a text: what was understood of both voices, each metric, the alarms. None where nothing could be measured."""
        found = []
        for text, original, pruned in zip(self.texts, *self.utterances, strict=True):
            row: dict[str, Any] = {
                "text": text,
                "heard_original": original.transcript,
                "heard_pruned": pruned.transcript,
            }
            for name, metric in METRICS.items():
                if metric.family in self.settings.metrics:
                    if metric.kind == "voice":
                        row[f"{name}_original"] = _value(original.pair(name))
                    row[name] = _value(pruned.pair(name))
            row["alarms"] = "; ".join(f"{alarm.kind}: {alarm.detail}" for alarm in pruned.alarms)
            found.append(row)
        return found

    def to_row(self) -> dict[str, Any]:
        """The whole pair as one flat row; the columns depend on the settings alone. Those named cpu_ and joules_ differ from run to run."""
        row: dict[str, Any] = {"texts": len(self.texts), "seed": self.settings.seed}
        for name, metric in METRICS.items():
            if metric.family in self.settings.metrics:
                figure = self.figures.get(name)
                row |= figure.to_row() if figure else dict.fromkeys(columns(metric))
        row |= {
            f"alarms_{kind.replace(' ', '_').replace('-', '_')}": count
            for kind, count in self.alarms.items()
        }
        row["cpu_seconds_per_audio_second"] = self.costs[1].cpu_seconds_per_audio_second
        row["joules_per_audio_second"] = self.costs[1].joules_per_audio_second
        return row


def identity_of(voice: Voice) -> dict[str, Any]:
    """Which voice it is: reference and revision of where it came from, the index of its speaker, and whether it was pruned or healed."""
    found = {
        "reference": voice.origin.reference,
        "revision": voice.origin.revision,
        "speaker": voice.speaker,
    }
    return {**found, "changed": bool(voice.recipe)}


def evaluate(
    original: Voice,
    pruned: Voice,
    texts: Sequence[str],
    *,
    progress: Step | None = None,
    **choices: Any,
) -> Evaluation:
    """Measure what became of a voice: intelligibility, naturalness, closeness, rhythm and loudness over a set of texts, with intervals.

    Args:
        original: the voice to measure against.
        pruned: what was made of it.
        texts: what both speak, such as `load_texts()`.
        progress: told how far it is.
        choices: the fields of Settings: seed, metrics, recogniser, noise_seeds, delivery, threads.

    Raises:
        InputError: there is nothing to say, or a choice is out of range.
    """
    tell = progress or _silent
    settings = Settings(**choices)
    share = (1 + settings.noise_seeds) / (2 + settings.noise_seeds)
    reference = prepare_reference(
        original, texts, settings, progress=lambda what, done: tell(what, share * done)
    )
    return evaluate_against(
        reference, pruned, progress=lambda what, done: tell(what, share + (1 - share) * done)
    )


def prepare_reference(
    voice: Voice,
    texts: Iterable[str],
    settings: Settings = Settings(),
    *,
    progress: Step | None = None,
) -> Reference:
    """Speak and measure the original, and its noise floor, once for all that it will be compared with.

    Args:
        voice: the original.
        texts: what to speak; those that the voice can say nothing of are left out, with a note.
        settings: how to measure.
        progress: told how far it is.

    Raises:
        UnmeasurableError: there are no texts, or the voice can say none of them.
        InputError: the recogniser cannot be loaded.
    """
    start, tell = time.perf_counter(), progress or _silent
    said, notes = _sayable(voice, texts)
    listener, unmeasured = _listener(voice, settings)
    rounds, meter = 1 + settings.noise_seeds, CostMeter(voice)
    step = _part(tell, "original", 0.0, 1 / rounds, len(said))
    speeches, utterances, melodies = [], [], []
    for i, text in enumerate(said):
        step(i)
        speeches.append(meter.speak(text, settings.seed, settings.delivery))
        utterances.append(measure_utterance(speeches[-1], text, listener))
        if "closeness" in listener.families:
            melodies.append(
                track_melody(speeches[-1].waveform, voice.sampling_rate, listener.threads)
            )
    first = Reference(
        voice.name, settings, said, listener, tuple(speeches), tuple(utterances), tuple(melodies), (), meter.cost(), unmeasured, notes, 0.0,
        identity_of(voice),
    )  # fmt: skip
    others = []
    for k, seed in enumerate(settings.other_seeds):
        what, before = f"noise floor {k + 1} of {settings.noise_seeds}", (1 + k) / rounds
        others.append(
            _measure_voice(first, voice, seed, _part(tell, what, before, 1 / rounds, len(said)))[0]
        )
    tell("original measured", 1.0)
    return dataclasses.replace(first, others=tuple(others), seconds=time.perf_counter() - start)


def evaluate_against(
    reference: Reference, pruned: Voice, *, progress: Step | None = None
) -> Evaluation:
    """Measure a voice against an original that was measured before.

    Args:
        reference: the original.
        pruned: the voice compared with it.
        progress: told how far it is.

    Raises:
        InputError: the voice can say nothing of a text.
    """
    start, tell = time.perf_counter(), progress or _silent
    settings = reference.settings
    utterances, cost = _measure_voice(
        reference, pruned, settings.seed, _part(tell, "pruned", 0.0, 1.0, len(reference.texts))
    )
    unmeasured = dict(reference.unmeasured)
    if "closeness" in reference.listener.families and all(
        utterance.closeness is None for utterance in utterances
    ):
        unmeasured["closeness"] = (
            f"{pruned.name} reads the texts as other tokens, or at another frame rate, than {reference.name}: "
            "the two cannot be sample-aligned, so closeness and token durations were left out."
        )
    figures = _figures(reference, utterances)
    if "mcd_db" in figures and "f0_rmse_cents" not in figures:
        unmeasured["f0_rmse_cents"] = (
            f"{reference.name} and {pruned.name} are nowhere voiced at the same time: there is no melody to compare."
        )
    tell("done", 1.0)
    return Evaluation(
        names=(reference.name, pruned.name),
        recipe=dict(pruned.recipe),
        settings=settings,
        texts=reference.texts,
        figures=figures,
        utterances=(reference.utterances, utterances),
        alarms=_count(utterances),
        alarms_of_original=_mean_count((reference.utterances, *reference.others)),
        costs=(reference.cost, cost),
        unmeasured=unmeasured,
        notes=reference.notes,
        seconds=time.perf_counter() - start,
        identities=(reference.identity, identity_of(pruned)),
    )


def _measure_voice(
    reference: Reference, voice: Voice, seed: int, step: Callable[[int], None]
) -> tuple[tuple[Utterance, ...], Cost]:
    """Speak and measure a voice against the reference."""
    settings, listener, utterances, meter = (
        reference.settings,
        reference.listener,
        [],
        CostMeter(voice),
    )
    for i, (text, original) in enumerate(zip(reference.texts, reference.speeches, strict=True)):
        step(i)
        own = meter.speak(text, seed, settings.delivery)
        utterance = measure_utterance(own, text, listener, (original, reference.utterances[i]))
        if "closeness" in listener.families and same_tokens(original, own):
            # With the original's own durations there is nothing to lock: the same noise gives the same samples.
            same = np.array_equal(own.durations, original.durations)
            locked = own if same else speak(voice, text, seed, settings.delivery, timing=original)
            utterance = dataclasses.replace(
                utterance,
                closeness=closeness_of(original, locked, reference.melodies[i], listener.threads),
            )
        utterances.append(utterance)
    return tuple(utterances), meter.cost()


def _sayable(voice: Voice, texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts that a voice can say something of, and notes on the others."""
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    said, refused = [], []
    for text in texts:
        try:
            read_text(voice, checked_text(text))
            said.append(text)
        except InputError as error:
            refused.append(error)
    if not texts:
        raise UnmeasurableError(
            "There are no texts to measure on: give some, or use the built-in ones."
        )
    if not said:
        raise UnmeasurableError(str(refused[0])) from refused[0]
    notes = [f"{len(refused)} of {len(texts)} texts were left out: {refused[0]}"] if refused else []
    return tuple(said), tuple(notes)


def _listener(voice: Voice, settings: Settings) -> tuple[Listener, dict[str, str]]:
    """What can be listened for in a voice, and why the rest cannot."""
    families, unmeasured = settings.metrics, {}
    language = settings.recogniser.language or spoken_language(voice)
    if "intelligibility" in families:
        reason = why_unheard(settings.recogniser, language, voice.name)
        if reason:
            unmeasured["intelligibility"] = reason
            families = tuple(name for name in families if name != "intelligibility")
    recogniser = settings.recogniser
    if recogniser.threads is None:
        recogniser = dataclasses.replace(recogniser, threads=settings.threads)
    return Listener(families, recogniser, language or "", settings.threads), unmeasured


def _figures(reference: Reference, utterances: tuple[Utterance, ...]) -> dict[str, Figure]:
    found = {}
    for name, metric in METRICS.items():
        if metric.family not in reference.listener.families:
            continue
        original = (
            [utterance.pair(name) for utterance in reference.utterances]
            if metric.kind == "voice"
            else None
        )
        others = [[utterance.pair(name) for utterance in other] for other in reference.others]
        figure = conclude(
            metric,
            original,
            [utterance.pair(name) for utterance in utterances],
            others,
            reference.settings.seed,
        )
        if figure:
            found[name] = figure
    return found


def _count(utterances: Iterable[Utterance]) -> dict[str, int]:
    counted = Counter(alarm.kind for utterance in utterances for alarm in utterance.alarms)
    return {kind: counted[kind] for kind in KINDS}


def _mean_count(rounds: Sequence[tuple[Utterance, ...]]) -> dict[str, float]:
    counts = [_count(utterances) for utterances in rounds]
    return {kind: sum(count[kind] for count in counts) / len(counts) for kind in KINDS}


def _part(tell: Step, what: str, start: float, length: float, count: int) -> Callable[[int], None]:
    """A callback for the index of a sentence that reports into a stretch of the whole."""
    return lambda i: tell(f"{what}: sentence {i + 1} of {count}", start + length * i / count)


def _value(pair: tuple[float, float]) -> float | None:
    return pair[0] / pair[1] if pair[1] else None


def _silent(_what: str, _share: float) -> None:
    pass
