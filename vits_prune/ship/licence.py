"""What the licence of a voice's weights says about sharing a pruned copy of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vits_prune.voices.voice import Voice

_LONGEST = 64
_MOST_STATED = 256
_NOTHING_SAID = {
    *("other", "unknown", "none", "not stated", "unlicensed"),
    *("no-license", "no license", "no-licence", "no licence"),
}
"""What publishers state that names no terms."""
# Licences as `_words` writes them, ids of the hub or not; some do not say in their names what they
# forbid.
_NO_COMMERCE = re.compile(
    r"(^|-)nc(-|$)|(no|non|not|not-for|without)-?commerc"
    r"|(^|-)(personal|research|cpml|academic(?!-free)|educational?(?!-community))(-|$)"
    r"|coqui-public-model|deepfloyd|apple-amlr|all-rights-reserved"
)
_NO_DERIVATIVES = re.compile(r"(^|-)nd(-|$)|no-?deriv|all-rights-reserved")
_SHARE_ALIKE = re.compile(
    r"(^|-)sa(-|$)|share-?alike|^(a|l)?gpl|^osl|^eupl|^odbl|^gfdl|^cdla-sharing"
)
_HUB_IDS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
"""
HUB_LICENCES = frozenset(_HUB_IDS.split())
"""The ids that a model card's `license` may have; others go by `license_name`.

Source: huggingface.co/docs/hub/repositories-licenses.
"""


def _words(named: str) -> str:
    """A licence's name for comparing: small letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
    return re.sub(r"^the-|-international$|-unported$|-licen[sc]e$", "", words) or words


_OWN_TERMS = re.compile(r"cc|c-uda|apple-ascl|llama.*|grok.*|gemma|unknown|other")
_ALLOWS = {
    words
    for words in (_words(id) for id in HUB_LICENCES if not _OWN_TERMS.fullmatch(id))
    if not _NO_COMMERCE.search(words) and not _NO_DERIVATIVES.search(words)
} | {
    *("cc0", "apache-2", "gpl-2-0-only", "gpl-3-0-only", "gpl-2-0-or-later", "gpl-3-0-or-later"),
    *("agpl-3-0-only", "lgpl-3-0-only"),
}
"""Those that let everybody share what is made of a work, commerce included; some under the same
licence only."""


@dataclass(frozen=True)
class Licence:
    """The licence of a voice's weights, as far as its publisher states it."""

    id: str
    """As the publisher states it, "" if nothing is stated. At most 64 plain characters: it comes
    from strangers."""
    forbids: tuple[str, ...]
    """Of "derivatives" and "commerce"; empty if neither is forbidden, or it is not known."""
    stated: bool
    """Whether a licence is named; "other" and "unknown" name none."""
    known: bool = True
    """Whether this program knows what it says; of several licences, of all of them."""

    @property
    def notice(self) -> str:
        """What to read before sharing the voice, in sentences; "" if nothing has to be."""
        if not self.id:
            return (
                "The publisher of the original states no licence: all rights are reserved unless "
                "its page says otherwise. Make sure that you may share what is made of it."
            )
        if not self.stated:
            return (
                f"The publisher of the original states the licence as {self.id!r}: read its terms "
                "on the original's page before you share."
            )
        shared_alike = any(_SHARE_ALIKE.search(_words(one)) for one in self.id.split(","))
        notices = {
            "It forbids derivatives: a changed voice, as a pruned one is, may not be shared "
            "without its publisher's consent.": "derivatives" in self.forbids,
            "It forbids commercial use, of what is made of the voice too.": (
                "commerce" in self.forbids
            ),
            "What is made of the voice may be shared under the same licence only: the model "
            "card states it.": shared_alike,
            "It is not one that this program knows: read its terms before you share.": (
                not self.known
            ),
        }
        said = [notice for notice, holds in notices.items() if holds]
        return " ".join([f"The licence is {self.id}.", *said]) if said else ""

    @property
    def needs_consent(self) -> bool:
        """Whether somebody has to agree before a push: it forbids something, or is not known."""
        return bool(self.forbids) or not (self.stated and self.known)

    @property
    def hub_id(self) -> str:
        """The hub's id for it, "other" where it has none, "" where nothing is stated."""
        known = self.id.lower()
        return known if known in HUB_LICENCES or not known else "other"


def licence_of(voice: Voice) -> Licence:
    """Return the licence that a voice came with, which pruning and healing do not change.

    Of several licences, all that any of them forbids.
    """
    origin = str(voice.origin.licence or "")
    plain = re.sub(r"[^A-Za-z0-9 .,+()/_-]+", " ", origin[:_MOST_STATED])
    named = " ".join(plain.split())
    if named.lower() in _NOTHING_SAID or not named:
        return Licence(named, (), False, False)
    rules = {"derivatives": _NO_DERIVATIVES, "commerce": _NO_COMMERCE}
    known, forbids = len(origin) <= _MOST_STATED, set()
    for words in filter(None, map(_words, named.split(","))):
        if words not in _ALLOWS:
            found = {what for what, rule in rules.items() if rule.search(words)}
            forbids |= found
            known = known and bool(found)
    forbidden = tuple(what for what in rules if what in forbids)
    return Licence(named[:_LONGEST].strip(), forbidden, True, known)
