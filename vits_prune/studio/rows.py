"""Rows: one text spoken at a row of amounts, so that a page can go from one to the next at once."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import prune
from vits_prune.pruning.spec import MAX_AMOUNT
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import check_feasible, happened
from vits_prune.studio.jobs import calls_are_limited
from vits_prune.studio.request import Request, at_amount
from vits_prune.studio.workbench import Spoken, listens, trace
from vits_prune.synthesis.speak import Speech, write_wav
from vits_prune.threads import WaitingLine
from vits_prune.voices.voice import Voice

AMOUNTS = (*(round(0.05 * i, 2) for i in range(20)), MAX_AMOUNT)
FEWER_AMOUNTS = (0.0, 0.3, 0.5, 0.7, 0.9)
"""For methods that listen first: each amount takes seconds to a minute."""
MAX_ROW_SECONDS = 15.0
"""A longer speech is made at the chosen amount only."""
_ROW_BYTES = 128 << 20
_PREFIX = "vits_prune-row-"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """What the voice pruned by one amount says."""

    amount: float
    sound: Path
    """A 16-bit WAV file, which lives as long as the row."""
    words: str
    """What pruning by this amount did."""
    claim: str = ""
    """What may be said of its quality; empty where that was not measured."""

    @property
    def said(self) -> str:
        """Both, as the stage says them."""
        return f"{self.words} {self.claim}".rstrip()


@dataclass(eq=False)
class Row:
    """One text at the amounts that are made so far. Threads share it."""

    request: Request
    points: dict[float, Point] = field(default_factory=dict)
    original: Path | None = None
    seconds: float = 0.0
    folder: Any = field(default_factory=lambda: tempfile.TemporaryDirectory(prefix=_PREFIX))
    making: WaitingLine = field(default_factory=WaitingLine)
    """One amount is made at a time: two visitors of a row do not make it twice."""

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts that the row is to have: none where the speech is too long to repeat."""
        spec = self.request.spec
        if self.seconds > MAX_ROW_SECONDS or _alone(self.request):
            return ()
        return FEWER_AMOUNTS if listens(spec) else AMOUNTS

    def add_sound(self, amount: float, pruned: Speech) -> None:
        """Keep what the pruned voice said, before the original has spoken."""
        self.seconds = pruned.audio_seconds
        if amount not in self.points:
            self.points[amount] = Point(amount, self._write(pruned), "")

    def add(self, amount: float, spoken: Spoken, words: str = "") -> Point:
        """Keep what was spoken, with words that say what happened."""
        self.add_sound(amount, spoken.pruned)
        if self.original is None:
            self.original = self._write(spoken.original)
        known = self.points[amount]
        self.points[amount] = dataclasses.replace(
            known, words=words or known.words or happened(spoken)
        )
        return self.points[amount]

    def claim(self, amount: float, words: str) -> None:
        """Keep what may be said of the quality at an amount that is made."""
        self.points[amount] = dataclasses.replace(self.points[amount], claim=words)

    def _write(self, speech: Speech) -> Path:
        file = Path(tempfile.mkdtemp(dir=self.folder.name)) / "speech.wav"
        write_wav(speech, file)
        return file


def _alone(request: Request) -> bool:
    """Return whether the voice has no other amounts."""
    spec = request.spec
    return bool(spec.shape or spec.pattern or spec.amounts or request.healed)


def _row_bytes(row: Row) -> float:
    return 1_000 + len(row.points) * 50_000 * row.seconds


_rows: Bounded[tuple[Request, str], Row] = Bounded(_ROW_BYTES, _row_bytes)
_filling = WaitingLine()
_first: dict[tuple[Request, str], Row] = {}
"""What `warm_up` made: no other row pushes it out."""


def forget(first: bool = True) -> None:
    """Forget all rows; what `warm_up` made only if `first` says so."""
    _rows.clear()
    if first:
        _first.clear()


def known_row(request: Request, token: str | None = None) -> Row | None:
    """Return the row that a request belongs to, None where there is none yet."""
    key = _key(request, token)
    return _first.get(key) or _rows.get(key)


def row_of(request: Request, token: str | None = None) -> Row:
    """Return the row that a request belongs to; it may be empty."""
    key = _key(request, token)
    return _first.get(key) or _rows.get_or_make(key, lambda: Row(key[0]))


def _key(request: Request, token: str | None) -> tuple[Request, str]:
    plain = request
    if not _alone(request):
        plain = request.at(dataclasses.replace(request.spec, amount=0.0))
    return plain, trace(token)


def fill(row: Row, token: str | None = None, progress: Progress = SILENT) -> Iterator[Row]:
    """Make the amounts that are missing; yield the row after each.

    An amount that the voice cannot be pruned by is left out. Whoever waits to hear goes first.
    """
    bench = workbench.bench
    voice = bench.voice_of(row.request, token, progress=progress)
    for i, amount in enumerate(row.amounts):
        part = progress.part(i / len(row.amounts), (i + 1) / len(row.amounts))
        bench.let_hearing_pass()
        if amount in row.points:
            continue
        filling = _filling.turn(part, "waiting to fill the slider")
        with filling, row.making.turn(part, "waiting for another visitor's row"):
            made = amount not in row.points and _make(row, voice, amount, token, part)
        if made:
            yield row


def _make(row: Row, voice: Voice, amount: float, token: str | None, progress: Progress) -> bool:
    """Add one amount; return whether the voice can be pruned by it."""
    progress.report(f"amount {amount:.0%} for the slider", 0.0)
    bench, request = workbench.bench, row.request.at(at_amount(row.request.spec, amount))
    try:
        check_feasible(voice, request.spec)
    except InputError:
        return False
    if listens(request.spec) and amount:  # dear: worth keeping
        pruned = bench.pruned(request, token, progress)
    else:
        pruned = prune(voice, request.spec)
    original = bench.original(request, token)
    timing: Any = original if request.timing == "locked" else "own"
    speech = workbench.say(pruned, request, timing, SILENT)
    sparsity = measure_sparsity(voice), measure_sparsity(pruned)
    row.add(amount, Spoken(original, speech, sparsity))
    return True


def warm_up(request: Request) -> None:
    """Make a row in a thread, the request's own amount first, so that visitors find it made."""

    def work() -> None:
        from vits_prune.studio.renditions import latency, measuring

        bench = workbench.bench
        try:
            row = Row(_key(request, None)[0])
            spoken = bench.hear(request)  # on the CPU: here nobody waits for a GPU
            row.add(request.spec.amount, spoken)
            _first[_key(request, None)] = row
            bench.remember(request, spoken)
            for _ in fill(row):
                pass
            if not calls_are_limited():
                with measuring.turn():
                    latency(request, None)
        except Exception:
            log.exception("the first row cannot be made")

    threading.Thread(target=work, daemon=True, name="warm-up").start()
