"""Second-order pruning of joe, calibration included, against a straightforward SparseGPT.

    python benchmarks/second_order.py [--runs 3] [--amount 0.75]

Ours: `prune(voice, PruneSpec(method="second_order", ...))` with empty caches: 120 sentences through
the text encoder, some of them spoken, covariances, ADMM, refitting. Rival: twelve sentences spoken
with hooks that unfold each layer's input and add up its covariance at every position, then
SparseGPT's loop over the columns (Frantar & Alistarh 2023, algorithm 1), layer by layer. Both prune
the same layers to the same amount, two threads, in turn, in one process. Last, what each did to the
text encoder and the sound, on sentences that neither was calibrated on: the relative error of the
prior's means, and the log-mel distance with the original's durations.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import describe, in_turn
from torch import nn

from vits_prune import PruneSpec, Voice, load_voice, prune, speak
from vits_prune.measure.closeness import log_mel
from vits_prune.pruning.calibration import kept_statistics
from vits_prune.pruning.layers import Layer, chosen_layers
from vits_prune.pruning.scores import zeros_wanted
from vits_prune.synthesis.inference import encode
from vits_prune.synthesis.speak import read_text
from vits_prune.synthesis.texts import load_calibration_texts, load_texts

SENTENCES, BLOCK, DAMPING = 12, 128, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--amount", type=float, default=0.75)
    options = parser.parse_args()
    torch.set_num_threads(2)
    voice = load_voice("joe")
    spec = PruneSpec(method="second_order", scope="local", amount=options.amount)
    layers = chosen_layers(voice, spec)
    share = zeros_wanted(voice, spec, layers) / sum(layer.weights for layer in layers)
    made: dict[str, Voice] = {}

    def ours(_run: int) -> None:
        kept_statistics.clear()
        made["ours"] = prune(voice, spec)

    def rival(_run: int) -> None:
        made["straightforward"] = straightforward(voice, layers, share)

    timed = in_turn(ours, rival, options.runs)
    for name, seconds in zip(("ours", "straightforward"), zip(*timed, strict=True), strict=True):
        print(f"{name}: {describe(list(seconds))} s")
    print(f"straightforward / ours: {describe([theirs / mine for mine, theirs in timed])}")
    for name, pruned in made.items():
        print(
            f"{name}: "
            + ", ".join(f"{what} {value:.3f}" for what, value in damage(voice, pruned).items())
        )


def straightforward(voice: Voice, layers: tuple[Layer, ...], share: float) -> Voice:
    """Covariances of everything at every position, then one pass over the columns of each layer."""
    covariances: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def listen(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            found = unfolded(module, given[0])
            covariances[name] = covariances.get(name, 0) + found.T @ found / len(found) / SENTENCES

        return listen

    hooks = [
        voice.model.get_submodule(layer.name).register_forward_pre_hook(hook(layer.name))
        for layer in layers
    ]
    for text in load_calibration_texts()[:SENTENCES]:
        speak(voice, text)
    for one in hooks:
        one.remove()
    return voice.with_weights({
        layer.parameter: sparse_gpt(
            voice.model.get_submodule(layer.name), covariances[layer.name], share
        )
        for layer in layers
    })  # fmt: skip


def unfolded(module: nn.Module, given: torch.Tensor) -> torch.Tensor:
    """Every window of a layer's input, [positions, columns]."""
    if isinstance(module, nn.Linear):
        return given.reshape(-1, given.shape[-1])
    if isinstance(module, nn.ConvTranspose1d):
        taps = module.kernel_size[0] // module.stride[0]
        padded = nn.functional.pad(given, (taps - 1, taps - 1))
        return (
            padded.unfold(2, taps, 1).flip(3).permute(0, 2, 1, 3).reshape(-1, given.shape[1] * taps)
        )
    kernel, dilation, padding = (
        (1, one[0]) for one in (module.kernel_size, module.dilation, module.padding)
    )
    windows = nn.functional.unfold(
        given[:, :, None], kernel, dilation=dilation, padding=(0, padding[1])
    )
    return windows.transpose(1, 2).reshape(-1, windows.shape[1])


def sparse_gpt(module: nn.Module, covariance: torch.Tensor, share: float) -> torch.Tensor:
    """The weight with a share of zeros, what each zero costs passed on to the columns after it."""
    transposed = isinstance(module, nn.ConvTranspose1d)
    weight = module.weight.detach()
    if transposed:
        inputs, outputs, taps = weight.shape
        stride = module.stride[0]
        weight = weight.reshape(inputs, outputs, taps // stride, stride).permute(1, 3, 0, 2)
    table = weight.reshape(-1, covariance.shape[0]).clone()
    covariance = covariance.clone()
    covariance.diagonal().add_(DAMPING * covariance.diagonal().mean())
    upper = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(covariance)), upper=True
    )
    for first in range(0, table.shape[1], BLOCK):
        last = min(first + BLOCK, table.shape[1])
        piece, errors, inside = (
            table[:, first:last].clone(),
            torch.zeros(len(table), last - first),
            upper[first:last, first:last],
        )
        saliency = (piece / inside.diagonal()).square()
        goes = (
            saliency <= saliency.flatten().kthvalue(max(1, round(share * saliency.numel()))).values
        )
        for column in range(last - first):
            kept = piece[:, column].masked_fill(goes[:, column], 0.0)
            errors[:, column] = (piece[:, column] - kept) / inside[column, column]
            piece[:, column:] -= errors[:, column : column + 1] * inside[column, column:]
            piece[:, column] = kept
        table[:, first:last] = piece
        table[:, last:] -= errors @ upper[first:last, last:]
    if transposed:
        return (
            table.reshape(outputs, stride, inputs, taps // stride)
            .permute(2, 0, 3, 1)
            .reshape(inputs, outputs, taps)
            .contiguous()
        )
    return table.reshape(module.weight.shape)


def damage(voice: Voice, pruned: Voice) -> dict[str, float]:
    """On ten tuning sentences."""
    means, mels = [], []
    for text in load_texts(10, "tuning"):
        ids = read_text(voice, text)[0][0].ids
        (_, before, _), (_, after, _) = encode(voice, ids), encode(pruned, ids)
        means.append(float((after - before).square().sum() / before.square().sum()))
        original = speak(voice, text)
        aligned = speak(pruned, text, timing=original)
        mels.append(
            float(
                np.abs(
                    log_mel(original.waveform, voice.sampling_rate)
                    - log_mel(aligned.waveform, voice.sampling_rate)
                ).mean()
            )
        )
    return {
        "relative error of the prior means": float(np.mean(means)),
        "log-mel distance": float(np.mean(mels)),
    }


if __name__ == "__main__":
    main()
