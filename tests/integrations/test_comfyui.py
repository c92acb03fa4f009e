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


def with_defaults(host: Host, name: str, model: str, **changes) -> dict:
    """Set the model and all inputs to their defaults, but links, prompts and changes of Sample and Extend."""
    workflow = json.loads(WORKFLOWS[name].read_text())
    for node in workflow.values():
        for key, (_, *limits) in host.nodes[node["class_type"]].INPUT_TYPES()["required"].items():
            if limits and "default" in limits[0]:
                node["inputs"][key] = limits[0]["default"]
        if "num_frames" in node["inputs"]:
            node["inputs"] |= {"settings": "", **changes}
    workflow["1"]["inputs"]["model"] = model
    return workflow


@pytest.mark.parametrize(
    ("name", "model", "changes", "made"),
    [
        ("t2v", "skyreels_v2", {"steps": 5}, 97),
        ("t2v", "magi1", {"steps": 8}, 96),
        ("t2v", "self_forcing", {}, 81),
        ("i2v", "self_forcing", {}, 85),
        ("extend", "self_forcing", {}, 129),
    ],
)
def test_defaults_fit_the_model(name, model, changes, made, tmp_path, monkeypatch):
    host = Host(monkeypatch, tmp_path)
    host.run(with_defaults(host, name, model, **changes))
    (video,) = tmp_path.rglob("*.mp4")
    with av.open(video) as container:
        assert sum(1 for _ in container.decode(video=0)) == made
    assert {size for _, size in host.previews} == {(64, 64)}


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


@pytest.mark.parametrize(
    ("node", "changes", "message"),
    [
        ("3", {"num_frames": 97}, "num_frames: .*try 93"),
        ("3", {"steps": 50}, "steps: no effect, as denoising_step_list is set"),
        ("2", {"preset": "turbo"}, "preset: no effect"),
        ("2", {"interval": 2}, "interval: no effect"),
        ("2", {"method": "teacache"}, "method: .*got teacache"),
    ],
)
def test_what_a_model_cannot_use_is_refused_by_the_name_of_the_input(node, changes, message, tmp_path, monkeypatch):
    host = Host(monkeypatch, tmp_path)
    workflow = with_defaults(host, "t2v", "self_forcing")
    workflow[node]["inputs"] |= changes
    with pytest.raises(ValueError, match=f"^{message}"):
        host.run(workflow)
