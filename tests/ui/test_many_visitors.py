"""Several visitors without a browser: each hears their own words and learns their place."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re

import pytest
import soundfile

from tests.nearly import nearly
from tests.ui.conftest import TINY
from tests.ui.visitors import Site, Visitor
from vits_prune import PruneSpec, load_voice, prune, speak

pytestmark = pytest.mark.xdist_group("server")
WORDS = ("hi", "you there", "hi you")
LONG = "hi there you. " * 100
PLACE = re.compile(r"waiting to speak: place \d")


async def told(heard):
    """Wait until the page tells a place in the line."""
    while not any(map(PLACE.search, heard.said)):
        assert not heard.over.done(), heard.said
        await asyncio.sleep(0.01)


async def scene(url):
    """Let one say a long text, others press Speak meanwhile; return what these heard."""
    site = await Site.read(url)
    async with contextlib.AsyncExitStack() as stack:

        async def come():
            visitor = await stack.enter_async_context(Visitor(site))
            await visitor.open(voice=TINY)
            return visitor

        long, *others = [await come() for _ in range(1 + len(WORDS))]
        async with Visitor(site) as leaving:
            await leaving.open(voice=TINY)
            long["text"] = LONG
            before = await long.speak(measure=False)
            while not any("sentence" in one for one in before.said):
                await asyncio.sleep(0.01)
            gone, heard = await leaving.speak(), []
            for visitor, text in zip(others, WORDS, strict=True):
                visitor["text"] = text
                heard.append(await visitor.speak(measure=False))
            await asyncio.gather(*(told(one) for one in (gone, *heard)))
        await asyncio.gather(*(one.first() for one in heard))
        for visitor, text in zip(others, WORDS, strict=True):
            visitor["text"], visitor["amount"] = text, 0.6
        moved = [await one.speak(play=False, measure=False) for one in others]
        await asyncio.gather(*(one.first() for one in moved))
        return heard, moved


@pytest.mark.slow
def test_visitors_hear_their_own_words_and_are_told_their_place(server):
    heard, moved = asyncio.run(scene(server.url))
    tiny = load_voice(server.folders[TINY])
    for text, *sounds in zip(WORDS, heard, moved, strict=True):
        original = speak(tiny, text)
        for one in sounds:
            pruned = prune(tiny, PruneSpec(amount=one.amount))
            wanted = speak(pruned, text, timing=original).pcm16()
            assert nearly(soundfile.read(io.BytesIO(one.sound), dtype="int16")[0], wanted)
