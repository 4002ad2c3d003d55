"""Text for Hugging Face checkpoints: sentences, then the ids of transformers' VitsTokenizer.

Three families share that tokenizer: plain characters (MMS), characters after romanisation (MMS
`is_uroman`), and phonemes by espeak-ng (kakao-enterprise/vits-ljs and vits-vctk).
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

from vits_prune.errors import InputError
from vits_prune.files import expanded, read_json, shown_name
from vits_prune.threads import ForkSafeLock
from vits_prune.voices.espeak import phonemise
from vits_prune.voices.espeak_library import use_installed_espeak
from vits_prune.voices.sentences import clean, for_espeak, plain_spaces, spelt, split_sentences
from vits_prune.voices.voice import Sentence, is_letter

if TYPE_CHECKING:
    from transformers import BatchEncoding, VitsTokenizer

MAX_VOCAB_BYTES, MAX_SYMBOLS = 8 << 20, 100_000

_FLAGS = ("add_blank", "normalize", "phonemize", "is_uroman")
_SPECIAL = tuple(f"{kind}_token" for kind in ("pad", "unk", "bos", "eos", "sep", "cls", "mask"))
_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")
_MAX_SYMBOL = 64

# Both keep state of their own: espeak-ng in a C library, uroman in a cache of romanised text.
_ESPEAK_LOCK = ForkSafeLock()
_UROMAN_LOCK = ForkSafeLock()


@dataclass(frozen=True, eq=False)
class HubTokenizer:
    """VitsTokenizer, sentence by sentence; what it would make `<unk>` is dropped and named.

    `vocab_size` is the number of symbols that the model has an embedding for.
    """

    tokenizer: VitsTokenizer
    vocab_size: int

    @classmethod
    def load(
        cls, folder: str | Path, *, vocab_size: int | None = None, name: str | None = None
    ) -> HubTokenizer:
        """Read vocab.json, tokenizer_config.json and the lists of further tokens from a folder.

        `vocab_size` None is that of vocab.json; `name` is what messages call the voice.
        """
        folder = expanded(folder)
        name = name or shown_name(folder)
        vocab = _read_vocab(folder, name, vocab_size)
        contents = {"vocab.json": vocab, "tokenizer_config.json": _read_settings(folder, name)}
        more = {"special_tokens_map.json": _special_tokens, "added_tokens.json": _added_tokens}
        for file, check in more.items():
            if (folder / file).is_file():
                contents[file] = check(read_json(folder / file, name), name)
        size = vocab_size if vocab_size is not None else max(vocab.values()) + 1
        return cls(_build(contents, name), size)

    @property
    def language(self) -> str | None:
        """The language that texts are read in, None if the voice does not say."""
        return "en-us" if self.tokenizer.phonemize else self.tokenizer.language

    @property
    def symbols(self) -> dict[str, tuple[int, ...]]:
        """The ids of each symbol."""
        return {symbol: (index,) for symbol, index in self.tokenizer.get_vocab().items()}

    @property
    def letters(self) -> tuple[str, ...]:
        """The symbols that are letters, only those of romanised text if it is romanised."""
        known = filter(is_letter, self.symbols)
        romanised = self.tokenizer.is_uroman
        return tuple(sorted(symbol for symbol in known if symbol.isascii() or not romanised))

    def spell(self, letters: str) -> str:
        """Return a text that is read as these letters."""
        return f"{letters}." if "." in self.symbols else letters

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Return what VitsTokenizer gives, e.g. `tokenizer("a text", return_tensors="pt")`."""
        if not self.tokenizer.phonemize:
            return self.tokenizer(*args, **kwargs)
        with _ESPEAK_LOCK:
            use_installed_espeak()
            return self.tokenizer(*args, **kwargs)

    def sentences(self, text: str) -> Iterator[Sentence]:
        """Yield the sentences of a text in order. A sentence without anything to say has no ids."""
        return map(self._sentence, split_sentences(clean(text)))

    def save(self, folder: str) -> None:
        """Write the files from which `load` makes this tokenizer again."""
        self.tokenizer.save_pretrained(expanded(folder))

    def piper_settings(self) -> dict[str, Any]:
        """Return what the .json of a Piper voice says of reading; InputError if Piper cannot do so.

        Piper takes a text apart by Unicode's NFD and keeps its case. With nothing for ^ and $ its
        `^ _ p _ p _ $` is VitsTokenizer's `_ p _ p _`.
        """
        inner = self.tokenizer
        known = inner.encoder.items()
        ids = {s: index for s, index in known if len(s) == 1 and index < self.vocab_size}
        composed = [s for s in ids if not unicodedata.is_normalized("NFD", s)]
        why = ""
        if not inner.add_blank:
            why = "puts no blank between its symbols, which Piper always does"
        elif inner.is_uroman:
            why = "reads romanised text, and the Piper runtime does not romanise"
        elif composed and not inner.phonemize:
            why = f"has letters that Piper takes apart ({' '.join(composed[:5])})"
        if why:
            raise InputError(f"The voice {why}: export it as onnx.")
        if inner.normalize and not inner.phonemize:
            capitals = {symbol.upper(): index for symbol, index in ids.items()}
            ids = {s: index for s, index in capitals.items() if len(s) == 1} | ids
        ends: dict[str, list[int]] = {"_": [0], "^": [], "$": []}
        return {
            "phoneme_type": "espeak" if inner.phonemize else "text",
            "espeak": {"voice": "en-us" if inner.phonemize else ""},
            "phoneme_id_map": ends | {s: [index] for s, index in ids.items() if s not in ends},
        }

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
        blank = 0 if self.tokenizer.add_blank else None
        pairs = zip(ids, symbols, strict=True)
        return Sentence(text, ids, tuple("" if i == blank else s for i, s in pairs), dropped)

    def _prepare(self, text: str) -> str:
        """Change case, romanise and phonemise as VitsTokenizer.prepare_for_tokenization does."""
        tokenizer = self.tokenizer
        text = self._in_known_form(text)
        if tokenizer.normalize:
            text = tokenizer.normalize_text(text)
        text = tokenizer._preprocess_char(text)
        if tokenizer.is_uroman and not text.isascii():
            with _UROMAN_LOCK:
                text = _uroman().romanize_string(text)
        return re.sub(r"\s+", " ", phonemise(text)) if tokenizer.phonemize else text

    def _in_known_form(self, text: str) -> str:
        """Return a text with the spaces and the forms of letters that the voice has symbols for."""
        symbols, lower = self.tokenizer.encoder, self.tokenizer.normalize
        reads_any = self.tokenizer.phonemize or self.tokenizer.is_uroman

        def known(c: str) -> bool:
            return c in symbols or (lower and c.lower() in symbols)

        text = plain_spaces(text, known if not reads_any else str.isascii)
        return for_espeak(text) if reads_any else spelt(text, known)

    def _keep_known(self, prepared: str) -> tuple[str, tuple[str, ...]]:
        """Return what the voice has symbols for, and what it lacks, each once, without spaces."""
        known = self.tokenizer.encoder
        dropped = dict.fromkeys(c for c in prepared if c not in known and not c.isspace())
        kept = "".join(character for character in prepared if character in known)
        # "<unk>" spelt out in characters that are all known would become one token, which may lie
        # past the model's embedding.
        added = self.tokenizer.added_tokens_encoder
        out_of_range = [word for word, index in added.items() if index >= self.vocab_size]
        while found := [word for word in out_of_range if word in kept]:
            for word in found:
                kept = kept.replace(word, "")
                dropped[word] = None
        if self.tokenizer.normalize and not self.tokenizer.phonemize:
            kept = kept.strip()
        return kept, tuple(dropped)


