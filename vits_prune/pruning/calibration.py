"""Calibration: what the layers of a voice are given while it speaks, as covariances. The voice speaks by itself: no data set is needed.

The text encoder reads all sentences, some of them are spoken through the flow, and the decoder sees short stretches of those: about what
SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, section 3) does with sentences of a corpus. Nothing here depends on torch's random
state; the same voice, texts, seed and number of threads give the same numbers to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.matrix import LayerMatrix, OverlapSums, overlap
from vits_prune.synthesis.speak import Delivery, read_text
from vits_prune.synthesis.stages import (
    draw_prior_noise,
    encode,
    log_durations,
    predict_durations,
    speaker_embedding,
)
from vits_prune.voices.voice import PARTS, Voice, copy_with_weights

READ_TOKENS = 8_192
"""Tokens that the text encoder reads, about; of more sentences every second, third and so on is read (joe: twice as many are no better)."""
SPOKEN = 16
"""Sentences that are spoken: the flow sees them whole."""
SEGMENT = 40
"""Frames of each of them that the decoder sees."""
MAX_FRAMES = 1_500
"""Longest sentence that is spoken, in frames."""
BATCH_TOKENS = 4_096
WINDOWS = (3_000, 16_000)
"""Fewest and most windows of a layer that are looked at, where there are so many; eight a column between the two."""
MAX_COLUMNS = 12_288
"""Inputs of a layer whose covariance is still held: 600 MB."""
BLOCK_BYTES = 1 << 30
"""Covariances of one block that are gathered at a time; a block with more is run several times."""

State = dict[str, Any]
Run = Callable[[nn.Module, State], State]
Step = Callable[[str, float], None]


@dataclass(eq=False)
class Statistics:
    """What a layer is given: sums over windows x, with a constant 1 appended where the layer has a bias."""

    matrix: LayerMatrix
    covariance: torch.Tensor | None
    """Sum of x xᵀ, float32 [columns, columns]; None where only the energies were asked for or can be had."""
    energy: torch.Tensor
    """Sum of x², float32 [columns]; for a grouped or depthwise convolution [channels a group], over all groups."""
    windows: int = 0

    def add(self, found: torch.Tensor) -> None:
        """Count in windows, [windows, columns]."""
        self.energy += found.square().sum(0)
        if self.covariance is not None:
            self.covariance.addmm_(found.T, found)
        self.windows += len(found)

    def add_overlaps(self, sums: OverlapSums) -> None:
        """Count in a convolution's windows, summed already."""
        columns, energy = self.matrix.shape[1], sums.energy()
        self.windows += sums.windows
        self.energy[:columns] += energy
        self.energy[columns:] += sums.windows
        if self.covariance is None:
            return
        self.covariance[:columns, :columns] += sums.covariance()
        if len(self.energy) > columns:
            self.covariance[:columns, columns] += sums.sums()
            self.covariance[columns, :columns] += sums.sums()
            self.covariance[columns, columns] += sums.windows


@dataclass(frozen=True)
class Block:
    """A piece of the network that runs as one, and how."""

    name: str
    """Beginning of its layers' names."""
    run: Run
    """(model, state before) -> state behind."""
    beside: tuple[str, ...] = ()
    """Names of layers that run with it and begin otherwise."""

    def holds(self, layer: str) -> bool:
        """Whether a layer, by its name, runs in this block."""
        return layer in (self.name, *self.beside) or layer.startswith(f"{self.name}.")


def portion(progress: Step | None, start: float, end: float) -> Step | None:
    """An progress for a piece of the work: its 0 to 1 are `start` to `end` of the whole."""
    return progress and (lambda what, share: progress(what, start + (end - start) * share))


