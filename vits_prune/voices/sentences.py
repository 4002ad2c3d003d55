"""Text before any voice reads it: sentences, spaces, and letters in the form that a voice knows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

LONGEST = 400
"""Characters of the longest sentence: half a minute of speech."""
_ALIKE = (
    *("'’‘ʼʻ`´′׳", '"“”„«»״', "-‐‑‒–—―−־", "țţ", "ȚŢ", "șş", "ȘŞ", "өѳ", "ӨѲ"),
    *("iıİ", "đðɖ", "ĐÐƉ", "əǝә", "ƏƎӘ", "σς", "یيى", "کك", "هہە"),
)
"""Characters that are typed for each other. Some checkpoints learnt one, and writers use another:
MMS's Romanian has the cedilla, its Tatar the fita; keyboards for Arabic type Persian, and the
capital of i has a dot in Turkish."""
_MARKS = str.maketrans("\u0329\u0331", "\u0323\u0323")
"""Lines below are typed for Yoruba's dots below."""
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u0640\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
"""Soft hyphens, joiners, marks of direction and variants, lengthened lines: nothing to be said."""
_SARA_AM = re.compile("([\u0e48-\u0e4b]*)\u0e4d([\u0e48-\u0e4b]*)\u0e32")
"""The Thai vowel am in two characters, with its tone before, between or after them."""
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])[-‐‑‒–—―−־/\\_|…,;:!?](?=[^\W\d_])")
"""Punctuation that parts two words without any space."""
_BLANKS = "\u2800\u3164\uffa0"
"""What is typed for a space and is none in Unicode."""
_RAISED = ("<super>", "<sub>")
_SHAPED = ("<initial>", "<medial>", "<final>", "<isolated>")
"""Of Arabic letters, as PDF files have them."""
_SIGNS = "＄％＆＠＃＋＝"
_WIDE = 3
"""Characters that are syllables take this many times as long to say, and so do digits."""
_CLOSERS = "\"'”’»›)]}」』）】》〉"
# Ends a sentence wherever it stands, for scripts that put no space after it; those of the second
# set need a space or the end behind them.
_ALWAYS_ENDS = (
    "\u3002\uff01\uff1f\uff0e\uff61"  # Chinese, Japanese
    "\u0964\u0965"  # the scripts of India
    "\u061f\u06d4"  # Arabic, Urdu
    "\u0589\u1362\u1367\u1368"  # Armenian, Ethiopic
    "\u104b\u17d4\u17d5\u0f0d\u0f0e"  # Burmese, Khmer, Tibetan
    "\u1803\u1809"  # Mongolian
)
_ENDS = re.compile(
    rf"[{_ALWAYS_ENDS}]+[.!?…{_ALWAYS_ENDS}{re.escape(_CLOSERS)}]*"
    rf"|[.!?…]+[{re.escape(_CLOSERS)}]*(?=\s|$|[{_ALWAYS_ENDS}])"
)
_CLAUSE_ENDS = ",;:\u2013\u2014\u3001\uff0c\uff1a\uff1b\u060c\u061b\u1363\u104a"
_LOOK_BACK = 32
"""Characters before a full stop that decide whether it ends the sentence."""
_ABBREVIATION = re.compile(
    r"mr|mrs|ms|mx|dr|prof|st|sr|jr|rev|hon|gen|col|maj|capt|cmdr|lt|"
    r"sgt|gov|sen|rep|pres|mt|ft|vs|etc|al|cf|ca|approx|dept|est|fig|inc|"
    r"ltd|no|nos|nr|vol|vols|pp|ed|eds|eq|jan|feb|mar|apr|jun|jul|aug|"
    r"sep|sept|oct|nov|dec|bzw|usw|ggf|evtl|mme|mlle|sra|srta|av",
    re.IGNORECASE,
)


