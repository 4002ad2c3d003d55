"""Text to the ids that a Piper voice reads."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.espeak import check_voice, clauses
from vits_prune.voices.voice import Sentence, is_letter

TOKENIZER_FILE = "piper.json"
MAX_JSON_BYTES = 4 * 2**20
_BLANK, _BEGIN, _END = "_", "^", "$"
_MAX_SYMBOLS = 20_000
_MAX_IDS_A_SYMBOL = 16
_MAX_FACT = 200
"""Characters of the longest text about a voice that is kept."""
_TOLD = ("dataset", "piper_version")
_TOLD_WITHIN = {
    "audio": ("quality",),
    "language": ("code", "family", "region", "name_native", "name_english", "country_english"),
}
_RAW_PHONEMES = re.compile(r"(\[\[.*?\]\])")
_LANGUAGE_FLAG = re.compile(r"\([^)]+\)")
_SYMBOL_CATEGORIES = ("So", "Sk", "Sm", "Sc", "Cn", "Co")
"""Unicode categories whose characters are said by name or not at all: emoji, arrows, signs."""


class PiperTokenizer:
    """Reads text as the Piper runtime does: espeak-ng's phonemes or the text's own code points, a blank after each, `^ _ p _ p _ ... $`.

    Ids equal those of piper-tts 1.8 but for what its own, newer espeak-ng pronounces differently (see the tests). Arabic is read as it is
    written, without the vowels that piper-tts adds by a model of its own.
    """

    def __init__(self, settings: Mapping[str, Any], shown: str = TOKENIZER_FILE) -> None:
        """Take what is needed from the contents of a Piper voice's JSON file.

        Args:
            settings: the file's object: phoneme_type, espeak.voice, phoneme_id_map, vowel_clusters where there are any, and what tells
                of the voice.
            shown: what messages call the file.

        Raises:
            InputError: it does not say how the voice reads, or says it in a way that this library does not read.
        """
        self.phoneme_type = settings.get("phoneme_type", "espeak")
        if self.phoneme_type not in ("espeak", "text"):
            kind = str(self.phoneme_type)[:20]
            raise InputError(
                f"{shown} asks for phonemes of type {kind!r}, which are not supported: use a voice of type espeak or text."
            )
        self.espeak_voice: str | None = None
        if self.phoneme_type == "espeak":
            espeak = settings.get("espeak")
            self.espeak_voice = espeak.get("voice") if isinstance(espeak, dict) else None
            if not isinstance(self.espeak_voice, str):
                raise InputError(
                    f"{shown} names no espeak.voice: give the JSON file of a Piper voice as it was published."
                )
            check_voice(self.espeak_voice)
        self.about = _about(settings)
        """What the file tells people of the voice, in the file's own shape: language, dataset, quality; nothing is read by it."""
        self.phoneme_ids = _phoneme_ids(settings.get("phoneme_id_map"), shown)
        self.vowel_clusters = _vowel_clusters(settings.get("vowel_clusters"), shown)

    @property
    def language(self) -> str | None:
        return self.espeak_voice

    @property
    def symbols(self) -> dict[str, tuple[int, ...]]:
        return self.phoneme_ids

    @property
    def letters(self) -> tuple[str, ...]:
        """A text is taken apart by Unicode's NFD before it is read, phonemes are not."""
        raw = self.phoneme_type == "espeak"
        letters = filter(is_letter, self.phoneme_ids)
        return tuple(sorted(s for s in letters if raw or unicodedata.is_normalized("NFD", s)))

    def spell(self, letters: str) -> str:
        if self.phoneme_type == "espeak":
            return f"[[{letters}]]"
        return f"{letters}." if "." in self.phoneme_ids else letters

    @property
    def largest_id(self) -> int:
        """The largest id that a text can give: a voice has a row of its embeddings for it."""
        return max(max(ids) for ids in self.phoneme_ids.values() if ids)

    def sentences(self, text: str) -> Iterator[Sentence]:
        """The sentences of a text in order; one of which nothing can be said has no ids. `[[...]]` in a text holds phonemes."""
        groups = (
            [([*unicodedata.normalize("NFD", text)], text)]
            if self.phoneme_type == "text"
            else self._spoken(text)
        )
        for phonemes, part in groups:
            yield self._sentence(phonemes, part)

    def __call__(self, text: str, return_tensors: str | None = None) -> dict[str, Any]:
        """The ids alone, the way transformers' tokenizers give them.

        Args:
            text: what to read.
            return_tensors: None for a list of ids a sentence, "pt" for a LongTensor [1, ids] of a text that is one sentence.

        Raises:
            InputError: a tensor was asked for and the text is not exactly one sentence, or it was asked for in another form.
        """
        spoken = [list(sentence.ids) for sentence in self.sentences(text) if sentence.ids]
        if return_tensors is None:
            return {"input_ids": spoken}
        if return_tensors != "pt" or len(spoken) != 1:
            raise InputError(
                'Only one sentence makes a tensor, with return_tensors="pt": go through sentences(text) for more.'
            )
        import torch

        return {"input_ids": torch.tensor(spoken, dtype=torch.long)}

    def save(self, folder: str | Path) -> None:
        """Write piper.json, from which `load` makes this tokenizer again.

        Args:
            folder: where to, it must exist.
        """
        Path(folder, TOKENIZER_FILE).write_text(
            json.dumps(self.piper_settings(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )

    def piper_settings(self) -> dict[str, Any]:
        """Return the settings that make this tokenizer again, with what they say of the voice."""
        id_map = {phoneme: list(ids) for phoneme, ids in self.phoneme_ids.items()}
        settings: dict[str, Any] = {
            **self.about,
            "phoneme_type": self.phoneme_type,
            "phoneme_id_map": id_map,
        }
        if self.espeak_voice:
            settings["espeak"] = {"voice": self.espeak_voice}
        if self.vowel_clusters:
            settings["vowel_clusters"] = sorted(map(list, self.vowel_clusters))
        return settings

    @classmethod
    def load(cls, folder: str | Path) -> PiperTokenizer:
        """Read piper.json from a folder.

        Raises:
            InputError: it is not there or cannot be used.
        """
        return cls(read_json(Path(folder, TOKENIZER_FILE), max_bytes=MAX_JSON_BYTES))

    def _spoken(self, text: str) -> list[tuple[list[str], str]]:
        """Phonemes and text of each sentence. Raw phonemes join the sentence before them, and the sentence after them joins that too."""
        groups: list[tuple[list[str], str]] = []
        parts = _RAW_PHONEMES.split(text)
        after_raw = False
        for place, part in enumerate(parts):
            if part.startswith("[["):
                raw = [*part[2:-2].strip()]
                if place > 0 and parts[place - 1].endswith(" "):
                    raw.insert(0, " ")
                if place + 1 < len(parts) and parts[place + 1].startswith(" "):
                    raw.append(" ")
                groups = _joined(groups or [([], "")], (raw, part))
            else:
                spoken = self._spoken_part(part)
                if after_raw and spoken:
                    groups = _joined(groups, spoken.pop(0))
                groups += spoken
            after_raw = part.startswith("[[")
        return groups

    def _spoken_part(self, text: str) -> list[tuple[list[str], str]]:
        groups: list[tuple[list[str], str]] = []
        phonemes, part = "", ""
        found = clauses(text, self.espeak_voice)
        for place, clause in enumerate(found):
            phonemes += (
                _LANGUAGE_FLAG.sub("", clause.phonemes)
                + clause.mark
                + (" " if clause.mark in (",", ":", ";") else "")
            )
            part += clause.text
            if clause.ends_sentence or (place + 1 == len(found) and phonemes):
                groups.append((self._merged(_code_points(phonemes)), part))
                phonemes, part = "", ""
        return groups

    def _merged(self, phonemes: list[str]) -> list[str]:
        """Phonemes with those of known vowel clusters joined, the longest first, from left to right."""
        if not self.vowel_clusters:
            return phonemes
        longest = max(map(len, self.vowel_clusters))
        merged, place = [], 0
        while place < len(phonemes):
            sizes = (
                size
                for size in range(longest, 1, -1)
                if tuple(phonemes[place : place + size]) in self.vowel_clusters
            )
            size = next(sizes, 1)
            merged.append("".join(phonemes[place : place + size]))
            place += size
        return merged

    def _sentence(self, phonemes: list[str], text: str) -> Sentence:
        kept = [phoneme for phoneme in phonemes if phoneme in self.phoneme_ids]
        dropped = dict.fromkeys(
            [
                *self._silent(text),
                *(phoneme for phoneme in phonemes if phoneme not in self.phoneme_ids),
            ]
        )
        if not any(character.isalnum() for phoneme in kept for character in phoneme):
            return Sentence(text.strip(), (), (), tuple(dropped))
        tokens: list[tuple[str, int]] = []
        for symbol in (_BEGIN, *kept):
            tokens += [(symbol, i) for i in self.phoneme_ids[symbol]] + [
                (_BLANK, i) for i in self.phoneme_ids[_BLANK]
            ]
        tokens += [(_END, i) for i in self.phoneme_ids[_END]]
        return Sentence(
            text.strip(),
            tuple(i for _, i in tokens),
            tuple(symbol for symbol, _ in tokens),
            tuple(dropped),
        )

    def _silent(self, text: str) -> list[str]:
        """Symbols of a text, such as emoji, that espeak-ng passes over without a word."""
        if self.espeak_voice is None or text.isascii():
            return []
        symbols = (
            c for c in text if unicodedata.category(c) in _SYMBOL_CATEGORIES and not c.isascii()
        )
        return [
            symbol for symbol in dict.fromkeys(symbols) if _is_silent(symbol, self.espeak_voice)
        ]


def _code_points(phonemes: str) -> list[str]:
    return [*unicodedata.normalize("NFD", phonemes)]


def _joined(
    groups: list[tuple[list[str], str]], more: tuple[list[str], str]
) -> list[tuple[list[str], str]]:
    """Groups with the last one made longer."""
    phonemes, text = groups[-1]
    return [*groups[:-1], (phonemes + more[0], text + more[1])]


@lru_cache(maxsize=4096)
def _is_silent(symbol: str, voice: str) -> bool:
    return not any(clause.phonemes.strip() for clause in clauses(symbol, voice))


def _phoneme_ids(given: object, shown: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(given, dict) or not 0 < len(given) <= _MAX_SYMBOLS:
        raise InputError(
            f"{shown} has no usable phoneme_id_map: give the JSON file of a Piper voice as it was published."
        )
    for symbol, ids in given.items():
        whole = isinstance(ids, list) and len(ids) <= _MAX_IDS_A_SYMBOL
        if not whole or any(type(i) is not int or not 0 <= i < 2**31 for i in ids):
            raise InputError(
                f"{shown} gives {symbol[:20]!r} ids that are not small whole numbers: correct its phoneme_id_map."
            )
    for symbol in (_BLANK, _BEGIN, _END):
        if symbol not in given or not (
            given[symbol] or symbol != _BLANK
        ):  # a voice may begin and end with nothing
            raise InputError(
                f"{shown} has no id for {symbol!r} in its phoneme_id_map: give the JSON file as it was published."
            )
    return {symbol: tuple(ids) for symbol, ids in given.items()}


def _about(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that tell people of a voice, as far as they are short texts; what is anything else is left out."""

    def short(value: object) -> bool:
        return isinstance(value, str) and len(value) <= _MAX_FACT

    about: dict[str, Any] = {key: settings[key] for key in _TOLD if short(settings.get(key))}
    for key, entries in _TOLD_WITHIN.items():
        given = settings.get(key)
        found = (
            {entry: given[entry] for entry in entries if short(given.get(entry))}
            if isinstance(given, dict)
            else {}
        )
        if found:
            about[key] = found
    return about


def _vowel_clusters(given: object, shown: str) -> frozenset[tuple[str, ...]]:
    if not given:
        return frozenset()
    whole = isinstance(given, list) and len(given) <= _MAX_SYMBOLS
    if not whole or any(
        not isinstance(c, list | str)
        or not 0 < len(c) <= 16
        or any(not isinstance(p, str) for p in c)
        for c in given
    ):
        raise InputError(
            f"{shown} has vowel_clusters that are not lists of phonemes: give the JSON file as it was published."
        )
    return frozenset(tuple(cluster) for cluster in given)
