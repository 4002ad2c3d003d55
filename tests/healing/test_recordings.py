"""Recordings of a visitor: both layouts, what can be wrong with them, and pairs to learn from."""

from __future__ import annotations

import dataclasses
import json
import os
import re

import numpy as np
import pytest
import soundfile
import torch

from tests.voices.hf_factory import make_checkpoint
from vits_prune import load_voice
from vits_prune.errors import InputError
from vits_prune.healing import recording_files, recordings
from vits_prune.healing.posterior import draw_latents, load_posterior, posterior_statistics
from vits_prune.healing.recordings import (
    RecordedPairs,
    Recording,
    Recordings,
    load_recording,
    open_recordings,
    read_recordings,
)
from vits_prune.progress import Progress

RATE = 16_000


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("teachers") / "teacher", spectrogram_bins=33)


@pytest.fixture(scope="module")
def voice(teacher):
    return load_voice(teacher)


@pytest.fixture(scope="module")
def posterior(teacher):
    return load_posterior(teacher)


def _tone(seconds=1.0, rate=RATE, frequency=440.0, level=0.25):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def _write(path, samples=None, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _tone(rate=rate) if samples is None else samples, rate, **options)
    return path


def _ljspeech(folder, names, *, place="wavs/"):
    for name in names:
        _write(folder / f"{place}{name}.wav")
    (folder / "metadata.csv").write_text(
        "".join(f"{name}|Text of {name}.\n" for name in names), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize("place", ["wavs/", ""])
def test_ljspeech_layout(tmp_path, voice, place):
    folder = _ljspeech(tmp_path, ["a", "b", "c"], place=place)
    (folder / "metadata.csv").write_text(
        '\ufeffa|Mr. "X" said|Mister "X" said\r\nb|as it is|\r\n\r\nc|only, once\r\n',
        encoding="utf-8",
    )
    found = read_recordings(folder, voice)
    assert [clip.text for clip in found.usable] == ['Mister "X" said', "as it is", "only, once"]
    assert [clip.path.name for clip in found.usable] == ["a.wav", "b.wav", "c.wav"]
    assert found.seconds == pytest.approx(3.0)
    assert found.skipped == ()


@pytest.mark.parametrize("column", ["transcription", "text", "sentence"])
def test_hugging_face_audio_folder_as_csv(tmp_path, voice, column):
    _write(tmp_path / "data" / "one.wav")
    _write(tmp_path / "two.flac")
    (tmp_path / "metadata.csv").write_text(
        f'speaker,file_name,{column}\n3,data/one.wav,"Yes, one"\n3,two.flac,Two\n', encoding="utf-8"
    )
    found = read_recordings(tmp_path, voice)
    assert [(clip.path.name, clip.text) for clip in found.usable] == [
        ("one.wav", "Yes, one"),
        ("two.flac", "Two"),
    ]


def test_hugging_face_audio_folder_as_jsonl(tmp_path, voice):
    _write(tmp_path / "one.wav")
    lines = [
        json.dumps({"file_name": "one.wav", "transcription": "Eins \ud800"}),
        "{broken",
        "[1]",
        json.dumps({"file_name": "one.wav"}),
    ]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(lines) + "\n" + "[" * 100_000, encoding="utf-8"
    )
    found = read_recordings(tmp_path, voice)
    assert [clip.text for clip in found.usable] == ["Eins ?"]
    assert [skipped.name for skipped in found.skipped] == [
        f"line {number} of metadata.jsonl" for number in (2, 3, 4, 5)
    ]


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flac_cut(folder):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE * 2).astype(np.float32)
    _cut(_write(folder / "bad.flac", noise))


def _not_a_number(folder):
    samples = _tone()
    samples[100] = np.nan
    _write(folder / "bad.wav", samples, subtype="FLOAT")


def _link_out(folder):
    outside = _write(folder.parent / "outside" / "secret.wav")
    (folder / "bad.wav").symlink_to(outside)


def _circle(folder):
    (folder / "bad.wav").symlink_to(folder / "bad.wav")


def _huge(folder):
    _write(folder / "bad.wav")
    os.truncate(folder / "bad.wav", recording_files.MAX_FILE_BYTES + 1)  # sparse on disk


def _endless_chunks(folder):
    (folder / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + b"JUNK\0\0\0\0" * 100_000)


