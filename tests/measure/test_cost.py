"""What is timed and counted; never how long it took. Energy from a made-up counter."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vits_prune import InputError, PruneSpec, measure_latency, prune, speak
from vits_prune.kernels import packed_bytes
from vits_prune.measure import Spread, cost, measure_size
from vits_prune.measure.cost import EnergyMeter, count_macs
from vits_prune.progress import Cancelled, Progress
from vits_prune.synthesis.speak import STAGES, Delivery

TEXT = "the birch canoe slid"


def test_runs_take_turns_and_the_first_alternates(tiny, monkeypatch):
    pruned, spoken = prune(tiny, PruneSpec()), []
    real = cost.speak_sentences

    def watched(voice, text, seed, *, timing, **options):
        spoken.append(
            (
                "pruned" if voice.recipe else "original",
                timing if timing == "own" else "locked",
                options["always_predict"],
            )
        )
        return real(voice, text, seed, timing=timing, **options)

    monkeypatch.setattr(cost, "speak_sentences", watched)
    shown = []
    progress = Progress(lambda *report: shown.append(report))
    found = measure_latency(tiny, pruned, TEXT, runs=3, progress=progress)
    one, two = ("original", "own", True), ("pruned", "locked", True)
    assert spoken == [one, two, one, two, two, one, one, two]
    assert shown == [(f"run {run + 1} of 3", run / 3) for run in range(3)]
    assert found.runs == 3


def test_what_is_reported(tiny):
    found = measure_latency(
        tiny, prune(tiny, PruneSpec(scope="local", amount=0.9)), TEXT, 3, runs=3
    )
    assert found.threads == torch.get_num_threads()
    assert found.device == "cpu"
    assert (
        found.original.audio_seconds
        == found.pruned.audio_seconds
        == speak(tiny, TEXT, 3).audio_seconds
    )
    for voice in (found.original, found.pruned):
        assert tuple(voice.stage_seconds) == (*STAGES, "total")
        for spread in (*voice.stage_seconds.values(), voice.real_time_factor):
            assert 0 < spread.low <= spread.median <= spread.high
        assert voice.real_time_factor.high == pytest.approx(
            voice.stage_seconds["total"].high / voice.audio_seconds
        )
    assert found.speed_up.low <= found.speed_up.median <= found.speed_up.high
    assert found.original.stage_seconds["total"].low / found.pruned.stage_seconds[
        "total"
    ].high <= found.speed_up.low * (1 + 1e-9)


def test_the_first_sound_is_that_of_the_first_sentence(tiny):
    text = "Hi. " + 6 * "The birch canoe slid on the smooth planks. "
    found = measure_latency(tiny, prune(tiny, PruneSpec()), text, runs=3)
    for voice in (found.original, found.pruned):
        first, total = voice.first_sound_seconds, voice.stage_seconds["total"]
        assert 0 < first.low <= first.median <= first.high < total.low


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells the peak")
def test_peak_memory_is_what_is_held_and_what_speaking_takes(tiny, monkeypatch):
    held = measure_size(tiny).memory_bytes
    found = measure_latency(tiny, tiny, TEXT, runs=1)
    assert held <= found.original.peak_memory_bytes < held + (100 << 20)
    packing = measure_latency(tiny, tiny, TEXT, runs=1, kernels="sparse").pruned
    assert packing.peak_memory_bytes >= held + packed_bytes(tiny) > held
    monkeypatch.setattr(cost, "peak_growth", lambda work: None)
    assert measure_latency(tiny, tiny, TEXT, runs=1).original.peak_memory_bytes is None


def test_delivery_is_used(tiny):
    delivery = Delivery(speaking_rate=2.0)
    found = measure_latency(tiny, tiny, TEXT, 3, delivery=delivery, runs=1)
    assert (
        found.original.audio_seconds
        == speak(tiny, TEXT, 3, delivery=Delivery(speaking_rate=2.0)).audio_seconds
    )
    assert found.original.audio_seconds < speak(tiny, TEXT, 3).audio_seconds


def test_timing_can_be_cancelled(tiny):
    with pytest.raises(Cancelled):
        measure_latency(tiny, tiny, TEXT, progress=Progress(cancelled=lambda: True))


@pytest.mark.parametrize(("text", "runs"), [("", 1), ("🙂", 1), (TEXT, 0), (TEXT, -1)])
def test_bad_input(tiny, text, runs):
    with pytest.raises(InputError):
        measure_latency(tiny, tiny, text, runs=runs)


def flops(voice, text):
    """Count as torch does: twice the multiply-accumulates of convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter:
        speak(voice, text, kernels="dense")
    counts = {
        str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()
    }
    assert set(counts) <= {"aten.convolution", "aten.addmm", "aten.mm", "aten.bmm"}
    return sum(
        count for operator, count in counts.items() if operator != "aten.bmm"
    )  # bmm: attention's products of activations


def test_multiply_accumulates_are_those_that_torch_counts(joe, tiny):
    for voice, text in ((joe, "Go."), (tiny, TEXT)):
        _, (dense, nonzero) = count_macs(voice, text)
        assert 2 * dense == flops(voice, text) > 0
        assert 0.99 * dense < nonzero <= dense


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("decoder.conv_pre", "frames"),
        ("text_encoder.encoder.layers.0.attention.q_proj", "tokens"),
        ("decoder.upsampler.0", "frames"),
    ],
)
def test_a_zero_weight_saves_what_it_would_have_cost(tiny, name, positions):
    weight = tiny.model.get_submodule(name).weight
    some = weight.clone()
    some.view(-1)[:7] = 0
    speech, (dense, nonzero) = count_macs(tiny, TEXT)
    times = {"frames": int(speech.durations.sum()), "tokens": len(speech.tokens)}[positions]
    _, (same, fewer) = count_macs(tiny.with_weights({f"{name}.weight": some}), TEXT, timing=speech)
    assert same == dense
    assert nonzero - fewer == times * 7
    _, (_, none) = count_macs(
        tiny.with_weights({f"{name}.weight": torch.zeros_like(weight)}), TEXT, timing=speech
    )
    assert nonzero - none == times * int((weight != 0).sum())


def test_counting_leaves_no_hooks(tiny):
    count_macs(tiny, TEXT)
    assert not any(module._forward_hooks for module in tiny.model.modules())


def test_spread():
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)


def test_energy_of_every_package_and_a_counter_that_starts_again(tmp_path):
    def package(name, title, micro, limit=1_000_000_000):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(title + "\n")
        (folder / "energy_uj").write_text(f"{micro}\n")
        (folder / "max_energy_range_uj").write_text(f"{limit}\n")

    package("intel-rapl:0", "package-0", 5_000_000)
    package("intel-rapl:0:0", "core", 0)
    package("intel-rapl:1", "package-1", 999_000_000)
    package("intel-rapl:2", "psys", 0)
    meter = EnergyMeter("cpu", tmp_path)
    package("intel-rapl:0", "package-0", 7_000_000)
    package("intel-rapl:0:0", "core", 100_000_000)
    package("intel-rapl:1", "package-1", 1_999_999)
    package("intel-rapl:2", "psys", 100_000_000)
    found = meter.read()
    assert found.joules == pytest.approx(2.0 + 3.0)
    assert found.method.startswith("RAPL")
    meter.restart()
    assert meter.read().joules == 0.0


def test_no_counter_is_said_and_nothing_made_up(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0")
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("1000")
    for folder in (tmp_path, tmp_path / "nowhere"):
        found = EnergyMeter("cpu", folder).read()
        assert found.joules is None
        assert "no energy counter" in found.method
