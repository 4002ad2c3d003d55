"""The signature of a figure: all that it depends on besides the voices.

Two figures with the same signature can be compared. With different ones they are refused, because a
change of texts, seeds or predictors would read as a change of the voice. The idea is sacrebleu's
(Post 2018, arXiv:1804.08771).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence

from vits_prune.errors import InputError
from vits_prune.measure import predictors
from vits_prune.measure.quality import CONFIDENCE, RESAMPLES
from vits_prune.measure.utterances import Listener
from vits_prune.synthesis.speak import Delivery


def signature_of(
    texts: Sequence[str], seeds: Sequence[int], delivery: Delivery, listener: Listener
) -> str:
    """Return name:value pairs, joined by |, in a fixed order; `seeds` are all of the original."""
    recogniser, families = listener.recogniser, listener.families
    found = {
        "texts": f"{len(texts)}.{_digest(list(texts))}",
        "seeds": "+".join(map(str, seeds)),
        "delivery": _digest(dataclasses.asdict(delivery)),
    }
    if "intelligibility" in families:
        model = f"{recogniser.model}.{recogniser.compute_type}.beam{recogniser.beam_size}"
        found["recogniser"] = f"{model}.{listener.language}"
        found["faster-whisper"] = _version("faster-whisper")
    if "swift-f0" in listener.predictors:
        found["swift-f0"] = _version("swift-f0")
    found |= predictors.versions(families)
    found["bootstrap"] = f"{RESAMPLES}.{CONFIDENCE:g}"
    found["vits_prune"] = _version("vits_prune")
    return "|".join(f"{name}:{str(value).replace('|', '/')}" for name, value in found.items())


def check_comparable(first: str, second: str) -> None:
    """Raise InputError if figures of two signatures cannot be compared, with what differs."""
    one, two = _parsed(first), _parsed(second)
    differ = [
        f"{name} ({one.get(name, 'none')} and {two.get(name, 'none')})"
        for name in {**one, **two}
        if one.get(name) != two.get(name)
    ]
    if differ:
        raise InputError(f"These figures cannot be compared, they differ in {', '.join(differ)}.")


def _parsed(signature: str) -> dict[str, str]:
    pairs = (pair.partition(":") for pair in signature.split("|"))
    return {name: value for name, _, value in pairs}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"
