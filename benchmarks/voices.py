"""Make further real voices of joe, as folders that `load_voice` reads.

    python benchmarks/voices.py hugging-face DIR

joe is a Piper voice. `hugging-face` writes it as a plain checkpoint of transformers, ResBlock1 in
its decoder. Equal ids, noise and durations give joe's waveform within 2e-5. Its text front end is
transformers' own: the same phonemes and blanks, without the marks ^ and $ that Piper puts around
a sentence. Its identity kernels add zeros, 4% of all weights, that pruning finds first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel

from vits_prune import Voice, load_voice

READING = {
    **{"add_blank": True, "phonemize": True, "normalize": True, "language": "en-us"},
    **{"pad_token": "_", "unk_token": "<unk>", "tokenizer_class": "VitsTokenizer"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("hugging-face",))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_hugging_face(load_voice("joe"), options.folder)
    print(f"Written to {options.folder}.")


def write_hugging_face(voice: Voice, folder: Path) -> None:
    """Write a Piper voice with ResBlock2 and English phonemes as transformers' own kind."""
    given = voice.model.config
    names = (field.name for field in dataclasses.fields(VitsConfig) if field.init)
    with torch.random.fork_rng(devices=[]):  # what never runs keeps these first weights
        torch.manual_seed(0)
        model = VitsModel(VitsConfig(**{name: getattr(given, name) for name in names}))
    with torch.no_grad():
        for name, tensor in _as_resblock1(voice.model):
            where, _, kind = name.rpartition(".")
            module = model.get_submodule(where)
            if parametrize.is_parametrized(module, kind):
                setattr(module, kind, tensor.detach())  # becomes weight norm's pair
            else:
                getattr(module, kind).copy_(tensor)
    model.save_pretrained(folder)
    vocabulary = {symbol: ids[0] for symbol, ids in voice.tokenizer.symbols.items()}
    for file, values in {"vocab.json": vocabulary, "tokenizer_config.json": READING}.items():
        text = json.dumps(values, ensure_ascii=False, indent=1)
        (folder / file).write_text(f"{text}\n", encoding="utf-8")
    card = f"---\nlicense: {voice.origin.licence}\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _as_resblock1(model: VitsModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights by name, each convolution of a ResBlock2 as the two of a ResBlock1.

    With f for the leaky ReLU, x + conv(f(x)) is x + conv2(f(conv1(f(x)))) if conv1 adds so much
    that f passes everything on, and conv2, an identity, takes it away again. To add the number of
    channels is enough: joe's values are above -71, -18 and -5 where there are 128, 64 and 32.
    """
    for name, tensor in model.named_parameters():
        first, second = (name.replace(".convs.", f".convs{i}.") for i in (1, 2))
        if first == name or not name.startswith("decoder.resblocks."):
            yield name, tensor
        elif name.endswith(".bias"):
            yield first, tensor + len(tensor)
            yield second, torch.full_like(tensor, -len(tensor))
        else:
            yield first, tensor
            yield second, nn.init.dirac_(torch.empty_like(tensor))


if __name__ == "__main__":
    main()
