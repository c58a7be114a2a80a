"""Text transformations: keyed ciphers, splitting, made-up languages, noise.

Every function is pure: random choices depend on its ``seed`` alone. Part of ``calibrant.text.converters``.
"""

from __future__ import annotations

import json
import random
import re
from functools import lru_cache
from itertools import pairwise

from calibrant.text.alphabets import KEYBOARD, LOWER, THINGS, Change

_WORD = re.compile(r"[A-Za-z]+")
_PIG = re.compile(r"([A-Za-z]+)-([A-Za-z]*)ay")
_NAMED = re.compile(r'[a-i] = ("(?:[^"\\]|\\.)*")')


def shifted(text: str, key: str, sign: int = 1) -> str:
    """Vigenere: the letters of ``key`` in turn say how far each letter is moved; a key 'd' is Caesar's."""
    moved, at = [], 0
    for char in text:
        if char.isascii() and char.isalpha():
            first = 97 if char.islower() else 65
            by = sign * (ord(key[at % len(key)]) - 97)
            moved.append(chr((ord(char) - first + by) % 26 + first))
            at += 1
        else:
            moved.append(char)
    return "".join(moved)


def fence(text: str, rails: str) -> str:
    """Rail fence: written in a zigzag over so many rails, read rail by rail."""
    return "".join(text[place] for place in _zigzag(len(text), int(rails)))


def unfence(text: str, rails: str) -> str:
    """What ``fence`` wrote."""
    plain = [""] * len(text)
    for char, place in zip(text, _zigzag(len(text), int(rails)), strict=True):
        plain[place] = char
    return "".join(plain)


def _zigzag(length: int, rails: int) -> list[int]:
    turn = 2 * (rails - 1)
    return sorted(range(length), key=lambda place: (min(place % turn, turn - place % turn), place))


def apart(text: str) -> str:
    """Spaces between the letters of a word, three between words."""
    return "   ".join(" ".join(word) for word in text.split(" "))


def together(text: str) -> str:
    """What ``apart`` wrote."""
    return " ".join(word[::2] for word in text.split("   "))


def turned_round(text: str) -> str:
    """The last word first."""
    return " ".join(reversed(text.split(" ")))


def variables(text: str, parts: str) -> str:
    """Cut into quoted variables, with the order to join them."""
    count = int(parts)
    ends = [len(text) * part // count for part in range(count + 1)]
    names = LOWER[:count]
    cuts = [text[start:end] for start, end in pairwise(ends)]
    given = "; ".join(f"{n} = {json.dumps(c, ensure_ascii=False)}" for n, c in zip(names, cuts, strict=True))
    return f"{given}; join {', '.join(names[:-1])} and {names[-1]}, and answer that"


def from_variables(text: str) -> str:
    """What the variables spell when they are joined."""
    return "".join(json.loads(quoted) for quoted in _NAMED.findall(text))


def acrostic(text: str) -> str:
    """A line for each word, in which the first letters of the words spell it."""
    lines = [[THINGS.get(c.lower(), c) for c in word] for word in text.split(" ")]
    return "\n".join(" ".join(line) for line in lines)


def from_acrostic(text: str) -> str:
    """First letters, a word for each line."""
    return " ".join("".join(thing[:1] for thing in line.split(" ")) for line in text.split("\n"))


def pig(text: str) -> str:
    """Pig latin with a hyphen, so that it can be read back: 'brew' is 'ew-bray', 'apple' is 'apple-ay'."""

    def change(found: re.Match[str]) -> str:
        word = found.group()
        vowel = re.search(r"[aeiou]", word, re.IGNORECASE)
        start = vowel.start() if vowel else 0
        return f"{word[start:]}-{word[:start]}ay"

    return _WORD.sub(change, text)


def from_pig(text: str) -> str:
    """What ``pig`` wrote."""
    return _PIG.sub(r"\2\1", text)


@lru_cache(64)
def _language(seed: str) -> dict[str, str]:
    """A syllable for each letter."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]
    return dict(zip(LOWER, random.Random(int(seed)).sample(syllables, 26), strict=True))


def made_up(text: str, seed: str) -> str:
    """A language of syllables that nobody speaks: one for each letter; capitals stay."""
    language = _language(seed)
    return "".join(
        (language[c.lower()].capitalize() if c.isupper() else language[c])
        if c.isascii() and c.isalpha()
        else c
        for c in text
    )


def from_made_up(text: str, seed: str) -> str:
    """What ``made_up`` wrote."""
    back = {syllable: letter for letter, syllable in _language(seed).items()}

    def letter(syllable: str) -> str:
        found = back.get(syllable.lower(), syllable)
        return found.upper() if syllable[0].isupper() else found

    return re.sub(r"[A-Za-z]{2}", lambda found: letter(found.group()), text)


# Noise: what is lost is lost.

MIX, NOISE = 0.4**0.5, 0.4**3
"""How often a letter's case is turned or a word mixed, sigma^(1/2), and a character is moved, sigma^3
(Hughes et al. 2024, arXiv 2412.03556, appendix A.1 and their code, sigma = 0.4)."""
TYPOS = 0.1
"""How often a letter is mistyped."""


def random_case(text: str, seed: str) -> str:
    """Random case swaps."""
    rng = random.Random(int(seed))
    return "".join(char.swapcase() if rng.random() < MIX else char for char in text)


def mixed(text: str, seed: str) -> str:
    """In words of four letters and more, often, all letters but the first and the last are mixed."""
    rng = random.Random(int(seed))

    def mix(found: re.Match[str]) -> str:
        word = found.group()
        if len(word) < 4 or rng.random() >= MIX:
            return word
        return word[0] + "".join(rng.sample(word[1:-1], len(word) - 2)) + word[-1]

    return re.sub(r"\w+", mix, text)


def noisy(text: str, seed: str) -> str:
    """Now and then a visible ASCII character becomes one of its neighbours in ASCII; spaces stay."""
    rng = random.Random(int(seed))

    def move(char: str) -> str:
        if rng.random() >= NOISE or not "!" <= char <= "~":
            return char
        return chr(min(126, max(33, ord(char) + rng.choice((-1, 1)))))

    return "".join(map(move, text))


def mistyped(text: str, seed: str) -> str:
    """Now and then a letter is missed out, doubled, or hit one key to the right."""
    rng = random.Random(int(seed))
    slips: tuple[Change, ...] = (lambda c: "", lambda c: c + c, KEYBOARD.write)
    return "".join(rng.choice(slips)(c) if c.isalpha() and rng.random() < TYPOS else c for c in text)


def vowels_dropped(text: str) -> str:
    """Without vowels, but those that begin a word."""
    return re.sub(r"(?<=\w)[aeiou]", "", text, flags=re.IGNORECASE)
