"""Evaluation: the quality of a voice against its original, over a set of texts."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vits_prune.errors import InputError, UnmeasurableError
from vits_prune.fields import check_options, option
from vits_prune.measure.closeness import measure_closeness, same_tokens
from vits_prune.measure.cost import Cost, CostMeter
from vits_prune.measure.predictors import (
    absent,
    cautions,
    embed_speaker,
    usable,
    usable_measures,
)
from vits_prune.measure.quality import (
    FAMILIES,
    INTERVAL_METHOD,
    METRICS,
    VERDICT_RULE,
    Claim,
    Figure,
    claim,
    columns,
    conclude,
)
from vits_prune.measure.recognition import Recogniser, why_unsupported
from vits_prune.measure.utterances import FAILURES, Listener, Utterance, measure_utterance
from vits_prune.measure.waveform import PitchContour, track_pitch, transposed
from vits_prune.progress import SILENT, Progress
from vits_prune.study.signature import signature_of
from vits_prune.synthesis.speak import MAX_SEED, Delivery, Speech, checked_text, read_text, speak
from vits_prune.voices.voice import Voice, spoken_language


@dataclass(frozen=True)
class Settings:
    """All that the numbers of an evaluation depend on, besides the voices and the texts.

    Raises:
        InputError: a value is out of range.
    """

    seed: int = option(0, "seed of the noise and of the intervals", int, low=0, high=MAX_SEED)
    metrics: tuple[str, ...] = option(
        FAMILIES, "families of metrics", choices=FAMILIES, most=100, noun="family of metrics"
    )
    recogniser: Recogniser = field(default_factory=Recogniser)
    noise_seeds: int = option(
        2,
        "other seeds of the original for the noise floor; with 0 there are no verdicts",
        int,
        low=0,
        high=16,
        noun="number of noise seeds",
    )
    delivery: Delivery = Delivery()
    threads: int | None = None
    """Of the predictors; None for one per core. The seventh digit may depend on it."""

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def other_seeds(self) -> tuple[int, ...]:
        """The seeds of the noise floor."""
        return tuple((self.seed + 1 + i) % (MAX_SEED + 1) for i in range(self.noise_seeds))


@dataclass(frozen=True, eq=False)
class Reference:
    """An original that was measured, to be compared with many voices. It can be pickled."""

    name: str
    settings: Settings
    texts: tuple[str, ...]
    listener: Listener
    speeches: tuple[Speech, ...]
    """Of the original, one for each text."""
    utterances: tuple[Utterance, ...]
    contours: tuple[PitchContour, ...]
    """F0; empty if pitch is not measured."""
    others: tuple[tuple[Utterance, ...], ...]
    """The noise floor: the original with each other seed."""
    cost: Cost
    unmeasured: dict[str, str]
    """Family of metrics, or one metric -> why it was left out."""
    notes: tuple[str, ...]
    signature: str = ""
    """All that the figures depend on besides the voices; see `signature_of`."""
    other_voice: float | None = None
    """Speaker similarity of another voice, the original four semitones higher, to the original."""
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured of a pair of voices. Pairs hold the original's first."""

    names: tuple[str, str]
    recipe: dict[str, Any]
    """Of the pruned voice."""
    settings: Settings
    texts: tuple[str, ...]
    figures: dict[str, Figure]
    """By metric, in the order of METRICS, without those that could not be measured."""
    utterances: tuple[tuple[Utterance, ...], tuple[Utterance, ...]]
    failures: dict[str, int]
    """Kind -> how many utterances of the pruned voice have it."""
    failures_of_original: dict[str, float]
    """The same of the original, as the mean over all its seeds."""
    costs: tuple[Cost, Cost]
    unmeasured: dict[str, str]
    """Family of metrics, or one metric -> why it was left out, as a sentence."""
    notes: tuple[str, ...]
    seconds: float = 0.0
    """Without the time of the Reference."""
    identities: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    signature: str = ""
    """All that the figures depend on besides the voices; see `signature_of`."""
    other_voice: float | None = None
    """Speaker similarity of another voice, the original four semitones higher, to the original."""

    @property
    def claim(self) -> Claim:
        """What may be said of the two voices."""
        return claim({name: one.verdict for name, one in self.figures.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values. Only "cost" differs from run to run."""
        settings = dataclasses.asdict(self.settings)
        return {
            "original": self.names[0],
            "pruned": self.names[1],
            "voices": dict(zip(("original", "pruned"), self.identities, strict=True)),
            "recipe": self.recipe,
            "settings": {**settings, "metrics": list(self.settings.metrics)},
            "interval": INTERVAL_METHOD,
            "rule": VERDICT_RULE,
            "signature": self.signature,
            "claim": {"verdict": self.claim.verdict, "reasons": self.claim.verdicts},
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "alarms": self.failures,
            "alarms_of_original": self.failures_of_original,
            "speaker_similarity_of_another_voice": self.other_voice,
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
        """Return a row for each text: transcripts, metrics (None if not measured) and alarms."""
        found = []
        for text, original, pruned in zip(self.texts, *self.utterances, strict=True):
            row: dict[str, Any] = {"text": text, "heard_original": original.transcript}
            row["heard_pruned"] = pruned.transcript
            for name, metric in METRICS.items():
                if metric.family in self.settings.metrics:
                    if metric.kind == "voice":
                        row[f"{name}_original"] = _ratio(original.pair(name))
                    row[name] = _ratio(pruned.pair(name))
            row["alarms"] = "; ".join(f"{one.kind}: {one.detail}" for one in pruned.failures)
            found.append(row)
        return found

    def to_row(self) -> dict[str, Any]:
        """Return the pair as one flat row, whose columns depend on the settings alone.

        Columns that begin with cpu_ and joules_ differ from run to run.
        """
        row: dict[str, Any] = {"texts": len(self.texts), "seed": self.settings.seed}
        for name, metric in METRICS.items():
            if metric.family in self.settings.metrics:
                figure = self.figures.get(name)
                row |= figure.to_row() if figure else dict.fromkeys(columns(metric))
        for kind, count in self.failures.items():
            row[f"alarms_{kind.replace(' ', '_').replace('-', '_')}"] = count
        for name in ("cpu_seconds_per_audio_second", "joules_per_audio_second"):
            row[name] = getattr(self.costs[1], name)
        return {**row, "claim": self.claim.verdict, "signature": self.signature}


def identity_of(voice: Voice) -> dict[str, Any]:
    """Return which voice this is: its origin, its speaker, and whether it was changed."""
    return {
        "reference": voice.origin.reference,
        "revision": voice.origin.revision,
        "speaker": voice.speaker,
        "changed": bool(voice.recipe),
    }


def evaluate(
    original: Voice,
    pruned: Voice,
    texts: Sequence[str],
    settings: Settings = Settings(),
    *,
    progress: Progress = SILENT,
) -> Evaluation:
    """Measure a voice against its original over a set of texts, such as `load_texts()`.

    Raises:
        InputError: nothing can be said, or the recogniser cannot be loaded.
    """
    middle = (1 + settings.noise_seeds) / (2 + settings.noise_seeds)
    reference = prepare_reference(original, texts, settings, progress=progress.part(0.0, middle))
    return evaluate_against(reference, pruned, progress=progress.part(middle, 1.0))


def prepare_reference(
    voice: Voice,
    texts: Iterable[str],
    settings: Settings = Settings(),
    *,
    progress: Progress = SILENT,
) -> Reference:
    """Measure the original and its noise floor once, for all comparisons with it.

    Texts that the voice cannot say are left out, with a note.

    Raises:
        UnmeasurableError: there are no texts, or the voice can say none of them.
        InputError: the recogniser cannot be loaded.
    """
    said, notes = _sayable(voice, texts)
    listener, unmeasured = _listener(voice, settings)
    seeds, meter = (settings.seed, *settings.other_seeds), CostMeter(voice)
    rounds = len(seeds)
    speeches, utterances, contours = [], [], []
    for text in progress.part(0.0, 1 / rounds).track(said, "original: sentence"):
        speech = meter.speak(text, settings.seed, settings.delivery)
        speeches.append(speech)
        utterances.append(measure_utterance(speech, text, listener))
        if "swift-f0" in listener.predictors:
            contours.append(track_pitch(speech.waveform, voice.sampling_rate, listener.threads))
    reference = Reference(
        name=voice.name,
        settings=settings,
        texts=said,
        listener=listener,
        speeches=tuple(speeches),
        utterances=_with_speaker(utterances, utterances),
        contours=tuple(contours),
        others=(),
        cost=meter.cost(),
        unmeasured=unmeasured,
        notes=(*notes, *cautions(listener.families, listener.language, voice.sampling_rate)),
        signature=signature_of(said, seeds, settings.delivery, listener),
        other_voice=_another_voice(speeches, utterances),
        identity=identity_of(voice),
    )
    others = []
    for k, seed in enumerate(settings.other_seeds, 1):
        name = f"noise floor {k} of {settings.noise_seeds}: "
        part = progress.part(k / rounds, (k + 1) / rounds, name)
        others.append(_measure_voice(reference, voice, seed, part)[0])
    progress.report("original measured", 1.0)
    return dataclasses.replace(reference, others=tuple(others))


def evaluate_against(
    reference: Reference, pruned: Voice, *, progress: Progress = SILENT
) -> Evaluation:
    """Measure a voice against an original that was measured earlier.

    Raises:
        InputError: the voice can say nothing of a text.
    """
    start = time.perf_counter()
    part = progress.part(0.0, 1.0, "pruned: ")
    utterances, cost = _measure_voice(reference, pruned, reference.settings.seed, part)
    unmeasured, families = dict(reference.unmeasured), reference.listener.families
    if "closeness" in families and all(one.closeness is None for one in utterances):
        unmeasured["closeness"] = (
            f"{pruned.name} reads the texts as other tokens, or at another frame rate, than "
            f"{reference.name}: the two cannot be sample-aligned."
        )
    figures = _figures(reference, utterances)
    if reference.contours and "mcd_db" in figures and "f0_rmse_cents" not in figures:
        unmeasured["f0_rmse_cents"] = (
            f"{reference.name} and {pruned.name} are nowhere voiced at the same time."
        )
    rounds = (reference.utterances, *reference.others)
    own = _count_failures(itertools.chain(*rounds))
    progress.report("done", 1.0)
    return Evaluation(
        names=(reference.name, pruned.name),
        recipe=dict(pruned.recipe),
        settings=reference.settings,
        texts=reference.texts,
        figures=figures,
        utterances=(reference.utterances, utterances),
        failures=_count_failures(utterances),
        failures_of_original={kind: count / len(rounds) for kind, count in own.items()},
        costs=(reference.cost, cost),
        unmeasured=unmeasured,
        notes=reference.notes,
        seconds=time.perf_counter() - start,
        identities=(reference.identity, identity_of(pruned)),
        signature=reference.signature,
        other_voice=reference.other_voice,
    )


def _measure_voice(
    reference: Reference, voice: Voice, seed: int, progress: Progress
) -> tuple[tuple[Utterance, ...], Cost]:
    """Speak the texts of the reference and measure them against it."""
    delivery, listener = reference.settings.delivery, reference.listener
    utterances, meter = [], CostMeter(voice)
    for i, text in enumerate(progress.track(reference.texts, "sentence")):
        original, own = reference.speeches[i], meter.speak(text, seed, delivery)
        found = measure_utterance(own, text, listener, (original, reference.utterances[i]))
        if "closeness" in listener.families and same_tokens(original, own):
            # With equal durations the same noise gives the same samples: nothing to speak again.
            locked = own
            if not np.array_equal(own.durations, original.durations):
                locked = speak(voice, text, seed, delivery, timing=original, kernels="dense")
            close = measure_closeness(
                original.waveform,
                locked.waveform,
                original.sampling_rate,
                contour=reference.contours[i] if reference.contours else None,
                threads=listener.threads,
                pitch=bool(reference.contours),
                visqol="visqol" in listener.predictors,
            )
            found = dataclasses.replace(found, closeness=close)
        utterances.append(found)
    return _with_speaker(utterances, reference.utterances), meter.cost()


def _with_speaker(
    utterances: Sequence[Utterance], original: Sequence[Utterance]
) -> tuple[Utterance, ...]:
    """Return utterances with the similarity of their speaker to the original's next sentence."""
    found = []
    for i, one in enumerate(utterances):
        following = original[(i + 1) % len(original)].embedding
        if len(original) > 1 and one.embedding is not None and following is not None:
            similarity = float(one.embedding @ following)
            one = dataclasses.replace(one, speaker_similarity=similarity)
        found.append(one)
    return tuple(found)


def _another_voice(speeches: Sequence[Speech], utterances: Sequence[Utterance]) -> float | None:
    """Return the speaker similarity of the original, four semitones higher, to itself."""
    embeddings = [one.embedding for one in utterances if one.embedding is not None]
    if len(embeddings) < max(2, len(utterances)):
        return None
    shifted = [embed_speaker(transposed(one.waveform, 4), one.sampling_rate) for one in speeches]
    pairs = zip(shifted, embeddings[1:] + embeddings[:1], strict=True)
    return float(np.mean([one @ other for one, other in pairs]))


def _sayable(voice: Voice, texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts that a voice can say something of, and a note on the others."""
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    said, refused = [], []
    for text in texts:
        try:
            read_text(voice, checked_text(text))
            said.append(text)
        except InputError as error:
            refused.append(error)
    if not texts:
        raise UnmeasurableError("There are no texts to measure on: give some.")
    if not said:
        raise UnmeasurableError(str(refused[0])) from refused[0]
    notes = [f"{len(refused)} of {len(texts)} texts were left out: {refused[0]}"] if refused else []
    return tuple(said), tuple(notes)


def _listener(voice: Voice, settings: Settings) -> tuple[Listener, dict[str, str]]:
    """Return what can be measured of a voice's speech, and why the rest cannot."""
    families, unmeasured, recogniser = settings.metrics, {}, settings.recogniser
    language, name = recogniser.language or spoken_language(voice), "intelligibility"
    if name in families and (reason := why_unsupported(recogniser, language, voice.name)):
        unmeasured[name] = reason
        families = tuple(family for family in families if family != name)
    if recogniser.threads is None:
        recogniser = dataclasses.replace(recogniser, threads=settings.threads)
    there = (*usable(families), *usable_measures(families))
    listener = Listener(families, recogniser, language or "", settings.threads, there)
    return listener, unmeasured | absent(families)


def _figures(reference: Reference, utterances: Sequence[Utterance]) -> dict[str, Figure]:
    found = {}
    for name, metric in METRICS.items():
        if metric.family in reference.listener.families:
            original, pruned, *others = (
                [one.pair(name) for one in ones]
                for ones in (reference.utterances, utterances, *reference.others)
            )
            own = original if metric.kind == "voice" else None
            figure = conclude(metric, own, pruned, others, reference.settings.seed)
            if figure:
                found[name] = figure
    return found


def _count_failures(utterances: Iterable[Utterance]) -> dict[str, int]:
    counted = Counter(failure.kind for one in utterances for failure in one.failures)
    return {kind: counted[kind] for kind in FAILURES}


def _ratio(pair: tuple[float, float]) -> float | None:
    return pair[0] / pair[1] if pair[1] else None
