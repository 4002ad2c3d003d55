"""Make further real voices of joe, as folders that `load_voice` reads.

    python benchmarks/voices.py hugging-face DIR
    python benchmarks/voices.py two-speakers DIR [--steps 300]

joe is a Piper voice. `hugging-face` writes it as a plain checkpoint of transformers, ResBlock1 in
its decoder. Equal ids, noise and durations give joe's waveform within 2e-5. Its text front end is
transformers' own: the same phonemes and blanks, without the marks ^ and $ that Piper puts around
a sentence. Its identity kernels add zeros, 4% of all weights, that pruning finds first.

`two-speakers` adds speakers to joe, whose conditioning starts at zero, and trains flow and decoder
on joe resampled to 0.9 and 1.12 times its pitch and formants, at its own rhythm. On a folder that
holds such a voice, training goes on. 300 steps took seven minutes on one thread. They teach the
formants, not the pitch, and leave the sound rough: on five sentences the speakers' likeness is 0.65
to each other and 0.87 to themselves, CER 0.09 both, Distill-MOS 1.9 and 2.1 (joe 4.1).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel

from vits_prune import Voice, load_voice, save_voice
from vits_prune.healing.batches import Window
from vits_prune.healing.losses import SpectralLoss, level_loss
from vits_prune.healing.teacher import training_texts
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.inference import draw_prior_noise, encode, predict_durations
from vits_prune.synthesis.speak import Delivery
from vits_prune.voices.architecture import empty_model

READING = {
    **{"add_blank": True, "phonemize": True, "normalize": True, "language": "en-us"},
    **{"pad_token": "_", "unk_token": "<unk>", "tokenizer_class": "VitsTokenizer"},
}
PITCHES = {"low": 0.9, "high": 1.12}
"""Of the two speakers, times joe's."""
SEGMENT, BATCH, SENTENCES = 64, 4, 40
"""Frames of a segment, segments of a step, sentences that are learnt from."""
MOST_FRAMES = 600
FLOW_CONTEXT = 16
RATES = {"new": 3e-3, "old": 4e-4}
"""Learning rates of the layers that joe lacks, and of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("hugging-face", "two-speakers"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    joe = load_voice("joe")
    if options.kind == "hugging-face":
        write_hugging_face(joe, options.folder)
    else:
        voice = load_voice(options.folder) if options.folder.exists() else with_speakers(joe)
        save_voice(train_speakers(voice, joe, options.steps), options.folder)
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


def with_speakers(voice: Voice) -> Voice:
    """Return a voice whose two new speakers both speak as it does."""
    config = copy.deepcopy(voice.model.config)
    config.num_speakers = config.speaker_embedding_size = len(PITCHES)
    model, known = empty_model(config), voice.model.state_dict()
    weights = {name: torch.zeros(one.shape) for name, one in model.state_dict().items()}
    weights |= {**known, "embed_speaker.weight": torch.eye(len(PITCHES))}
    model.load_state_dict({name: one.clone() for name, one in weights.items()}, assign=True)
    model.requires_grad_(False).eval()
    return dataclasses.replace(
        voice, model=model, name=f"{voice.name}-two", speaker=0, speakers=tuple(PITCHES)
    )


def train_speakers(voice: Voice, teacher: Voice, steps: int) -> Voice:
    """Return a voice of `with_speakers` whose flow and decoder learnt to sound like two people."""
    model = copy.deepcopy(voice.model)
    learnt: dict[str, list[nn.Parameter]] = {"new": [], "old": []}
    for name, one in model.named_parameters():
        if name.startswith(("flow.", "decoder.")):
            learnt["new" if ".cond" in name else "old"].append(one.requires_grad_(True))
    parameters = [*learnt["new"], *learnt["old"]]
    groups = [{"params": learnt[kind], "lr": RATES[kind]} for kind in learnt]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    spectral = SpectralLoss(voice.sampling_rate, SEGMENT * voice.hop_length)
    sentences = sentence_ids(teacher, training_texts(teacher, None, SENTENCES, 0))
    lesson = functools.cache(lambda number, pitch: _lesson(teacher, sentences, number, pitch))
    random, edge = np.random.default_rng(0), Window.of(voice, SEGMENT).decoder
    for step in range(steps):
        pairs = []
        for speaker in np.arange(BATCH) % len(PITCHES):
            pitch = tuple(PITCHES.values())[speaker]
            prior, wanted = lesson(int(random.integers(len(sentences))), pitch)
            start = int(random.integers(max(1, prior.shape[1] - SEGMENT + 1)))
            conditioning = model.embed_speaker(torch.tensor([speaker])).unsqueeze(-1)
            spoken = _speak_segment(model, prior, start, edge, conditioning)
            hop = voice.hop_length
            pairs.append((spoken, _cut(wanted[None], start * hop, SEGMENT * hop)))
        spoken, wanted = (torch.cat(waveforms) for waveforms in zip(*pairs, strict=True))
        losses = spectral(spoken, wanted) | {"level": level_loss(spoken, wanted)}
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        cosine.step()
        if step % 20 == 0:
            print(step, {name: round(loss.item(), 3) for name, loss in losses.items()}, flush=True)
    return dataclasses.replace(voice, model=model.requires_grad_(False))


@torch.no_grad()
def _lesson(
    teacher: Voice, sentences: list[tuple[int, ...]], number: int, pitch: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sample of the prior [flow_size, frames] and the waveform that it is to become.

    The teacher speaks 1 / pitch times as fast, each token ending where it should, and is then
    resampled to the length of the prior.
    """
    ids, key, scales = sentences[number], (0, number), Delivery().for_voice(teacher)
    hidden, means, log_variances = encode(teacher, ids)
    durations, _ = predict_durations(teacher, hidden, None, key, scales, MOST_FRAMES)
    frames = int(durations.sum())
    noise = draw_prior_noise(key, frames, means.shape[2])[0]

    def sample(lengths: np.ndarray, at: np.ndarray) -> torch.Tensor:
        repeats = torch.from_numpy(lengths)
        mean, deviation = (one[0].repeat_interleave(repeats, 0).T for one in (means, log_variances))
        return mean + noise[:, at] * torch.exp(deviation) * scales.noise_scale

    ends = np.round(np.cumsum(durations) * pitch).astype(np.int64)
    at = np.minimum(np.arange(ends[-1]) / pitch, frames - 1).astype(np.int64)
    theirs = sample(np.diff(ends, prepend=0), at)[None]
    latents = teacher.model.flow(theirs, torch.ones_like(theirs[:, :1]), None, reverse=True)
    fast = teacher.model.decoder(latents, None)[0, 0].numpy()
    shifted = resample(fast, frames * teacher.hop_length).astype(np.float32)
    return sample(durations, np.arange(frames)), torch.from_numpy(shifted)


def _speak_segment(
    model: VitsModel, prior: torch.Tensor, start: int, edge: int, conditioning: torch.Tensor
) -> torch.Tensor:
    """Return the waveform of SEGMENT frames, [1, samples], spoken with context around them."""
    reach = edge + FLOW_CONTEXT
    inputs, mask = (
        _cut(one, start - reach, SEGMENT + 2 * reach)[None]
        for one in (prior, torch.ones_like(prior[:1]))
    )
    latents = model.flow(inputs, mask, conditioning, reverse=True)
    spoken = model.decoder(latents[..., FLOW_CONTEXT:-FLOW_CONTEXT], conditioning)[:, 0]
    samples = edge * spoken.shape[1] // (SEGMENT + 2 * edge)
    return spoken[:, samples:-samples]


def _cut(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Return columns of [rows, columns], zeros outside of it."""
    return pad(tensor, (-start, start + length - tensor.shape[1]))


if __name__ == "__main__":
    main()
