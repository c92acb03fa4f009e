"""Optional packages."""

import json

import pytest

from flowcache.extras import Unavailable, require


def test_what_is_there_is_imported():
    assert require("json", "A test", "dev") is json


def test_what_is_absent_is_named_with_its_remedy():
    with pytest.raises(Unavailable) as error:
        require("no_such_package", "A test", "metrics")
    assert str(error.value) == "A test needs no_such_package: pip install -e '.[metrics]' in this project."


def test_what_does_not_load_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unavailable, match=r"cannot be loaded here: operator nms does not exist$"):
        require("broken_package", "A test", "metrics")
