"""The child process of espeak_process: a line of JSON in, a line of JSON out, until its input ends."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from vits_prune.errors import InputError
from vits_prune.voices import espeak


def _clauses(text: str, voice: str) -> list[tuple[Any, ...]]:
    return [dataclasses.astuple(clause) for clause in espeak.clauses(text, voice)]


@lru_cache(maxsize=1)
def _phonemizer() -> Callable[..., str]:
    """phonemizer, told to use the espeak-ng that pip installed."""
    import espeakng_loader
    import phonemizer
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return phonemizer.phonemize


def _phonemise(text: str) -> str:
    return _phonemizer()(
        text,
        language="en-us",
        backend="espeak",
        strip=True,
        preserve_punctuation=True,
        with_stress=True,
    )


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "ready": lambda: True,
    "clauses": _clauses,
    "check_voice": espeak.check_voice,
    "phonemise": _phonemise,
}


def main() -> None:
    """Answer until the other end closes; nothing but answers goes to the real standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints
    for line in sys.stdin.buffer:
        operation, *arguments = json.loads(line)
        try:
            answer = {"result": _OPERATIONS[operation](*arguments)}
        except InputError as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
