"""The raw layer: line numbers, encodings and every way in which a file can be bad."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.core.errors import InputError
from calibrant.data import files
from calibrant.data.files import raw_rows
from calibrant.data.rows import Refused


def rows_of(folder: Path, name: str, data: bytes | str) -> list[files.RawRow]:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(raw_rows(path))


def test_jsonl_keeps_line_numbers_over_blank_lines_a_bom_and_crlf(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \r\n{"a": "\xc3\xa9"}'
    assert rows_of(tmp_path, "x.jsonl", data) == [(1, {"a": 1}), (4, {"a": "é"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "malformed JSON: Expecting value at column 6"),
        (b"[1, 2]", "not an object: got a list"),
        (b'"words"', "not an object: got a str"),
        (b"null", "not an object: got a NoneType"),
        (b'{"a": "caf\xe9"}', "not UTF-8: byte 11 of the line"),
        (b"[" * 100_000, "malformed JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "malformed JSON: "),
    ],
)
def test_a_bad_line_costs_one_row(tmp_path: Path, line: bytes, reason: str) -> None:
    first, bad, last = rows_of(tmp_path, "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 2}))
    assert isinstance(bad[1], Refused)
    assert bad[0] == bad[1].line == 2
    assert bad[1].reason.startswith(reason)


def test_a_line_beyond_the_limit_is_refused_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "' + b"x" * 5_000_000 + b'"}\n{"a": 2}\n')
    tracemalloc.start()
    first, long, last = raw_rows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 2}))
    assert long == (2, Refused(line=2, reason="line too long: more than 1,000 bytes"))
    assert peak < 1_000_000


def test_jsonl_and_csv_are_streamed(tmp_path: Path) -> None:
    for name, head, line in (("x.jsonl", b"", b'{"a": "words"}\n'), ("x.csv", b"a,b\n", b"words,more\n")):
        path = tmp_path / name
        path.write_bytes(head + line * 30_000)
        tracemalloc.start()
        count = sum(1 for _ in raw_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 30_000
        assert peak < path.stat().st_size / 4


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, 5]', '{"data": [{"a": 1}, 5], "version": 2}', '\ufeff[{"a": 1},\n5]']
)
def test_json_is_a_list_or_the_list_under_data(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path, "x.json", text) == [
        (1, {"a": 1}),
        (2, Refused(line=2, reason="not an object: got a int")),
    ]


def test_a_json_list_of_texts_is_one_column(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.json", '["one day", {"a": 1}, 3]')
    assert rows[:2] == [(1, {"text": "one day"}), (2, {"a": 1})]
    assert isinstance(rows[2][1], Refused)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1}\n{"a": 2}', r"x\.json:2: malformed JSON: Extra data.*\n.*\.jsonl"),
        (b'[{"a": "\xe9"}]', "not UTF-8: byte 9"),
        (b'{"rows": []}', "holds no list of rows: got an object with the keys rows"),
        (b"7", "holds no list of rows: got int"),
        (b"[" * 100_000, "malformed JSON"),
        (b" \n ", "malformed JSON"),
    ],
)
def test_a_bad_json_document_is_an_error(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        rows_of(tmp_path, "x.json", data)
    assert caught.value.hint


def test_csv_counts_the_line_on_which_a_row_starts(tmp_path: Path) -> None:
    data = '\ufeffid,text\r\n\r\na,"one\r\ntwo\nthree"\r\nb,"say ""hi"", then go"\r\n\nc,last'
    assert rows_of(tmp_path, "x.csv", data) == [
        (3, {"id": "a", "text": "one\r\ntwo\nthree"}),
        (6, {"id": "b", "text": 'say "hi", then go'}),
        (8, {"id": "c", "text": "last"}),
    ]


def test_tsv_parts_cells_at_tabs(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "x.tsv", "id\t text \na\tone, two\n") == [(2, {"id": "a", "text": "one, two"})]


def test_csv_takes_cells_longer_than_pythons_default(tmp_path: Path) -> None:
    assert csv.field_size_limit() >= 131_072
    [(_, row)] = rows_of(tmp_path, "x.csv", "text,id\n" + "x" * 300_000 + ",a\n")
    assert isinstance(row, dict)
    assert len(row["text"]) == 300_000


def test_csv_refuses_a_row_of_another_width_or_encoding(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.csv", b"id,text\na\nb,caf\xe9\nc,d,e\nf,caf\xc3\xa9\n")
    wide = "wrong number of cells: {}, but the header names 2 columns"
    assert rows == [
        (2, Refused(line=2, reason=wide.format(1))),
        (3, Refused(line=3, reason="not UTF-8: a cell of the row")),
        (4, Refused(line=4, reason=wide.format(3))),
        (5, {"id": "f", "text": "café"}),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'a,b\n1,2\n\n3,"open\n4,5\n', "starts on line 4 .* unexpected end of data"),
        (b'a,b\n"one"two,3\n', "starts on line 2 "),
        (b"a,b,a\n1,2,3\n", "named twice: a"),
        (b"a,caf\xe9\n1,2\n", "header is not UTF-8"),
    ],
)
def test_a_csv_whose_rows_are_in_doubt_is_an_error(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        rows_of(tmp_path, "x.csv", data)
    assert caught.value.hint


def test_a_csv_line_beyond_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 50)
    with pytest.raises(InputError, match=r"line 3 .*more than 50 bytes"):
        rows_of(tmp_path, "x.csv", "a,b\n1,2\n" + "x" * 100 + ",3\n")


cell = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@given(st.lists(st.lists(cell, min_size=2, max_size=2), max_size=6), st.sampled_from([",", "\t"]))
def test_csv_returns_what_the_csv_module_wrote(table: list[list[str]], delimiter: str) -> None:
    """Any text survives; the line is one more than the line feeds before the row."""
    out, wanted = io.StringIO(newline=""), []
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    for cells in table:
        wanted.append((out.getvalue().count("\n") + 1, dict(zip("ab", cells, strict=True))))
        writer.writerow(cells)
    data = out.getvalue().encode()
    assert list(files._csv(_Bytes(data), delimiter)) == wanted  # type: ignore[arg-type]


@given(st.lists(st.dictionaries(cell, st.none() | st.integers() | cell, max_size=3), max_size=5))
def test_jsonl_returns_what_the_json_module_wrote(table: list[dict[str, object]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()
    assert list(files._jsonl(_Bytes(data))) == list(enumerate(table, start=1))  # type: ignore[arg-type]


class _Bytes:
    """Stands where a path stands, so that hypothesis need not write files."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


