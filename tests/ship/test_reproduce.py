"""The recipe of a voice as commands, which the real parser reads as the same recipe."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from vits_prune import PruneSpec, Shape, load_voice, prune
from vits_prune.cli.heal_command import plan_of, spec_to_heal
from vits_prune.cli.main import main, make_parser
from vits_prune.cli.options import spec_of
from vits_prune.healing.plan import HealPlan
from vits_prune.ship.reproduce import MAX_ENTRIES, ORIGINAL, reproduce
from vits_prune.voices.voice import Origin

SPECS = [
    PruneSpec(),
    PruneSpec(scope="local", amount=0.4),
    PruneSpec(method="random", amount=0.123456789, seed=7),
    PruneSpec(method="activation", amount=1e-05, floor=0.25, parts=("flow", "decoder")),
    PruneSpec(method="second_order", scope="sensitivity", amount=0.75, protect=()),
    PruneSpec(
        method="second_order", amount=0.8, protect=("decoder.conv_post", "flow.flows.*.conv_pre")
    ),
    PruneSpec(amount=0.5, pattern="2:4"),
    PruneSpec(amount=2 / 3, pattern="1:3"),
    PruneSpec(method="second_order", amount=0.8, steps=4),
    PruneSpec(amount=0.8, steps=3, schedule="linear"),
    PruneSpec(amount=0.6, amounts=(0.00001, 0.3, 0.6)),
    PruneSpec(amount=0.3, amounts=(0.3,)),
    PruneSpec(method="structured", amount=0.4, parts=("decoder",), importance="second_order"),
    PruneSpec(method="structured", shape=Shape()),
    PruneSpec(method="structured", shape=Shape(decoder_width=0.6875, multiple=2)),
    PruneSpec(
        method="structured",
        importance="weight_norm",
        shape=Shape(
            decoder_width=0.5,
            branches=1,
            resblock_width=0.75,
            ffn_width=0.5,
            encoder_layers=3,
            flows=2,
            wavenet_layers=2,
            multiple=4,
        ),
    ),
]
JOE = Origin("piper", "joe", None, "cc0-1.0")
PLANS = [
    HealPlan(),
    HealPlan(minutes=5),
    HealPlan(
        minutes=None,
        steps=100,
        seed=3,
        lessons=50,
        batch=2,
        learning_rate=1e-5,
        checkpoint_every=10,
    ),
    HealPlan(minutes=2.5, adversarial=True, precision="bf16"),
]


def made(voice, pruned=(), healed=(), origin=JOE):
    """A voice with a recipe, as it comes out of JSON."""
    recipe = {"pruned": [spec.to_dict() for spec in pruned]} if pruned else {}
    recipe |= (
        {
            "healed": [
                {"plan": plan.to_dict(), "steps": 10, "of": of, "lessons": 5} for plan, of in healed
            ]
        }
        if healed
        else {}
    )
    return dataclasses.replace(voice, recipe=recipe, origin=origin)


def parsed(line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "vits_prune"]
    return make_parser().parse_args(words[3:])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.method}-{spec.amount:g}")
def test_pruning_is_parsed_back(tiny, spec):
    (line,) = reproduce(made(tiny, [spec])).lines()
    options = parsed(line)
    assert spec_of(options) == spec
    assert (options.voice, options.revision, str(options.out)) == ("joe", None, "pruned")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.method}-{spec.amount:g}")
@pytest.mark.parametrize("plan", PLANS[:2])
def test_gradual_healing_is_parsed_back(tiny, spec, plan):
    """One command prunes and heals after each step, with minutes rather than training steps."""
    count = len(spec.schedule_amounts())
    healed = [(plan.share(index, count), None) for index in range(count)]
    (line,) = reproduce(made(tiny, [spec], healed)).lines()
    options = parsed(line)
    assert spec_to_heal(options) == spec
    assert dataclasses.replace(plan_of(options), minutes=1.0) == dataclasses.replace(
        plan, minutes=1.0
    )
    assert plan_of(options).minutes == pytest.approx(plan.minutes)


@pytest.mark.parametrize("plan", PLANS)
def test_healing_is_parsed_back(tiny, plan):
    spec = PruneSpec(amount=0.8, steps=4)
    first, second = reproduce(made(tiny, [spec], [(plan, None)])).lines()
    assert spec_of(parsed(first)) == spec
    options = parsed(second)
    assert plan_of(options) == plan
    assert (options.pruned, options.voice, spec_to_heal(options)) == (
        str(parsed(first).out),
        "joe",
        None,
    )


def test_minutes_become_the_steps_that_they_came_to(tiny):
    again = reproduce(made(tiny, [PruneSpec()], [(HealPlan(minutes=5), 378)]))
    (line,) = again.lines()
    assert plan_of(parsed(line)) == HealPlan(minutes=None, steps=378)
    assert any("378 steps are what 5 minutes came to" in note for note in again.notes)
    assert any("best checkpoint" in note for note in again.notes)


def test_several_prunings_and_healings_are_a_chain(tiny):
    specs = [
        PruneSpec(method="structured", shape=Shape(flows=2)),
        PruneSpec(method="second_order", amount=0.5),
    ]
    again = reproduce(made(tiny, specs, [(PLANS[2], 100)]), "piper", "int8")
    first, second, third, fourth = map(parsed, again.lines())
    assert (spec_of(first), spec_of(second)) == tuple(specs)
    assert (first.voice, second.voice, third.voice, third.pruned, fourth.voice) == (
        "joe",
        "pruned",
        "joe",
        "pruned-2",
        "healed",
    )
    assert (fourth.format, fourth.precision) == ("piper", "int8")
    assert any("took turns" in note for note in again.notes)


def test_original_on_the_hub_is_named_with_its_commit_and_speaker(tiny):
    origin = Origin("hugging-face", "facebook/mms-tts-eng", "a" * 40, "cc-by-nc-4.0")
    voice = dataclasses.replace(made(tiny, [PruneSpec()], origin=origin), speaker=2)
    options = parsed(reproduce(voice).lines()[0])
    assert (options.voice, options.revision, options.speaker) == (
        "facebook/mms-tts-eng",
        "a" * 40,
        "2",
    )


@pytest.mark.parametrize(
    ("family", "reference", "revision"),
    [
        ("piper", "amy.onnx", None),
        ("hugging-face", "joe", None),
        ("hugging-face", "../../etc", None),
        ("hugging-face", "a/b", "--out=x"),
        ("piper", "facebook/mms-tts-eng", None),
        ("hugging-face", "a/b; rm -rf ~", None),
    ],
)
def test_original_of_somebodys_own_is_not_named(tiny, family, reference, revision):
    again = reproduce(made(tiny, [PruneSpec()], origin=Origin(family, reference, revision)))
    assert parsed(again.lines()[0]).voice == ORIGINAL
    assert ORIGINAL in again.notes[0]


def test_calibration_texts_come_as_a_file(tiny, tmp_path, monkeypatch):
    spec = PruneSpec(method="activation", amount=0.5, texts=("Grüße an alle.", "a second one"))
    again = reproduce(made(tiny, [spec]))
    monkeypatch.chdir(tmp_path)
    for name, content in again.files.items():
        Path(name).write_text(content, encoding="utf-8")
    assert spec_of(parsed(again.lines()[0])) == spec
    lines = reproduce(made(tiny, [dataclasses.replace(spec, texts=("one\ntwo",))]))
    assert not lines.files
    assert any("not one line each" in note for note in lines.notes)


def test_what_the_command_line_cannot_say_is_said(tiny):
    plan = HealPlan(
        minutes=None,
        steps=10,
        segment=32,
        joint=0.5,
        speakers="own",
        adversarial=True,
        adversarial_width=0.5,
    )
    voice = made(tiny, [PruneSpec()], [(plan, 10)])
    voice.recipe["healed"][0] |= {
        "recordings": 12,
        "stopped": "the loss 'mel' was no finite number",
    }
    again = reproduce(voice)
    said = " ".join(again.notes)
    assert "12 recordings" in said
    assert "not a finite number" in said
    assert len(again.lines()) == 2  # recordings go with a voice that is pruned already


@pytest.mark.parametrize(
    "recipe",
    [
        {"pruned": [{"method": "no such"}]},
        {"pruned": [{"protect": ["--out", "/etc"]}]},
        {"pruned": [{"protect": ["x\n```\n<script>"]}]},
        {"pruned": [{"amount": "0.5; rm -rf ~"}]},
        {"pruned": [PruneSpec().to_dict()] * (MAX_ENTRIES + 1)},
        {"pruned": "everything"},
        {"pruned": [["magnitude"]]},
        {"healed": [{"plan": {"minutes": "long"}}]},
        {"healed": [{"plan": []}]},
        {"healed": {"plan": {}}},
    ],
)
def test_recipe_of_strangers_is_not_repeated(tiny, recipe):
    again = reproduce(dataclasses.replace(tiny, recipe=recipe))
    assert not again.commands
    assert again.notes == (
        "The recipe that came with the voice is not one that this version can repeat.",
    )


def test_voice_without_a_recipe(tiny):
    assert not reproduce(made(tiny)).commands
    (line,) = reproduce(made(tiny), "onnx", "fp32").lines()
    assert parsed(line).voice == "joe"


def test_the_command_makes_the_same_voice(tiny_folder, tmp_path, monkeypatch):
    """Run for real: the folder that the command writes holds the very weights."""
    voice = prune(
        load_voice(tiny_folder), PruneSpec(method="random", scope="local", amount=0.5, seed=5)
    )
    (line,) = reproduce(voice).lines()
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line.replace(ORIGINAL, str(tiny_folder)))[3:]) == 0
    again = dict(load_voice("pruned").model.named_parameters())
    assert all(tensor.equal(again[name]) for name, tensor in voice.model.named_parameters())