def collect(
    voice: Voice,
    layers: Sequence[Layer],
    texts: Sequence[str],
    seed: int,
    *,
    covariances: bool = True,
    progress: Step | None = None,
) -> Iterator[tuple[Layer, Statistics]]:
    """The statistics of layers, block by block in the order in which they run; a block's are held only until it has been yielded.

    Args:
        voice: who speaks.
        layers: which to look at.
        texts: what is spoken.
        seed: of the noise and of what is sampled.
        covariances: whether whole covariances are wanted, or energies alone.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts, a covariance does not fit, or a layer is given what is no number.
    """
    tell = progress or (lambda _what, _share: None)
    voice = voice.with_weights(
        {}
    )  # hooks go on a copy: another thread may be speaking with this voice
    if covariances:
        _check_memory(voice, layers)
    # Each layer has draws of its own, so that it does not matter which others are listened to.
    random = {
        layer.name: torch.Generator().manual_seed(seed + (zlib.crc32(layer.name.encode()) << 32))
        for layer in layers
    }
    done = 0
    last = max((PARTS.index(layer.part) for layer in layers), default=-1)
    for visit in _visits(voice, (voice.model,), texts, seed, last):
        mine = [layer for layer in layers if visit.block.holds(layer.name)]
        tell(f"listening to {visit.block.name}", done / max(1, len(layers)))
        for some in _fitting(voice, mine) if covariances else ([mine] if mine else []):
            listeners = {
                layer.name: _Listener(
                    voice.model.get_submodule(layer.name), covariances, random[layer.name]
                )
                for layer in some
            }
            ahead = []
            for (state,) in visit.states:
                with inputs_of(voice.model, some) as inputs:
                    ahead.append([visit.block.run(voice.model, state)])
                for name, listener in listeners.items():
                    listener.hear(inputs[name], state.get("valid"), len(visit.states))
            visit.ahead = ahead
            for layer in some:
                statistics = listeners.pop(layer.name).statistics()
                if not bool(torch.isfinite(statistics.energy).all()):
                    raise InputError(
                        f"{layer.name} of {voice.name} is given what is no finite number when it speaks: the voice is broken."
                    )
                yield layer, statistics
                done += 1
    tell("calibrated", 1.0)


def walk(
    voice: Voice, models: Sequence[nn.Module], texts: Sequence[str], seed: int, last: int = 3
) -> Iterator[tuple[Block, list[list[State]]]]:
    """Visit the blocks in the order in which they run, with what each model hands them. Each sentence has one noise and one set of
    durations, the voice's own, for all models.

    Args:
        voice: whose sentences, noise and durations.
        models: the voice's own model, or versions of it; they may be changed in place while their block is visited.
        texts: what is spoken.
        seed: of the noise and of the stretches that the decoder sees.
        last: index in PARTS of the last part to visit.

    Yields:
        (block, batches), each batch a list of states, one a model.

    Raises:
        InputError: the voice can say nothing of the texts.
    """
    for visit in _visits(voice, models, texts, seed, last):
        yield visit.block, visit.states


@dataclass(eq=False)
class _Visit:
    """A block whose turn it is."""

    block: Block
    states: list[list[State]]
    ahead: list[list[State]] | None = None
    """What comes behind it, where a visitor has run it already."""


def _visits(
    voice: Voice, models: Sequence[nn.Module], texts: Sequence[str], seed: int, last: int
) -> Iterator[_Visit]:
    """See `walk`."""
    for blocks, batches in _parts(voice, models, texts, seed, last):
        for block in blocks:
            visit = _Visit(block, batches)
            yield visit
            for index, states in enumerate(batches):
                states[:] = (
                    visit.ahead[index]
                    if visit.ahead
                    else [block.run(m, state) for m, state in zip(models, states, strict=True)]
                )


