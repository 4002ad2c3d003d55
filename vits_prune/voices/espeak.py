"""Text to phonemes by espeak-ng, which runs in a process of its own and may die there.

espeak-ng 1.52 is C with buffers of fixed size: a few hundred letters and dots without a word among
them ("a.a.a.a.") write past their end. No text may end the server, so a child process reads them.
If it dies, the text is refused and the next one gets a new child.
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
from vits_prune.threads import renew_in_forks
from vits_prune.voices.espeak_library import Clause

_ANSWER_SECONDS = 60.0
_START_SECONDS = 120.0


class EspeakProcess:
    """One child process, asked by one thread at a time, which holds `lock` meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: Any = None  # a Popen, whose pipes its type would call optional
        renew_in_forks(self)

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return self._process.pid if self._process else None

    def after_fork(self) -> None:
        """Leave the child to the parent process: two processes must not share its pipes."""
        self.lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                pipe.raw.close()  # and not the buffer, which the parent may be about to send
            process.returncode = 0  # only the parent can wait for it

    def ask(self, operation: str, *arguments: str) -> Any:
        """Return the child's answer; InputError if espeak-ng refuses, or died of this text."""
        with self.lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            answer = self._exchange([operation, *arguments], _ANSWER_SECONDS)
            if answer is None:
                self.close()
                raise InputError(
                    "espeak-ng cannot read this text: respell what is unusual (runs of dots?)."
                )
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["result"]

    def close(self) -> None:
        """End the child; the next question starts another."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process = None

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vits_prune.voices.espeak_library"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._exchange(["ready"], _START_SECONDS) is None:
            self.close()
            raise RuntimeError("The process that reads text with espeak-ng does not start.")

    def _exchange(self, question: list[str], seconds: float) -> dict[str, Any] | None:
        """Write one line and read one; return None if the child has died or does not answer."""
        questions, answers = self._process.stdin, self._process.stdout
        try:
            questions.write(json.dumps(question).encode() + b"\n")
            questions.flush()
            with selectors.DefaultSelector() as selector:  # `select` fails above descriptor 1023
                selector.register(answers, selectors.EVENT_READ)
                if not selector.select(seconds):
                    return None
            line = answers.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (BrokenPipeError, ConnectionResetError):
            return None


process = EspeakProcess()
"""The child that all of this process asks."""


def clauses(text: str, voice: str) -> list[Clause]:
    """Return the clauses of a text; InputError if espeak-ng has no such voice or cannot read it."""
    return [Clause(*fields) for fields in process.ask("clauses", text, voice)]


def check_voice(voice: str) -> None:
    """Raise InputError if espeak-ng has no voice of this name, such as "en-us" or "cmn"."""
    process.ask("check_voice", voice)


def phonemise(text: str) -> str:
    """Return what phonemizer makes of an English text; InputError if espeak-ng cannot read it."""
    return process.ask("phonemise", text)
