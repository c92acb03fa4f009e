"""Ways that take turns."""

import json

import pytest
from synthetic_run import SAMPLES, BeadSampler, make_turns

from flowcache.benchmark.run_folder import find_model_runs
from flowcache.benchmark.sample import SamplesFailed
from flowcache.benchmark.turns import split_way


def run(folder, **given):
    turns = make_turns(folder, **given)
    turns.check()
    return turns.run()


def test_each_sample_is_made_in_all_ways_before_the_next_and_weights_are_read_once(tmp_path):
    calls = []
    assert "made 4 videos; 4 of 4" in run(tmp_path, calls=calls)
    assert calls[0] == ("load", "vanilla")
    assert [name for name, _ in calls[1:]] == [s.name for s in SAMPLES for _ in range(2)]
    other = "flowcache:paper-fast"
    assert [way for _, way in calls[1:]] == [other, "vanilla", "vanilla", other], "ways begin in turns"


def test_what_was_interrupted_goes_on_and_what_is_whole_reads_no_weights(tmp_path):
    run(tmp_path, samples=SAMPLES[:1])
    (tmp_path / "vanilla" / "videos" / f"{SAMPLES[0].name}.mp4").unlink()
    calls = []
    assert "made 3 videos; 4 of 4" in run(tmp_path, calls=calls)
    assert (SAMPLES[0].name, "flowcache:paper-fast") not in calls
    calls = []
    assert "made 0 videos; 4 of 4" in run(tmp_path, calls=calls)
    assert calls == []


def test_a_way_that_fails_on_a_sample_stops_neither_ways_nor_samples(tmp_path, monkeypatch):
    generate = BeadSampler.generate

    def fail(self, sample, path):
        if (self.way, sample) == ("vanilla", SAMPLES[0]):
            raise ValueError("not finite")
        return generate(self, sample, path)

    monkeypatch.setattr(BeadSampler, "generate", fail)
    with pytest.raises(SamplesFailed, match="made 3 videos; 3 of 4") as failure:
        run(tmp_path)
    assert f"vanilla/videos/{SAMPLES[0].name}.mp4: not finite" in str(failure.value)
    (found,) = find_model_runs(tmp_path)
    assert found.names == [SAMPLES[1].name], "the table is of what all ways have made"
    monkeypatch.undo()
    assert "made 1 videos; 4 of 4" in run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "flowcache_paper-fast",
        "vanilla",
        "ways.json",
    ]
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"model": "Abacus"}',
        "[" * 5000,
        '{"model": "Abacus", "settings": "9 frames of 32 x 32", "ways": 3}',
    ],
)
def test_a_damaged_list_of_ways_is_named(tmp_path, content):
    (tmp_path / "ways.json").write_text(content)
    with pytest.raises(ValueError, match=r"ways\.json cannot be read"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"ways\.json cannot be read"):
        find_model_runs(tmp_path)


def test_ways_that_come_later_stand_behind_those_before(tmp_path):
    run(tmp_path, samples=SAMPLES[:1])
    run(tmp_path, samples=SAMPLES[:1], ways=("causal", "vanilla"))
    content = json.loads((tmp_path / "ways.json").read_text())
    assert content["ways"] == ["vanilla", "flowcache:paper-fast", "causal"]


def test_another_models_folder_is_refused(tmp_path):
    (tmp_path / "ways.json").write_text(json.dumps({"model": "Quipu", "settings": "knots", "ways": []}))
    with pytest.raises(ValueError, match="holds videos of Quipu, knots"):
        make_turns(tmp_path).check()


@pytest.mark.parametrize("way", ["", ":fast", "flowcache:", "a:b:c", "../vanilla"])
def test_what_is_no_way_is_refused(way):
    with pytest.raises(ValueError, match="ways must be METHOD or METHOD:PRESET"):
        split_way(way)
