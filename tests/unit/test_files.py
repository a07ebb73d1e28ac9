"""A reader never sees half a file."""

import errno
import os
import shutil
import stat
import sys
from contextlib import suppress

import pytest

import ospo.files
from ospo.endings import ending
from ospo.errors import InputError, OspoError
from ospo.files import (
    MANIFEST,
    atomic_directory,
    atomic_file,
    is_full,
    read_json,
    remove_leftovers,
    sha256_json,
    storage_problem,
    verify_manifest,
    write_json,
    write_manifest,
)


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"x": 1})
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(file) == {"x": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_the_old_directory(tmp_path):
    folder = tmp_path / "out"
    with atomic_directory(folder) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(folder) as temporary:
        (temporary / "two").write_text("2")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [folder]


class _Interrupt:
    """Ctrl-C before the ``at``-th line that runs in ospo/files.py, or after that line's calls."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> "_Interrupt":
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename != ospo.files.__file__:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_an_interrupt_at_any_line_leaves_the_old_or_the_new_and_no_rest(write, before, tmp_path):
    """A signal may come at the very moment when the temporary one is made or the old one moved."""
    place = tmp_path / "out"

    def fill(text):
        with write(place) as temporary:
            (temporary if write is atomic_file else temporary / "a").write_text(text)

    def content():
        file = place if write is atomic_file else place / "a"
        return file.read_text() if file.exists() else "nothing"

    at = 0
    while True:
        at += 1
        if content() != before:
            if place.is_dir():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)
            if before == "old":
                fill("old")
        with suppress(KeyboardInterrupt), _Interrupt(at) as interrupt:
            fill("new")
        assert content() in (before, "new"), at
        # What was moved aside goes with the next writing where the last line is interrupted.
        rest = {path.name for path in tmp_path.iterdir()} - {"out"}
        assert not rest or (rest == {".out.old"} and content() == "new"), at
        if interrupt.left > 0:
            break
    assert at > 15


def test_a_new_directory_replaces_the_old_as_a_whole(tmp_path):
    folder = tmp_path / "out"
    for name in ("one", "two"):
        with atomic_directory(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with atomic_file(file) as temporary:
        temporary.write_text("new")
        assert temporary != file
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_existing_file_may_be_kept(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("of another process")
    with atomic_file(file, keep_existing=True) as temporary:
        temporary.write_text("mine")
    assert file.read_text() == "of another process"
    assert list(tmp_path.iterdir()) == [file]


def test_others_may_read_what_is_written(tmp_path):
    """Temporary files are their owner's alone; a server that runs as another user reads results."""
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("1")
    with atomic_directory(tmp_path / "b") as folder:
        (folder / "c").write_text("1")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


def test_leftovers_are_looked_for_as_deep_as_asked(tmp_path):
    deep = tmp_path / "a" / "b" / ".c.abcdefgh.tmp"
    deep.mkdir(parents=True)
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path, below=True) == [deep]
    assert not deep.exists()


def test_the_hash_of_a_value_does_not_depend_on_its_keys_order():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1, "b": [1, 2]}) != sha256_json({"a": 1, "b": [2, 1]})


def test_hidden_files_are_no_part_of_a_manifest(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / ".lock").write_text("")
    write_manifest(tmp_path)
    assert set(read_json(tmp_path / MANIFEST)) == {"a"}
    (tmp_path / ".other").write_text("")
    verify_manifest(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_found_behind_other_errors(number):
    full = OSError(number, os.strerror(number), "/data/a")
    assert is_full(full)
    line = str(storage_problem(full))
    assert line.startswith("/data/a: the disk is full. Fix: ")
    caused, met = RuntimeError("not written"), RuntimeError("not written")
    caused.__cause__, met.__context__ = full, full
    for error in (caused, met):
        assert is_full(error)
        assert "the disk is full" in str(storage_problem(error))
    assert not is_full(OSError(errno.EACCES, "x"))
    assert not is_full(None)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EROFS, "lies on a read-only file system"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(number, says):
    problem = storage_problem(OSError(number, "x", "/data/a"))
    assert isinstance(problem, OspoError)
    assert str(problem).startswith(f"/data/a: {says}. Fix: ")
    assert storage_problem(ValueError("x")) is None
    assert storage_problem(OSError(number, "x")) is None, "nothing to name"


def test_a_line_about_data_is_printable():
    line = str(InputError("a\x1b[2J.csv", "title\r\n", "holds \u202egnp.exe\x07", "write\nanother"))
    assert line.isprintable()
    assert line == "a [2J.csv: title  : holds  gnp.exe . Fix: write another"


def test_how_a_command_was_ended():
    for error in (KeyboardInterrupt(), SystemExit(130)):
        assert ending(error) == (130, "interrupted")
    assert ending(SystemExit(143)) == (143, "terminated")
    for error in (SystemExit(0), SystemExit(1), SystemExit(2), SystemExit(None), ValueError()):
        assert ending(error) is None
