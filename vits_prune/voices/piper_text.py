"""Text to the ids that a Piper voice reads."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.files import expanded, read_json
from vits_prune.voices.espeak import check_voice, clauses
from vits_prune.voices.sentences import (
    clean,
    for_espeak,
    most_characters,
    plain_spaces,
    spelt,
    split_sentences,
)
from vits_prune.voices.voice import Sentence, is_letter

TOKENIZER_FILE = "piper.json"
MAX_JSON_BYTES = 4 << 20
_BLANK, _BEGIN, _END = "_", "^", "$"
_MAX_SYMBOLS = 20_000
_MAX_IDS_A_SYMBOL = 16
_MAX_FACT = 200
"""Characters of the longest text about a voice that is kept."""
_ABOUT = ("dataset", "piper_version")
_ABOUT_WITHIN = {
    "audio": ("quality",),
    "language": ("code", "family", "region", "name_native", "name_english", "country_english"),
}
_RAW_PHONEMES = re.compile(r"(\[\[.*?\]\])")
_LANGUAGE_FLAG = re.compile(r"\([^)]+\)")
_SYMBOL_CATEGORIES = ("So", "Sk", "Sm", "Sc", "Nd", "Nl", "No", "Cn", "Co")
"""Unicode categories of emoji, arrows, signs and numbers, which are said or passed over."""
AS_PUBLISHED = "give the JSON file of a Piper voice as it was published."


class PiperTokenizer:
    """Read text as the Piper runtime does.

    espeak-ng's phonemes, or the text's own code points, have a blank after each: `^ _ p _ ... $`.
    Ids equal those of piper-tts 1.8 except where its newer espeak-ng pronounces differently, where
    a sentence would be longer than the longest speech, where `for_espeak` changes the text, and
    where a vocabulary of characters has only another form of a letter or a space. Arabic is read as
    it is written, without the vowels that piper-tts adds with a model of its own.

    Args:
        settings: the object in the voice's JSON file; InputError if it is not supported.
        shown: what messages call the file.
    """

    def __init__(self, settings: Mapping[str, Any], shown: str = TOKENIZER_FILE) -> None:
        given = settings.get("phoneme_type") or "espeak"
        # Some trainers write the name of an enumeration: "PhonemeType.ESPEAK".
        kind = str(given).rpartition(".")[2].strip().lower()
        self.phoneme_type = re.sub("^espeak.ng$", "espeak", kind)
        if self.phoneme_type not in ("espeak", "text"):
            kind = f"{str(given)[:20]!r}, not espeak or text"
            raise InputError(f"{shown} has phonemes of type {kind}: use another voice.")
        self.espeak_voice: str | None = None
        if self.phoneme_type == "espeak":
            espeak = settings.get("espeak")
            named = espeak.get("voice") if isinstance(espeak, dict) else None
            if not isinstance(named, str):
                raise InputError(f"{shown} names no espeak.voice: {AS_PUBLISHED}")
            self.espeak_voice = named.strip().replace("_", "-")
            check_voice(self.espeak_voice)
        self.about = _about(settings)
        self.phoneme_ids = _phoneme_ids(settings.get("phoneme_id_map"), shown)
        self.vowel_clusters = _vowel_clusters(settings.get("vowel_clusters"), shown)

    @property
    def language(self) -> str | None:
        """The name that espeak-ng has for the voice's language."""
        return self.espeak_voice

    @property
    def symbols(self) -> dict[str, tuple[int, ...]]:
        """The ids of each symbol."""
        return self.phoneme_ids

    @property
    def letters(self) -> tuple[str, ...]:
        """A text is taken apart by Unicode's NFD before it is read, phonemes are not."""
        raw = self.phoneme_type == "espeak"
        letters = filter(is_letter, self.phoneme_ids)
        return tuple(sorted(s for s in letters if raw or unicodedata.is_normalized("NFD", s)))

    def spell(self, letters: str) -> str:
        """Return a text that is read as these letters."""
        if self.phoneme_type == "espeak":
            return f"[[{letters}]]"
        return f"{letters}." if "." in self.phoneme_ids else letters

    @property
    def largest_id(self) -> int:
        """The largest id that a text can give: the voice needs an embedding for it."""
        return max(max(ids) for ids in self.phoneme_ids.values() if ids)

    def sentences(self, text: str) -> Iterator[Sentence]:
        """Yield the sentences of a text in order; `[[...]]` in a text holds phonemes."""
        if self.phoneme_type == "espeak":
            groups = self._spoken(text)
        else:
            pieces = [text] if len(text) <= most_characters(text) else split_sentences(text)
            groups = [(self._characters(piece), piece) for piece in pieces]
        return itertools.starmap(self._sentence, groups)

    def __call__(self, text: str, return_tensors: str | None = None) -> dict[str, Any]:
        """Return the ids alone, as transformers' tokenizers do: a list for each sentence.

        `return_tensors="pt"` makes them a LongTensor [1, ids], for a text of one sentence.
        """
        spoken = [list(sentence.ids) for sentence in self.sentences(text) if sentence.ids]
        if return_tensors is None:
            return {"input_ids": spoken}
        if return_tensors != "pt" or len(spoken) != 1:
            raise InputError('return_tensors must be "pt", for one sentence: see sentences(text).')
        import torch

        return {"input_ids": torch.tensor(spoken, dtype=torch.long)}

    def save(self, folder: str | Path) -> None:
        """Write piper.json into a folder that exists; `load` makes this tokenizer from it again."""
        content = json.dumps(self.piper_settings(), ensure_ascii=False, indent=1) + "\n"
        (expanded(folder) / TOKENIZER_FILE).write_text(content, encoding="utf-8")

    def piper_settings(self) -> dict[str, Any]:
        """Return the settings that make this tokenizer again, with the facts about the voice."""
        settings: dict[str, Any] = {
            **self.about,
            "phoneme_type": self.phoneme_type,
            "phoneme_id_map": {phoneme: list(ids) for phoneme, ids in self.phoneme_ids.items()},
        }
        if self.espeak_voice:
            settings["espeak"] = {"voice": self.espeak_voice}
        if self.vowel_clusters:
            settings["vowel_clusters"] = sorted(map(list, self.vowel_clusters))
        return settings

    @classmethod
    def load(cls, folder: str | Path) -> PiperTokenizer:
        """Read piper.json from a folder; InputError if it is missing or cannot be used."""
        return cls(read_json(expanded(folder) / TOKENIZER_FILE, max_bytes=MAX_JSON_BYTES))

    def _spoken(self, text: str) -> list[tuple[list[str], str]]:
        """Return phonemes and text of each sentence; `[[...]]` joins what is on both sides."""
        groups: list[tuple[list[str], str]] = []
        parts = ["", *_RAW_PHONEMES.split(text), ""]
        for before, part, after in zip(parts, parts[1:], parts[2:], strict=False):
            if part.startswith("[["):
                spaces = " " * before.endswith(" "), " " * after.startswith(" ")
                found = [([*spaces[0], *part[2:-2].strip(), *spaces[1]], part)]
                groups = groups or [([], "")]
            else:
                found = self._spoken_part(part)
            if found and (part.startswith("[[") or before.startswith("[[")):
                phonemes, words = groups.pop()
                found[0] = (phonemes + found[0][0], words + found[0][1])
            groups += found
        return groups

    def _spoken_part(self, text: str) -> list[tuple[list[str], str]]:
        groups: list[tuple[list[str], str]] = []
        phonemes, part = "", ""
        found = clauses(for_espeak(text), self.espeak_voice or "")
        for place, clause in enumerate(found, 1):
            pause = " " if clause.mark in (",", ":", ";") else ""
            phonemes += _LANGUAGE_FLAG.sub("", clause.phonemes) + clause.mark + pause
            part += clause.text
            if clause.ends_sentence or (place == len(found) and phonemes):
                shorter = split_sentences(part) if len(part) > most_characters(part) else [part]
                if len(shorter) > 1:  # else its end would be beyond the longest speech
                    groups += [group for piece in shorter for group in self._spoken_part(piece)]
                else:
                    groups.append((self._merged(_code_points(phonemes)), part))
                phonemes, part = "", ""
        return groups

    def _characters(self, text: str) -> list[str]:
        """Return the code points of a text in the forms that the voice has symbols for."""
        known = self.phoneme_ids.__contains__
        text = spelt(plain_spaces(unicodedata.normalize("NFD", clean(text)), known), known)
        folded = ((c, c.casefold()) for c in text)  # as Piper's own phonemiser in C++ does
        return [*"".join(c if known(c) or not all(map(known, f)) else f for c, f in folded)]

    def _merged(self, phonemes: list[str]) -> list[str]:
        """Join the phonemes of known vowel clusters, the longest first, from left to right."""
        longest = max(map(len, self.vowel_clusters), default=1)
        merged, place = [], 0
        while place < len(phonemes):
            size = longest
            while size > 1 and tuple(phonemes[place : place + size]) not in self.vowel_clusters:
                size -= 1
            merged.append("".join(phonemes[place : place + size]))
            place += size
        return merged

    def _sentence(self, phonemes: list[str], text: str) -> Sentence:
        kept = [phoneme for phoneme in phonemes if phoneme in self.phoneme_ids]
        unknown = [phoneme for phoneme in phonemes if phoneme not in self.phoneme_ids]
        dropped = tuple(dict.fromkeys([*self._silent(text), *unknown]))
        if not any(character.isalnum() for phoneme in kept for character in phoneme):
            return Sentence(text.strip(), (), (), dropped)
        symbols = [one for symbol in (_BEGIN, *kept) for one in (symbol, _BLANK)] + [_END]
        tokens = [(symbol, i) for symbol in symbols for i in self.phoneme_ids[symbol]]
        return Sentence(
            text.strip(), tuple(i for _, i in tokens), tuple(one for one, _ in tokens), dropped
        )

    def _silent(self, text: str) -> list[str]:
        """Return the symbols of a text, such as emoji, that espeak-ng passes over in silence."""
        if self.espeak_voice is None or text.isascii():
            return []
        symbols = dict.fromkeys(
            c for c in text if unicodedata.category(c) in _SYMBOL_CATEGORIES and not c.isascii()
        )
        return [symbol for symbol in symbols if _is_silent(symbol, self.espeak_voice)]


