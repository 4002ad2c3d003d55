"""Visitors without a browser: they speak to the page over HTTP as Gradio's own script does."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode

import httpx
from gradio_client.utils import apply_diff

_API = "/gradio_api"


class Refused(Exception):
    """The page showed this sentence."""


@dataclass(frozen=True)
class Site:
    """What the page tells each browser about itself."""

    url: str
    config: dict[str, Any]

    @classmethod
    async def read(cls, url: str) -> Self:
        """Ask the running page."""
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            return cls(url, (await http.get("/config")).json())

    def place(self, name: str) -> int:
        """Return the id of the component that is called so."""
        named = {one["props"].get("elem_id"): one["id"] for one in self.config["components"]}
        return named[name.replace("_", "-")]

    def on(self, name: str, trigger: str) -> list[dict[str, Any]]:
        """Return the events of a component, in the order they were wired."""
        target = [self.place(name), trigger]
        return [one for one in self.config["dependencies"] if target in one["targets"]]

    def loads(self) -> list[dict[str, Any]]:
        """Return what opening the page sets off."""
        every = self.config["dependencies"]
        return [one for one in every if any(kind == "load" for _, kind in one["targets"])]

    def after(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events that follow one that went well and run on the server."""
        every = self.config["dependencies"]
        next_ones = [one for one in every if one["trigger_after"] == event["id"]]
        return [one for one in next_ones if one["backend_fn"]]


