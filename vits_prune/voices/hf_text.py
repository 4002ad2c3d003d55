"""Text for Hugging Face checkpoints: sentences, then the ids that transformers' VitsTokenizer gives for them.

Three families share that tokenizer: plain characters (MMS), characters after romanisation (MMS `is_uroman`), and phonemes by espeak-ng
(kakao-enterprise/vits-ljs and vits-vctk).
"""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune import forks
from vits_prune.errors import InputError
from vits_prune.files import read_json
from vits_prune.voices.espeak_process import phonemise
from vits_prune.voices.voice import Sentence

if TYPE_CHECKING:
    from transformers import BatchEncoding, VitsTokenizer

MAX_VOCAB_BYTES = 8 << 20
"""Largest vocab.json that is read, in bytes."""
MAX_SYMBOLS = 100_000

_FLAGS = ("add_blank", "normalize", "phonemize", "is_uroman")
_SPECIAL = (
    "pad_token",
    "unk_token",
    "bos_token",
    "eos_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
_MAX_SYMBOL = 64

# Both keep state of their own: espeak-ng in a C library, uroman in a cache of what it has romanised.
_ESPEAK_LOCK = forks.Lock()
_UROMAN_LOCK = forks.Lock()

_CLOSERS = "\"'”’»›)]}」』）】》〉"
# Ends a sentence wherever it stands, for scripts that put no space after it; those of the second set need a space or the end behind them.
_ALWAYS_ENDS = (
    "\u3002\uff01\uff1f\uff0e\uff61"  # Chinese, Japanese
    "\u0964\u0965"  # the scripts of India
    "\u061f\u06d4"  # Arabic, Urdu
    "\u0589\u1362\u1367\u1368"  # Armenian, Ethiopic
    "\u104b\u17d4\u17d5\u0f0d\u0f0e"  # Burmese, Khmer, Tibetan
    "\u1803\u1809"  # Mongolian
)
_ENDS = re.compile(
    rf"[{_ALWAYS_ENDS}]+[.!?…{_ALWAYS_ENDS}{re.escape(_CLOSERS)}]*|[.!?…]+[{re.escape(_CLOSERS)}]*(?=\s|$|[{_ALWAYS_ENDS}])"
)
_CLAUSE_ENDS = ",;:\u2013\u2014\u3001\uff0c\uff1a\uff1b\u060c\u061b\u1363\u104a"
_LOOK_BACK = 32
"""Characters before a full stop that say whether it ends the sentence."""
_ABBREVIATION = re.compile(
    r"mr|mrs|ms|mx|dr|prof|st|sr|jr|rev|hon|gen|col|maj|capt|cmdr|lt|"
    r"sgt|gov|sen|rep|pres|mt|ft|vs|etc|al|cf|ca|approx|dept|est|fig|inc|"
    r"ltd|no|nos|nr|vol|vols|pp|ed|eds|eq|jan|feb|mar|apr|jun|jul|aug|"
    r"sep|sept|oct|nov|dec|bzw|usw|ggf|evtl|mme|mlle|sra|srta|av",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class HubTokenizer:
    """VitsTokenizer, sentence by sentence: what it would turn into `<unk>` is dropped and named instead."""

    tokenizer: VitsTokenizer
    """The tokenizer that transformers makes of the same files."""
    vocab_size: int
    """Symbols that the model has an embedding for."""

    @classmethod
    def load(
        cls, folder: str | Path, *, vocab_size: int | None = None, name: str | None = None
    ) -> HubTokenizer:
        """The tokenizer in a folder with vocab.json and tokenizer_config.json.

        Args:
            folder: where the files are; nothing else in it is read.
            vocab_size: symbols that the model has an embedding for; None takes it from vocab.json.
            name: what to call the voice in messages, the folder's name where None.

        Raises:
            InputError: a file is missing, is not JSON, or cannot belong to a VITS tokenizer.
        """
        folder = Path(folder)
        name = name or folder.name
        vocab = _read_vocab(folder, name, vocab_size)
        files = {"vocab.json": vocab, "tokenizer_config.json": _read_settings(folder, name)}
        if (folder / "special_tokens_map.json").is_file():
            files["special_tokens_map.json"] = _special_tokens(
                read_json(folder / "special_tokens_map.json", name), name
            )
        if (folder / "added_tokens.json").is_file():
            files["added_tokens.json"] = _added_tokens(
                read_json(folder / "added_tokens.json", name), name
            )
        return cls(
            _build(files, name), vocab_size if vocab_size is not None else max(vocab.values()) + 1
        )

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        """What transformers' tokenizer gives for these arguments, e.g. `tokenizer("a text", return_tensors="pt")`."""
        if not self.tokenizer.phonemize:
            return self.tokenizer(*args, **kwargs)
        with _ESPEAK_LOCK:
            _use_installed_espeak()
            return self.tokenizer(*args, **kwargs)

    def sentences(self, text: str) -> Iterator[Sentence]:
        """The sentences of a text in order. A sentence of which nothing can be said has no ids."""
        for sentence in split_sentences(_clean(text)):
            yield self._sentence(sentence)

    def save(self, folder: str) -> None:
        """Write the files from which `load` makes this tokenizer again."""
        self.tokenizer.save_pretrained(folder)

    @functools.cached_property
    def _reader(self) -> VitsTokenizer:
        """The same tokenizer for text that is prepared already."""
        reader = copy.copy(self.tokenizer)
        reader.phonemize = reader.is_uroman = False
        return reader

    def _sentence(self, text: str) -> Sentence:
        prepared, dropped = self._keep_known(self._prepare(text))
        if not any(character.isalnum() for character in prepared):
            return Sentence(text, (), (), dropped)
        symbols = self._reader.tokenize(prepared, normalize=False)
        ids = tuple(self._reader.convert_tokens_to_ids(symbols))
        blank = self.tokenizer.add_blank
        tokens = tuple(
            "" if blank and index == 0 else symbol
            for index, symbol in zip(ids, symbols, strict=True)
        )
        return Sentence(text, ids, tokens, dropped)

    def _prepare(self, text: str) -> str:
        """Case, romanisation and phonemes, as in VitsTokenizer.prepare_for_tokenization."""
        tokenizer = self.tokenizer
        if tokenizer.normalize:
            text = tokenizer.normalize_text(text)
        text = tokenizer._preprocess_char(text)
        if tokenizer.is_uroman and not text.isascii():
            text = _romanise(text)
        return _phonemise(text) if tokenizer.phonemize else text

    def _keep_known(self, prepared: str) -> tuple[str, tuple[str, ...]]:
        """The part that the voice has symbols for, and what was left out, each once; white space goes without mention."""
        known = self.tokenizer.encoder
        dropped = dict.fromkeys(
            character
            for character in prepared
            if character not in known and not character.isspace()
        )
        kept = "".join(character for character in prepared if character in known)
        # "<unk>" spelt out in characters that are all known would become one token, which may lie past the model's embedding.
        out_of_range = [
            word
            for word, index in self.tokenizer.added_tokens_encoder.items()
            if index >= self.vocab_size
        ]
        while any(word in kept for word in out_of_range):
            for word in out_of_range:
                if word in kept:
                    kept = kept.replace(word, "")
                    dropped[word] = None
        if self.tokenizer.normalize and not self.tokenizer.phonemize:
            kept = kept.strip()
        return kept, tuple(dropped)


def split_sentences(text: str, limit: int = 400) -> list[str]:
    """Sentences of a text in any script, none longer than `limit` characters, so that memory stays bounded.

    No library: the trained ones know a few languages each, and MMS alone has over a thousand. A sentence ends at a line break or at final
    punctuation; a full stop after an initial, an abbreviation, a number that opens the sentence or inside a word ends nothing. What is
    longer than `limit` is cut after clause punctuation, else at white space, else anywhere that splits no combined character.
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _ENDS.finditer(line):
            if match.group() == "." and _keeps_going(
                line[max(start, match.start() - _LOOK_BACK) : match.start()]
            ):
                continue
            sentences.append(line[start : match.end()])
            start = match.end()
        sentences.append(line[start:])
    return [
        piece
        for sentence in sentences
        if sentence.strip()
        for piece in _cut(sentence.strip(), max(1, limit))
    ]


def _keeps_going(before: str) -> bool:
    """Whether a full stop after this text is part of a word."""
    if before.strip().isdecimal():  # "1. First"
        return True
    word = re.search(r"[^\W\d_]*$", before).group()
    return _ABBREVIATION.fullmatch(word) is not None or (len(word) == 1 and word.isascii())


def _cut(sentence: str, limit: int) -> Iterator[str]:
    while len(sentence) > limit:
        window = sentence[: limit + 1]
        ends = [
            i + 1
            for i in range(limit // 2, limit)
            if window[i] in _CLAUSE_ENDS and (window[i + 1].isspace() or not window[i].isascii())
        ]
        ends = ends or [i for i in range(1, limit + 1) if window[i].isspace()]
        end = ends[-1] if ends else limit
        if not ends:
            while end > limit // 2 and end > 1 and unicodedata.category(sentence[end])[0] == "M":
                end -= 1
        yield sentence[:end].strip()
        sentence = sentence[end:].strip()
    if sentence:
        yield sentence


def _clean(text: str) -> str:
    """Without what no C library or UTF-8 file takes: lone surrogates, and control characters other than white space."""
    text = text.encode("utf-8", "ignore").decode("utf-8")
    return "".join(" " if unicodedata.category(c) == "Cc" and not c.isspace() else c for c in text)


@functools.cache
def _uroman() -> Any:
    import uroman

    return uroman.Uroman()  # reads its tables: seconds, which VitsTokenizer spends at every call


def _romanise(text: str) -> str:
    with _UROMAN_LOCK:
        return _uroman().romanize_string(text)


def _use_installed_espeak() -> None:
    """Let phonemizer use the espeak-ng that pip installed. Call it under _ESPEAK_LOCK."""
    import espeakng_loader
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())


def _phonemise(text: str) -> str:
    """Phonemes with stress and punctuation: the call that VitsTokenizer makes, which knows US English only."""
    return re.sub(r"\s+", " ", phonemise(text))


def _read_vocab(folder: Path, name: str, vocab_size: int | None) -> dict[str, int]:
    vocab = read_json(folder / "vocab.json", name, MAX_VOCAB_BYTES)
    highest = (vocab_size if vocab_size is not None else MAX_SYMBOLS) - 1
    _require_symbols(vocab, name)
    for symbol, index in vocab.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= highest:
            what = f"gives {symbol[:20]!r} the id {str(index)[:20]}, outside 0 to {highest}"
            raise InputError(f"{name} has a vocab.json that {what}: check the checkpoint.")
    if 0 not in vocab.values():
        raise InputError(
            f"{name} has a vocab.json without a symbol for id 0, the blank: check the checkpoint."
        )
    return vocab


def _require_symbols(symbols: Iterable[object], name: str) -> None:
    """An empty symbol would keep VitsTokenizer.normalize_text from ever ending."""
    symbols = list(symbols)
    sound = all(
        isinstance(s, str)
        and 0 < len(s) <= _MAX_SYMBOL
        and s == s.encode("utf-8", "ignore").decode("utf-8")
        for s in symbols
    )
    if not sound or not 0 < len(symbols) <= MAX_SYMBOLS:
        raise InputError(
            f"{name} has a vocabulary with an empty, overlong or broken symbol, or none or too many: check the checkpoint."
        )


def _read_settings(folder: Path, name: str) -> dict[str, Any]:
    """What VitsTokenizer knows of a tokenizer_config.json; `auto_map`, classes and templates are left out."""
    values = read_json(folder / "tokenizer_config.json", name)
    settings = _special_tokens(values, name)
    for key in _FLAGS:
        if key in values:
            if not isinstance(values[key], bool):
                raise InputError(
                    f"{name} says {key} = {str(values[key])[:20]} in its tokenizer_config.json: it must be true or false."
                )
            settings[key] = values[key]
    if isinstance(values.get("language"), str):
        settings["language"] = values["language"][:_MAX_SYMBOL]
    added = values.get("added_tokens_decoder")
    if isinstance(added, dict):
        settings["added_tokens_decoder"] = {
            index: _token(token, name) for index, token in added.items()
        }
        _added_tokens(dict(zip(map(str, added), map(_index, added), strict=True)), name)
    return settings


def _index(text: object) -> int:
    return int(text) if isinstance(text, str) and re.fullmatch(r"\d{1,6}", text) else -1


def _special_tokens(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: _token(values[key], name) for key in _SPECIAL if values.get(key) is not None}


def _token(value: object, name: str) -> str | dict[str, Any]:
    content = value.get("content") if isinstance(value, dict) else value
    _require_symbols([content], name)
    if not isinstance(value, dict):
        return content
    kind = {"__type": "AddedToken"} if value.get("__type") == "AddedToken" else {}
    return {
        "content": content,
        **{flag: value[flag] for flag in _TOKEN_FLAGS if isinstance(value.get(flag), bool)},
        **kind,
    }


def _added_tokens(values: dict[str, Any], name: str) -> dict[str, int]:
    _require_symbols(values or ["-"], name)
    for index in values.values():
        if (
            isinstance(index, bool)
            or not isinstance(index, int)
            or not 0 <= index <= 2 * MAX_SYMBOLS
        ):
            raise InputError(
                f"{name} adds a token with the id {str(index)[:20]}: check its tokenizer files."
            )
    return values


def _build(files: dict[str, dict[str, Any]], name: str) -> VitsTokenizer:
    """VitsTokenizer from a folder that holds these files and nothing else."""
    from transformers import VitsTokenizer

    with tempfile.TemporaryDirectory(prefix="vits_prune_") as folder:
        for file, values in files.items():
            (Path(folder) / file).write_text(json.dumps(values), encoding="utf-8")
        try:
            tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise InputError(
                f"{name} has tokenizer files that transformers refuses: check the checkpoint."
            ) from error
    tokenizer.name_or_path = name
    return tokenizer