BROKEN = {
    "missing": (lambda folder: None, "no such file"),
    "empty": (lambda folder: (folder / "bad.wav").touch(), "empty"),
    "no audio": (
        lambda folder: (folder / "bad.wav").write_text("hello " * 100),
        "not an audio file",
    ),
    "raw": (
        lambda folder: (folder / "bad.raw").write_bytes(bytes(64_000)),
        "no such file|not an audio file",
    ),
    "cut wav": (lambda folder: _cut(_write(folder / "bad.wav")), "truncated"),
    "cut flac": (_flac_cut, "truncated|damaged"),
    "header only": (
        lambda folder: (folder / "bad.wav").write_bytes(
            _write(folder / "bad.wav").read_bytes()[:44]
        ),
        "truncated",
    ),
    "chunks": (_endless_chunks, "truncated"),
    "nan": (_not_a_number, "not numbers"),
    "beyond": (
        lambda folder: _write(folder / "bad.wav", _tone(level=3e4), subtype="FLOAT"),
        "full scale",
    ),
    "silent": (lambda folder: _write(folder / "bad.wav", _tone(level=1e-3)), "silent"),
    "opposed": (
        lambda folder: _write(folder / "bad.wav", np.stack([_tone(), -_tone()], 1)),
        "silent",
    ),
    "short": (lambda folder: _write(folder / "bad.wav", _tone(0.4)), "0.40 seconds"),
    "long": (lambda folder: _write(folder / "bad.wav", _tone(2.1)), "longer than 2 seconds"),
    "low rate": (
        lambda folder: _write(folder / "bad.wav", rate=8_000),
        "8,000 samples a second and the voice 16,000",
    ),
    "high rate": (
        lambda folder: _write(folder / "bad.wav", _tone(0.1, 400_000), 400_000),
        "more than 192,000",
    ),
    "channels": (
        lambda folder: _write(folder / "bad.wav", np.repeat(_tone()[:, None], 9, 1)),
        "9 channels",
    ),
    "huge": (_huge, "64 MiB"),
    "folder": (lambda folder: (folder / "bad.wav").mkdir(), "no such file"),
    "pipe": (lambda folder: os.mkfifo(folder / "bad.wav"), "no such file"),
    "link out": (_link_out, "outside the folder"),
    "circle": (_circle, "not a path|no such file"),
}


def test_broken_audio_is_skipped_and_listed(tmp_path, voice, monkeypatch):
    monkeypatch.setattr(recordings, "LONGEST_SECONDS", 2.0)
    for kind, (make, reason) in BROKEN.items():
        folder = _ljspeech(tmp_path / kind / "mine", ["good"], place="")
        make(folder)
        (folder / "metadata.csv").write_text("bad|broken\ngood|whole\n", encoding="utf-8")
        found = read_recordings(folder, voice)
        assert [one.path.name for one in found.usable] == ["good.wav"]
        (skipped,) = found.skipped
        assert skipped.name == "bad"
        assert re.search(reason, skipped.reason), (kind, skipped.reason)
        assert skipped.reason.endswith(".")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../outside/secret|x", "outside the folder"),
        ("/etc/passwd|x", "outside the folder"),
        ("|x", "no such file"),
        ("good|x", "named twice"),
        ("./good|x", "named twice"),
        ("n" * 5000 + "|x", "not a path|no such file"),
        ("no bar", "no [|]"),
        ("other|", "no text"),
        ("other|" + "x" * 5001, "5,000 characters"),
        ("\x1b[31m|x", "no such file"),
    ],
)
def test_a_broken_row_is_skipped_and_listed(tmp_path, voice, row, reason):
    _write(tmp_path / "outside" / "secret.wav")
    folder = _ljspeech(tmp_path / "mine", ["good", "other"])
    (folder / "metadata.csv").write_text(f"good|whole\n{row}\n", encoding="utf-8")
    found = read_recordings(folder, voice)
    assert [clip.path.name for clip in found.usable] == ["good.wav"]
    assert re.search(reason, found.skipped[0].reason), found.skipped[0].reason
    assert len(found.skipped[0].name) <= 100
    assert found.skipped[0].name.isprintable()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "known layout"),
        (b"hello\n", "known layout"),
        (b"file_name,speaker\na.wav,1\n", "no column of texts"),
        (b"file_name,text\n" + b"x" * 200_000 + b",y\n", "cannot be read as CSV"),
        (b"\xff\xfea|b", "begins as utf-16 but is not"),
        (b"a|b\0c\n", "not a text file"),
        (b"missing|x\n", "No recording.*missing: There is no such file"),
        (b"file_name,text\n", "transcript is empty"),
    ],
)
def test_a_folder_without_anything_usable_is_refused(tmp_path, voice, content, sentence):
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_recordings(tmp_path, voice)