@dataclass
class Heard:
    """What one press brought, and when: seconds since the press."""

    amount: float
    places: list[int] = field(default_factory=list)
    """In the queue, as the server said them: 0 is the next."""
    said: list[str] = field(default_factory=list)
    """What stood on the status line until the first sound."""
    begun: float | None = None
    first_sound: float | None = None
    sound: bytes = b""
    """The pruned voice's file."""
    sounded: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Task[None] | None = None
    """Ends when all that followed the press is done."""

    async def first(self) -> float:
        """Wait for the sound, or the end without one; return when it came.

        Raises:
            Refused: the run ended without a sound.
        """
        waiting = asyncio.ensure_future(self.sounded.wait())
        await asyncio.wait({waiting, self.over}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.first_sound is None:
            await self.over
            raise Refused("no sound")
        return self.first_sound


class Visitor:
    """One page in one browser: `async with Visitor(site) as visitor`. To leave, leave the block."""

    def __init__(self, site: Site) -> None:
        self.site, self.session = site, uuid.uuid4().hex[:11]
        self.values = {one["id"]: one["props"].get("value") for one in site.config["components"]}
        self._news: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._early: dict[str, list[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[str, int] = {}
        self._listening: asyncio.Task[None] | None = None
        self._heard: Heard | None = None
        self._spoken: str | None = None
        # A connection that rested may be closed by the server just when it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=site.url, timeout=None, limits=limits)

    async def __aenter__(self) -> Self:
        self._begin(self._stay())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    def __getitem__(self, name: str) -> Any:
        return self.values[self.site.place(name)]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[self.site.place(name)] = value

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    # What a visitor does

    async def open(self, **query: Any) -> None:
        """Open the page at an address; its voice is loaded then."""
        await self._http.get("/", params=query)
        for event in self.site.loads():
            await self.run(event, query=query)
            for following in self.site.after(event):
                await self.run(following)

    async def speak(self, *, play: bool = True, measure: bool = True) -> Heard:
        """Press Speak, or let go of the slider (not `play`); end the run that is under way.

        Without `measure` nothing follows the sound.
        """
        pressed = time.monotonic()
        if self._heard and not self._heard.over.done():
            await self.press("end")
            await asyncio.wait({self._heard.over})
        if self["text"] != self._spoken:
            self._spoken, self["stage"] = self["text"], None  # else the row before is taken for it
        self["ticket"] = ("p" if play else "q") + uuid.uuid4().hex
        heard = self._heard = Heard(float(self["amount"]))
        heard.over = self._begin(self._chain(heard, pressed, measure))
        return heard

    async def _chain(self, heard: Heard, pressed: float, measure: bool) -> None:
        (event,) = self.site.on("go", "click")
        while following := self.site.after(event):
            (event,) = following
            await self.run(event, heard=heard, pressed=pressed)
            if not measure:
                return

    async def press(self, name: str, trigger: str = "click", heard: Heard | None = None) -> None:
        """Press a button and wait for what it sets off on the server."""
        for event in self.site.on(name, trigger):
            if event["backend_fn"]:
                await self.run(event, heard=heard)

    async def stop(self) -> None:
        """Press Stop."""
        events = self.site.on("stop", "click")
        cancels = {one for event in events for one in event["cancels"]}
        for event_id, one in list(self._running.items()):
            if one in cancels:
                cancelled = {"session_hash": self.session, "fn_index": one, "event_id": event_id}
                await self._http.post(f"{_API}/cancel", json=cancelled)
        for event in events:
            if event["backend_fn"] and event["inputs"]:
                await self.run(event)

    # How

    async def run(
        self,
        event: dict[str, Any],
        *,
        query: dict[str, Any] | None = None,
        heard: Heard | None = None,
        pressed: float = 0.0,
    ) -> None:
        """Run one event on the server and take over what it changes.

        Raises:
            Refused: with the sentence that the page shows.
        """
        body = {
            "data": [self.values.get(one) for one in event["inputs"]],
            "event_data": None,
            "fn_index": event["id"],
            "trigger_id": None,
            "session_hash": self.session,
        }
        where = f"?{urlencode(query)}" if query else ""
        if event["queue"] is False:
            answer = await self._http.post(f"{_API}/run/predict{where}", json=body)
            self._take(event, answer.json()["data"])
            return
        answer = await self._http.post(f"{_API}/queue/join{where}", json=body)
        if answer.status_code != httpx.codes.OK:
            raise Refused(answer.json()["detail"])
        event_id = answer.json()["event_id"]
        self._running[event_id] = event["id"]
        news = self._news[event_id] = asyncio.Queue()
        for one in self._early.pop(event_id, ()):
            news.put_nowait(one)
        if self._listening is None or self._listening.done():
            self._listening = self._begin(self._listen())
        try:
            await self._follow(event, news, heard, pressed)
        finally:  # it may be cancelled
            del self._news[event_id], self._running[event_id]

    async def _follow(
        self,
        event: dict[str, Any],
        news: asyncio.Queue[dict[str, Any]],
        heard: Heard | None,
        pressed: float,
    ) -> None:
        """Take over what the server says of an event until it is over."""
        outputs = None
        while True:
            one = await news.get()
            if one["msg"] == "estimation" and heard:
                heard.places.append(one["rank"])
            elif one["msg"] == "process_starts" and heard and heard.begun is None:
                heard.begun = time.monotonic() - pressed
            elif one["msg"] == "process_generating":
                new = one["output"]["data"]
                outputs = (
                    list(new)
                    if outputs is None
                    else [apply_diff(*pair) for pair in zip(outputs, new, strict=True)]
                )
                self._take(event, outputs)
                if heard:
                    if heard.first_sound is None:
                        heard.said.append(str(self["status"]))
                    await self._listen_to(heard, pressed)
            elif one["msg"] == "process_completed":
                if not one["success"]:
                    raise Refused(one["output"].get("error"))
                if outputs is None and one["output"]:
                    self._take(event, one["output"]["data"])
                return
            elif one["msg"] == "unexpected_error":
                raise Refused(one["message"])

    def _take(self, event: dict[str, Any], outputs: list[Any]) -> None:
        for place, new in zip(event["outputs"], outputs, strict=False):
            if isinstance(new, dict) and new.get("__type__") == "update":
                if "value" in new:
                    self.values[place] = new["value"]
            else:
                self.values[place] = new

    async def _listen_to(self, heard: Heard, pressed: float) -> None:
        """Fetch the sound at the chosen amount as soon as the stage has it."""
        if heard.first_sound is not None:
            return
        for point in (self["stage"] or {}).get("points", ()):
            if abs(point["amount"] - heard.amount) < 1e-6:
                answer = await self._http.get(point["sound"]["url"])
                heard.sound = answer.raise_for_status().content
                heard.first_sound = time.monotonic() - pressed
                heard.sounded.set()
                return

    async def _stay(self) -> None:
        async with self._http.stream("GET", f"{_API}/heartbeat/{self.session}") as beats:
            async for _ in beats.aiter_lines():
                pass

    async def _listen(self) -> None:
        """Read what the server says until no run is left: it may close just as one begins."""
        await self._read()
        while self._news:
            await asyncio.sleep(0.05)
            await self._read()

    async def _read(self) -> None:
        where = {"session_hash": self.session}
        async with self._http.stream("GET", f"{_API}/queue/data", params=where) as lines:
            async for line in lines.aiter_lines():
                if not line.startswith("data:"):
                    continue
                one = json.loads(line.removeprefix("data:"))
                if one["msg"] == "close_stream":
                    return
                event_id = one.get("event_id")
                if event_id in self._news:
                    self._news[event_id].put_nowait(one)
                elif event_id:
                    self._early.setdefault(event_id, []).append(one)
                elif one["msg"] == "unexpected_error":
                    for news in self._news.values():
                        news.put_nowait(one)
