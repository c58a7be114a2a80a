"""The append-only file: killed at every step, cut at every byte, disks full, two writers, odd files, keys."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibrant.core.errors import EvidenceError, InputError
from calibrant.ledger.lines import Lines, replay

ONE, TWO, THREE = b'{"a":1}', b'{"b":"zw\xc3\xb6lf"}', b'{"c":{"d":[3]}}'
KEY = b'{"id":"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


def found(path: Path, **how: Any) -> list[bytes]:
    with Lines(path, **how) as lines:
        return list(lines)


def test_what_was_added_is_read_in_order(path: Path) -> None:
    with Lines(path) as lines:
        assert lines.add([ONE]) == [0]
        assert lines.add([]) == []
        places = lines.add([TWO, THREE])
        assert [lines.read(place) for place in places] == [TWO, THREE]
        assert list(lines) == [ONE, TWO, THREE]
    assert path.read_bytes() == b"\n".join([ONE, TWO, THREE, b""])
    with Lines(path) as lines:
        assert list(replay(lines, json.loads, "an object")) == [{"a": 1}, {"b": "zwölf"}, {"c": {"d": [3]}}]
        assert lines.add([ONE]) == [path.stat().st_size - len(ONE) - 1]
    assert list(replay(path, json.loads, "an object"))[3] == {"a": 1}


def test_a_line_of_any_length_is_read_at_its_place(path: Path) -> None:
    long = [b'{"a":"' + b"x" * size + b'"}' for size in (4086, 4087, 4088, 4089, 40_000, 300_000)]
    with Lines(path) as lines:
        assert [lines.read(place) for place in lines.add(long)] == long
    assert found(path) == long


def test_a_file_that_was_begun_and_got_no_line_goes(path: Path) -> None:
    Lines(path).close()
    assert not path.exists()
    path.touch()
    Lines(path).close()
    assert path.exists()
    link = path.with_name("link.jsonl")
    link.symlink_to("elsewhere.jsonl")
    Lines(link).close()
    assert link.is_symlink()


def test_a_line_that_holds_an_end_of_line_is_refused(path: Path) -> None:
    with Lines(path) as lines:
        with pytest.raises(ValueError, match="end of line"):
            lines.add([ONE, b'{"a":\n1}'])
        assert path.read_bytes() == b""


# Kills


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize(
    "end", [b"", b"\n", b'\n{"c":{"d":', b"\n" + THREE, b"\n\0\0\0", b'\n{"a":1}{', b"\n12"]
)
def test_a_cut_at_every_byte_of_the_last_line(path: Path, aside: bool, end: bytes) -> None:
    """Only a line that lacks nothing but its end counts, and with ``aside`` not even that one."""
    kept = path.with_suffix(".cut")
    whole = ONE + b"\n" + TWO + end
    for size in range(len(ONE) + 1, len(whole) + 1):
        kept.unlink(missing_ok=True)
        path.write_bytes(whole[:size])
        *lines, last = whole[:size].split(b"\n")
        if not aside and last in (ONE, TWO, THREE):
            lines, last = [*lines, last], b""
        with Lines(path, aside=kept if aside else None) as file:
            assert list(file) == lines
            assert file.torn == last
            assert path.read_bytes() == whole[:size]  # reading changes nothing
            [place] = file.add([ONE])
            assert file.read(place) == ONE
            assert list(file) == [*lines, ONE]
        assert path.read_bytes() == b"\n".join([*lines, ONE, b""])
        assert (kept.read_bytes() if kept.exists() else b"") == (last + b"\n" if aside and last else b"")


_KILLS = """
import os, signal, sys
from pathlib import Path
from calibrant.ledger.lines import Lines