@functools.cache
def _uroman() -> Any:
    import uroman

    return uroman.Uroman()  # takes seconds, which VitsTokenizer spends at every call


def _read_vocab(folder: Path, name: str, vocab_size: int | None) -> dict[str, int]:
    vocab = read_json(folder / "vocab.json", name, MAX_VOCAB_BYTES)
    highest = (vocab_size if vocab_size is not None else MAX_SYMBOLS) - 1
    _require_symbols(vocab, name)
    for symbol, index in vocab.items():
        if type(index) is not int or not 0 <= index <= highest:
            what = f"gives {symbol[:20]!r} the id {str(index)[:20]}, outside 0 to {highest}"
            raise InputError(f"{name} has a vocab.json that {what}: check the checkpoint.")
    if 0 not in vocab.values():
        raise InputError(f"{name} has a vocab.json without id 0, the blank: check the checkpoint.")
    return vocab


def _require_symbols(symbols: Iterable[object], name: str) -> None:
    """An empty symbol would keep VitsTokenizer.normalize_text from ever ending."""
    symbols = list(symbols)
    sound = all(
        isinstance(s, str) and 0 < len(s) <= _MAX_SYMBOL and not re.search("[\ud800-\udfff]", s)
        for s in symbols
    )
    if not sound or not 0 < len(symbols) <= MAX_SYMBOLS:
        raise InputError(f"{name} has a vocabulary of too many, overlong or broken symbols.")


def _read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return what VitsTokenizer knows of a tokenizer_config.json, without classes and templates."""
    values = read_json(folder / "tokenizer_config.json", name)
    settings = _special_tokens(values, name)
    for key in filter(values.__contains__, _FLAGS):
        if not isinstance(values[key], bool):
            what = f"{key} = {str(values[key])[:20]} in its tokenizer_config.json"
            raise InputError(f"{name} says {what}: it must be true or false.")
        settings[key] = values[key]
    if isinstance(values.get("language"), str):
        settings["language"] = values["language"][:_MAX_SYMBOL]
    added = values.get("added_tokens_decoder")
    if isinstance(added, dict):
        _added_tokens({i: int(i) if re.fullmatch(r"\d{1,6}", i) else -1 for i in added}, name)
        settings["added_tokens_decoder"] = {i: _token(token, name) for i, token in added.items()}
    return settings


def _special_tokens(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: _token(values[key], name) for key in _SPECIAL if values.get(key) is not None}


def _token(value: Any, name: str) -> str | dict[str, Any]:
    if not isinstance(value, dict):
        _require_symbols([value], name)
        return value
    _require_symbols([value.get("content")], name)
    flags = {flag: value[flag] for flag in _TOKEN_FLAGS if isinstance(value.get(flag), bool)}
    kind = {"__type": "AddedToken"} if value.get("__type") == "AddedToken" else {}
    return {"content": value["content"], **flags, **kind}


def _added_tokens(values: dict[str, Any], name: str) -> dict[str, int]:
    _require_symbols(values or ["-"], name)
    for index in values.values():
        if type(index) is not int or not 0 <= index <= 2 * MAX_SYMBOLS:
            raise InputError(f"{name} adds a token with the id {str(index)[:20]}: check its files.")
    return values


def _build(contents: dict[str, dict[str, Any]], name: str) -> VitsTokenizer:
    """Make a VitsTokenizer of a folder that holds these files and nothing else."""
    from transformers import VitsTokenizer

    with tempfile.TemporaryDirectory(prefix="vits_prune_") as folder:
        for file, values in contents.items():
            (Path(folder) / file).write_text(json.dumps(values), encoding="utf-8")
        try:
            tokenizer = VitsTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            what = "has tokenizer files that transformers refuses"
            raise InputError(f"{name} {what}: check the checkpoint.") from error
    tokenizer.name_or_path = name
    return tokenizer
