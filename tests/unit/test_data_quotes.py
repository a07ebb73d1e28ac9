"""Stray quotation marks in CSV files: every row is read, or one line says where the mark stands."""

import csv
import io
import random
import shutil
from pathlib import Path

import pytest

import ospo.data.quotes as quotes
from ospo.data.prepare import prepare
from ospo.data.raw_csv import read_csv
from ospo.data.stats import Stats
from ospo.errors import InputError
from ospo.reports.data_check import check_folder


def _cell(file: Path, line: int, column: int, change) -> None:
    """Change a cell of a CSV file as text; ``line`` counts from 1, the header is line 1."""
    lines = file.read_text(encoding="utf-8").split("\n")
    cells = lines[line - 1].split(",")
    cells[column] = change(cells[column])
    lines[line - 1] = ",".join(cells)
    file.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "column", "first", "second"),
    [
        ("customers.csv", 6, 8, 50),  # postal_code, the last column, which is not read
        ("customers.csv", 3, 8, 50),  # club_member_status, in the middle
        ("transactions_train.csv", 4, 30, 500),
        ("transactions_train.csv", 3, 30, 31),
    ],
)
def test_two_lone_marks_hide_no_rows(name, column, first, second, hm_raw, tmp_path, tiny_config):
    """The rows between the two marks would be one field of a column that nothing reads."""
    raw = tmp_path / "raw"
    shutil.copytree(hm_raw, raw)
    _cell(raw / name, first, column, lambda cell: f'"{cell}')
    _cell(raw / name, second, column, lambda cell: f'{cell}"')
    with pytest.raises(InputError) as caught:
        prepare("hm", raw, tmp_path / "out", tiny_config)
    line = f"line {first}: a quotation mark opens a field that runs over line {first + 1}"
    assert f"{name}: {line}" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert line in check_folder(raw, tiny_config).problems[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('a,b,c\n1,5" wide,3\n2,2,2\n', "line 2: a stray quotation mark"),
        ('a,b,c\n1,2,3\n1,"x" y,3\n', "line 3: a stray quotation mark"),
        ('a,b,c\n1,"x,3\n', "line 2: a quotation mark opens a field that never ends"),
        ('a,b,c\n1,"x\ny","z,3\n2,2\n', "line 3: a quotation mark opens a field that never ends"),
        ('a,b\n1,2\n3,"4\n5,6\n7,8"\n', "line 3: .* over line 4, a row of its own"),
        ('a,b\n1,"2\n3","x, y"\n', "line 2: .* over line 3, a row of its own"),
        ('a,b,c\n1,"2\n3,",4\n', "line 2: .* over line 3, a row of its own"),
        ('a,b,c\n1,"2\nx","y","z",4\n', "line 3: a row .* ends here with 5 fields, where .* has 3"),
        ('a,"b,c\n1,2,3\n4,5",6\n', "line 1: a quotation mark opens a column name"),
        ('a,b\r1,"2\r3,4"\r', "line 2: .* over line 3, a row of its own"),
    ],
)
@pytest.mark.parametrize("block", [1 << 24, 1, 4])
def test_a_stray_mark_is_one_line(text, says, block, tmp_path, monkeypatch):
    monkeypatch.setattr(quotes, "_BLOCK", block)
    file = tmp_path / "file.csv"
    file.write_bytes(text.encode())
    with pytest.raises(InputError, match=says) as caught:
        read_csv(file, ["a"], Stats())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "fields"),
    [
        ("a,b,c\n1,2,3\n4,5,6,7\n", 3, 4),
        ("a,b,c\n1,2,3,4,5", 2, 5),  # the last row without a line end
        ("a,b,c\r\n1,2\r\n1,2,3,\r\n", 3, 4),  # after a short one, which makes up for it
        ("a,b,c\r1,2,3\r,,,\r", 3, 4),
        ('a,b,c\n1,"x, y",3\n4,x, y,"z"\n', 3, 4),
        ('a,b,c\n1,"x\ny",3\n4,5,6,7\n', 4, 4),
        ('a,b,c\n1,"x","y",3', 2, 4),
    ],
)
@pytest.mark.parametrize("block", [1 << 20, 1, 4])
def test_a_row_longer_than_the_header_is_one_line(text, line, fields, block, tmp_path, monkeypatch):
    """Which of its fields stand in which column is not known: an unquoted comma moves them all."""
    monkeypatch.setattr(quotes, "_BLOCK", block)
    monkeypatch.setattr("ospo.data.raw_csv._BLOCK", block)
    file = tmp_path / "file.csv"
    file.write_bytes(text.encode())
    says = f"file.csv: line {line}: has {fields} fields, where the header has 3. Fix: put quotation"
    for needed in (["a"], ["a", "b", "c"]):
        with pytest.raises(InputError, match=says):
            read_csv(file, needed, Stats())


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\n1,2\n3,4", [("1", "2"), ("3", "4")]),
        ('"a","b"\n"1","2"\n"3","4"', [("1", "2"), ("3", "4")]),
        ('\ufeff"a","b"\r\n"1","2"\r\n', [("1", "2")]),
        ('a,b,c\n1,"x, ""y""\nz w",\n3,"",\n', [("1", 'x, "y"\nz w'), ("3", "")]),
        ('a,b\n1,"2"\n\n3,"4"\n', [("1", "2"), (None, None), ("3", "4")]),
        ('a,b\n1,""""\n', [("1", '"')]),
        ('a,b\n1,"one\r\ntwo"\r\n', [("1", "one\r\ntwo")]),
        (
            'a,b,c\n1,"five\nlines\nof, text\nwith\ncommas",\n2,3,\n',
            [("1", "five\nlines\nof, text\nwith\ncommas"), ("2", "3")],
        ),
    ],
)
@pytest.mark.parametrize("block", [1 << 24, 1, 4])
def test_quoted_fields_are_read_as_they_are_meant(text, rows, block, tmp_path, monkeypatch):
    monkeypatch.setattr(quotes, "_BLOCK", block)
    file = tmp_path / "file.csv"
    file.write_bytes(text.encode())
    found = read_csv(file, ["a", "b"], Stats()).rows()
    assert found == rows


