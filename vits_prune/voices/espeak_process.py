"""espeak-ng in a process of its own, which may die of a text without taking the page with it.

espeak-ng 1.52 is C with buffers of fixed size: a few hundred letters and dots without a word among them ("a.a.a.a.", some scripts sooner)
write past their end. What a visitor types must not end the server, so texts are read in a child process; where that dies, the text is
refused with a sentence and the next one gets a new child.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.forks import renew_in_forks
from vits_prune.voices.espeak import Clause

_ANSWER_SECONDS = 60.0
_START_SECONDS = 120.0


class _Child:
    """One child process, asked by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        renew_in_forks(self)

    def after_fork(self) -> None:
        """Leave the child to the parent process: two processes must not share its pipes."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                pipe.raw.close()  # the file below the buffer, which may hold what the parent is about to send
            process.returncode = 0  # only the parent can wait for it

    def ask(self, operation: str, *arguments: str) -> Any:
        """The child's answer.

        Raises:
            InputError: espeak-ng refuses, or died of this text.
            RuntimeError: the child does not start.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            answer = self._exchange([operation, *arguments], _ANSWER_SECONDS)
            if answer is None:
                self._stop()
                raise InputError(
                    "espeak-ng cannot read this text: shorten or respell what is unusual in it, such as long runs of dots."
                )
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["result"]

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vits_prune.voices.espeak_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._exchange(["ready"], _START_SECONDS) is None:
            self._stop()
            raise RuntimeError("The process that reads text with espeak-ng does not start.")

    def _exchange(self, question: list[str], seconds: float) -> dict[str, Any] | None:
        """One line there, one line back; None where the child has died or does not answer."""
        process = self._process
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            with (
                selectors.DefaultSelector() as selector
            ):  # `select.select` takes no descriptor above 1023
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(seconds):
                    return None
            line = process.stdout.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (BrokenPipeError, ConnectionResetError):
            return None

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process = None


_child = _Child()


def clauses(text: str, voice: str) -> list[Clause]:
    """`espeak.clauses`, read in the child.

    Raises:
        InputError: espeak-ng has no such voice, or cannot read this text.
    """
    return [Clause(*fields) for fields in _child.ask("clauses", text, voice)]


def check_voice(voice: str) -> None:
    """`espeak.check_voice`, asked of the child.

    Raises:
        InputError: espeak-ng has no such voice.
    """
    _child.ask("check_voice", voice)


def phonemise(text: str) -> str:
    """What phonemizer makes of an English text, as transformers' VitsTokenizer calls it, in the child.

    Raises:
        InputError: espeak-ng cannot read this text.
    """
    return _child.ask("phonemise", text)
