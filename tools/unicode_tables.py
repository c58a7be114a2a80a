"""Write ``src/calibrant/text/unicode.json``: characters that nobody sees, and those that look like ASCII.

    .venv/bin/python tools/unicode_tables.py

Both come from ICU (Debian: libicu72), which carries the Unicode Character Database and the confusables of
UTS #39. The file names ICU's version, Unicode's, and a digest of the tables. It is made again when
Debian's ICU is newer.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLES = Path(__file__).resolve().parents[1] / "src/calibrant/text/unicode.json"
_IGNORABLE = 5  # UCHAR_DEFAULT_IGNORABLE_CODE_POINT
_LARGEST = 0x110000


class Icu:
    """What is asked of the system's ICU, whose functions carry its version in their names.

    Raises:
        OSError: there is no ICU.
    """

    def __init__(self) -> None:
        paths = sorted(Path("/usr/lib").glob("**/libicui18n.so.??"))
        if not paths:
            raise OSError("no libicui18n in /usr/lib: install Debian's libicu72")
        self.version = paths[-1].suffix[1:]
        self._i18n = ctypes.CDLL(str(paths[-1]))
        self._common = ctypes.CDLL(str(paths[-1]).replace("i18n", "uc"))
        self._checker = self._open()
        self._skeleton = self._function(self._i18n, "uspoof_getSkeletonUTF8", ctypes.c_int32)
        self._property = self._function(self._common, "u_hasBinaryProperty", ctypes.c_int8)

    def _function(self, library: ctypes.CDLL, name: str, kind: Any) -> Any:
        found = getattr(library, f"{name}_{self.version}")
        found.restype = kind
        return found

    def _open(self) -> ctypes.c_void_p:
        error = ctypes.c_int(0)
        opened = self._function(self._i18n, "uspoof_open", ctypes.c_void_p)(ctypes.byref(error))
        if error.value > 0:
            raise OSError(f"uspoof_open failed with {error.value}")
        return ctypes.c_void_p(opened)

    @property
    def unicode(self) -> str:
        """The Unicode version of its data."""
        parts = (ctypes.c_uint8 * 4)()
        getattr(self._common, f"u_getUnicodeVersion_{self.version}")(parts)
        return ".".join(map(str, parts[:3]))

    def ignorable(self, code: int) -> bool:
        """Whether it is a Default_Ignorable_Code_Point."""
        return bool(self._property(ctypes.c_int32(code), ctypes.c_int32(_IGNORABLE)))

    def skeleton(self, text: str) -> str:
        """UTS #39, section 4."""
        raw, error = text.encode(), ctypes.c_int(0)
        out = ctypes.create_string_buffer(256 + 64 * len(raw))
        size = self._skeleton(
            self._checker, ctypes.c_uint32(0), raw, ctypes.c_int32(len(raw)), out, ctypes.c_int32(len(out)),
            ctypes.byref(error),
        )  # fmt: skip
        if error.value > 0:
            raise OSError(f"uspoof_getSkeletonUTF8 failed with {error.value}")
        return out.raw[:size].decode()


def codes() -> Iterator[int]:
    """Every code point that a text can hold."""
    yield from range(0xD800)
    yield from range(0xE000, _LARGEST)


def ignorable(icu: Icu) -> list[tuple[int, int]]:
    """First and last of each run of characters that are drawn as nothing."""
    runs: list[tuple[int, int]] = []
    for code in filter(icu.ignorable, codes()):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = runs[-1][0], code
        else:
            runs.append((code, code))
    return runs


def look_alikes(icu: Icu) -> dict[str, str]:
    """ASCII as a skeleton writes it -> the letters and digits beyond ASCII that look like it, marks apart.

    A skeleton writes l for l, I, 1 and |, and rn for m. What is ASCII under NFKC, marks apart, is left out.
    """
    found: dict[str, list[str]] = {}
    for code in range(0x80, _LARGEST):
        char = chr(code)
        if 0xD800 <= code < 0xE000 or unmarked(unicodedata.normalize("NFKC", char)).isascii():
            continue
        seen = unmarked(icu.skeleton(unmarked(unicodedata.normalize("NFKD", char))))
        upper = unmarked(icu.skeleton(char.upper())) if char.upper() != char else seen
        if (seen, upper) == ("i", "l"):  # the small palochka is drawn as l, whatever its skeleton
            seen = "l"
        if unicodedata.category(char)[0] in "LN" and re.fullmatch(r"[!-~]{1,3}", seen):
            found.setdefault(seen, []).append(char)
    return {seen: "".join(chars) for seen, chars in sorted(found.items())}


def unmarked(text: str) -> str:
    """Without marks above, below or round a letter."""
    return "".join(
        c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) not in ("Mn", "Me")
    )


def tables() -> dict[str, Any]:
    """What the file holds."""
    icu = Icu()
    content = {"ignorable": ignorable(icu), "look_alikes": look_alikes(icu)}
    return {
        "source": f"ICU {icu.version}: Default_Ignorable_Code_Point; confusables of UTS #39",
        "unicode": icu.unicode,
        "digest": hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest(),
        **content,
    }


if __name__ == "__main__":
    made = tables()
    TABLES.write_text(json.dumps(made, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{TABLES.name}: {made['source']}, Unicode {made['unicode']}, {made['digest'][:12]}\n")
