"""prune: a Voice and a PruneSpec become another Voice."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def prune(voice: Voice, spec: PruneSpec) -> Voice:
    """A pruned copy of a voice. The voice given stays as it is; tensors that were not pruned are shared.

    Args:
        voice: what to prune.
        spec: which parts, how much, by which method.

    Raises:
        InputError: `spec` is not a PruneSpec (its own fields were checked when it was made).
    """
    if not isinstance(spec, PruneSpec):
        raise InputError("prune takes a PruneSpec: PruneSpec(scope='global', amount=0.3).")
    method = importlib.import_module(METHODS[spec.method])
    steps = [*voice.recipe.get("pruned", ()), spec.to_dict()]
    return voice.with_weights(method.prune_weights(voice, spec), recipe=MappingProxyType({**voice.recipe, "pruned": steps}))
