"""Time of a new amount with sorted magnitudes, against torch.nn.utils.prune.global_unstructured.

    python benchmarks/reprune.py [--runs 10]

The model is VitsModel(VitsConfig()), 36 M parameters with random weights, after the free cut. Both
get the same amounts, in turn, in one process. torch prunes an unpruned model each time, since it
stacks masks on a pruned one; ours makes a whole voice.
"""

from __future__ import annotations

import argparse
import time

import torch
from timing import describe, in_turn, milliseconds
from torch.nn.utils import prune as torch_prune
from transformers import VitsConfig, VitsModel

from vits_prune import PruneSpec, Voice, prune
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.scores import sorted_magnitudes
from vits_prune.voices.architecture import fold_and_cut
from vits_prune.voices.voice import Origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    torch.manual_seed(0)
    model = VitsModel(VitsConfig())
    parameters = sum(p.numel() for p in model.parameters())
    cut = fold_and_cut(model)
    voice = Voice(model, None, 16_000, "default", Origin("hugging-face", "default"), free_cut=cut)
    start = time.perf_counter()
    sorted_magnitudes(voice)
    sort_seconds = time.perf_counter() - start
    amounts = [0.2 + 0.6 * run / runs for run in range(runs + 1)]
    copies = [
        voice.with_weights({k: p.clone() for k, p in model.named_parameters()}).model
        for _ in range(2)
    ]

    def torchs_way(run: int) -> None:
        fresh = copies[run % 2]
        chosen = [(fresh.get_submodule(layer.name), "weight") for layer in prunable_layers(voice)]
        torch_prune.global_unstructured(chosen, torch_prune.L1Unstructured, amount=amounts[run])
        for module, name in chosen:  # back to an unpruned model, for the next run
            original = module.weight_orig
            torch_prune.remove(module, name)
            module.weight = original

    timed = in_turn(lambda run: prune(voice, PruneSpec(amount=amounts[run])), torchs_way, runs)
    ours, theirs = zip(*timed, strict=True)
    print(
        f"{parameters / 1e6:.1f} M weights, {voice_weights(voice) / 1e6:.1f} M prunable, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"sort once: {sort_seconds:.2f} s; a new amount: {milliseconds(ours)}, "
        f"torch.nn.utils.prune: {milliseconds(theirs)}"
    )
    print(f"times faster: {describe([b / a for a, b in timed])}")


def voice_weights(voice: Voice) -> int:
    return sum(layer.weights for layer in prunable_layers(voice))


if __name__ == "__main__":
    main()
