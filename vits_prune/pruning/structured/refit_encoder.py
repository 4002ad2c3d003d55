"""The text encoder's share of the refit: the layers that end each residual branch, and what reads the encoder first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vits_prune.pruning.calibration import State, Step, token_states
from vits_prune.pruning.structured.least_squares import Fit
from vits_prune.voices.voice import Voice


def refit_encoder(
    original: Voice,
    smaller: Voice,
    kept: tuple[int, ...],
    sentences: Sequence[tuple[int, ...]],
    random: torch.Generator,
    tell: Step,
) -> None:
    """Fit in place: attention's and the feed-forward layer's last map, so that the stream behind each is the original's there, the last
    layer for all that went behind it; then the projection to the prior and the duration predictor's first convolution.

    Args:
        original: the voice before the cut.
        smaller: what the cut made of it.
        kept: the encoder layers that stay.
        sentences: ids of what is read.
        random: for what is sampled.
        tell: told how far it is.
    """
    states = [[state, dict(state)] for state in token_states(original.model, sentences)]
    layers, own = (
        original.model.text_encoder.encoder.layers,
        smaller.model.text_encoder.encoder.layers,
    )
    for new, old in enumerate(kept):
        tell(f"fitting encoder layer {new}", new / len(kept))
        until = kept[new + 1] if new + 1 < len(kept) else len(layers)
        if new and len(kept) < len(layers):  # what it is given is not what it was
            _fit_attention(layers[old], own[new], states, random)
        last = until - 1 if until == len(layers) else old
        for pair in states:
            pair[0] = _through(layers[old:last], pair[0])
        if last != old:
            own[new].final_layer_norm = layers[last].final_layer_norm
        _fit_feed_forward(layers[last], own[new], states, random)
        for pair in states:
            pair[:] = [_through(layers[last:until], pair[0]), _through([own[new]], pair[1])]
    _fit_readers(original, smaller, states, random)


def _through(layers: Sequence[nn.Module], state: State) -> State:
    for layer in layers:
        state = {**state, "hidden": _run(layer, state)}
    return state


def _fit_attention(
    theirs: nn.Module, mine: nn.Module, states: Sequence[Sequence[State]], random: torch.Generator
) -> None:
    fit = Fit(mine.attention.out_proj, random, len(states))
    for before, beside in states:
        wanted, seen = _traced(theirs, before), _traced(mine, beside)
        fit.add(
            seen["context"], wanted["given"] + wanted["attended"] - seen["given"], before["valid"]
        )
    fit.solve()


def _fit_feed_forward(
    theirs: nn.Module, mine: nn.Module, states: Sequence[Sequence[State]], random: torch.Generator
) -> None:
    fit = Fit(mine.feed_forward.conv_2, random, len(states))
    for before, beside in states:
        wanted, seen = _traced(theirs, before), _traced(mine, beside)
        fit.add(
            seen["inputs"],
            (wanted["stream"] + wanted["added"] - seen["stream"]).transpose(1, 2),
            before["valid"],
        )
    fit.solve()


def _fit_readers(
    original: Voice, smaller: Voice, states: Sequence[Sequence[State]], random: torch.Generator
) -> None:
    first = (
        "duration_predictor.conv_pre"
        if original.model.config.use_stochastic_duration_prediction
        else "duration_predictor.conv_1"
    )
    for name in ("text_encoder.project", first):
        theirs, mine = (voice.model.get_submodule(name) for voice in (original, smaller))
        fit = Fit(mine, random, len(states))
        for before, beside in states:
            given, inputs = (
                (state["hidden"] * state["padding_mask"]).transpose(1, 2)
                for state in (before, beside)
            )
            fit.add(inputs, theirs(given), before["valid"])
        fit.solve()


def _run(layer: nn.Module, state: State) -> torch.Tensor:
    return layer(
        state["hidden"], attention_mask=state["attention_mask"], padding_mask=state["padding_mask"]
    )[0]


def _traced(layer: nn.Module, state: State) -> dict[str, torch.Tensor]:
    """What passes through a layer: what it is "given", the attention's "context" and what it adds ("attended"), the "stream" behind it, the
    "inputs" of the second convolution and what that one adds ("added")."""
    seen: dict[str, torch.Tensor] = {"given": state["hidden"]}
    feed, attention = layer.feed_forward, layer.attention
    hooks = (
        attention.out_proj.register_forward_hook(
            lambda _module, given, output: seen.update(context=given[0], attended=output)
        ),
        feed.register_forward_hook(
            lambda _module, given, output: seen.update(stream=given[0], added=output)
        ),
        feed.conv_2.register_forward_pre_hook(lambda _module, given: seen.update(inputs=given[0])),
    )
    try:
        _run(layer, state)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
