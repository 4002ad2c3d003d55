"""Many visitors on the page at once: what each hears, when, and what they leave behind.

    python benchmarks/load.py [--visitors 50] [--voice joe] [--threads 2] [--visits 400]

Starts `python app.py` twice. In the first one visitor says every text alone; in the second as many
visitors as texts press Speak at once, move their sliders, measure, stop and leave. They speak
Gradio's protocol over HTTP, without a browser (tests/ui/visitors.py). The voice is a tiny one of
the tests, from a hub on this machine, unless it is joe. Ends with 1 if a line says FAIL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.nearly import nearly
from tests.ui.conftest import TINY, running
from tests.ui.visitors import Heard, Site, Visitor
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Repository, serving

TEXTS = [
    f"The {adjective} {noun} {verb} this morning."
    for verb, adjective, noun in itertools.product(
        ("slid", "came", "went", "stood", "fell", "rose", "lay", "turned", "waited", "shone"),
        ("old", "red", "small", "long", "new"),
        ("boat", "canoe", "sled", "lamp", "horse", "kite", "wheel", "stone", "bell", "cart"),
    )
]
LONG = " ".join(TEXTS[:30])[:1_900]
HOUR = 430
"""Visits of an hour if fifty visitors at a time stay for seven minutes."""
PLACE = re.compile(r"waiting to speak: place (\d+)")


@dataclass(frozen=True)
class Server:
    """The page in a process of its own."""

    site: Site
    pid: int
    folder: Path
    """Where it keeps temporary files."""

    @property
    def resident(self) -> float:
        """Memory in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    @property
    def busy(self) -> float:
        """Processor seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def files(self) -> set[Path]:
        """All files that it keeps."""
        return {one for one in self.folder.rglob("*") if one.is_file()}

    async def rest(self) -> None:
        """Wait until it has nothing to do."""
        before = -1.0
        while self.busy - before > 0.4:  # a page at rest takes up to 0.15 s of two
            before = self.busy
            await asyncio.sleep(2)


class Verdicts:
    """What was found, printed as it comes."""

    failed = False

    def say(self, passed: bool, what: str) -> None:
        """Print one line."""
        self.failed |= not passed
        print(f"{'pass' if passed else 'FAIL'}  {what}", flush=True)


@contextlib.asynccontextmanager
async def page(hub_url: str, threads: int) -> AsyncIterator[Server]:
    """Run the app; yield it when its own first row is made."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        base, more = Path(folder), {"OMP_NUM_THREADS": str(threads)}
        with running(port, hub_url, base, base / "log", more) as process:
            while True:
                with contextlib.suppress(httpx.TransportError, ValueError):
                    site = await Site.read(f"http://127.0.0.1:{port}")
                    break
                await asyncio.sleep(1)
            server = Server(site, process.pid, base / "tmp")
            await server.rest()
            yield server
        if "Error" in (log := (base / "log").read_text()):
            print("the end of the log:", log[-3_000:], sep="\n")


def amount_of(index: int) -> float:
    return round(0.31 + 0.01 * (index % 40), 2)


def samples(sound: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(sound), dtype="int16")[0]


async def alone(server: Server, voice: str, texts: list[str]) -> list[tuple[Heard, Heard]]:
    """Let one visitor say every text, at the first amount and at another."""
    found = []
    async with Visitor(server.site) as visitor:
        await visitor.open(voice=voice)
        for index, text in enumerate(texts):
            visitor["text"], visitor["amount"] = text, 0.3
            first = await visitor.speak(measure=False)
            await first.over
            visitor["amount"] = amount_of(index)
            second = await visitor.speak(play=False, measure=False)
            await second.over
            found.append((first, second))
    return found


# Fifty at once


