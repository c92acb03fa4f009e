"""The nodes of ComfyUI run the workflows of their folder, in a host that keeps ComfyUI's contract."""

import json

import av
import pytest
from comfy_host import FOLDER, Host, Interrupted

WORKFLOWS = {path.stem: path for path in (FOLDER / "workflows").glob("*.json")}
#: Frames and steps in place of the workflows', and the length of the video that comes out.
SHORT = {"t2v": (37, 37), "i2v": (37, 37), "extend": (37, 57), "long_compressed": (57, 57)}


def shortened(name: str, num_frames: int) -> dict:
    workflow = json.loads(WORKFLOWS[name].read_text())
    for node in workflow.values():
        if "num_frames" in node["inputs"]:
            node["inputs"] |= {"num_frames": num_frames, "steps": 5}
            node["inputs"]["settings"] += "\nbase_num_frames: 37"
    return workflow


@pytest.mark.parametrize("name", SHORT)
def test_workflow_runs(name, tmp_path, monkeypatch):
    host, (asked, made) = Host(monkeypatch, tmp_path), SHORT[name]
    (shown,) = host.run(shortened(name, asked)).values()
    video = tmp_path / shown["images"][0]["subfolder"] / shown["images"][0]["filename"]
    written = sorted(path.name.removeprefix(video.stem) for path in video.parent.iterdir())
    assert written == [".mp4", ".reuse.png", ".trace.json"]
    with av.open(video) as container:
        assert sum(1 for _ in container.decode(video=0)) == made
    assert [size for _, size in host.previews] == [(64, 64)] * len(host.previews) and len(host.previews) > 1
    trace = json.loads(video.with_suffix(".trace.json").read_text())
    assert any(step["compressions"] for step in trace["steps"]) == (name == "long_compressed")
    assert SHORT.keys() == WORKFLOWS.keys() and host.titles.keys() == host.nodes.keys() - {"LoadImage"}


def test_an_interrupt_passes_and_leaves_no_file(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        Host(monkeypatch, tmp_path, steps_until_interrupt=3).run(shortened("t2v", 37))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("settings", {"settings": "a: [b"}),
        ("settings", {"settings": "- a"}),
        ("settings: seed", {"settings": "seed: 9"}),
        ("num_frames", {"num_frames": 38}),
    ],
)
def test_bad_input_is_one_sentence(named, changes, tmp_path, monkeypatch):
    workflow = shortened("t2v", 37)
    workflow["3"]["inputs"] |= changes
    with pytest.raises(ValueError, match=named):
        Host(monkeypatch, tmp_path).run(workflow)
