"""What the address says and what it may not say; the code that repeats what the page shows."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex

import pytest

import vits_prune
from vits_prune import PruneSpec, compare, prune
from vits_prune.cli.main import make_parser
from vits_prune.cli.options import spec_of
from vits_prune.errors import InputError
from vits_prune.pruning import Shape
from vits_prune.studio.request import (
    FIRST,
    Request,
    as_command,
    as_python,
    request_of,
    values_of,
    values_of_query,
)
from vits_prune.synthesis.speak import Delivery

REQUESTS = [
    Request("joe", "Hi.", PruneSpec(), 0, "locked"),
    Request("a/b", "It's 5 o'clock & \"late\".", PruneSpec("random", "local", 0.5), 7, "own"),
    Request("a/b@main", "hi", PruneSpec(parts=("flow",), protect=()), 1, "locked"),
    Request("a/b", "hi", PruneSpec(protect=("decoder",), floor=0.1), 1, "locked", speaker="2"),
    Request("joe", "hi", PruneSpec(steps=3, schedule="linear"), 1, "own", Delivery(1.5, 0.0, 0.3)),
    Request("joe", "hi", PruneSpec("activation", "local", 0.5, pattern="2:4"), 1, "locked"),
    Request("joe", "hi", PruneSpec("structured", shape=Shape(0.5, 2, 0.75)), 1, "locked"),
    Request("joe", "hi", PruneSpec("structured", amount=0.4, importance="weight_norm")),
    Request("joe", "--help", PruneSpec()),
]


def query_of(request: Request) -> dict[str, str]:
    """Return the query as the page's script writes it."""
    values = {**FIRST, "voice": request.reference, "text": request.text, "seed": request.seed}
    values |= {"timing": request.timing, "speaker": request.speaker, **values_of(request.spec)}
    values |= dataclasses.asdict(request.delivery)

    def word(value):
        if isinstance(value, bool):
            return str(value).lower()
        return ",".join(value) if isinstance(value, list) else str(value)

    return {name: word(value) for name, value in values.items() if value not in (None, "", [])}


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_a_link_comes_back_as_the_same_request(request_):
    assert request_of(values_of_query(query_of(request_))) == request_


def test_an_empty_query_is_the_first_stage():
    assert values_of_query({"utm_source": "x", "__theme": "dark"}) == FIRST


@pytest.mark.parametrize(
    "query",
    [
        *({"amount": one} for one in ("lots", "nan", "inf", "2", "-1", "1e400", "")),
        *({"seed": one} for one in ("-1", "1.5", "9" * 5000, "0x10")),
        {"method": "magic"}, {"scope": "all"}, {"parts": "brain"}, {"timing": "mine"},
        {"steps": "1000"}, {"pattern": "3:5"}, {"speaking_rate": "0"}, {"text": " "},
        {"text": "a" * 100_000}, {"protect": ",".join(map(str, range(500)))}, {"floor": "7"},
        {"method": "structured", "by_lever": "true", "branches": "-3"},
        {"schedule": "x", "steps": "2"},
    ],
    ids=lambda query: " ".join(query),
)  # fmt: skip
def test_what_a_link_says_is_checked(query):
    with pytest.raises(InputError) as caught:
        values_of_query(query)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_the_python_makes_the_same_objects(request_, tiny, monkeypatch):
    made = {}
    monkeypatch.setattr(vits_prune, "load_voice", lambda *named, **more: made.update(
        voice=named[0], speaker=more.get("speaker")) or tiny, raising=False)  # fmt: skip
    monkeypatch.setattr(vits_prune, "prune", lambda _, spec: made.update(spec=spec), raising=False)
    monkeypatch.setattr(vits_prune, "compare", lambda _, __, text, **how: made.update(
        text=text, how=how), raising=False)  # fmt: skip
    exec(as_python(request_), {})
    how = {"delivery": Delivery(), **made["how"]}
    wanted = {"seed": request_.seed, "timing": request_.timing, "delivery": request_.delivery}
    assert (made["voice"], made["speaker"]) == (request_.reference, request_.speaker)
    assert (made["spec"], made["text"], how) == (request_.spec, request_.text, wanted)


def test_the_python_prints_the_numbers_of_the_page(request_, tiny, monkeypatch):
    monkeypatch.setattr(vits_prune, "load_voice", lambda *_: tiny, raising=False)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(as_python(request_), {})
    shown = compare(tiny, prune(tiny, request_.spec), request_.text, request_.seed)
    for name in ("sparsity", "size"):
        for row in shown.tables()[name].itertuples(index=False):
            assert str(row[0]) in printed.getvalue()
    whole = shown.tables()["sparsity"].iloc[0]
    assert re.search(rf"{whole['zeros after']:,}|{whole['zeros after']}", printed.getvalue())


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_the_command_asks_for_the_same(request_):
    python, module, package, *typed = shlex.split(as_command(request_))
    assert (python, module, package) == ("python", "-m", "vits_prune")
    asked = make_parser().parse_args(typed)
    assert spec_of(asked) == request_.spec
    assert (asked.voice, asked.speaker) == (request_.reference, request_.speaker)
    assert (asked.text, asked.seed, asked.timing) == (
        request_.text, request_.seed, request_.timing,
    )  # fmt: skip
    given = {one: getattr(asked, one) for one in dataclasses.asdict(request_.delivery)}
    assert given == dataclasses.asdict(request_.delivery)


def test_code_for_an_upload_names_a_file_of_the_visitor():
    uploaded = Request("upload:0123", "hi", PruneSpec())
    for code in (as_python(uploaded), as_command(uploaded)):
        assert "upload:" not in code
        assert "your-voice.onnx" in code
