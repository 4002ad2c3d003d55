"""The page's named endpoints through gradio_client, on the app as it really runs."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from tests.goldens import cases
from tests.nearly import nearly
from tests.test_goldens import RECORD
from tests.ui.conftest import BERT, CROWD, TINY
from vits_prune import PruneSpec, load_voice, prune, speak
from vits_prune import compare as library_compare
from vits_prune.measure import measure_size, measure_sparsity
from vits_prune.pruning import Shape
from vits_prune.pruning.scores import sparsity_preview
from vits_prune.studio import workbench
from vits_prune.studio.workbench import Workbench
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui import api
from vits_prune.voices.voice import PARTS

pytestmark = pytest.mark.xdist_group("server")


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def tiny_there(server):
    """The voice behind TINY, loaded here from its folder."""
    return load_voice(server.folders[TINY])


def compare(client: Client, **asked):
    """What /compare answers: int16 samples of both, and the report."""
    original, pruned, report = client.predict(api_name="/compare", **asked)
    return samples(original), samples(pruned), report


def samples(path: str) -> np.ndarray:
    with soundfile.SoundFile(path) as file:
        assert (file.format, file.subtype, file.channels) == ("WAV", "PCM_16", 1)
        return file.read(dtype="int16")


def refusal(client: Client, **asked) -> str:
    """The sentence that a visitor gets for what cannot be done."""
    asked = {"voice": TINY, "text": "hi", **asked}
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the client raises what the server sent; its text is looked at below)
        client.predict(api_name="/compare", **asked)
    return checked_sentence(str(caught.value), asked["voice"])


def checked_sentence(sentence: str, typed: str) -> str:
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 300
    for inside in ("Traceback", "Error", "went wrong", "root:", "/tmp", "/home", "site-packages"):
        assert inside not in sentence.replace(typed or "''", "")
    return sentence


# The real voice


@pytest.mark.parametrize("timing", [pytest.param("own", marks=pytest.mark.slow), "locked"])
def test_compare_speaks_and_measures_as_the_library_does(client, joe, timing):
    spec = PruneSpec(scope="global", amount=0.3)
    original, pruned, report = compare(
        client,
        voice="joe",
        speaker="",
        text=DEFAULT_TEXT,
        scope="global",
        amount=0.3,
        parts=list(PARTS),
        seed=1,
        timing=timing,
    )
    pruned_joe = prune(joe, spec)
    first = speak(joe, DEFAULT_TEXT, 1)
    second = speak(pruned_joe, DEFAULT_TEXT, 1, timing="own" if timing == "own" else first)
    assert nearly(original, first.pcm16())
    assert nearly(pruned, second.pcm16())
    for heard in (original, pruned):
        assert len(heard) > 22_050
        assert 1_000 < np.abs(heard).max() < 32_000, "silent, or brought to full level"
    zeros = measure_sparsity(pruned_joe)
    assert report["sparsity"]["overall"] == pytest.approx(0.3, abs=1e-6)
    assert report["sparsity"]["overall"] == zeros.overall
    assert report["sparsity"]["parts"] == zeros.parts
    assert report["sparsity"]["original_overall"] == 0
    assert (report["voice"], report["text"], report["seed"], report["timing"]) == (
        "joe",
        DEFAULT_TEXT,
        1,
        timing,
    )
    assert PruneSpec.from_dict(report["spec"]) == spec
    for name, voice, speech in (("original", joe, first), ("pruned", pruned_joe, second)):
        size = measure_size(voice)
        assert report["size"][name]["nonzero_parameters"] == size.nonzero_parameters
        assert report["size"][name]["sparse_fp32_bytes"] == size.sparse_fp32_bytes
        assert report["audio"][name]["audio_seconds"] == speech.audio_seconds
        assert report["latency"][name]["stage_seconds"]["decoder"]["median"] > 0
    assert (
        report["latency"]["pruned"]["nonzero_macs"] < report["latency"]["original"]["nonzero_macs"]
    )
    assert report["latency"]["pruned"]["dense_macs"] == report["latency"]["original"]["dense_macs"]


def test_sparsity_without_speaking(client, joe):
    answer = client.predict(
        voice="joe", scope="local", amount=0.5, parts=["flow", "decoder"], api_name="/sparsity"
    )
    assert answer == pytest.approx(
        dict(sparsity_preview(joe, PruneSpec(scope="local", amount=0.5, parts=("flow", "decoder"))))
    )
    assert answer["flow"] == pytest.approx(0.5, abs=1e-5)
    assert answer["text_encoder"] == 0
    with pytest.raises(Exception, match="Only pruning itself can tell"):
        client.predict(voice="joe", method="activation", api_name="/sparsity")


def test_the_endpoints_are_named_and_documented(client):
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/compare", "/sparsity"}
    assert not endpoints["unnamed_endpoints"]
    for name, inputs in (
        ("/compare", "voice speaker text scope amount parts seed timing method spec"),
        ("/sparsity", "voice scope amount parts method spec"),
    ):
        endpoint = endpoints["named_endpoints"][name]
        assert [
            parameter["parameter_name"] for parameter in endpoint["parameters"]
        ] == inputs.split()
        assert len(endpoint["description"]) > 40


def test_an_mcp_client_speaks_and_counts(server, tiny_there):
    """The page's tools as an agent sees them: each input described, each answer usable."""

    async def talk():
        address = f"{server.url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            shares = await session.call_tool("sparsity", {"voice": TINY, "amount": 0.5})
            said = await session.call_tool("compare", {"voice": TINY, "text": "hi", "amount": 0.5})
            refused = await session.call_tool("compare", {"voice": TINY, "text": ""})
            return tools, shares, said, refused

    tools, shares, said, refused = asyncio.run(talk())
    assert set(tools) == {"compare", "sparsity"}
    for tool in tools.values():
        assert all(one["description"] for one in tool.inputSchema["properties"].values())
    counted = ast.literal_eval(shares.content[0].text)
    assert counted == pytest.approx(dict(sparsity_preview(tiny_there, PruneSpec(amount=0.5))))
    assert not said.isError
    *sounds, report = ast.literal_eval(said.content[0].text)
    for sound in sounds:
        with urllib.request.urlopen(sound["url"], timeout=30) as answer:
            assert soundfile.read(io.BytesIO(answer.read()))[1] == tiny_there.sampling_rate
    assert report["spec"]["amount"] == 0.5
    assert refused.isError
    assert "Traceback" not in refused.content[0].text


