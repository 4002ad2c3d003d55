"""The command heal."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch

from tests.healing.conftest import TEXTS, same_weights
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.cli.heal_command import TrainingLog, how_to_resume, typed_judge, warn_of_measuring
from vits_prune.cli.main import main, make_parser
from vits_prune.cli.terminal import ProgressLine
from vits_prune.errors import InputError
from vits_prune.healing import HealPlan, TrainingStep
from vits_prune.measure.quality import METRICS, Figure, Interval
from vits_prune.study.judge import Judgement
from vits_prune.study.knee import usual_limits

RATE = 16_000

QUICK = ["--lessons", 6, "--batch", 1, "--segment", 8, "--evaluations", 0]
STEPS = ["--steps", 4, "--checkpoint-every", 2]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A voice with plain durations, which cost a tenth of stochastic ones."""
    return make_checkpoint(tmp_path_factory.mktemp("voice") / "tiny", stochastic=False)


@pytest.fixture(scope="module")
def pruned_folder(plain_folder, tmp_path_factory):
    pruned = prune(load_voice(plain_folder), PruneSpec(amount=0.5))
    return save_voice(pruned, tmp_path_factory.mktemp("pruned") / "sparse")


@pytest.fixture(scope="module")
def same(plain_folder, pruned_folder, sentences):
    """What is typed for the tiny voice and its pruned one."""
    return ["--voice", plain_folder, "--pruned", pruned_folder, "--texts", sentences]


