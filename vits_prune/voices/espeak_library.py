"""espeak-ng 1.52 as pip installs it (espeakng-loader), through ctypes: text to phonemes.

Piper trained its voices on what espeak-ng says about a clause *and* on the punctuation that ended
it. This espeak-ng returns the phonemes only, so the mark is found in the text it consumed, by the
rules of its `ReadClause` (espeak-ng 1.52, src/libespeak-ng/readclause.c); at the very end of a text
espeak-ng itself is asked. phonemizer, which replaces punctuation, serves VitsTokenizer's call only.

Run as a program, this module is the child process of espeak.py: a line of JSON in, one out.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import re
import sys
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import espeakng_loader

from vits_prune.errors import InputError

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_SEPARATOR = "\x1f"  # asked for between phonemes, of which none contains it
_MNEMONICS = ord(_SEPARATOR) << 8  # phoneme mode: espeak-ng's own names
_IPA = 0x02 | _MNEMONICS
_STRESS = "',%="
_HAS_BEEN = re.compile(r"(?<!\S)hˈ[æa]zbiːn(?!\S)")
_CLAUSE_BUFFER = 800 - 75
"""Bytes after which espeak-ng breaks a clause without any mark (N_TR_SOURCE, less a reserve)."""

# Characters that can end a clause, by what Piper writes for them: espeak-ng 1.52,
# src/ucd-tools/data/espeak-ng/PropList.txt.
_MARKS = {
    ".": ".\u06d4\u0701\u0704\u1362\u166e\u1803\u1809\u2488-\u249b\u2cf9\u2cfe\u2e33\u2e3c\ua4ff"
    "\ua60e\ua6f3\ufe12\ufe52\uff61\U00016af5\U0001bc9f\U0001da88\U0001f100\U000e002e",
    "?": "?\u037e\u061f\u0709\u1367\u1945\u2047\u2753\u2754\u2cfa\u2cfb\ua60f\ua6f7\ufe16\ufe56"
    "\U00011143\U0001e95f\U000e003f",
    "!": "!\u0703\u07f9\u1944\u203c\u2755\u2757\u2762\u2763\ufe15\ufe57\U0001e95e\U000e0021",
    ",": ",\u055d\u060c\u0702\u07f8\u0f14\u1363\u1802\u1808\u2e32\u2e34\u2e41\ua4fe\ua60d\ua6f5"
    "\ufe10\ufe11\ufe50\ufe51\uff64\U0001144d\U0001da87\U0001f101-\U0001f10a\U000e002c",
    ":": ":\u0706\u0707\u1365\u1366\u1804\u2982\ua6f4\ufe13\ufe55\U00012471\U00012472\U0001da8a"
    "\U000e003a",
    ";": ";\u0387\u061b\u0708\u1364\u204f\u2e35\ua6f6\ufe14\ufe54\U0001da89\U000e003b\u2013\u2014"
    "\u2e3a\u2e3b\ufe31\ufe32",
}
# These leave no mark: espeak-ng flags them "no space needed after", which Piper does not look for.
_SILENT_SENTENCE = (
    "\u0589\u0964\u0df4\u0f0d\u3002\uff0e\uff01\uff1f\u0700\u0965\u0f0e\u10fb\u1368\u2029"
)
_SILENT_CLAUSE = "\u00a1\u00bf\u3001\uff0c\uff1a\uff1b\u0eaf\u1801\u2026\u22ee-\u22f1\ufe19"
_IN_WORD = "\u055b\u055c\u055e"
_SPACE = "\\t-\\r\\x85\u0020\u1680\u2000-\u2006\u2008-\u200a\u2028\u2029\u205f\u3000"

_CLASSES = [(re.compile(f"[{marks}]"), (mark, mark in ".?!")) for mark, marks in _MARKS.items()]
_CLASSES += [
    (re.compile(f"[{_SILENT_SENTENCE}]"), ("", True)),
    (re.compile(f"[{_SILENT_CLAUSE}]"), ("", False)),
]
_TAIL = re.compile(
    f"(?P<run>[{''.join(_MARKS.values())}{_SILENT_SENTENCE}{_SILENT_CLAUSE}{_IN_WORD}]*)"
    f"(?P<space>[{_SPACE}]*)\\Z"
)
_MAX_TAIL = 2000
"""Characters searched for the mark that ended a clause; more white space ends a paragraph."""

_lock = threading.RLock()
"""espeak-ng keeps its voice and its place in the text in globals."""


@dataclass(frozen=True)
class Clause:
    """What espeak-ng reads in one breath."""

    phonemes: str
    """IPA with stress marks; words of another language between flags such as (en)."""
    mark: str
    """The punctuation that ended it: one of . ? ! , : ; or nothing."""
    ends_sentence: bool
    text: str


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """Return the loaded and initialised library, one a process."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pointer = ctypes.POINTER(ctypes.c_void_p)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    data = espeakng_loader.get_data_path().encode()
    if library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _INITIALIZE_DONT_EXIT) <= 0:
        raise RuntimeError("espeak-ng does not start: install espeakng-loader again.")
    return library


def check_voice(voice: str) -> None:
    """Raise InputError if espeak-ng has no voice of this name, such as "en-us" or "cmn"."""
    sound = isinstance(voice, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]{0,39}", voice)
    with _lock:
        # espeak-ng would take a folder of languages, such as "gmw", for a voice and say nonsense
        folder = sound and Path(espeakng_loader.get_data_path(), "lang", voice).is_dir()
        if not sound or folder or _library().espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {str(voice)[:40]!r}: check espeak.voice.")


