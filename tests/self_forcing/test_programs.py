"""The programs on a tiny model, with the originals' flags."""

import json

import pytest
from PIL import Image
from programs import FOLDERS, Program, script_words

from flowcache.video import probe_video

FOLDER = FOLDERS["self_forcing"]
SIZE = ("--height", 32, "--width", 32)


@pytest.fixture
def program(base, trained, monkeypatch, tmp_path):
    """Make the program of a command, with the weights of a tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    first = ("--weights", base, "--checkpoint_path", trained, *SIZE)
    return lambda command="generate": Program(FOLDER / f"{command}_video.py", monkeypatch, first)


def test_flags_of_the_originals_make_a_video(program, tmp_path):
    flags = ("--config_path", "configs/self_forcing_dmd.yaml", "--use_ema", "--seed", 1, "--num_output_frames", 6)
    flags += ("--local_attn_size", 5, "--sink_size", 1, "--retime_sink")
    assert program()("--prompt", "a red circle", *flags, "--output_folder", "videos") == 0
    (path,) = (tmp_path / "videos").rglob("*.mp4")
    assert probe_video(path).num_frames == 21 and probe_video(path).fps == 16
    trace = json.loads(path.with_suffix(".trace.json").read_text())
    assert trace["settings"]["video"]["denoising_step_list"] == [1000, 750, 500, 250]
    assert max(step["kv_tokens"] for step in trace["steps"]) == 5 * 4
    assert trace["settings"]["preset"] is None and "fast" not in path.name, "no step is ever reused"
    assert "window5" in path.name and "budget" not in path.name


def test_a_file_of_prompts(program, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na / b\n")
    flags = ("--data_path", "prompts.txt", "--output_folder", "out", "--num_samples", 2, "--num_output_frames", 3)
    assert program("sample")(*flags, "--gpus", "cpu") == 0
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.mp4"))
    assert len(names) == 4 and {"a red circle-0.mp4", "a red circle-1.mp4"} < {*names}


@pytest.fixture
def images(tmp_path):
    """A folder of images as the originals take it: two of one caption, and one of another."""
    rows = [("a.png", "a red circle"), ("b.png", "a red circle"), ("c.png", "a blue / square")]
    (tmp_path / "data" / "1-1").mkdir(parents=True)
    for name, _ in rows:
        Image.new("RGB", (50, 40), "red").save(tmp_path / "data" / "1-1" / name)
    content = [{"file_name": name, "caption": caption, "target_crop": {}} for name, caption in rows]
    (tmp_path / "data" / "target_crop_info_1-1.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_a_folder_of_images(program, images, tmp_path):
    flags = ("--i2v", "--data_path", images, "--output_folder", "out", "--num_output_frames", 4, "--gpus", "cpu")
    assert program("sample")(*flags) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert {(r["prompt"], r["image"].rpartition("/")[2]) for r in records} == {
        ("a red circle", "a.png"), ("a red circle", "b.png"), ("a blue / square", "c.png")
    }  # fmt: skip
    videos = [tmp_path / "out" / record["file"] for record in records]
    assert len({*videos}) == 3 and all(probe_video(path).num_frames == 13 for path in videos)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "1-1" / "b.png").write_bytes(b"no"), "b.png"),
        (lambda folder: (folder / "target_crop_info_1-1.json").rename(folder / "target_crop_info_2-1.json"), "2-1"),
        (lambda folder: (folder / "target_crop_info_2-1.json").write_text("[]"), "got 2"),
        (lambda folder: (folder / "target_crop_info_1-1.json").write_text('[{"file_name": "a.png"}]'), "caption"),
        (lambda folder: (folder / "target_crop_info_1-1.json").write_text("[]"), "no image"),
    ],
)
def test_damaged_folders_of_images_are_refused(program, images, capsys, damage, named):
    damage(images)
    assert program("sample")("--i2v", "--data_path", images, "--output_folder", "out", "--gpus", "cpu") == 2
    assert named in capsys.readouterr().err


def test_image_to_video_takes_the_nearest_length(program, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "in.png")
    job = program().prepare("--i2v", "--image", "in.png")
    assert job.sampler.model.video.num_output_frames == 22
    assert program()("--i2v") == 2 and program()("--data_path", "x") == 2


@pytest.mark.parametrize(
    ("named", "flags"),
    [
        ("--preset", "--preset fast"),
        ("--interval", "--interval 2"),
        ("--sampling_steps", "--sampling_steps 9"),
        ("num_output_frames", "--num_output_frames 20"),
        ("config_path", "--config_path absent"),
        ("local_attn_size", "--local_attn_size 6 --use_compress"),
        ("method", "--method teacache"),
        ("overlap_history", "--overlap_history 9"),
        ("use_usp", "--use_usp"),
        ("cfg_size", "--cfg_size 2"),
        ("context_noise", "--config_path ar_diffusion_tf_chunkwise --context_noise 9"),
    ],
)
def test_options_without_effect_are_refused(program, capsys, named, flags):
    assert program()(*flags.split()) == 2
    assert named.removeprefix("--") in capsys.readouterr().err


def test_a_typed_budget_replaces_the_window_of_the_script(program, tmp_path):
    for typed, window in (("--use_compress",), None), ((), 21):
        words = script_words(FOLDER / "run_flowcache_stream.sh", *typed, cwd=tmp_path)
        assert program().prepare(*words).sampler.config.compression.window == window


def test_multi_step_takes_the_presets(program):
    job = program().prepare("--config_path", "ar_diffusion_tf_chunkwise", "--preset", "quality", "--sampling_steps", 8)
    assert job.sampler.config.as_dict()["policy"] == "interval" and job.sampler.model.is_guided


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("run_*.sh")))
def test_every_script_takes_its_settings_and_typed_ones(program, tmp_path, script):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "in.png")
    typed = ("--image", "in.png") if "i2v" in script else ("--num_output_frames", "12")
    words = script_words(FOLDER / script, *typed, cwd=tmp_path)
    job = program().prepare(*words)
    assert job.sampler.method == ("vanilla" if script == "run_vanilla.sh" else "flowcache")
    assert job.sampler.model.video.num_output_frames == (22 if "i2v" in script else 12)


def test_several_processes_share_a_video_only_if_asked(program, monkeypatch, capsys):
    run = program()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("--prompt", "a") == 2
    assert "--use_usp" in capsys.readouterr().err