def test_missing_empty_folder_and_unknown_kinds_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"a": 1}')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "x.parquet").write_text("a")
    (tmp_path / "wide.jsonl").write_bytes('{"a": 1}'.encode("utf-16"))
    for name, words in (
        ("pair.jsonl", r"no such file \(did you mean 'pairs.jsonl'\?\)"),
        ("nowhere/x.jsonl", "no such file"),
        ("empty.jsonl", "is empty"),
        (".", r"is a folder, not a file\n.*empty\.jsonl, notes\.txt"),
        ("notes.txt", r"no reader for files named '\*\.txt'.*known: \.jsonl"),
        ("x.parquet", "parquet:PATH"),
        ("wide.jsonl", "is UTF-16 or UTF-32 text, not UTF-8\n.*iconv"),
        ("x" * 5000 + ".jsonl", "cannot be read"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            raw_rows(tmp_path / name)
        assert caught.value.hint


def test_a_csv_of_excel_is_read_with_its_semicolons(tmp_path: Path) -> None:
    data = '\ufefftext;harmful\r\n"a; b, c";TRUE\r\nd,e;FALSE\r\n'
    assert [row for _, row in rows_of(tmp_path, "x.csv", data)] == [
        {"text": "a; b, c", "harmful": "TRUE"},
        {"text": "d,e", "harmful": "FALSE"},
    ]
    assert rows_of(tmp_path, "y.csv", "text,a;b\n1;2,3\n") == [(2, {"text": "1;2", "a;b": "3"})]
    assert rows_of(tmp_path, "y.tsv", "a;b\n1;2\n") == [(2, {"a;b": "1;2"})]


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        ("text\tharmful\na\ttrue\n", "tabs part its columns", "*.tsv"),
        ("sep=;\r\ntext;harmful\r\na;true\r\n", "'sep='", "take that line out"),
        ("text,harmful\ra,true\r", "a carriage return alone ends its lines", "tr "),
    ],
)
def test_a_csv_of_another_kind_is_refused_with_what_to_do(
    tmp_path: Path, data: str, what: str, remedy: str
) -> None:
    with pytest.raises(InputError, match=what) as caught:
        rows_of(tmp_path, "x.csv", data)
    assert remedy in caught.value.hint
