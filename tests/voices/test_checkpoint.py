"""Folders in transformers' layout: the samples of plain transformers; what is broken is refused."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsConfig, VitsModel, VitsTokenizer

from tests.nearly import nearly
from tests.voices.hf_factory import edit_json, make_checkpoint
from vits_prune.errors import InputError
from vits_prune.voices.architecture import read_config
from vits_prune.voices.checkpoint import load_checkpoint, read_licence
from vits_prune.voices.voice import Origin

ORIGIN = Origin("hugging-face", "tiny")
TEXT = "the birch canoe slid"


def load(folder, **options):
    return load_checkpoint(folder, name="tiny", origin=ORIGIN, **options)


def wave(model, ids, seed=5, **options):
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(ids, **options).waveform


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def rewrite(folder, change):
    """Pass the tensors of a folder through `change`, a function of the dict."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize(
    ("options", "speaker"),
    [
        ({}, None),
        ({"stochastic": False}, None),
        ({"speakers": 3}, 2),
        ({"speakers": 3, "stochastic": False}, 1),
    ],
    ids=["default", "plain-durations", "speakers", "speakers-plain-durations"],
)
def test_the_samples_of_plain_transformers(tmp_path, options, speaker):
    folder = make_checkpoint(tmp_path / "tiny", **options)
    voice = load(folder, speaker=speaker)
    plain = VitsModel.from_pretrained(folder).eval()
    ids = VitsTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    condition = {} if speaker is None else {"speaker_id": speaker}
    spoken = wave(voice.model, ids, **condition)
    torch.testing.assert_close(spoken, wave(plain, ids, **condition), rtol=0, atol=1e-5)
    assert not nearly(spoken, wave(plain, ids, seed=6, **condition))
    assert (voice.speaker, voice.speakers) == (speaker, () if speaker is None else ("0", "1", "2"))
    assert torch.equal(voice.tokenizer(TEXT, return_tensors="pt")["input_ids"], ids)
    before = sum(parameter.numel() for parameter in plain.parameters())
    after = sum(parameter.numel() for parameter in voice.model.parameters())
    assert voice.free_cut.parameters == before - after > 0
    assert voice.free_cut.bytes == 4 * voice.free_cut.parameters
    assert not any(
        parameter.is_meta or parameter.requires_grad for parameter in voice.model.parameters()
    )
    assert not any(
        "parametrizations" in name or "posterior" in name for name in voice.model.state_dict()
    )


def test_loading_draws_no_random_numbers(original):
    torch.manual_seed(1)
    load(original)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


def test_weights_do_not_follow_the_file(folder):
    voice = load(folder)
    before = {name: tensor.clone() for name, tensor in voice.model.named_parameters()}
    path = folder / "model.safetensors"
    with open(path, "r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start)
        file.write(b"\x40" * (path.stat().st_size - start))
    assert all(torch.equal(tensor, before[name]) for name, tensor in voice.model.named_parameters())


def test_older_names_of_weight_norm(original, folder):
    def older(tensors):
        names = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
        }
        renamed = {}
        for name, tensor in tensors.items():
            for new, old in names.items():
                name = name.replace(new, old)
            renamed[name] = tensor
        assert sum(name.endswith("weight_g") for name in renamed) > 3
        return renamed

    rewrite(folder, older)
    ids = torch.arange(1, 12).unsqueeze(0)
    assert nearly(wave(load(folder).model, ids), wave(load(original).model, ids))


def test_half_precision_loads_as_fp32(folder):
    rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    model = load(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    plain = VitsModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(1, 12).unsqueeze(0)
    torch.testing.assert_close(wave(model, ids), wave(plain, ids), rtol=0, atol=1e-5)


def test_what_never_runs_may_be_missing_and_strangers_may_be_there(original, folder):
    never = ("posterior_encoder.", "duration_predictor.post_", "duration_predictor.flows.1.")

    def cut(tensors):
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(never)}
        assert len(kept) < len(tensors)
        return {**kept, "discriminator.weight": torch.ones(3)}

    rewrite(folder, cut)
    ids = torch.arange(1, 12).unsqueeze(0)
    assert nearly(wave(load(folder).model, ids), wave(load(original).model, ids))


