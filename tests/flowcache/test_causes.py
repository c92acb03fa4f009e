"""Why two videos differ: ``flowcache compare`` on runs without a model."""

import json
import re

import numpy as np
import pytest
from programs import assert_refused
from synthetic_run import make_trace

from flowcache.cli import main
from flowcache.video import VideoWriter

#: Grey levels of the videos, by method.
LEVELS = {"vanilla": 100, "causal": 108, "flowcache:paper-fast": 109}


@pytest.fixture
def runs(tmp_path):
    """Videos of 21 frames with their traces, and one without."""
    paths = {}
    for method, level in LEVELS.items():
        paths[method] = tmp_path / f"a_t2v_{method.partition(':')[0]}_seed0.mp4"
        with VideoWriter(paths[method], 24) as writer:
            writer.write(np.full((21, 32, 32, 3), level, np.uint8))
        make_trace(method).save(paths[method].with_suffix(".trace.json"))
    (tmp_path / "alone.mp4").write_bytes(paths["causal"].read_bytes())
    return paths


def test_settings_chunks_and_the_share_of_attention(runs, capsys):
    vanilla, causal, fast = runs.values()
    assert main(["compare", str(vanilla), str(fast)]) == 0
    text = capsys.readouterr().out
    assert "first difference is attention" in text and "whole_window is True in A, False in B" in text
    assert "Reuse differs at 6 of 12 steps of chunks, first at step 1" in text
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d", line)]
    assert [row[:2] for row in rows] == [["0", "0-4"], ["1", "5-12"], ["2", "13-20"], ["0-2", "0-20"]]
    assert float(rows[0][2]) == pytest.approx(20 * np.log10(255 / 9), abs=1)
    assert "Attention alone accounts for 98%" in text and causal.name in text
    assert len(text.splitlines()) < 24, "one screen"


def test_the_first_difference_is_that_which_acts_first(runs, capsys):
    _, causal, fast = runs.values()
    path = fast.with_suffix(".trace.json")
    content = json.loads(path.read_text())
    content["settings"] |= {"prompt": "a\nb", "model": "/elsewhere/beads"}
    path.write_text(json.dumps(content))
    assert main(["compare", str(causal), str(fast)]) == 0
    text = capsys.readouterr().out
    assert "first difference is prompt" in text and "The same: model," in text
    assert main(["compare", str(fast), str(fast)]) == 0
    text = capsys.readouterr().out
    assert "No setting differs" in text and "identical" in text


def test_reuse_of_the_same_frames_where_chunks_differ(runs, capsys):
    _, causal, fast = runs.values()
    path = causal.with_suffix(".trace.json")
    content = json.loads(path.read_text())
    content["windows"][0]["chunk_frames"] = [4, 2]
    for step in content["steps"]:
        step["events"] = [event for event in step["events"] if event["chunk"] < 2]
    path.write_text(json.dumps(content))
    assert main(["compare", str(fast), str(causal)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\d", line)]
    reused = {chunk: [] for chunk in range(3)}
    for step in json.loads(fast.with_suffix(".trace.json").read_text())["steps"]:
        for event in step["events"]:
            reused[event["chunk"]].append(event["reused"])
    shares = [f"{np.mean(reused[0] + reused[1]):.0%}", f"{np.mean(reused[2]):.0%}"]
    assert [(row[1], row[4]) for row in rows[:2]] == [("0-12", shares[0]), ("13-20", shares[1])]


def test_a_video_from_another_image_is_another_video(runs, capsys):
    vanilla, causal, fast = runs.values()
    path = causal.with_suffix(".trace.json")
    content = json.loads(path.read_text())
    content["settings"]["given"] = {"prefix": "ab12"}
    path.write_text(json.dumps(content))
    assert main(["compare", str(vanilla), str(fast)]) == 0
    assert "would show the share of attention" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(runs, capsys):
    vanilla, causal, _ = map(str, runs.values())
    assert_refused(main(["compare", vanilla, "alone.mp4"]), "generated_video alone.mp4", capsys)
    alone = runs["vanilla"].with_name("alone.mp4")
    assert_refused(main(["compare", str(alone), vanilla]), "original_video alone.trace.json metrics", capsys)
    runs["causal"].with_suffix(".trace.json").write_text("{")
    assert_refused(main(["compare", vanilla, causal]), "generated_video trace.json", capsys)
    runs["causal"].with_suffix(".trace.json").write_bytes(runs["vanilla"].with_suffix(".trace.json").read_bytes())
    runs["causal"].write_bytes(b"")
    assert main(["compare", vanilla, causal]) == 0
    assert "Not compared frame by frame" in capsys.readouterr().out
    make_trace("causal").save(runs["causal"].with_suffix(".trace.json"))
    assert main(["compare", vanilla, str(runs["flowcache:paper-fast"])]) == 0
    assert "share of attention was not measured" in capsys.readouterr().out