def test_the_report_keeps_the_history_of_a_voice_that_was_pruned_before(tiny, monkeypatch):
    before, now = PruneSpec("random", amount=0.2), PruneSpec(scope="local", amount=0.5)
    half, bench = prune(tiny, before), Workbench()
    monkeypatch.setattr(workbench, "bench", bench)
    monkeypatch.setattr(bench, "voice", lambda *args, **named: half)
    *_, report = api.compare(
        "someone/half", "", "hi there", "", 0.0, [], 1, "own", spec=now.to_dict()
    )
    by_library = library_compare(half, prune(half, now), "hi there", 1, runs=1).report()
    assert report["recipe"]["pruned"] == [before.to_dict(), now.to_dict()]
    assert report["spec"] == now.to_dict()
    varying = ("latency",)
    assert {k: v for k, v in report.items() if k not in varying} == {
        k: v for k, v in by_library.items() if k not in varying
    }


# Voices of the hub


def test_a_voice_of_the_hub_speaks(client, tiny_there):
    original, pruned, report = compare(
        client, voice=TINY, text="hi there", scope="local", amount=0.6, seed=5
    )
    spec = PruneSpec(scope="local", amount=0.6)
    assert nearly(original, speak(tiny_there, "hi there", 5).pcm16())
    assert nearly(pruned, speak(prune(tiny_there, spec), "hi there", 5).pcm16())
    assert original.any()
    assert (report["reference"], report["licence"]) == (TINY, "cc-by-4.0")
    assert report["free_cut"]["parameters"] > 0


def test_a_voice_with_several_speakers_speaks_with_the_one_asked_for(client, server):
    heard = {
        speaker: compare(client, voice=CROWD, text="hi there", speaker=speaker)
        for speaker in ("0", "1")
    }
    crowd = load_voice(server.folders[CROWD], speaker=1)
    assert nearly(heard["1"][0], speak(crowd, "hi there").pcm16())
    assert not np.array_equal(heard["0"][0], heard["1"][0])
    assert heard["1"][2]["speaker"] == 1