def test_folders_without_transcripts_and_bounds(tmp_path, voice, monkeypatch):
    with pytest.raises(InputError, match="There is no folder"):
        read_recordings(tmp_path / "nowhere", voice)
    with pytest.raises(InputError, match="has no transcript"):
        read_recordings(tmp_path, voice)
    folder = _ljspeech(tmp_path, ["a", "b", "c"])
    monkeypatch.setattr(recording_files, "MAX_LINES", 2)
    with pytest.raises(InputError, match="more than 2 lines"):
        read_recordings(folder, voice)
    monkeypatch.setattr(recording_files, "MAX_TRANSCRIPT_BYTES", 20)
    with pytest.raises(InputError, match="larger than"):
        read_recordings(folder, voice)


def test_the_limit_and_the_progress(tmp_path, voice, monkeypatch):
    monkeypatch.setattr(recordings, "LIMIT", 2)
    folder = _ljspeech(tmp_path, ["a", "b", "c", "d"])
    (folder / "wavs" / "a.wav").unlink()
    told = []
    progress = Progress(lambda message, fraction: told.append((message, fraction)))
    found = read_recordings(folder, voice, progress=progress)
    assert [clip.path.stem for clip in found.usable] == ["b", "c"]
    assert [one.name for one in found.skipped] == ["a", "1 more"]
    assert told == [(f"reading recording {i + 1} of 4", i / 4) for i in range(4)]

    def cancel(message, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_recordings(folder, voice, progress=Progress(cancel))


@pytest.mark.parametrize(
    ("suffix", "options"), [("wav", {"subtype": "PCM_24"}), ("flac", {}), ("ogg", {}), ("mp3", {})]
)
def test_every_usual_format_is_read(tmp_path, voice, suffix, options):
    _write(tmp_path / f"a.{suffix}", **options)
    (tmp_path / "metadata.csv").write_text("a|x\n", encoding="utf-8")
    found = read_recordings(tmp_path, voice)
    assert found.seconds == pytest.approx(1.0, abs=0.1)


def test_channels_are_averaged_resampled_and_keep_their_level(tmp_path):
    stereo = np.stack([_tone(rate=48_000, level=0.4), _tone(rate=48_000, level=0.2)], 1)
    path = _write(tmp_path / "a.wav", stereo, 48_000, subtype="FLOAT")
    samples = load_recording(Recording(path, "x", 1.0, ""), RATE)
    assert samples.dtype == np.float32
    assert len(samples) == RATE
    np.testing.assert_allclose(samples[1000:-1000], _tone(level=0.3)[1000:-1000], atol=1e-3)


def test_a_stream_of_unknown_length_is_read(tmp_path, voice):
    """Programs that write into a pipe leave the sizes in the header at 2**32 - 1."""
    path = _write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(bytes(content))
    (tmp_path / "metadata.csv").write_text("a|x\n", encoding="utf-8")
    assert read_recordings(tmp_path, voice).seconds == pytest.approx(1.0)


@pytest.fixture
def three(tmp_path, voice):
    folder = tmp_path / "mine"
    for index, name in enumerate("abc"):
        _write(
            folder / "wavs" / f"{name}.wav", _tone(0.6 + 0.1 * index, frequency=200 * (index + 1))
        )
    (folder / "metadata.csv").write_text("a|x\nb|x\nc|x\n", encoding="utf-8")
    return read_recordings(folder, voice)


def test_pairs_belong_together_and_repeat(three, voice, posterior):
    drawn = list(RecordedPairs(three, posterior, voice, seed=4))
    assert [waveform.shape for _, waveform in drawn] == [(9600,), (11200,), (12800,)]
    for index, (latents, waveform) in enumerate(drawn):
        assert latents.shape == (voice.model.config.flow_size, len(waveform) // voice.hop_length)
        assert latents.dtype == waveform.dtype == torch.float32
        torch.testing.assert_close(
            latents, draw_latents(*posterior_statistics(posterior, waveform), (4, index, 0))[0]
        )
        np.testing.assert_array_equal(waveform.numpy(), load_recording(three.usable[index], RATE))
    again, other = (
        RecordedPairs(three, posterior, voice, seed=4),
        RecordedPairs(three, posterior, voice, seed=5),
    )
    assert torch.equal(again[-1][0], drawn[2][0])
    assert torch.equal(again[0][0], drawn[0][0])
    assert not torch.equal(other[0][0], drawn[0][0])
    assert len(again) == 3
    with pytest.raises(IndexError):
        again[3]


def test_pairs_have_a_name_for_what_they_are_made_of(three, voice, posterior, tmp_path):
    def _named(clips, seed=0):
        return RecordedPairs(Recordings(tuple(clips)), posterior, voice, seed).digest

    first, *rest = three.usable
    same = _named(three.usable)
    samples, _ = soundfile.read(first.path)
    _write(first.path, samples)
    assert _named(read_recordings(tmp_path / "mine", voice).usable) == same
    _write(first.path, samples + 1e-3)  # as long as before
    louder = read_recordings(tmp_path / "mine", voice).usable
    assert [clip.seconds for clip in louder] == [clip.seconds for clip in three.usable]
    others = [
        louder,
        [first],
        [*rest, first],
        [dataclasses.replace(first, path=first.path.with_name("z.wav")), *rest],
    ]
    assert len({same, _named(three.usable, seed=1), *map(_named, others)}) == 6


def test_what_is_kept_is_bounded_and_nothing_is_read_before_it_is_asked_for(
    three, voice, posterior
):
    roomy, narrow = (
        RecordedPairs(three, posterior, voice),
        RecordedPairs(three, posterior, voice, cache_bytes=200_000),
    )
    expected = [roomy[index][0] for index in (0, 1, 2, 0)]
    found = [narrow[index][0] for index in (0, 1, 2, 0)]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    for clip in three.usable:
        clip.path.unlink()
    assert torch.equal(roomy[1][0], expected[1])
    with pytest.raises(InputError, match="was changed meanwhile"):
        narrow[1]


def test_the_waveform_is_what_lies_at_its_frame(tmp_path, voice, posterior):
    """A click in the recording is in the samples of the frame whose latents it changes."""
    silence = _tone(1.0, level=0.01)
    click = silence.copy()
    click[16 * 500 + 7] = 0.9
    drawn = []
    for name, samples in (("a", silence), ("b", click)):
        path = _write(tmp_path / f"{name}.wav", samples, subtype="FLOAT")
        drawn.append(
            RecordedPairs(Recordings((Recording(path, "x", 1.0, ""),)), posterior, voice)[0]
        )
    moved = (drawn[1][0] - drawn[0][0]).abs().sum(0)
    assert drawn[1][1].argmax() // voice.hop_length == 500
    assert (moved * torch.arange(len(moved))).sum() / moved.sum() == pytest.approx(500, abs=1.5)


def test_a_clip_shorter_than_the_window_is_filled_with_silence(tmp_path):
    """Half a second at a low rate, and a window of 16,384 samples."""
    folder = make_checkpoint(tmp_path / "slow", spectrogram_bins=8193, sampling_rate=4_000)
    slow = load_voice(folder)
    found = read_recordings(_ljspeech(tmp_path, ["a"]), slow)
    latents, waveform = RecordedPairs(found, load_posterior(folder), slow)[0]
    assert latents.shape[1] * slow.hop_length == len(waveform) == 16_384
    assert waveform[4_000:].abs().max() == 0


def test_a_teacher_without_posterior_encoder_is_refused_before_anything_is_read(
    tmp_path, teacher, voice, joe
):
    folder = _ljspeech(tmp_path, ["a"])
    found, posterior = open_recordings(folder, teacher, voice)
    assert len(found.usable) == 1
    assert posterior.name == "teacher"

    def fail(message, fraction):
        raise AssertionError("a recording was read")

    never = Progress(fail)
    with pytest.raises(
        InputError, match=r"^joe has no posterior encoder, without which recordings cannot be used"
    ):
        open_recordings(folder, "joe", joe, progress=never)
    with pytest.raises(InputError, match=r"samples a second and joe"):
        open_recordings(folder, teacher, joe, progress=never)
