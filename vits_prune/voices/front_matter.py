"""The YAML block at the head of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One figure for the hub's table of evaluation results."""

    metric: str
    """The hub's id of the metric, such as "cer"."""
    title: str
    value: float
    texts: str
    """What was spoken, in words."""
    texts_id: str
    """The same as an identifier."""


def front_matter(values: Mapping[str, Any], name: str = "", results: Sequence[Result] = ()) -> str:
    """The block with both its lines of dashes. Whatever the values hold stays within its value.

    Args:
        values: the hub's keys (license, base_model, tags, ...); None and empty ones are left out.
        name: of the model, for the results.
        results: of an evaluation.
    """
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type="text-to-speech", dataset_type=one.texts_id, dataset_name=one.texts,
            metric_type=one.metric, metric_name=one.title, metric_value=one.value,
        )
        for one in results
    ]  # fmt: skip
    given = {key: value for key, value in values.items() if value not in (None, "", [], ())}
    card = ModelCardData(**given, **({"eval_results": found, "model_name": name} if found else {}))
    return f"---\n{card.to_yaml()}\n---\n"
