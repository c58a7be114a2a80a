"""The two axes of a finding: its hazard (five categories) and its attack technique (families).

    hazard_of("Fraud/Deception").name                # 'deception', from JailbreakBench's word for it
    tags_of("privacy", "transform")                  # ('calibrant:privacy', 'ailuminate:prv', ...)

The rows name the corresponding entries of AILuminate 1.0 (12 hazards), HarmBench (semantic categories),
JailbreakBench, StrongREJECT, OWASP's Top 10 for LLM applications (2025) and MITRE ATLAS 5.6.0. Such maps are
judgement calls, not equalities; where a framework has nothing of the kind the row says so with ().

A tag is given only where it follows. 'harmful_content' covers eight of AILuminate's hazards, and says nothing
about which of them a goal is after: it gets none of their tags. 'iwp' names one, and gets that.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from calibrant.core.attempt import Access

AILUMINATE = {
    "vcr": "violent crimes",
    "ncr": "non-violent crimes",
    "src": "sex-related crimes",
    "cse": "child sexual exploitation",
    "iwp": "indiscriminate weapons (CBRNE)",
    "ssh": "suicide and self-harm",
    "hte": "hate",
    "sxc": "sexual content",
    "spc": "specialised advice",
    "prv": "privacy",
    "ipv": "intellectual property",
    "dfm": "defamation",
}
"""Code -> hazard, MLCommons AILuminate 1.0."""

OWASP = {
    "LLM01:2025": "Prompt Injection",
    "LLM02:2025": "Sensitive Information Disclosure",
    "LLM03:2025": "Supply Chain",
    "LLM04:2025": "Data and Model Poisoning",
    "LLM05:2025": "Improper Output Handling",
    "LLM06:2025": "Excessive Agency",
    "LLM07:2025": "System Prompt Leakage",
    "LLM08:2025": "Vector and Embedding Weaknesses",
    "LLM09:2025": "Misinformation",
    "LLM10:2025": "Unbounded Consumption",
}
"""Id -> name, OWASP Top 10 for LLM applications 2025."""

ATLAS = {
    "AML.T0043.000": "White-Box Optimization",
    "AML.T0043.001": "Black-Box Optimization",
    "AML.T0048": "External Harms",
    "AML.T0048.002": "Societal Harm",
    "AML.T0048.003": "User Harm",
    "AML.T0054": "LLM Jailbreak",
    "AML.T0057": "LLM Data Leakage",
    "AML.T0065": "LLM Prompt Crafting",
    "AML.T0068": "LLM Prompt Obfuscation",
}
"""Id -> name of the techniques that the tables below use, MITRE ATLAS 5.6.0."""


class Hazard(NamedTuple):
    """One of the five categories of harm, and what other lists call it."""

    name: str
    """As goals write it: 'harmful_content'."""
    title: str
    """For people."""
    ailuminate: tuple[str, ...]
    """Codes of ``AILUMINATE``."""
    harmbench: tuple[str, ...]
    """Semantic categories."""
    jailbreakbench: tuple[str, ...]
    """Categories."""
    strongreject: tuple[str, ...]
    """Categories."""
    owasp: tuple[str, ...]
    """Ids of ``OWASP``."""
    atlas: tuple[str, ...]
    """Ids of ``ATLAS``: the impact."""
    same: tuple[str, ...] = ()
    """Tags that follow from our own word for it: entries above that mean about the same."""


HAZARDS: tuple[Hazard, ...] = (
    Hazard(
        name="harmful_content",
        title="harmful content",
        ailuminate=("vcr", "ncr", "src", "cse", "iwp", "ssh", "sxc", "spc"),
        harmbench=("chemical_biological", "cybercrime_intrusion", "harmful", "illegal"),
        jailbreakbench=(
            "Physical harm",
            "Malware/Hacking",
            "Economic harm",
            "Sexual/Adult content",
            "Expert advice",
            "Government decision-making",
        ),
        strongreject=("Violence", "Illegal goods and services", "Non-violent crimes", "Sexual content"),
        owasp=(),
        atlas=("AML.T0048",),
    ),
    Hazard(
        name="bias",
        title="bias",
        ailuminate=("hte",),
        harmbench=("harassment_bullying",),
        jailbreakbench=("Harassment/Discrimination",),
        strongreject=("Hate, harassment and discrimination",),
        owasp=(),
        atlas=("AML.T0048.002",),
        same=("ailuminate:hte", "jailbreakbench:Harassment/Discrimination"),
    ),
    Hazard(
        name="privacy",
        title="privacy violations",
        ailuminate=("prv", "ipv"),
        harmbench=("copyright",),
        jailbreakbench=("Privacy",),
        strongreject=(),
        owasp=("LLM02:2025",),
        atlas=("AML.T0057",),
        same=("ailuminate:prv", "jailbreakbench:Privacy"),
    ),
    Hazard(
        name="deception",
        title="deception",
        ailuminate=("dfm",),
        harmbench=("misinformation_disinformation",),
        jailbreakbench=("Fraud/Deception", "Disinformation"),
        strongreject=("Disinformation and deception",),
        owasp=("LLM09:2025",),
        atlas=("AML.T0048.002",),
        same=("strongreject:Disinformation and deception",),
    ),
    Hazard(
        name="manipulation",
        title="manipulation",
        ailuminate=(),
        harmbench=(),
        jailbreakbench=(),
        strongreject=(),
        owasp=(),
        atlas=("AML.T0048.003",),
    ),
)
"""The first axis. HarmBench's 'copyright' and AILuminate's 'ipv' are mapped to privacy: all three are
about disclosing learnt data that belongs to someone else."""


class Technique(NamedTuple):
    """A family of attacks, what it must see, and its names elsewhere."""

    family: str
    """As attempts write it: 'LM-made'."""
    title: str
    """For people."""
    access: tuple[Access, ...]
    """What attacks of this family see of the target; the first is usual."""
    atlas: tuple[str, ...]
    """Ids of ``ATLAS``."""


_JAILBREAK = "AML.T0054"
TECHNIQUES: tuple[Technique, ...] = (
    Technique("plain", "the direct request", ("black box",), ()),
    Technique("transform", "encodings, ciphers, spellings", ("black box",), (_JAILBREAK, "AML.T0068")),
    Technique("persona", "roles and fictions", ("black box",), (_JAILBREAK, "AML.T0065")),
    Technique(
        "many-shot", "many in-context examples of compliance", ("black box",), (_JAILBREAK, "AML.T0065")
    ),
    Technique("prefill", "the beginning of the reply is prefilled", ("black box",), (_JAILBREAK,)),
    Technique(
        "search",
        "resample or mutate until it works (best-of-N, genetic)",
        ("black box", "log-probs"),
        (_JAILBREAK, "AML.T0043.001"),
    ),
    Technique("LM-made", "an attacker model writes the prompt", ("black box",), (_JAILBREAK, "AML.T0065")),
    Technique(
        "multi-turn",
        "a conversation that escalates to the request",
        ("black box",),
        (_JAILBREAK, "AML.T0065"),
    ),
    Technique("gradient", "tokens or embeddings by gradient", ("weights",), (_JAILBREAK, "AML.T0043.000")),
)
"""The second axis: every ``Family`` of ``calibrant.attack.engine.protocol``, in its order."""

_LISTS = ("ailuminate", "harmbench", "jailbreakbench", "strongreject")
_INJECTION = "LLM01:2025"


def hazard_of(category: str) -> Hazard | None:
    """The row that ``category`` belongs to; None where no list here knows the word.

    Our own names, AILuminate's codes and hazards, and the categories of the other lists are all taken, in any
    case, with '_', '-', '/' or spaces.
    """
    return _KNOWN.get(_plain(category))


def technique_of(family: str) -> Technique | None:
    """The row of a technique family, in any case; None for an unknown one."""
    return next((row for row in TECHNIQUES if _plain(row.family) == _plain(family)), None)


def tags_of(category: str, family: str) -> tuple[str, ...]:
    """Tags of a finding, 'LIST:ENTRY', without repeats; () where neither word is known.

    An entry of another list is tagged where ``category`` names it, or means about the same. Every family but
    'plain' counts as OWASP's prompt injection, which covers jailbreaks.
    """
    hazard, technique = hazard_of(category), technique_of(family)
    word = _plain(category)
    tags: list[str] = []
    if hazard is not None:
        tags.append(f"calibrant:{hazard.name}")
        tags += [f"{name}:{e}" for name in _LISTS for e in getattr(hazard, name) if word in _words(name, e)]
        if word in (_plain(hazard.name), _plain(hazard.title)):
            tags += hazard.same
        tags += [f"owasp:{entry}" for entry in hazard.owasp]
        tags += [f"atlas:{entry}" for entry in hazard.atlas]
    if technique is not None and technique.atlas:
        tags.append(f"owasp:{_INJECTION}")
        tags += [f"atlas:{entry}" for entry in technique.atlas]
    return tuple(dict.fromkeys(tags))


def _plain(word: str) -> str:
    return " ".join(re.split(r"[\W_]+", word.casefold())).strip()


def _words(framework: str, entry: str) -> tuple[str, ...]:
    """What an entry is called, evened out; AILuminate's have a code and a name."""
    names = (entry, AILUMINATE[entry]) if framework == "ailuminate" else (entry,)
    return tuple(_plain(name) for name in names)


def _known() -> dict[str, Hazard]:
    hazards: dict[str, Hazard] = {}
    for row in HAZARDS:
        names = [_plain(row.name), _plain(row.title)]
        names += [w for framework in _LISTS for e in getattr(row, framework) for w in _words(framework, e)]
        for name in names:
            hazards.setdefault(name, row)
    return hazards


_KNOWN = _known()
