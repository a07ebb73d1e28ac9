"""A reader never sees half a file."""

import pytest

from ospo.files import atomic_directory, atomic_file, read_json, write_json


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