def split_sentences(text: str, limit: int = LONGEST) -> list[str]:
    """Return the sentences of a text in any script, none longer than `limit` characters,
    or a third of that in scripts whose characters are syllables.

    A sentence ends at a line break or at final punctuation; a full stop ends nothing after an
    initial, an abbreviation, a number that opens the sentence, or inside a word. What is too long
    is cut after clause punctuation, else at white space, else anywhere between characters.
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _ENDS.finditer(line):
            before = line[max(start, match.start() - _LOOK_BACK) : match.start()]
            if match.group() != "." or not _keeps_going(before):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [piece for one in sentences for piece in _cut(one, most_characters(one, limit))]


def most_characters(sentence: str, limit: int = LONGEST) -> int:
    """Return how many characters of a sentence take as long as `limit` letters."""
    wide = sum(
        unicodedata.east_asian_width(c) in "WFH"
        or c.isdecimal()
        or (not c.isascii() and re.search("SYLLAB|CHEROKEE", unicodedata.name(c, "")) is not None)
        for c in sentence
    )
    return max(1, limit // _WIDE if 2 * wide > len(sentence) else limit)


def _keeps_going(before: str) -> bool:
    """Whether a full stop after this text is part of a word."""
    if before.strip().isdecimal():  # "1. First"
        return True
    word = re.split(r"[\W\d_]", before)[-1]
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


def clean(text: str) -> str:
    """Remove lone surrogates and blank control characters, which C libraries do not take."""
    text = text.encode("utf-8", "ignore").decode("utf-8").replace("\r\n", "\n")
    return "".join(" " if unicodedata.category(c) == "Cc" and not c.isspace() else c for c in text)


def plain_spaces(text: str, known: Callable[[str], bool]) -> str:
    """Return a text with U+0020 for all white space, or what is typed for it, that is not known."""
    return "".join(c if known(c) or not (c.isspace() or c in _BLANKS) else " " for c in text)


def _unstyled(c: str) -> str:
    if c.isascii():
        return c
    tag, plain = unicodedata.decomposition(c).partition(" ")[0], unicodedata.normalize("NFKC", c)
    usual = plain.isascii() and (plain.isalnum() or c in _SIGNS)
    return plain if tag in _SHAPED or (usual and tag not in _RAISED and c != "№") else c


def spelt(text: str, known: Callable[[str], bool]) -> str:
    """Return a text with each letter in a form that is known: composed, taken apart, or alike.

    A letter and its marks stay as they are where all are known, and where no form is.
    """
    if all(map(known, {*text})):
        return text
    text = _INVISIBLE.sub(lambda found: found[0] if known(found[0]) else "", text)
    if known("\u0e33") and not known("\u0e4d"):
        text = _SARA_AM.sub("\\1\\2\u0e33", text)
    text = "".join(
        next((form for form in _forms(letter) if all(map(known, form))), letter)
        for letter in _letters(text)
    )
    return _BETWEEN_WORDS.sub(lambda found: found[0] if known(found[0]) else " ", text)


def for_espeak(text: str) -> str:
    """Return a text in the characters that espeak-ng says, and does not spell out or pass over.

    Letters are composed; those of full width, in circles and of mathematics are plain, as are
    apostrophes and the hyphen of Hebrew. Of invisible characters, joiners stay between the pictures
    of one emoji and in Malayalam's letters without a vowel, and spaces of no width between words of
    scripts that have no other.
    """

    def read(found: re.Match[str]) -> str:
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        if found[0] == "\u200d":
            inside = unicodedata.category(before or " ")[0] in "LM" and before not in "\u0d4d\ufe0f"
            return "" if inside else found[0]
        cased = before.lower() != before.upper() or after.lower() != after.upper()
        stays = found[0] == "\u200c" or (found[0] == "\u200b" and not cased)
        return found[0] if stays else ""

    text = plain_spaces(_INVISIBLE.sub(read, text), lambda c: c not in _BLANKS)
    text = unicodedata.normalize("NFC", "".join(map(_unstyled, text)))
    return re.sub(r"(?<=\w)[ʼ`´](?=\w)", "’", text).replace("־", "-")


def _forms(letter: str) -> Iterator[str]:
    yield letter
    for form in ("NFC", "NFD", "NFKC"):
        yield unicodedata.normalize(form, letter)
    yield unicodedata.normalize("NFC", letter.translate(_MARKS))
    yield unicodedata.normalize("NFD", letter.translate(_MARKS))
    composed = unicodedata.normalize("NFC", letter)
    for group in _ALIKE:
        if composed in group:
            yield from group


def _letters(text: str) -> Iterator[str]:
    """Yield each character with the marks, or the parts of a Korean syllable, that follow it."""
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or not _continues(text[place]):
            yield text[start:place]
            start = place


def _continues(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"
