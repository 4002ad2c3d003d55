"""licence_of: what the licence of a voice's weights says about sharing a pruned copy of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vits_prune.voices.voice import Voice

_LONGEST = 64
_NOTHING_SAID = ("other", "unknown", "none", "not stated")
"""What publishers state that names no terms."""
_FOR_RESEARCH = ("deepfloyd-if-license", "apple-amlr", "intel-research", "coqui-public-model-license", "cpml")
"""Licences without commerce whose names do not say so."""
_SHARE_ALIKE = re.compile(r"(^|-)sa(-|$)|^(a|l)?gpl|^osl|^eupl|^odbl|^gfdl|^cdla-sharing")

_HUB_IDS = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 "
    "bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 "
    "agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 "
    "odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other"
)
HUB_LICENCES = frozenset(_HUB_IDS.split())
"""The ids that a model card's `license` may have (huggingface.co/docs/hub/repositories-licenses); others go by `license_name`."""


@dataclass(frozen=True)
class Licence:
    """The licence of a voice's weights, as far as its publisher tells."""

    id: str
    """As the publisher states it, "" where nothing is stated. At most 64 plain characters: it comes from strangers."""
    forbids: tuple[str, ...]
    """Of "derivatives" and "commerce"; empty where neither is forbidden, or it is not known."""
    stated: bool
    """Whether a licence is named; "other" and "unknown" name none."""

    @property
    def notice(self) -> str:
        """What to read before sharing the voice, in sentences; "" where nothing has to be."""
        if not self.id:
            return (
                "The publisher of the original states no licence: all rights are reserved unless its page says otherwise. "
                "Make sure that you may share what is made of it."
            )
        if not self.stated:
            return (
                f"The publisher of the original states the licence as {self.id!r}: read its terms on the original's page before you share."
            )
        said = [f"The licence is {self.id}."]
        if "derivatives" in self.forbids:
            said.append("It forbids derivatives: a changed voice, as a pruned one is, may not be shared without its publisher's consent.")
        if "commerce" in self.forbids:
            said.append("It forbids commercial use, of what is made of the voice too.")
        if _SHARE_ALIKE.search(self.id.lower()):
            said.append("What is made of the voice may be shared under the same licence only: the model card states it.")
        if self.id.lower() not in HUB_LICENCES and not self.forbids:
            said.append("It is not one of the usual ones: read its terms before you share.")
        return " ".join(said) if len(said) > 1 else ""

    @property
    def needs_consent(self) -> bool:
        """Whether somebody has to say yes before a push: it forbids something, or nobody knows what it says."""
        return bool(self.forbids) or not self.stated

    @property
    def hub_id(self) -> str:
        """The hub's id for it, "other" where it has none, "" where nothing is stated."""
        known = self.id.lower()
        return known if known in HUB_LICENCES or not known else "other"


def licence_of(voice: Voice) -> Licence:
    """The licence that a voice came with: pruning and healing change nothing about it."""
    named = re.sub(r"[^A-Za-z0-9 .,+()/_-]+", " ", str(voice.origin.licence or "")[: 4 * _LONGEST])
    named = " ".join(named.split())[:_LONGEST].strip()
    words = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")
    creative = re.search(r"(^|-)(cc|creative-?commons)(-|$)", words) is not None
    forbids = []
    if (creative and re.search(r"-nd(-|$)", words)) or re.search(r"no-?deriv", words):
        forbids.append("derivatives")
    research = words in _FOR_RESEARCH or "research-only" in words
    if (creative and re.search(r"-nc(-|$)", words)) or re.search(r"non-?commercial", words) or research:
        forbids.append("commerce")
    return Licence(named, tuple(forbids), bool(named) and named.lower() not in _NOTHING_SAID)
