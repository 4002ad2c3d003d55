"""Markdown that strangers' words cannot break out of: what is not from this library goes through `text` or `code`."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 300
"""Characters that are left of a stranger's text."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$^])")
_LINKS = ((re.compile("://"), ": //"), (re.compile(r"www\.", re.IGNORECASE), "www ."), (re.compile("@"), " at "))
"""What renderers turn into links, even where it is escaped."""
_JOINERS = "\u200c\u200d"
"""Letters of Persian and of Indic scripts are joined by these."""


def plain(words: object, longest: int = LONGEST) -> str:
    """One line without control characters, marks of direction and the like, cut to a length."""
    line = " ".join(str(words)[: 4 * longest].split())
    kept = "".join(one for one in line if one in _JOINERS or unicodedata.category(one)[0] != "C")
    return kept if len(kept) <= longest else f"{kept[: longest - 1]}…"


def text(words: object, longest: int = LONGEST) -> str:
    """As words within a line: no markup, no HTML, no link. In a table too."""
    line = plain(words, longest)
    for pattern, instead in _LINKS:
        line = pattern.sub(instead, line)
    return html.escape(_SPECIAL.sub(r"\\\1", line), quote=False)


def code(words: object, longest: int = LONGEST) -> str:
    """As code within a line, of a table too: what it cannot hold is replaced."""
    return f"`{plain(words, longest).replace('`', chr(39)).replace('|', '/') or '?'}`"


def block(lines: Iterable[str], language: str = "") -> str:
    """Lines of code. None may hold a fence: they are this library's own, and commands that were checked before."""
    body = "\n".join(lines)
    if "```" in body or "~~~" in body:
        raise ValueError("a fence within a fenced block")
    return f"```{language}\n{body}\n```"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table of cells that are Markdown already; with `numbers`, all but the first column are on the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(titles) - 1))]
    return "\n".join([f"| {' | '.join(titles)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)])
