"""A tiny random VITS checkpoint in transformers' layout, made at test time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import VitsConfig, VitsModel

LETTERS = "_ 'abcdefghijklmnopqrstuvwxyz-"
PHONEMES = "_;:,.!? abcdefhijklmnopqrstuvwxyzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒˈˌːθᵻ"

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "ffn_dim": 32,
    "flow_size": 16,
    "spectrogram_bins": 9,
    "upsample_initial_channel": 32,
    "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "duration_predictor_filter_channels": 16,
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 2,
    "sampling_rate": 16_000,
}


def make_checkpoint(
    folder: Path,
    *,
    speakers: int = 1,
    stochastic: bool = True,
    is_uroman: bool = False,
    phonemize: bool = False,
    normalize: bool = True,
    add_blank: bool = True,
    language: str = "eng",
    symbols: str | None = None,
    seed: int = 0,
    **config,
) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = symbols if symbols is not None else (PHONEMES if phonemize else LETTERS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VitsModel(
            VitsConfig(
                **{
                    **SMALL,
                    "vocab_size": len(symbols),
                    "num_speakers": speakers,
                    "speaker_embedding_size": 8 if speakers > 1 else 0,
                    "use_stochastic_duration_prediction": stochastic,
                    **config,
                }
            )
        )
    model.save_pretrained(folder)
    settings = {
        "add_blank": add_blank,
        "is_uroman": is_uroman,
        "language": language,
        "normalize": normalize,
        "pad_token": "_",
        "phonemize": phonemize,
        "tokenizer_class": "VitsTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "vocab.json").write_text(
        json.dumps({symbol: index for index, symbol in enumerate(symbols)}), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def edit_json(path: Path, **changes) -> None:
    """Change some keys of a JSON object in a file; a key whose value is `...` is removed."""
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(
        json.dumps({key: value for key, value in values.items() if value is not ...}),
        encoding="utf-8",
    )