def _fitting(voice: Voice, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """A block's layers in turns whose covariances fit into BLOCK_BYTES together, each at least one layer."""
    some, size = [], 0
    for layer in layers:
        mine = 4 * LayerMatrix(voice.model.get_submodule(layer.name)).shape[1] ** 2
        if some and size + mine > BLOCK_BYTES:
            yield some
            some, size = [], 0
        some.append(layer)
        size += mine
    if some:
        yield some


def sentence_ids(voice: Voice, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of every sentence of the texts; texts of which the voice can say nothing are passed over.

    Raises:
        InputError: it can say nothing of any.
    """
    found, refused = [], None
    for text in texts:
        try:
            found += [sentence.ids for sentence in read_text(voice, text)[0]]
        except InputError as error:
            refused = refused or error
    if not found:
        raise refused or InputError(
            "There are no texts to calibrate on: give some, or leave them out for built-in ones."
        )
    return found


def _check_memory(voice: Voice, layers: Sequence[Layer]) -> None:
    for layer in layers:
        matrix = LayerMatrix(voice.model.get_submodule(layer.name))
        columns = matrix.shape[1]
        if matrix.dense and columns > MAX_COLUMNS:
            raise InputError(
                f"{layer.name} of {voice.name} has {columns:,} inputs, whose covariance would take {4 * columns**2 / 1e9:.1f} GB: "
                "protect it, or prune by activation, which needs none."
            )


@contextlib.contextmanager
def inputs_of(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, torch.Tensor]]:
    """Layer name -> what it was given last."""
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(
            lambda _module, given, name=layer.name: inputs.__setitem__(
                name, given[0].clone()
            )  # a clone: some blocks add in place
        )
        for layer in layers
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


class _Listener:
    """Adds up what one layer is given."""

    def __init__(self, module: nn.Module, covariances: bool, random: torch.Generator) -> None:
        self._matrix, self._random = LayerMatrix(module), random
        matrix = self._matrix
        columns = (
            matrix.shape[1] + (module.bias is not None)
            if matrix.dense
            else module.in_channels // module.groups
        )
        covariance = torch.zeros(columns, columns) if covariances and matrix.dense else None
        self._found = Statistics(matrix, covariance, torch.zeros(columns))
        self._overlaps: OverlapSums | None = None

    def hear(self, inputs: torch.Tensor, valid: torch.Tensor | None, batches: int) -> None:
        """Count in a sample of the layer's windows, or all where they are few."""
        matrix, module = self._matrix, self._matrix.module
        if not matrix.dense:  # one energy an input channel of a group, over all groups
            return self._found.add(
                inputs.transpose(1, 2).reshape(-1, inputs.shape[1] // module.groups)
            )
        usable = matrix.usable(inputs, valid)
        most = max(1, int(np.clip(8 * matrix.shape[1], *WINDOWS)) // batches)
        if int(usable.sum()) <= most and overlap(matrix, inputs):
            self._overlaps = self._overlaps or OverlapSums(
                module, self._found.covariance is not None
            )
            return self._overlaps.add(inputs, usable)
        places = usable.nonzero()
        if len(places) > most:
            places = places[torch.randperm(len(places), generator=self._random)[:most]]
        found = matrix.windows(inputs, places[:, 0], places[:, 1])
        return self._found.add(
            torch.cat([found, torch.ones(len(found), 1)], 1) if module.bias is not None else found
        )

    def statistics(self) -> Statistics:
        """What was heard, all told."""
        if self._overlaps is not None:
            self._found.add_overlaps(self._overlaps)
            self._overlaps = None
        return self._found


def _parts(
    voice: Voice, models: Sequence[nn.Module], texts: Sequence[str], seed: int, last: int
) -> Iterator[tuple[Iterator[Block], list[list[State]]]]:
    """Blocks and batches of states of each part up to the last that is wanted, each made when the one before is done."""
    sentences = sentence_ids(voice, texts)
    if last < 0:
        return
    some = sentences[:: max(1, round(sum(map(len, sentences)) / READ_TOKENS))]
    read = [list(token_states(model, some)) for model in models]
    yield _encoder_blocks(voice.model), [list(states) for states in zip(*read, strict=True)]
    if last < 1:
        return
    spoken = _spoken(voice, models, sentences, seed)
    yield (
        iter((Block("duration_predictor", _run_durations(voice)),)),
        [list(states) for states in spoken],
    )
    if last < 2:
        return
    frames = [[stretched(state, voice) for state in states] for states in spoken]
    yield flow_blocks(voice.model), frames
    if last < 3:
        return
    places = np.random.default_rng(seed)
    yield (
        decoder_blocks(voice.model),
        [stretch_of(states, int(places.integers(1 << 30))) for states in frames],
    )


def token_states(model: nn.Module, sentences: Sequence[tuple[int, ...]]) -> Iterator[State]:
    """What the first layer of the text encoder is given, in batches of sentences of about one length."""
    model = copy_with_weights(
        model, {}
    )  # for the hook of _encoder_call: another thread may be speaking
    ordered = sorted(sentences, key=len)
    while ordered:
        longest = len(ordered[-1])
        batch = [ordered.pop() for _ in range(min(len(ordered), max(1, BATCH_TOKENS // longest)))]
        ids, mask = (
            torch.zeros(len(batch), longest, dtype=torch.long),
            torch.zeros(len(batch), longest),
        )
        for row, sentence in enumerate(batch):
            ids[row, : len(sentence)] = torch.tensor(sentence)
            mask[row, : len(sentence)] = 1
        yield {
            "hidden": model.text_encoder.embed_tokens(ids),
            "valid": mask.bool(),
            **_encoder_call(model, ids, mask),
        }


class _Reached(Exception):
    """The layer looked for was called."""


def _encoder_call(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> State:
    """What transformers hands the first encoder layer: hidden states and both masks."""
    found: State = {}

    def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.update(
            hidden=given[0],
            attention_mask=named["attention_mask"],
            padding_mask=named["padding_mask"],
        )
        raise _Reached

    hook = model.text_encoder.encoder.layers[0].register_forward_pre_hook(take, with_kwargs=True)
    with contextlib.suppress(_Reached), _removing(hook):
        model.text_encoder(
            input_ids=ids, padding_mask=mask[..., None], attention_mask=mask, return_dict=True
        )
    return found


@contextlib.contextmanager
def _removing(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def _encoder_blocks(model: nn.Module) -> Iterator[Block]:
    def layer(index: int) -> Run:
        def run(model: nn.Module, state: State) -> State:
            masks = {name: state[name] for name in ("attention_mask", "padding_mask")}
            return {
                **state,
                "hidden": model.text_encoder.encoder.layers[index](state["hidden"], **masks)[0],
            }

        return run

    def project(model: nn.Module, state: State) -> State:
        model.text_encoder.project((state["hidden"] * state["padding_mask"]).transpose(1, 2))
        return state

    for index in range(len(model.text_encoder.encoder.layers)):
        yield Block(f"text_encoder.encoder.layers.{index}", layer(index))
    yield Block("text_encoder.project", project)


def _spoken(
    voice: Voice, models: Sequence[nn.Module], sentences: Sequence[tuple[int, ...]], seed: int
) -> list[list[State]]:
    """Sentences as each model's text encoder reads them, with the voice's own durations."""
    conditioning, found = speaker_embedding(voice), []
    for index, ids in enumerate(sentences[:: max(1, len(sentences) // SPOKEN)][:SPOKEN]):
        key, states = (seed, index), []
        own = encode(voice, ids)
        durations = _durations(voice, own[0], key)
        for model in models:
            hidden, means, log_variances = (
                own
                if model is voice.model
                else encode(dataclasses.replace(voice, model=model), ids)
            )
            states.append(
                {
                    "hidden": hidden,
                    "means": means,
                    "log_variances": log_variances,
                    "durations": durations,
                    "key": key,
                }
            )
            states[-1]["conditioning"] = conditioning
        found.append(states)
    return found


def own_durations(voice: Voice, ids: tuple[int, ...], key: tuple[int, int]) -> np.ndarray:
    """Frames of each token as the voice itself says them, int64 [tokens], MAX_FRAMES together at most.

    Raises:
        InputError: its text encoder or its duration predictor makes what is no number.
    """
    return _durations(voice, encode(voice, ids)[0], key)


def _durations(voice: Voice, hidden: torch.Tensor, key: tuple[int, int]) -> np.ndarray:
    """See `own_durations`; hidden: what the text encoder made of the tokens."""
    pace = Delivery().for_voice(voice)
    broken = InputError(
        f"{voice.name} makes what is no finite number when it reads: the voice is broken, load it anew."
    )
    if not bool(torch.isfinite(hidden).all()):
        raise broken
    try:
        return predict_durations(voice, hidden, speaker_embedding(voice), key, pace, MAX_FRAMES)[0]
    except (
        ValueError
    ) as error:  # the spline of a stochastic predictor does not take what is no number
        raise broken from error


def _run_durations(voice: Voice) -> Run:
    pace = Delivery().for_voice(voice)

    def run(model: nn.Module, state: State) -> State:
        log_durations(model, state["hidden"], state["conditioning"], state["key"], pace)
        return state

    return run


def stretched(state: State, voice: Voice) -> State:
    """The prior of a sentence stretched to its durations and sampled: what the flow is given."""
    repeats = torch.from_numpy(state["durations"])
    means, deviations = (
        state[name][0].repeat_interleave(repeats, dim=0).T[None]
        for name in ("means", "log_variances")
    )
    noise = draw_prior_noise(state["key"], means.shape[2], means.shape[1]).to(means)
    latents = means + noise * torch.exp(deviations) * Delivery().for_voice(voice).noise_scale
    return {
        "latents": latents,
        "mask": torch.ones(1, 1, latents.shape[2]),
        "conditioning": state["conditioning"],
    }


def flow_blocks(model: nn.Module) -> Iterator[Block]:
    """The flow's coupling layers, as they run when it speaks; states: latents, mask, conditioning."""

    def coupling(index: int) -> Run:
        def run(model: nn.Module, state: State) -> State:
            flipped = torch.flip(state["latents"], [1])
            return {
                **state,
                "latents": model.flow.flows[index](
                    flipped, state["mask"], state["conditioning"], reverse=True
                )[0],
            }

        return run

    for index in reversed(range(len(model.flow.flows))):
        yield Block(f"flow.flows.{index}", coupling(index))


def stretch_of(states: Sequence[State], place: int, length: int = SEGMENT) -> list[State]:
    """The same few frames of each; `place` is any whole number, taken modulo the places there are."""
    frames = states[0]["latents"].shape[2]
    start = place % max(1, frames - length + 1)
    return [
        {
            "hidden": one["latents"][:, :, start : start + length],
            "conditioning": one["conditioning"],
        }
        for one in states
    ]


def decoder_blocks(model: nn.Module) -> Iterator[Block]:
    """The decoder's layers and residual branches up to its last convolution; states: hidden, conditioning, and a stage's sum."""
    slope, branches = model.config.leaky_relu_slope, model.decoder.num_kernels

    def first(model: nn.Module, state: State) -> State:
        hidden = model.decoder.conv_pre(state["hidden"])
        if state["conditioning"] is not None:
            hidden = hidden + model.decoder.cond(state["conditioning"])
        return {**state, "hidden": hidden}

    def upsample(stage: int) -> Run:
        def run(model: nn.Module, state: State) -> State:
            hidden = model.decoder.upsampler[stage](
                nn.functional.leaky_relu(state["hidden"], slope)
            )
            return {**state, "hidden": hidden, "sum": torch.zeros_like(hidden)}

        return run

    def branch(stage: int, index: int) -> Run:
        def run(model: nn.Module, state: State) -> State:
            total = state["sum"] + model.decoder.resblocks[stage * branches + index](
                state["hidden"]
            )
            return (
                {**state, "sum": total}
                if index < branches - 1
                else {**state, "hidden": total / branches, "sum": None}
            )

        return run

    def final(model: nn.Module, state: State) -> State:
        return {
            **state,
            "hidden": model.decoder.conv_post(nn.functional.leaky_relu(state["hidden"])),
        }

    yield Block("decoder.conv_pre", first, ("decoder.cond",))
    for stage in range(model.decoder.num_upsamples):
        yield Block(f"decoder.upsampler.{stage}", upsample(stage))
        for index in range(branches):
            yield Block(f"decoder.resblocks.{stage * branches + index}", branch(stage, index))
    yield Block("decoder.conv_post", final)
