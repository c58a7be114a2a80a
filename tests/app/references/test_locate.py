"""Files and folders: where they are looked for, and what is said when they are not there."""

from __future__ import annotations

import pytest

from calibrant.app.references import locate
from calibrant.core import ConfigError, InputError


def failure(call, *arguments):
    with pytest.raises((InputError, ConfigError)) as caught:
        call(*arguments)
    assert caught.value.hint, caught.value.message
    return str(caught.value)


def test_files_are_looked_for_beside_the_study_then_here_then_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert locate.file("demo_policy.toml", tmp_path).parent == locate.STUDIES
    (tmp_path / "here" / "demo_policy.toml").touch()
    assert locate.file("demo_policy.toml", tmp_path).parent == tmp_path / "here"
    (tmp_path / "demo_policy.toml").touch()
    assert locate.file("demo_policy.toml", tmp_path).parent == tmp_path
    assert "no file 'x.toml'" in failure(locate.file, "x.toml", tmp_path)


def test_toml_says_where_it_cannot_be_read(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('name = "a"\nname = "b"\n')
    assert "line 2" in failure(locate.toml, path)
    path.write_bytes(b'name = "\xff"')
    assert "not UTF-8 (byte 8)" in failure(locate.toml, path)
    assert "no such file" in failure(locate.toml, tmp_path / "none.toml")
