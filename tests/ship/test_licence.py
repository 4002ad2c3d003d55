"""What the licence of a voice says about sharing a pruned copy."""

from __future__ import annotations

import dataclasses

import pytest
from huggingface_hub import ModelInfo

from vits_prune.ship.licence import HUB_LICENCES, Licence, licence_of
from vits_prune.voices import hub


def named(voice, licence):
    return licence_of(
        dataclasses.replace(voice, origin=dataclasses.replace(voice.origin, licence=licence))
    )


@pytest.mark.parametrize(
    ("stated", "forbids"),
    [
        ("cc-by-nc-4.0", ("commerce",)),
        ("CC BY-NC-ND 4.0 International", ("derivatives", "commerce")),
        ("cc-by-nd-4.0", ("derivatives",)),
        ("Creative Commons Attribution-NoDerivatives 4.0", ("derivatives",)),
        ("fair-noncommercial-research-license", ("commerce",)),
        ("deepfloyd-if-license", ("commerce",)),
        ("coqui-public-model-license", ("commerce",)),
        ("cc0-1.0", ()),
        ("apache-2.0", ()),
        ("cc-by-sa-4.0", ()),
        ("ncsa", ()),
        ("CC BY 4.0 International", ()),
        ("MIT License", ()),
        ("mit, cc-by-4.0", ()),
        ("Not for commercial use", ("commerce",)),
        ("no commercial use", ("commerce",)),
        ("personal use only", ("commerce",)),
        ("academic use only", ("commerce",)),
        ("by-nc-4.0", ("commerce",)),
        ("Attribution-ShareAlike-NC", ("commerce",)),
        ("all rights reserved", ("derivatives", "commerce")),
        ("cpml-1.0", ("commerce",)),
        ("coqui-public-model-license-1-0", ("commerce",)),
        ("h-research", ("commerce",)),
        ("apache-2.0, cc-by-nc-4.0", ("commerce",)),
        ("cc-by-nd-4.0, mit", ("derivatives",)),
    ],
)
def test_what_a_licence_forbids(tiny, stated, forbids):
    licence = named(tiny, stated)
    assert (licence.id, licence.forbids, licence.stated) == (stated, forbids, True)
    assert licence.needs_consent == bool(forbids)
    assert ("forbids derivatives" in licence.notice) == ("derivatives" in forbids)
    assert ("forbids commercial use" in licence.notice) == ("commerce" in forbids)


def test_words_of_those_that_forbid_nothing(tiny):
    assert named(tiny, "cc0-1.0").notice == named(tiny, "mit").notice == ""
    assert "under the same licence only" in named(tiny, "cc-by-sa-4.0").notice
    assert "under the same licence only" in named(tiny, "gpl-3.0").notice
    assert "under the same licence only" in named(tiny, "mit, gpl-3.0").notice


@pytest.mark.parametrize(
    "stated",
    [
        "my-licence",
        "incand-licence",
        "proprietary",
        "llama3.1",
        "cc",
        "apache-2.0, my-own",
        "mit, " * 200,
    ],
)
def test_what_is_not_known_is_asked_about(tiny, stated):
    licence = named(tiny, stated)
    assert licence.needs_consent
    assert "not one that this program knows: read its terms" in licence.notice


@pytest.mark.parametrize(
    "stated", [None, "", "   ", "other", "unknown", "no-license", "unlicensed"]
)
def test_nothing_that_tells_the_terms(tiny, stated):
    licence = named(tiny, stated)
    assert licence.needs_consent
    assert not licence.stated
    assert (
        "read its terms" in licence.notice
        if licence.id
        else "all rights are reserved unless its page says otherwise" in licence.notice
    )


def test_licence_of_strangers_is_plain_and_short(tiny):
    licence = named(tiny, "\x1b[31m<img src=x>\n`a`](http://b) " + "x" * 500)
    assert len(licence.id) <= 64
    assert not set(licence.id) & set("\x1b<>\n`[]:")


def test_id_for_the_hub(tiny):
    assert named(tiny, "CC-BY-NC-4.0").hub_id == "cc-by-nc-4.0"
    assert named(tiny, "my-licence").hub_id == "other"
    assert named(tiny, None).hub_id == ""
    assert {"mit", "cc-by-nc-4.0", "other", "unknown"} <= HUB_LICENCES


@pytest.mark.parametrize(
    ("stated", "read"),
    [
        (["apache-2.0", "cc-by-nc-4.0"], "apache-2.0, cc-by-nc-4.0"),
        (["mit"], "mit"),
        ([], "openrail"),
        ("cc-by-4.0", "cc-by-4.0"),
        (["apache-2.0"] + [f"mine-{i}" for i in range(9)] + ["cc-by-nc-4.0"], "other"),
    ],
)
def test_several_licences_of_a_repository(stated, read):
    info = ModelInfo(
        id="me/small", cardData={"license": stated}, tags=["license:openrail"], siblings=[]
    )
    assert hub.stated_licence(info) == read


def test_pruning_keeps_the_licence(joe):
    assert licence_of(joe) == Licence("cc0-1.0", (), True)