os.fsync = lambda handle: None  # a kill takes nothing from the system
path, start = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
aside = path.with_suffix(".cut") if sys.argv[3] else None
told, steps = path.with_name("told"), {name: getattr(os, name) for name in ("write", "fsync", "ftruncate")}
ADDED = [[b'{"one":1}'], [b'{"two":2}', b'{"three":3}'], [b'{"four":4}']]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def writer(at, part):
    '''Write until step ``at``, and die in it: at ``part`` bytes of it, or before (-2) or after it (-1).'''
    left = [at]

    def deadly(name):
        def step(handle, *more):
            left[0] -= 1
            if left[0] == 0 and name == "write" and 0 <= part < len(more[0]):
                steps[name](handle, more[0][:part])
                die()
            if left[0] == 0 and part == -2:
                die()
            got = steps[name](handle, *more)
            if left[0] == 0 and part == -1:
                die()
            if left[0] == 0:
                os._exit(2)  # fewer bytes than this, or nothing to cut
            return got
        return step

    for name in steps:
        setattr(os, name, deadly(name))
    with Lines(path, aside=aside) as lines:
        note = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for some in ADDED:
            lines.add(some)
            steps["write"](note, b"." * len(some))
    os._exit(1)  # there is no such step


def tried(at, part):
    '''How the writer ended, and whether all is well then.'''
    path.write_bytes(start)
    told.write_bytes(b"")
    if aside:
        aside.unlink(missing_ok=True)
    if not (child := os.fork()):
        writer(at, part)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with Lines(path, aside=aside) as lines:
        there = list(lines)
        lines.add([b"{}"])
    *held, half = start.split(b"\\n")
    if half.endswith(b"}") and not aside:
        held, half = [*held, half], b""
    asked = [*held, *(line for some in ADDED for line in some)]
    least = len(held) + len(told.read_bytes())
    assert there == asked[: len(there)] and len(there) >= least, (at, part, there)
    assert path.read_bytes() == b"".join(line + b"\\n" for line in [*there, b"{}"]), (at, part)
    if aside and half:
        assert half + b"\\n" in aside.read_bytes(), (at, part)
    return ended


deaths, at = 0, 0
while True:
    at += 1
    ended = tried(at, -2), tried(at, -1)
    if 1 in ended:
        break
    deaths, part = deaths + 2, 0
    while tried(at, part) < 0:
        deaths, part = deaths + 1, part + 1
print(deaths)
"""


@pytest.mark.parametrize("aside", ["", "aside"])
@pytest.mark.parametrize("start", [b"", ONE + b'\n{"half":', ONE + b"\n" + TWO])
def test_a_kill_at_every_step_loses_nothing_that_was_confirmed(path: Path, start: bytes, aside: str) -> None:
    """Before and after every write, fsync and truncation, and between any two bytes of a write."""
    command = [sys.executable, "-c", _KILLS, str(path), start.hex(), aside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 45  # bytes that are added, and more


def test_what_was_added_is_on_the_disk_and_so_is_a_new_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fsync has seen is what a power cut leaves."""
    safe: list[int | str] = []

    def fsync(handle: int) -> None:
        state = os.fstat(handle)
        safe.append("folder" if stat.S_ISDIR(state.st_mode) else state.st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with Lines(path) as lines:
        assert safe == ["folder"]
        lines.add([ONE])
        assert safe[1:] == [8]
        lines.add([ONE], durable=False)
        lines.add([ONE], durable=False)
        assert len(safe) == 2
        assert path.read_bytes() == 3 * (ONE + b"\n")  # with the system all the same
        lines.sync()
        lines.sync()
        assert safe[2:] == [24]
        lines.add([ONE], durable=False)
    assert safe[3:] == [32]  # closing sees to it
    lines.close()
    Lines(path).close()
    assert len(safe) == 4


# Disks that refuse


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, room: int, *others: str) -> Iterator[None]:
    """A disk with ``room`` bytes left; ``others`` are calls that fail, too."""
    left, write = [room], os.write

    def full(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(handle, data[: left[0]])
        left[0] -= done
        return done

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for name in others:
            patch.setattr(os, name, refuse)
        yield


@pytest.mark.parametrize("start", [b"", ONE + b"\n", ONE + b'\n{"ha', ONE + b"\n" + TWO])
def test_a_full_disk_leaves_the_file_as_it_was(
    path: Path, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in range(len(TWO) + len(THREE) + 2):
        path.write_bytes(start)
        with Lines(path) as lines:
            before = list(lines)
            with (
                failing(monkeypatch, room),
                pytest.raises(InputError, match="disk full while writing") as caught,
            ):
                lines.add([TWO, THREE])
            assert (
                caught.value.hint == "free space, then run the same command again: what is finished is kept"
            )
            assert list(lines) == before
            assert path.read_bytes() == start.removesuffix(b'{"ha')
            lines.add([TWO, THREE])
            assert list(lines) == [*before, TWO, THREE]
        assert found(path) == [*before, TWO, THREE]


def test_a_limit_of_the_kernel_is_a_full_disk(path: Path) -> None:
    """Not simulated: the file may grow by 4 bytes only, so the kernel itself cuts the write short."""
    with Lines(path) as lines:
        lines.add([ONE])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(ONE) + 5, limits[1]))
        try:
            with pytest.raises(InputError, match="file too large while writing"):
                lines.add([TWO])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == ONE + b"\n"