def _code_points(text: str) -> list[str]:
    return [*unicodedata.normalize("NFD", text)]


@lru_cache(maxsize=4096)
def _is_silent(symbol: str, voice: str) -> bool:
    return not any(clause.phonemes.strip() for clause in clauses(symbol, voice))


def _phoneme_ids(given: object, shown: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(given, dict) or not 0 < len(given) <= _MAX_SYMBOLS:
        raise InputError(f"{shown} has no usable phoneme_id_map: {AS_PUBLISHED}")
    for symbol, ids in given.items():
        usable = isinstance(ids, list) and len(ids) <= _MAX_IDS_A_SYMBOL
        if not usable or any(type(i) is not int or not 0 <= i < 2**31 for i in ids):
            what = f"gives {symbol[:20]!r} ids that are not small whole numbers"
            raise InputError(f"{shown} {what}: correct its phoneme_id_map.")
    for symbol in (_BLANK, _BEGIN, _END):  # a voice may begin and end with nothing
        if symbol not in given or (symbol == _BLANK and not given[symbol]):
            raise InputError(f"{shown} has a phoneme_id_map without {symbol!r}: {AS_PUBLISHED}")
    return {symbol: tuple(ids) for symbol, ids in given.items()}


def _about(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that describe a voice to people, if they are short texts."""

    def short(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, str]:
        texts = {key: values[key] for key in keys if isinstance(values.get(key), str)}
        return {key: text for key, text in texts.items() if len(text) <= _MAX_FACT}

    about: dict[str, Any] = short(settings, _ABOUT)
    for key, entries in _ABOUT_WITHIN.items():
        if isinstance(given := settings.get(key), dict) and (found := short(given, entries)):
            about[key] = found
    return about


def _vowel_clusters(given: Any, shown: str) -> frozenset[tuple[str, ...]]:
    if not given:
        return frozenset()
    usable = isinstance(given, list) and len(given) <= _MAX_SYMBOLS
    usable = usable and all(isinstance(c, list | str) and 0 < len(c) <= 16 for c in given)
    if not usable or not all(isinstance(phoneme, str) for c in given for phoneme in c):
        raise InputError(f"{shown} has vowel_clusters that are not phonemes: {AS_PUBLISHED}")
    return frozenset(tuple(cluster) for cluster in given)