async def together(
    server: Server, voice: str, texts: list[str], single: list[tuple[Heard, Heard]], out: Verdicts
) -> None:
    """Let all press Speak at once; some leave and some press Stop while they wait."""
    count = len(texts)
    leaving = set(range(7, count, 10))
    stopping = set(range(9, count, 10))
    heard: dict[int, Heard] = {}
    moved: dict[int, Heard] = {}
    stopped: dict[int, float] = {}
    opened, gone = 0, asyncio.Event()

    async def visit(index: int) -> None:
        nonlocal opened
        async with Visitor(server.site) as visitor:
            await visitor.open(voice=voice, text=texts[index])
            opened += 1
            while opened < count:
                await asyncio.sleep(0.01)
            heard[index] = await visitor.speak(measure=index % 2 == 0)
            if index in leaving:
                while not PLACE.search(" ".join(heard[index].said)) and not heard[index].sound:
                    await asyncio.sleep(0.01)
                return
            if index in stopping:
                await asyncio.sleep(0.5)
                began = time.monotonic()
                await visitor.stop()
                await heard[index].over
                stopped[index] = time.monotonic() - began
                return
            await heard[index].first()
            visitor["amount"] = amount_of(index)
            moved[index] = await visitor.speak(play=False, measure=index % 2 == 0)
            await moved[index].first()
            if len(moved) == count - len(leaving) - len(stopping) and all(
                one.sound for one in moved.values()
            ):
                gone.set()
            await gone.wait()

    began = time.monotonic()
    await asyncio.gather(*(visit(index) for index in range(count)))
    print(f"{count} visitors, {len(leaving)} left and {len(stopped)} stopped while they waited: "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    pairs = [
        pair
        for index in moved
        for pair in zip((heard[index], moved[index]), single[index], strict=True)
    ]
    own = sum(nearly(samples(one.sound), samples(other.sound)) for one, other in pairs)
    same = sum(one.sound == other.sound for one, other in pairs)
    apart = len({one.sound for one, _ in single}) == count
    out.say(
        own == len(pairs) and apart,
        f"nobody hears another's speech: {own} of {len(pairs)} sounds are those of a lone visitor "
        f"({same} to the bit); the {count} texts sound different",
    )
    first = sorted(heard[index].first_sound for index in moved)
    total, middle = sum(one.first_sound for one, _ in single), statistics.median(first)
    out.say(
        first[-1] <= total,
        f"first sound of the last: {first[-1]:.2f} s (median {middle:.2f} s); "
        f"of all taken singly together: {total:.2f} s",
    )
    waited = [one for index, one in heard.items() if index in moved and one.first_sound > 1.5]
    told = [[int(place) for place in PLACE.findall(" ".join(one.said))] for one in waited]
    falling = sum(bool(places) and places == sorted(places, reverse=True) for places in told)
    out.say(
        falling == len(waited),
        f"place in the line: told to {falling} of {len(waited)} who waited for more than 1.5 s, "
        f"up to place {max((max(places) for places in told if places), default=0)}",
    )
    slowest = max(stopped.values())
    out.say(slowest < 5, f"Stop ends a run that waits or works in {slowest:.2f} s at most")


async def while_others_measure(
    server: Server, voice: str, texts: list[str], single: list[tuple[Heard, Heard]], out: Verdicts
) -> None:
    """Let some measure and calibrate, and others speak meanwhile."""
    async with contextlib.AsyncExitStack() as stack:

        async def come() -> Visitor:
            visitor = await stack.enter_async_context(Visitor(server.site))
            await visitor.open(voice=voice)
            return visitor

        curve, heat, calibrating, *listeners = [await come() for _ in range(8)]
        work = []
        for visitor, button in ((curve, "curve_start"), (heat, "heat_start")):
            work.append(asyncio.create_task(visitor.press(button)))
        calibrating["method"], calibrating["amount"] = "second_order", 0.6
        calibrated = await calibrating.speak()
        await asyncio.sleep(2)
        found, during = [], 0
        for index, (visitor, text) in enumerate(zip(itertools.cycle(listeners), texts[:15])):
            visitor["text"], visitor["amount"] = text, 0.3
            heard = await visitor.speak(measure=False)
            found.append(await heard.first())
            during += not all(one.done() for one in work)
            assert nearly(samples(heard.sound), samples(single[index][0].sound))
        began = time.monotonic()
        if not calibrated.sound:
            await calibrated.first()
        left = time.monotonic() - began
        for one in work:
            one.cancel()
        usual = statistics.median(one[0].first_sound for one in single[:15])
        out.say(
            during == len(found),
            f"hearing beside a curve, a table of sensitivity and a calibration: {during} of "
            f"{len(found)} texts heard before those ended; first sound "
            f"{statistics.median(found):.2f} s, at most {max(found):.2f} s, alone {usual:.2f} s; "
            f"the calibrated voice came {left:.0f} s later",
        )


# Visits


async def visits(server: Server, voice: str, count: int, out: Verdicts) -> None:
    """Let visitors come and go, ten at a time; look at the memory after each ten."""

    async def visit(text: str, measure: bool) -> None:
        async with Visitor(server.site) as visitor:
            await visitor.open(voice=voice, text=text)
            for amount in (0.3, 0.47):
                visitor["amount"] = amount
                heard = await visitor.speak(play=amount == 0.3, measure=measure)
                await heard.first()

    texts = itertools.cycle(TEXTS)
    resident = []
    for turn in range(-6, count // 10):  # the first ones fill the caches
        said = [f"{LONG} {next(texts)}" if turn < 0 else f"{turn} {next(texts)}" for _ in range(10)]
        await asyncio.gather(*(visit(one, i == 0) for i, one in enumerate(said)))
        if turn >= 0:
            resident.append(server.resident)
    half = np.array(resident[len(resident) // 2 :])
    slope, spread = trend(half)
    hour, most = slope * HOUR / 10, (slope + 2 * spread) * HOUR / 10
    out.say(most < 0.1 * half[0], f"memory over the last {10 * len(half)} of {count} visits: "
            f"{half[0]:.0f} to {half[-1]:.0f} MB, {hour:+.1f} MB an hour of {HOUR} visits "
            f"(+- {2 * spread * HOUR / 10:.1f}); at first {resident[0]:.0f} MB")  # fmt: skip


def trend(values: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line through values and its standard error."""
    at = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(at @ values / (at @ at))
    left = values - values.mean() - slope * at
    return slope, float(np.sqrt(left @ left / (len(values) - 2) / (at @ at)))


async def measure(options: argparse.Namespace, hub_url: str) -> Verdicts:
    """Do everything."""
    out, voice = Verdicts(), "joe" if options.voice == "joe" else TINY
    texts = TEXTS[: options.visitors]
    async with page(hub_url, options.threads) as server:
        single = await alone(server, voice, texts)
    async with page(hub_url, options.threads) as server:
        before = server.files
        await together(server, voice, texts, single, out)
        await while_others_measure(server, voice, texts, single, out)
        await visits(server, voice, options.visits, out)
        most = len(server.files)
        await server.rest()
        await asyncio.sleep(140)
        left = server.files - before
        out.say(not left, f"files after all left: {len(left)}, while they were there {most}")
        for one in sorted(left)[:5]:
            print(f"      {one.relative_to(server.folder)}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--visitors", type=int, default=50, help=f"20 to {len(TEXTS)}")
    parser.add_argument("--voice", choices=("tiny", "joe"), default="tiny")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--visits", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving() as hub:
        checkpoint = make_checkpoint(Path(folder) / "tiny")
        hub.repositories[TINY] = [Repository(checkpoint, licence="cc-by-4.0")]
        return int(asyncio.run(measure(options, hub.url)).failed)


if __name__ == "__main__":
    sys.exit(main())