@pytest.mark.parametrize("room", [0, 5, 100])
def test_a_disk_that_refuses_even_to_cut_is_mended_later(
    path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lines(path) as lines:
        lines.add([ONE])
        with failing(monkeypatch, room, "fsync", "ftruncate"):
            for _ in range(2):
                with pytest.raises(InputError, match=r"while writing .*lines\.jsonl"):
                    lines.add([TWO])
        assert list(lines) == [ONE]
        lines.add([THREE])
    assert path.read_bytes() == ONE + b"\n" + THREE + b"\n"


def test_an_interrupt_between_two_writes_takes_the_half_line_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.write, list[bytes]()

    def interrupted(handle: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(handle, data[:3])

    with Lines(path) as lines:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lines.add([ONE])
        assert path.read_bytes() == b""
        lines.add([ONE])
    assert found(path) == [ONE]


# Two writers


def test_a_second_writer_is_refused_until_the_first_is_done(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "link.jsonl"
    other.symlink_to(path)
    with Lines(path):
        for name in (path, other):
            with pytest.raises(InputError, match=rf"{name.name} is being written by another") as caught:
                Lines(name)
            assert "wait" in caught.value.hint
        assert list(replay(path, json.loads, "an object")) == []  # reading needs no lock
    Lines(path).close()


_HOLDER = """
import sys
from pathlib import Path
from calibrant.ledger.lines import Lines
lines = Lines(Path(sys.argv[1]))
lines.add([b'{"a":1}'])
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_writer_that_was_killed_holds_nothing(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process"):
            Lines(path)
        holder.kill()
    assert found(path) == [ONE]


def test_a_process_that_was_forked_meanwhile_does_not_hold_it_on(path: Path) -> None:
    lines = Lines(path)
    other = os.dup(lines._file.fileno())  # as a child has it
    lines.close()
    Lines(path).close()
    os.close(other)


def test_one_who_waits_writes_to_the_file_that_has_the_name_then(path: Path) -> None:
    """The first writer puts another file in its place: what was written to the old one would be lost."""
    first, waited = Lines(path), list[bytes]()

    def second() -> None:
        with Lines(path, wait=True) as lines:
            lines.add([TWO])
            waited.extend(lines)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not waited
    new = path.with_name("new")
    new.write_bytes(THREE + b"\n")
    new.replace(path)
    first.close()
    thread.join(60)
    assert waited == [THREE, TWO] == found(path)


def test_one_who_waits_begins_the_file_anew_where_the_first_left_none(path: Path) -> None:
    first = Lines(path)

    def second() -> None:
        with Lines(path, wait=True) as lines:
            lines.add([TWO])

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    first.close()
    thread.join(60)
    assert found(path) == [TWO]


@pytest.mark.parametrize("how", ["append", "cut", "replace", "remove"])
def test_a_file_that_another_program_changed_takes_no_line(path: Path, how: str) -> None:
    with Lines(path) as lines:
        lines.add([ONE])
        if how == "append":
            path.write_bytes(path.read_bytes() + b"by hand\n")
        elif how == "cut":
            os.truncate(path, 3)
        elif how == "replace":
            path.with_name("new").write_bytes(path.read_bytes())
            path.with_name("new").replace(path)
        else:
            path.unlink()
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(InputError, match="changed or replaced"):
            lines.add([TWO])
        assert (path.read_bytes() if path.exists() else None) == before


# Damage


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"nonsense", "expecting value"),
        (b"", "expecting value"),
        (ONE[:4], "expecting|delimiter"),
        (b"\0" * 8, "NUL bytes"),
        (b'{"a":"\0"}', "NUL bytes"),
        (b'{"a":"\xff"}', "utf-8"),
        (ONE.decode().encode("utf-16"), "NUL bytes"),
        (b"[" * 100_000, "recursion"),
    ],
    ids=range(8),
)
def test_a_damaged_line_is_named_by_its_number(path: Path, line: bytes, why: str) -> None:
    path.write_bytes(ONE + b"\n" + line + b"\n" + TWO + b"\n")
    with Lines(path) as lines:
        for source in (lines, path):
            rows = replay(source, lambda line: json.loads(line.decode()), "an object")
            assert next(rows) == {"a": 1}
            with pytest.raises(EvidenceError, match=rf"lines\.jsonl, line 2 is not an object: .*(?i:{why})"):
                next(rows)
        lines.add([THREE])  # it is no worse for it
    assert path.read_bytes().endswith(TWO + b"\n" + THREE + b"\n")


def test_a_reader_of_a_file_that_is_not_held_is_told_of_its_half_line(path: Path) -> None:
    path.write_bytes(ONE + b'\n{"b"')
    with pytest.raises(EvidenceError, match="line 2"):
        list(replay(path, json.loads, "an object"))


def test_odd_places(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "device.jsonl").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, why in (
        ("folder.jsonl", "is a directory while opening"),
        ("device.jsonl", "is not a file"),
        ("pipe.jsonl", "is not a file"),
        ("loop.jsonl", "too many levels"),
        ("missing/lines.jsonl", "no such file or directory while opening"),
        ("lines.txt", "written as JSON lines"),
    ):
        with pytest.raises(InputError, match=why) as caught:
            Lines(tmp_path / name)
        assert caught.value.hint
    assert not (tmp_path / "lines.txt").exists()


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to("elsewhere/lines.jsonl")
    with Lines(path) as lines:
        lines.add([ONE])
    assert path.is_symlink()
    assert found(tmp_path / "elsewhere" / "lines.jsonl") == [ONE]


@pytest.mark.slow
def test_a_line_of_50_megabytes(path: Path) -> None:
    long = b'{"id":"' + b"ab" * 32 + b'","text":"' + b"x" * 50_000_000 + b'"}'
    with Lines(path, key=KEY) as lines:
        places = lines.add([long, keyed(1)])
        assert [lines.read(place) for place in places] == [long, keyed(1)]
    path.write_bytes(path.read_bytes() + long[:-1])
    with Lines(path, key=KEY) as lines:
        assert len(lines.torn) == len(long) - 1 and lines.indexed == 2
        assert lines.find("ab" * 32, len, "a line") == (0, len(long))
        lines.add([ONE])
    assert path.stat().st_size == len(long) + len(keyed(1)) + len(ONE) + 3


# Keys


def name(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def keyed(key: int | str, text: str = "") -> bytes:
    key = key if isinstance(key, str) else name(key)
    return json.dumps({"id": key, "text": text}, separators=(",", ":")).encode()


def written(path: Path, lines: list[bytes]) -> Lines:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return Lines(path, key=KEY)


def test_lines_that_lay_here_are_found_by_their_key(path: Path) -> None:
    with Lines(path, key=KEY) as lines:
        assert lines.indexed == 0 and lines.find(name(0), bytes, "a line") is None
        places = lines.add([keyed(n, "x" * n) for n in range(5)])
        assert lines.find(name(0), bytes, "a line") is None
    path.write_bytes(path.read_bytes()[:-1])  # whole, but for its end
    with Lines(path, key=KEY) as lines:
        assert lines.indexed == 5
        for number, place in enumerate(places):
            assert lines.find(name(number), bytes, "a line") == (place, keyed(number, "x" * number))
        assert lines.find(name(5), bytes, "a line") is None
        assert lines.add([keyed(5)]) == [places[4] + len(keyed(4, "xxxx")) + 1]


def test_of_two_lines_with_one_key_the_later_counts(path: Path) -> None:
    with written(path, [keyed(0, "old"), keyed(1), keyed(0, "new"), keyed(2)]) as lines:
        place, line = lines.find(name(0), bytes, "a line") or (0, b"")
        assert line == keyed(0, "new") == lines.read(place)


def test_keys_that_begin_alike_are_distinguished(path: Path) -> None:
    """Sixteen digits are kept in memory; the other 48 are read from the file."""
    alike = ["ab" * 8 + str(n) * 48 for n in range(4)]
    order = [alike[n] for n in (2, 0, 3, 1, 0)]
    with written(path, [keyed(9), *(keyed(key, str(n)) for n, key in enumerate(order)), keyed(8)]) as lines:
        held = [lines.find(key, json.loads, "a line") for key in alike]
        assert [row[1]["text"] for row in held if row] == ["4", "3", "0", "2"]
        assert lines.find("ab" * 8 + "7" * 48, bytes, "a line") is None


def test_the_largest_and_smallest_keys(path: Path) -> None:
    names = ["f" * 64, "0" * 64]
    with written(path, [keyed(key) for key in names]) as lines:
        assert all(lines.find(key, bytes, "a line") for key in names)


@pytest.mark.parametrize("bad", [b"nonsense", b"", b'{"chat":1}', b'{"id":"no hex at all"}', b'{"id":"a\0"}'])
def test_a_line_without_its_key_is_named_at_once(path: Path, bad: bytes) -> None:
    with pytest.raises(EvidenceError, match=r"lines\.jsonl, line 2 is not"):
        written(path, [keyed(0), bad, keyed(1)])
    Lines(path).close()  # and the file is let go


def test_damage_behind_a_key_is_named_when_the_line_is_wanted(path: Path) -> None:
    with written(path, [keyed(3), keyed(2), keyed(1).replace(b'",', b'"",')]) as lines:
        assert lines.find(name(2), json.loads, "an answer")
        with pytest.raises(EvidenceError, match="line 3 is not an answer"):
            lines.find(name(1), json.loads, "an answer")


def test_many_lines_are_found_by_one_read_each_with_flat_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, rest = 20_000, '"text":"' + "x" * 450 + '"}\n'
    path.write_text("".join(f'{{"id":"{name(n)}",{rest}' for n in range(count)), encoding="utf-8")
    assert path.stat().st_size > 10_000_000
    reads, read = list[int](), Lines.read
    monkeypatch.setattr(Lines, "read", lambda lines, place: reads.append(place) or read(lines, place))
    with Lines(path, key=KEY) as lines:
        assert lines.indexed == count and not reads  # opening reads keys alone
        assert all(lines.find(name(n), bytes, "a line") for n in range(0, count, 100))
    assert len(reads) == count / 100
    tracemalloc.start()
    with Lines(path, key=KEY):
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 20 * count  # 16 bytes a line, and some buffers
    assert peak < 4_000_000