def test_several_at_once_get_what_each_asked_for(server, joe, tiny_there):
    amounts = [0.1, 0.2, 0.4, 0.5, 0.7]
    clients = [Client(server.url, verbose=False) for _ in amounts]

    def ask(client: Client, amount: float):
        joes = amount == 0.4
        return compare(
            client,
            voice="joe" if joes else TINY,
            text="Hi." if joes else "hi there",
            amount=amount,
            seed=round(10 * amount),
        )

    with ThreadPoolExecutor(len(amounts)) as pool:
        answers = list(pool.map(ask, clients, amounts))
    for amount, (original, pruned, report) in zip(amounts, answers, strict=True):
        voice, text = (joe, "Hi.") if amount == 0.4 else (tiny_there, "hi there")
        expected = prune(voice, PruneSpec(amount=amount))
        seed = round(10 * amount)
        assert report["spec"]["amount"] == amount
        assert report["seed"] == seed
        assert (
            report["sparsity"]["overall"]
            == measure_sparsity(expected).overall
            == pytest.approx(amount, abs=1e-3)
        )
        assert nearly(original, speak(voice, text, seed).pcm16())
        assert nearly(pruned, speak(expected, text, seed).pcm16())
    assert len({pruned.tobytes() for _, pruned, _ in answers}) == len(amounts)


@pytest.mark.parametrize(
    "spec",
    [
        PruneSpec("random", "local", 0.5, ("flow",)),
        PruneSpec("second_order", "sensitivity", 0.5, texts=("hi there",)),
        PruneSpec("structured", amount=0.5, texts=("hi there",)),
        PruneSpec("structured", shape=Shape(ffn_width=0.5), texts=("hi there",)),
        PruneSpec("activation", amount=0.4, steps=2, texts=("hi there",)),
    ],
    ids=lambda spec: spec.method,
)
def test_any_spec_can_be_asked_for_as_json(client, tiny_there, spec):
    asked = (
        {"spec": spec.to_dict()}
        if spec.method != "random"
        else {"method": "random", "scope": "local", "amount": 0.5, "parts": ["flow"]}
    )
    original, pruned, report = compare(
        client, voice=TINY, text="hi there", timing="locked", **asked
    )
    first, smaller = speak(tiny_there, "hi there"), prune(tiny_there, spec)
    assert nearly(original, first.pcm16())
    np.testing.assert_allclose(pruned, speak(smaller, "hi there", timing=first).pcm16(), atol=1)
    assert PruneSpec.from_dict(report["spec"]) == spec
    assert (
        report["size"]["pruned"]["nonzero_parameters"] == measure_size(smaller).nonzero_parameters
    )


# What cannot be done


BAD = [
    ({"text": ""}, "type a sentence"),
    ({"text": "   \n "}, "type a sentence"),
    ({"text": "🙂🙂🙂"}, "cannot speak any of this text"),
    ({"voice": "joe", "text": "。。。"}, "cannot speak any of this text"),
    ({"text": "a" * 100_000}, "100,000 characters and the page speaks 2,000"),
    ({"text": "a" * 2_001}, "2,001 characters and the page speaks 2,000"),
    ({"voice": "nobody/here"}, "There is no model nobody/here"),
    ({"voice": "jo"}, "no model of the Hugging Face hub"),
    ({"voice": ""}, "Choose a voice"),
    ({"voice": TINY + "@no-such-branch"}, "no-such-branch"),
    ({"voice": BERT}, "is a bert checkpoint, not vits"),
    ({"amount": 1.5}, "0 to 0.99, not '1.5'"),
    ({"amount": -0.1}, "0 to 0.99"),
    ({"amount": None}, "0 to 0.99"),
    ({"parts": []}, "at least one part"),
    ({"parts": ["flow", "tail"]}, "no part 'tail'"),
    ({"parts": 5}, "must be a list"),
    ({"scope": "sideways"}, "no scope 'sideways'"),
    ({"timing": "never"}, "own or locked"),
    ({"method": "magic"}, "no pruning method 'magic'"),
    ({"spec": {"amount": 0.3, "secret": 1}}, "and no others"),
    ({"spec": [0.3]}, "JSON object"),
    ({"spec": {"method": "second_order", "steps": 64}}, "8 steps at most"),
    ({"spec": {"method": "second_order", "texts": ["hi"] * 61}}, "60 sentences"),
    ({"spec": {"method": "structured", "shape": {"decoder_width": 0}}}, "a number above 0"),
    ({"spec": {"method": "structured", "shape": {"flows": 99}}}, "flows cannot be 99"),
    ({"spec": {"protect": ["no.such.layer"]}}, "no layer 'no.such.layer'"),
    ({"seed": -1}, "whole number"),
    ({"seed": 0.5}, "whole number"),
    ({"voice": CROWD, "speaker": "7"}, "no speaker '7'"),
    ({"voice": "joe", "speaker": "Mary"}, "one speaker only"),
]