def clauses(text: str, voice: str) -> list[Clause]:
    """Return the clauses of a text in order, as Piper gets them; InputError without the voice.

    A clause has no phonemes where nothing can be said. Control characters count as blanks. Threads
    take turns. Time grows with the length of the text, which the caller bounds.
    """
    # control characters would end the text or command espeak-ng, lone surrogates have no UTF-8
    encoded = "".join(
        " " if not c.isspace() and unicodedata.category(c) in ("Cc", "Cs") else c for c in text
    ).encode()
    buffer = ctypes.create_string_buffer(encoded)
    found: list[Clause] = []
    with _lock:
        check_voice(voice)
        raw = _read_all(buffer, _IPA)
        names = _read_all(buffer, _MNEMONICS)
        begin = 0
        for (ipa, end), (mnemonics, _) in zip(raw, names, strict=True):
            stop = _last_character(encoded, end)
            clause, following = encoded[begin:stop].decode(), encoded[stop:end].decode()
            mark, ends_sentence = _mark(clause, following)
            phonemes = _revised(_with_palatals(ipa, mnemonics), voice)
            found.append(Clause(phonemes, mark, ends_sentence, clause))
            begin = stop
    return found


def _read_clause(buffer: ctypes.Array[ctypes.c_char], start: int, mode: int) -> tuple[str, int]:
    """Return the phonemes of a clause and the place after what was read, one character more."""
    base = ctypes.addressof(buffer)
    pointer = ctypes.c_void_p(base + start)
    phonemes = _library().espeak_TextToPhonemes(ctypes.byref(pointer), _CHARS_UTF8, mode)
    end = pointer.value - base if pointer.value else len(buffer)  # the NUL counts as read
    return (phonemes or b"").decode("utf-8", "replace"), end


def _read_all(buffer: ctypes.Array[ctypes.c_char], mode: int) -> list[tuple[str, int]]:
    """Return the phonemes of every clause, each with the place after what was read for it."""
    _forget_lookahead()
    found, start = [], 0
    while start < len(buffer):
        phonemes, end = _read_clause(buffer, start, mode)
        if end <= start:  # espeak-ng does not do this, and must not hang us if it ever does
            break
        found.append((phonemes, end))
        start = end
    return found


def _forget_lookahead() -> None:
    """Clear the character that espeak-ng read ahead and keeps for the next call."""
    _read_clause(ctypes.create_string_buffer(b""), 0, _IPA)


def _last_character(encoded: bytes, end: int) -> int:
    """Return where the character that ends at a place begins; the final NUL counts as one."""
    start = min(end - 1, len(encoded))
    while 0 < start < len(encoded) and encoded[start] & 0xC0 == 0x80:
        start -= 1
    return start


def _with_palatals(ipa: str, mnemonics: str) -> str:
    """Return IPA with "ʲ" for the phoneme ";", which espeak-ng 1.52.0 leaves out ("the end")."""
    sounds, names = (re.split(f"([{_SEPARATOR} ])", phonemes) for phonemes in (ipa, mnemonics))
    if len(sounds) == len(names):
        sounds = [
            "ʲ" if not sound and name.lstrip(_STRESS) == ";" else sound
            for sound, name in zip(sounds, names, strict=True)
        ]
    return "".join(sounds).replace(_SEPARATOR, "")


def _revised(ipa: str, voice: str) -> str:
    """Return English "has been" as espeak-ng says it after 1.52.0, and so Piper's runtime."""
    if not voice.startswith("en"):
        return ipa
    return _HAS_BEEN.sub("hazbɪn" if voice == "en-029" else "hɐzbɪn", ipa)


def _mark(clause: str, following: str) -> tuple[str, bool]:
    """Return the mark that ended a clause, and whether it ended a sentence too.

    The clause has its white space at the end; `following` is the character read ahead, if any.
    """
    tail = _TAIL.search(clause, max(0, len(clause) - _MAX_TAIL))
    assert tail  # it matches the empty string too
    run, space = tail["run"], tail["space"]
    if space.count("\n") > 1:
        return "", True
    if not run:
        return "", not following
    goes_on = following.islower() or (following.isalnum() and not space)
    if following and len(clause.encode()) >= _CLAUSE_BUFFER and goes_on:
        return "", False
    if not following and not _ends_before_capital(clause):
        return "", True
    if run.startswith("..."):
        return "", False
    return next((found for marks, found in _CLASSES if marks.match(run)), ("", False))


def _ends_before_capital(clause: str) -> bool:
    """Whether the marks at a clause's end do end it before a capital ("Heinrich IV." does not)."""
    buffer = ctypes.create_string_buffer(f"{clause} A".encode())
    _forget_lookahead()
    _, end = _read_clause(buffer, 0, _IPA)
    _forget_lookahead()
    return end < len(buffer)


def use_installed_espeak() -> None:
    """Let phonemizer use the espeak-ng that pip installed."""
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())


@lru_cache(maxsize=1)
def _phonemizer() -> Callable[[str], str]:
    """Return the call that VitsTokenizer makes: phonemes with stress and punctuation.

    The flags around words of another language, such as (ko), are left out: they would be said.
    """
    import phonemizer

    use_installed_espeak()
    options: dict[str, Any] = {"language": "en-us", "backend": "espeak", "strip": True}
    options |= {"language_switch": "remove-flags", "preserve_punctuation": True}
    return partial(phonemizer.phonemize, with_stress=True, **options)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "ready": lambda: True,
    "clauses": lambda text, voice: [dataclasses.astuple(one) for one in clauses(text, voice)],
    "check_voice": check_voice,
    "phonemise": lambda text: _phonemizer()(text),
}


def _answer_questions() -> None:
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
    _answer_questions()