WORDS = ("shirt", "red shirt", "2020-09-22", "0.05", "", 'screen 5" wide', "blue, with a hood")


@pytest.mark.parametrize("seed", range(12))
def test_rows_read_are_the_rows_of_the_file(seed, tmp_path, monkeypatch):
    """Files as Python's csv module writes them, with up to three marks put in: as many rows as
    were written, or an error.
    """
    chance = random.Random(seed)
    file = tmp_path / "file.csv"
    refused = read = 0
    for _ in range(150):
        columns, count = chance.randint(2, 5), chance.randint(2, 9)
        table = [[chance.choice(WORDS) for _ in range(columns)] for _ in range(count)]
        for row in table:
            row[0] = f"id{chance.randint(0, 99)}"
        stream = io.StringIO()
        quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(stream, lineterminator=chance.choice(["\n", "\r\n"]), quoting=quoting)
        writer.writerow([f"c{n}" for n in range(columns)])
        writer.writerows(table)
        text = stream.getvalue()
        marks = chance.randint(0, 3)
        for _ in range(marks):
            edges = [n for n in range(1, len(text) - 1) if {text[n - 1], text[n]} & set(",\r\n")]
            place = chance.choice(edges) if chance.random() < 0.8 else chance.randrange(len(text))
            text = f'{text[:place]}"{text[place:]}'
        file.write_text(text, encoding="utf-8", newline="")
        monkeypatch.setattr(quotes, "_BLOCK", chance.choice([1 << 24, 1, 3, 7]))
        try:
            found = read_csv(file, ["c0"], Stats()) if marks == 0 else _read(file)
        except InputError:
            assert marks, text
            refused += 1
        else:
            assert len(found) == count, text
            read += 1
    assert refused > 40
    assert read > 30


def _read(file: Path):
    """The first column, whatever the header has become."""
    from ospo.data.raw_csv import csv_columns

    return read_csv(file, csv_columns(file)[:1], Stats())


def test_a_file_without_marks_is_not_parsed_for_quotes(tmp_path, monkeypatch):
    """The official transactions hold none: one search for the byte is all that they pay."""
    monkeypatch.setattr("ospo.data.raw_csv.count_rows", None)
    file = tmp_path / "file.csv"
    file.write_text("a,b\n1,2\n")
    assert read_csv(file, ["a"], Stats()).rows() == [("1",)]