def test_an_adapter_and_custom_code_are_never_followed(folder, tmp_path):
    trap = tmp_path / "ran"
    code = f"open({str(trap)!r}, 'w')\n"
    (folder / "modeling_trap.py").write_text(code, encoding="utf-8")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "nobody/nothing", "peft_type": "LORA"})
    )
    edit_json(
        folder / "config.json",
        auto_map={"AutoModel": "modeling_trap.Model", "AutoConfig": "modeling_trap.Config"},
    )
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["modeling_trap.Tokenizer", None]},
    )
    voice = load(folder)
    assert next(voice.tokenizer.sentences("hi")).ids
    assert not trap.exists()
    assert not hasattr(voice.model.config, "auto_map")


def test_licence_of_the_readme(folder):
    assert load(folder).origin.licence is None
    (folder / "README.md").write_text(
        "---\ntags: [vits]\nlicense: 'cc-by-4.0'\n---\nlicense: not-this\n", encoding="utf-8"
    )
    assert load(folder).origin.licence == "cc-by-4.0"
    (folder / "README.md").write_text("license: mit\n", encoding="utf-8")
    assert load(folder).origin.licence is None


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license:\n- apache-2.0\n- cc-by-nc-4.0", "apache-2.0, cc-by-nc-4.0"),
        ("license: [mit, mit]", "mit"),
        ("license: 4.0", "4.0"),
        ("license:", None),
        ("license: [mit", None),
        ("license: cc-by-nc-4.0\nname: a: b", "cc-by-nc-4.0"),
        ("license: no", "no"),
        ("license: ~", None),
        ("license: other\nlicense_name: coqui-public-model-license", "coqui-public-model-license"),
        ("license: mit\nlicense_name: my-own", "mit"),
        (f"license: 0x{'f' * 4000}", "other"),
        (
            "a: &a {x: 1}\n"
            + "\n".join(
                f"{n}: &{n} {{<<: [{', '.join(['*' + p] * 10)}]}}" for p, n in pairwise("abcdefghi")
            ),
            None,
        ),
        ("[mit]", None),
        ("license: {a: b}", "other"),
        ("license: [a, b, c, d, e, f, g, h, i]", "other"),
        (f"license: {'long ' * 20}", "other"),
        ("license: &a [*a]", None),
        (f"license: {'[' * 5000}", None),
        ("license: !!python/object/apply:os.system [exit]", "exit"),
    ],
)
def test_what_a_readme_may_state(tmp_path, front, licence):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    assert read_licence(tmp_path / "README.md") == licence


HOSTILE_CONFIG = [
    ({"model_type": "bert"}, "is a bert checkpoint, not vits"),
    ({"model_type": ...}, "no stated kind"),
    ({"hidden_size": 10**9}, "hidden_size"),
    ({"hidden_size": "16"}, "hidden_size"),
    ({"hidden_size": 16.0}, "hidden_size"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"num_attention_heads": 3}, "multiple of num_attention_heads"),
    ({"flow_size": 15}, "even"),
    ({"vocab_size": 10**7}, "vocab_size"),
    ({"num_speakers": 10**8}, "num_speakers"),
    ({"num_speakers": 5}, "speaker_embedding_size"),
    ({"sampling_rate": 1}, "sampling_rate"),
    ({"upsample_rates": [4] * 9}, "upsample_rates"),
    ({"upsample_rates": [128, 64], "upsample_kernel_sizes": [128, 64]}, "4096"),
    ({"upsample_rates": [4, 0]}, "upsample_rates"),
    ({"upsample_rates": []}, "upsample_rates"),
    ({"upsample_rates": {"0": 4}}, "upsample_rates"),
    ({"upsample_kernel_sizes": [8]}, "transformers refuses"),
    ({"upsample_kernel_sizes": [2, 8]}, "smaller than its rate"),
    ({"upsample_initial_channel": 34}, "multiple of 4"),
    ({"resblock_dilation_sizes": [[1, 3]]}, "one entry for each"),
    ({"resblock_dilation_sizes": [[1, 10**6], [1, 3]]}, "resblock_dilation_sizes"),
    ({"resblock_dilation_sizes": 3}, "resblock_dilation_sizes"),
    ({"resblock_kernel_sizes": [4, 5]}, "odd"),
    ({"wavenet_dilation_rate": 8, "prior_encoder_num_wavenet_layers": 32}, "dilations"),
    ({"depth_separable_channels": 4}, "depth_separable_channels"),
    ({"speaking_rate": 0}, "speaking_rate"),
    ({"noise_scale": float("nan")}, "noise_scale"),
    ({"noise_scale": None}, "noise_scale"),
    ({"use_bias": "yes"}, "use_bias"),
    ({"hidden_act": "os.system"}, "hidden_act"),
    ({"hidden_act": ["relu"]}, "hidden_act"),
    ({"pad_token_id": 10**6}, "pad_token_id"),
    ({"vocab_size": "x", "pad_token_id": 1}, "vocab_size"),
    (
        {"hidden_size": 4096, "ffn_dim": 16_384, "num_hidden_layers": 64, "ffn_kernel_size": 31},
        "million parameters",
    ),
]