@pytest.fixture(scope="module")
def healed(same, tmp_path_factory):
    """The folder with `healed`, `healed-healing` and what was printed, of one run."""
    place, printed = tmp_path_factory.mktemp("healed"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run(*same, *STEPS, "--out", place / "healed") == 0
    (place / "printed.txt").write_text(printed.getvalue())
    return place


def run(*arguments):
    return main(["heal", *map(str, (*QUICK, *arguments))])


def curve_of(work):
    with (work / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_healed_voice_with_its_course(healed):
    assert "healed in 4 steps on 6 sentences" in (healed / "printed.txt").read_text()
    assert load_voice(healed / "healed").recipe["healed"][0]["of"] == 4
    rows = curve_of(healed / "healed-healing")
    assert [row["step"] for row in rows] == ["4"]
    assert float(rows[0]["total"]) > 0
    assert (healed / "healed-healing" / "curve.svg").read_text().startswith("<?xml")


def test_ctrl_c_keeps_what_was_learnt_and_resume_goes_on(
    same, healed, tmp_path, capsys, monkeypatch
):
    def press(log, made):
        if made.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return observe(log, made)

    observe, out = TrainingLog.observe, tmp_path / "part"
    monkeypatch.setattr(TrainingLog, "observe", press)
    assert run(*same, *STEPS, "--out", out) == 130
    assert "--resume" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(TrainingLog, "observe", observe)
    assert run(*same, *STEPS, "--out", out, "--resume") == 0
    assert same_weights(load_voice(healed / "healed"), load_voice(out)) == []
    steps = [int(row["step"]) for row in curve_of(tmp_path / "part-healing")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4


def test_pruned_in_steps_and_healed_behind_each(plain_folder, sentences, tmp_path, capsys):
    out, given = tmp_path / "healed", ["--voice", plain_folder, "--texts", sentences]
    assert run(*given, "--amount", 0.6, "--prune-steps", 2, "--steps", 3, "--out", out) == 0
    assert len(load_voice(out).recipe["healed"]) == 2
    assert "Step 2: amount 0.6" in capsys.readouterr().out


BAD = [
    ([], "nothing to heal"),
    (["--pruned", "DIR", "--amount", "0.5"], "pruned already"),
    (["--pruned", "DIR", "--steps", "3", "--minutes", "3"], "give one of them"),
    (["--pruned", "DIR", "--steps", "0"], "steps must be"),
    (["--pruned", "DIR", "--steps", "3", "--resume"], "nothing to resume"),
    (["--pruned", "DIR", "--steps", "3", "--texts", "missing.txt"], "cannot be read"),
    (["--pruned", "DIR", "--steps", "3", "--precision", "fp4"], "choose one of no, bf16"),
    (["--amount", "0.5", "--steps", "3", "--recordings", "."], "goes with --pruned"),
    (["--pruned", "DIR", "--steps", "3", "--recordings", "nowhere"], "There is no folder"),
    (["--pruned", "ITSELF", "--steps", "3"], "nothing to heal"),
    (["--pruned", "DIR", "--method", "second_order"], "leave out --method"),
    (["--pruned", "DIR", "--scope", "local"], "leave out --scope"),
    (["--pruned", "DIR", "--parts", "decoder"], "leave out --parts"),
    (["--pruned", "DIR", "--prune-seed", "1"], "leave out --prune-seed"),
    (["--pruned", "DIR", "--speakers", "some"], "choose one of all, own"),
    (["--pruned", "DIR", "--joint", "2"], "joint must be"),
    (["--pruned", "DIR", "--evaluations", "-1"], "evaluations must be"),
]


def test_bad_input_is_one_sentence(plain_folder, pruned_folder, tmp_path, capsys):
    for arguments, words in BAD:
        typed = [{"DIR": pruned_folder, "ITSELF": plain_folder}.get(one, one) for one in arguments]
        assert run("--voice", plain_folder, *typed, "--out", tmp_path / "out") == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1


def test_evaluations_lie_evenly_over_the_training(same, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vits_prune.study.judge.JUDGED_FAMILIES", ("rhythm",))
    typed = ["--evaluations", 2, "--evaluation-texts", 1, "--checkpoint-every", 3]
    assert run(*same, "--steps", 4, *typed, "--out", tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "duration_ratio" in line]
    assert [line.partition(":")[0] for line in lines] == ["Step 2 of 4", "Step 4 of 4"]
    rows = curve_of(tmp_path / "out-healing")
    assert [row["step"] for row in rows if row["measured_duration_ratio"]] == ["2", "4"]
    assert load_voice(tmp_path / "out").recipe["healed"][0]["steps"] in (2, 4)


def test_the_judge_of_a_german_voice_says_what_it_leaves_out(tmp_path, capsys):
    voice = load_voice(make_checkpoint(tmp_path / "german", language="deu", stochastic=False))
    typed = ["heal", "--voice", "x", "--pruned", "x", "--out", "x", "--evaluations", "2"]
    options = make_parser().parse_args([*typed, "--evaluation-texts", "1"])
    judge = typed_judge(options, HealPlan(steps=4), voice, None)
    assert "does not know the language 'de'" in capsys.readouterr().err
    assert judge.evaluations == 2
    assert len(judge.reference.texts) == 1
    assert set(judge.reference.listener.families) == {"naturalness", "closeness", "rhythm"}
    judged = {limit.metric for limit in usual_limits()} - {"cer"}
    assert set(judge.judgement(2, voice, 4).changes()) == {*judged, "duration_ratio"}


@pytest.mark.slow
def test_a_voice_of_another_language_is_measured_too(same, tmp_path, capsys, monkeypatch):
    for place in ("study.judge", "healing.teacher", "study.evaluation"):
        monkeypatch.setattr(f"vits_prune.{place}.spoken_language", lambda voice: "de")
    typed = ["--evaluations", 2, "--evaluation-texts", 1, "--out", tmp_path / "out"]
    assert run(*same[:4], "--steps", 4, *typed) == 0
    told = capsys.readouterr()
    assert "does not know the language 'de'" in told.err
    lines = [line.partition(":")[0] for line in told.out.splitlines() if "dnsmos_ovrl" in line]
    assert lines == ["Step 2 of 4", "Step 4 of 4"]
    rows = curve_of(tmp_path / "out-healing")
    assert [row["step"] for row in rows if row["measured_dnsmos_ovrl"]] == ["2", "4"]


@pytest.mark.slow
def test_discriminators_and_bfloat16(same, pruned_folder, tmp_path):
    typed = ["--adversarial", "--precision", "bf16", "--out", tmp_path / "out"]
    assert run(*same, "--steps", 4, *typed) == 0
    healed = load_voice(tmp_path / "out")
    plan = healed.recipe["healed"][0]["plan"]
    assert (plan["adversarial"], plan["precision"]) == (True, "bf16")
    assert all(bool(tensor.isfinite().all()) for tensor in healed.model.parameters())
    assert same_weights(healed, load_voice(pruned_folder))
    (row,) = curve_of(tmp_path / "out-healing")
    assert all(float(row[name]) > 0 for name in ("adversarial", "features", "mel", "total"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A voice with its posterior encoder, what pruning left of it, and recordings, one missing."""
    place = tmp_path_factory.mktemp("recorded")
    voice = load_voice(make_checkpoint(place / "voice", spectrogram_bins=33, stochastic=False))
    save_voice(prune(voice, PruneSpec(amount=0.5)), place / "pruned")
    (place / "mine" / "wavs").mkdir(parents=True)
    for index, text in enumerate(TEXTS[:3]):
        spoken = speak(voice, text, index)
        samples = np.tile(spoken.pcm16(), 1 + RATE // len(spoken.waveform))  # a second at least
        soundfile.write(place / "mine" / "wavs" / f"{index}.wav", samples, RATE)
    rows = [f"{index}|{text}\n" for index, text in enumerate(TEXTS[:3])]
    (place / "mine" / "metadata.csv").write_text("".join([*rows, "missing|nobody said this\n"]))
    return place


def test_recordings_are_learnt_from(recorded, sentences, tmp_path, capsys):
    given = ["--voice", recorded / "voice", "--pruned", recorded / "pruned", "--steps", 2]
    given += ["--texts", sentences, "--workdir", tmp_path / "work"]
    assert run(*given, "--recordings", recorded / "mine", "--out", tmp_path / "healed") == 0
    told = capsys.readouterr()
    assert "3 recordings, " in told.out
    assert "Left out missing: There is no such file." in told.err
    assert load_voice(tmp_path / "healed").recipe["healed"][0]["recordings"] == 3
    assert float(curve_of(tmp_path / "work")[0]["recorded_mel"]) > 0
    other = shutil.copytree(recorded / "mine", tmp_path / "other")
    path = other / "wavs" / "1.wav"
    samples, _ = soundfile.read(path, dtype="int16")
    soundfile.write(path, samples[::-1], RATE)  # as many, as long, of the same names
    assert run(*given, "--recordings", other, "--resume", "--out", tmp_path / "again") == 2
    assert "were made with other recordings" in capsys.readouterr().err.splitlines()[-1]


def test_a_voice_that_has_lost_the_encoder_cannot_learn_from_recordings(
    joe, recorded, tmp_path, capsys
):
    pruned = save_voice(prune(joe, PruneSpec(amount=0.3, parts=("decoder",))), tmp_path / "pruned")
    given = ["--pruned", pruned, "--recordings", recorded / "mine", "--out", tmp_path / "out"]
    assert run(*given) == 2
    told = capsys.readouterr().err
    assert "joe has no posterior encoder, without which recordings cannot be used" in told
    assert "heal without recordings" in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned"]


def test_who_stops_before_the_first_checkpoint_is_not_sent_to_resume(tmp_path):
    work = tmp_path / "work"
    assert "start again without --resume" in how_to_resume(work, 3)
    (work / "step-1" / "checkpoints").mkdir(parents=True)
    (work / "step-1" / "checkpoints" / "checkpoint-00000003.safetensors").touch()
    assert "Go on with the same command and --resume" in how_to_resume(work, 3)


def test_the_same_command_again_does_not_throw_the_checkpoints_away(same, healed, tmp_path, capsys):
    work = healed / "healed-healing"
    kept = sorted(path.name for path in (work / "checkpoints").iterdir())
    assert run(*same, *STEPS, "--workdir", work, "--out", tmp_path / "two") == 2
    told = capsys.readouterr().err
    assert "--resume" in told
    assert "--workdir" in told
    assert sorted(path.name for path in (work / "checkpoints").iterdir()) == kept


def test_what_has_learnt_nothing_is_not_called_healed(same, pruned_folder, tmp_path, capsys):
    sparse = load_voice(pruned_folder)
    name = "text_encoder.embed_tokens.weight"
    weights = {name: torch.full_like(sparse.model.text_encoder.embed_tokens.weight, 1e30)}
    broken = sparse.with_weights(weights)
    pruned = save_voice(
        dataclasses.replace(broken, recipe={**broken.recipe, "healed": []}), tmp_path / "broken"
    )
    assert run(*same, "--pruned", pruned, "--steps", 2, "--out", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert "is not healed" in told.err
    assert "was not finite at step 1" in told.err
    assert "healed in" not in told.out
    assert not (tmp_path / "out").exists()


def test_recordings_without_a_decoder_that_learns_are_refused_before_they_are_read(
    recorded, tmp_path, capsys
):
    spec = PruneSpec(amount=0.5, parts=("flow",))
    pruned = save_voice(prune(load_voice(recorded / "voice"), spec), tmp_path / "pruned")
    given = ["--voice", recorded / "voice", "--pruned", pruned, "--out", tmp_path / "out"]
    assert run(*given, "--recordings", recorded / "mine") == 2
    told = capsys.readouterr()
    assert "heal without recordings, or prune the decoder too" in told.err
    assert "recordings, " not in told.out


def test_ctrl_c_answers_at_once_and_ends_pruning_and_measuring_too(capfd):
    with ProgressLine(gently=True) as progress:
        progress.report("pruning", 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        assert "once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            progress.part(0.0, 0.5).report("pruning", 0.2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_curve_of_several_healings_runs_on(tmp_path):
    log = TrainingLog(tmp_path)
    for steps in (20, 40):
        for step in range(1, steps + 1):
            log.observe(TrainingStep(step, steps, {"total": 1.0}, float(step)))
        log.next_healing(steps)
    assert [row["step"] for row in log.curve.rows] == [10, 20, 30, 40, 50, 60]
    assert [row["seconds"] for row in log.curve.rows] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def test_a_damaged_course_is_refused_before_the_work_and_stays(same, tmp_path, capsys):
    work, damaged = tmp_path / "work", "step,mel\n10,0.5\n2x"
    (work / "checkpoints").mkdir(parents=True)
    (work / "curve.csv").write_text(damaged)
    assert run(*same, *STEPS, "--resume", "--workdir", work, "--out", tmp_path / "out") == 2
    assert "curve.csv is damaged" in capsys.readouterr().err
    assert (work / "curve.csv").read_text() == damaged
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_with_measuring_keeps_the_curve(tiny, tmp_path):
    (tmp_path / "curve.csv").write_text("step,seconds,mel\n10,1.0,0.5\n20,2.0,0.4\n30,3.0,0.3\n")
    log = TrainingLog(tmp_path, resume=True)
    log.judged(Judgement(20, 40, {}, None), tiny)
    assert [row["step"] for row in curve_of(tmp_path)] == ["10", "20"]
    log.observe(TrainingStep(21, 40, {"mel": 0.2}, 2.1))
    assert [row["step"] for row in log.curve.rows] == [10, 20]


def test_checkpoints_that_were_measured_otherwise_are_not_gone_on_with(tiny, tmp_path):
    log = TrainingLog(tmp_path, signature="texts:2.ab|seeds:0")
    change = Interval(0.1, None, None, 2)
    one = Figure(METRICS["cer"], None, change, change, None, None, "")
    log.judged(Judgement(20, 40, {"cer": one}, None), tiny)
    assert curve_of(tmp_path)[0]["signature"] == "texts:2.ab|seeds:0"
    with pytest.raises(InputError, match=r"measured otherwise: .*differ in texts \(2.ab and 3.c"):
        TrainingLog(tmp_path, True, "texts:3.cd|seeds:0")
    for signature in ("texts:2.ab|seeds:0", ""):
        again = TrainingLog(tmp_path, True, signature)
        again.observe(TrainingStep(21, 40, {"mel": 0.2}, 2.1))
        assert again.curve.signature == "texts:2.ab|seeds:0"


def test_measuring_that_takes_most_of_the_minutes_is_told(capsys):
    warn_of_measuring(HealPlan(minutes=2), 50.0)
    warn_of_measuring(HealPlan(minutes=None, steps=3), 50.0)
    assert capsys.readouterr().out == ""
    warn_of_measuring(HealPlan(minutes=2).share(1, 2), 50.0)  # two thirds of the minutes
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "0.8 of 1.3 minutes" in told


def test_a_folder_of_other_things_is_left_alone(same, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert run(*same, "--out", tmp_path / "out") == 2
    assert run(*same, "--out", tmp_path / "new", "--workdir", tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_places_that_the_healed_voice_would_replace(same, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed, words in (
        (["--out", "."], "has no name"),
        (["--out", "out", "--workdir", "out/work"], "give another --workdir"),
    ):
        assert run(*same, *typed) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
