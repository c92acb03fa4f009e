"""Files that are written whole or not at all."""

import json

import pytest

from flowcache.files import replaced_when_done, write_csv, write_json


def test_csv_leaves_gaps_empty(tmp_path):
    write_csv(tmp_path / "a.csv", ["name", "value"], [{"name": "a, b", "value": 1.5}, {"name": "c"}])
    assert (tmp_path / "a.csv").read_text() == 'name,value\n"a, b",1.5\nc,\n'


def test_json_reads_back(tmp_path):
    content = {"mean": None, "values": [0.1, 2]}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == content


def test_a_number_without_a_word_in_json_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_json(path, [float("inf")])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(KeyError), replaced_when_done(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