def test_hostile_configuration(folder):
    config = folder / "config.json"
    sound = config.read_text(encoding="utf-8")
    for changes, message in HOSTILE_CONFIG:
        config.write_text(sound, encoding="utf-8")
        edit_json(config, **changes)
        with pytest.raises(InputError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value), changes
        assert len(str(caught.value)) < 300, changes


@pytest.mark.parametrize("file", ["config.json", "vocab.json", "tokenizer_config.json"])
def test_hostile_json(folder, file):
    digits = '{"hidden_size": ' + "9" * 10_000 + "}"
    for text in ("", "{", "[]", "null", "[" * 200_000, digits, " " * (16 << 20), '"\\ud800"'):
        (folder / file).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=file.replace(".", r"\.")):
            load(folder)


def test_configuration_that_is_not_utf8(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="not JSON"):
        load(folder)


def test_whole_numbers_where_transformers_wants_fractions(folder):
    edit_json(folder / "config.json", noise_scale=1, noise_scale_duration=0, speaking_rate=1)
    config = read_config(folder, VitsConfig)
    assert (config.noise_scale, config.noise_scale_duration, config.speaking_rate) == (
        1.0,
        0.0,
        1.0,
    )


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "vocab.json", "tokenizer_config.json"]
)
def test_missing_file(folder, file):
    (folder / file).unlink()
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        load(folder)


def test_only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="save_pretrained"):
        load(folder)


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    truncated = [data[:keep] for keep in (0, 7, 100, len(data) // 2, -1)]
    garbage = [
        b"\xff" * 5000,
        b"<html>not found</html>" * 50,
        (2**62).to_bytes(8, "little") + b"{}",
    ]
    for damaged in truncated + garbage:
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged weights"):
            load(folder)


@pytest.mark.parametrize(
    "key", ["text_encoder.embed_tokens.weight", "duration_predictor.flows.2.conv_pre.weight"]
)
def test_missing_mismatched_and_broken_tensors(folder, key):
    rewrite(
        folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}
    )
    with pytest.raises(InputError, match=f"lacks the weights {key}"):
        load(folder)
    rewrite(folder, lambda tensors: {**tensors, key: torch.zeros(2, 3)})
    with pytest.raises(InputError, match="do not fit"):
        load(folder)
    shape = VitsModel(read_config(folder, VitsConfig)).state_dict()[key].shape
    rewrite(folder, lambda tensors: {**tensors, key: torch.zeros(shape, dtype=torch.int32)})
    with pytest.raises(InputError, match=r"stores .* as I32"):
        load(folder)
    for bad in (float("nan"), float("inf")):
        rewrite(folder, lambda tensors, bad=bad: {**tensors, key: torch.full(shape, bad)})
        with pytest.raises(InputError, match=f"{key} contains NaN or infinity"):
            load(folder)


def test_hostile_index(folder):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = ("../../etc/passwd", "/etc/x.safetensors", "x.bin", 3)
    many = {str(i): f"{i}.safetensors" for i in range(65)}
    for weight_map in ({}, [], *({"a": shard} for shard in shards), many):
        index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
            load(folder)


def test_missing_shard(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part.safetensors"}}), encoding="utf-8"
    )
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    assert load(folder).name == "tiny"
    (folder / "part.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks part\.safetensors"):
        load(folder)