def test_what_cannot_be_used_gets_one_sentence(client):
    for asked, words in BAD:
        assert words in refusal(client, **asked), asked


def test_not_a_number_gets_one_sentence(server):
    """gradio_client refuses to send it, other clients do not."""
    call = urllib.request.Request(
        f"{server.url}/gradio_api/call/compare",
        json.dumps(
            {
                "data": [
                    TINY,
                    "",
                    "hi",
                    "global",
                    float("nan"),
                    list(PARTS),
                    0,
                    "own",
                    "magnitude",
                    None,
                ]
            }
        ).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(
        f"{server.url}/gradio_api/call/compare/{event}", timeout=30
    ) as answer:
        lines = answer.read().decode().splitlines()
    assert lines[0] == "event: error"
    told = json.loads(lines[1].removeprefix("data: "))
    assert "The amount must be a number from 0 to 0.99, not 'nan'." in str(told)


ELSEWHERE = [
    "/etc/passwd",
    "../../x",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "https://example.org/a/b",
    "~/.cache/huggingface/token",
    "upload:../../../etc",
    "upload:" + "0" * 64,
    "someone/tiny-vits@../../etc",
    "\\\\host\\share",
]


def test_a_visitor_names_nothing_but_hub_repositories(client, server):
    asked_before = len(server.hub.requests)
    for voice in ELSEWHERE:
        sentence = refusal(client, voice=voice)
        assert any(
            words in sentence
            for words in ("no model of the Hugging Face hub", "no longer kept here", "no revision")
        ), voice
    assert len(server.hub.requests) == asked_before, "it was looked for"


def test_folders_of_the_server_are_no_voices(client, server):
    """Refuse paths that load_voice would take: absolute, or relative and shaped like a hub id."""
    absolute = str(server.folders[TINY])
    assert "no model of the Hugging Face hub" in refusal(client, voice=absolute)
    assert "There is no model vits_prune/voices on Hugging Face" in refusal(
        client, voice="vits_prune/voices"
    )
    assert "/api/models/vits_prune/voices" in server.hub.paths("GET")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "app.py", "vits_prune/__init__.py", "/proc/self/environ"]
)
def test_no_file_of_the_server_is_served(server, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.url}/gradio_api/file={path}", timeout=30)
    assert caught.value.code in (403, 404)


def test_after_all_that_the_app_goes_on_and_kept_its_token_to_itself(client, server, tiny_there):
    """Runs last of this file: the hub has seen good and bad requests by now, and sees some more."""
    for voice in ("nobody/here", BERT):
        refusal(client, voice=voice)
    original, _, _ = compare(client, voice=TINY, text="still here")
    assert nearly(original, speak(tiny_there, "still here").pcm16())
    asked_for = {path for _, path, _ in server.hub.requests}
    assert f"/api/models/{TINY}" in asked_for
    assert "/api/models/nobody/here" in asked_for
    assert any(
        path.endswith("/model.safetensors") and path.startswith(f"/{TINY}/") for path in asked_for
    )
    for _, path, headers in server.hub.requests:
        assert "authorization" not in headers, path
        assert "serverowner" not in str(headers), path
    assert "serverowner" not in server.log.read_text(errors="replace")


def test_the_endpoints_of_the_page(server):
    found, recorded = cases.api_facts(server.url), RECORD["api"]
    for part in ("schema", "report", "about"):
        assert found[part] == recorded[part], part
    assert found["sparsity"] == pytest.approx(recorded["sparsity"])
    for name, (rate, length, kind) in recorded["clips"].items():
        assert (found["clips"][name][0], found["clips"][name][2]) == (rate, kind)
        assert found["clips"][name][1] == pytest.approx(length, rel=0.02)
