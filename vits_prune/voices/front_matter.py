"""Read the licence from the YAML block at the head of a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_MAX_CHARACTERS = 1 << 16
_MAX_LISTED = 8
"""With more licences than this, a model has the licence "other"."""
_MAX_LICENCE = 64


def read_licence(card: Path) -> str | None:
    """Return the licence in the front matter of a model card, as `licence_words` writes it."""
    import yaml

    try:
        with open(card, encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CHARACTERS)
    except OSError:
        return None
    found = re.match(r"\ufeff?---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    front = found.group(1) if found else ""
    try:
        values = yaml.load(
            front, yaml.BaseLoader
        )  # strings, lists and tables: nothing is converted, merged or made
    except (
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ):  # flawed elsewhere, perhaps: what it forbids must not be lost with that
        stated = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9][\w.+-]{0,63})", front, re.MULTILINE)
        return stated.group(1) if stated else None
    return (
        licence_words(values.get("license"), values.get("license_name"))
        if isinstance(values, dict)
        else None
    )


def licence_words(stated: Any, named: Any = None) -> str | None:
    """Return what a card states under `license`, several as "apache-2.0, cc-by-nc-4.0", or None.

    What is too long is "other": a part of it could leave out what the licence forbids.

    Args:
        stated: `license`.
        named: `license_name`, which says what "other" is.
    """
    every = [
        one
        for one in (stated if isinstance(stated, list) else [stated])
        if one not in (None, "", "~", "null")
    ]
    if len(every) > _MAX_LISTED or not all(isinstance(one, str) for one in every):
        return "other"
    words = ", ".join(dict.fromkeys(" ".join(one.split()) for one in every))
    if words == "other" and isinstance(named, str) and named.strip():
        words = " ".join(named.split())
    return "other" if len(words) > _MAX_LICENCE else words or None
