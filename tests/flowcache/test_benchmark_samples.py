"""What is sampled for VBench and Physics-IQ."""

import csv
import json

import pytest

from flowcache.benchmark.options import BenchmarkOptions

COLUMNS = ["scenario", "description", "category", "generated_video_name"]


@pytest.fixture
def vbench(tmp_path):
    """VBench's repository, as far as it matters."""
    entries = [
        {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a dog", "dimension": ["subject_consistency", "motion_smoothness"]},
        {"prompt_en": "a beach", "dimension": ["scene", "background_consistency"]},
    ]
    folder = tmp_path / "VBench" / "vbench"
    folder.mkdir(parents=True)
    (folder / "VBench_full_info.json").write_text(json.dumps(entries))
    return folder.parent


def names(**options):
    return [sample.name for sample in BenchmarkOptions(**options).list_samples(100, 24, small=False)]


def test_samples_of_a_prompt_are_numbered_as_their_seeds(vbench):
    options = BenchmarkOptions(vbench_prompt_dir=str(vbench), dimension="scene")
    samples = options.list_samples(100, 24, small=False)
    assert [(s.name, s.prompt, s.seed) for s in samples] == [
        (f"a beach-{index}", "a beach", 100 + index) for index in range(5)
    ]


def test_a_prompt_of_two_dimensions_is_sampled_once(vbench):
    dimensions = "motion_smoothness, subject_consistency,scene"
    assert names(vbench_prompt_dir=str(vbench), dimension=dimensions, samples=1) == ["a dog-0", "a beach-0"]
    assert len(names(vbench_prompt_dir=str(vbench))) == 15
    assert names(vbench_prompt_dir=str(vbench), samples=1, start=1, end=2) == ["a dog-0"]


def test_lists_of_text_serve_as_well(tmp_path):
    lists = tmp_path / "prompts" / "prompts_per_dimension"
    lists.mkdir(parents=True)
    (lists / "scene.txt").write_text("a beach\n\na forest\n")
    for folder in (tmp_path, tmp_path / "prompts", lists):
        given = {"vbench_prompt_dir": str(folder), "dimension": "background_consistency", "samples": 1}
        assert names(**given) == ["a beach-0", "a forest-0"]


def test_the_small_checkpoint_has_a_list_of_its_own():
    samples = BenchmarkOptions(dimension="overall_consistency").list_samples(0, 24, small=True)
    assert len(samples) == 50 and all(" over a " in sample.prompt for sample in samples)


@pytest.fixture
def physics(tmp_path):
    """Physics-IQ's folder with two scenes, of which only the first takes are to be continued."""
    root = tmp_path / "physics-IQ-benchmark"
    videos = root / "split-videos" / "conditioning" / "24FPS"
    videos.mkdir(parents=True)
    rows = []
    for identity, take, scene in (("0002", 1, "roll"), ("0001", 1, "fall"), ("0199", 2, "fall")):
        rest = f"perspective-left_take-{take}_{scene}.mp4"
        (videos / f"{identity}_conditioning-videos_24FPS_{rest}").touch()
        generated = f"{identity}_perspective-left_{scene}.mp4"
        rows.append([f"{identity}_{rest}", f"what {scene} shows", "Solid Mechanics", generated])
    with (root / "descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


def scenes(physics, fps=24, **options):
    options = BenchmarkOptions(benchmark="physicsiq", physicsiq_data_dir=str(physics), **options)
    return options.list_samples(7, fps, small=False)


def test_first_takes_are_continued_under_the_benchmarks_names(physics):
    first, second = scenes(physics)
    assert (first.name, second.name) == ("0001_perspective-left_fall", "0002_perspective-left_roll")
    assert (first.prompt, first.seed) == ("what fall shows", 7)
    assert first.video.name == "0001_conditioning-videos_24FPS_perspective-left_take-1_fall.mp4"
    assert scenes(physics, start=1) == [second]


def test_another_rate_stands_in_with_a_warning(physics, caplog):
    assert len(scenes(physics, fps=8)) == 2
    assert "no videos of 8 FPS; those of 24" in caplog.text


def test_the_table_may_lie_elsewhere(physics, tmp_path):
    (physics / "descriptions.csv").rename(tmp_path / "mine.csv")
    with pytest.raises(ValueError, match="name it as descriptions_file"):
        scenes(physics)
    assert len(scenes(physics, descriptions_file=str(tmp_path / "mine.csv"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "vbnech"}, "benchmark must be one of vbench, physicsiq"),
        ({"start": 3, "end": 3}, "start must be at least 0 and below end"),
        ({"samples": 0}, "samples must be at least 1"),
        ({}, "vbench_prompt_dir is missing"),
        ({"vbench_prompt_dir": "nowhere"}, "vbench_prompt_dir: there is no folder nowhere"),
        ({"vbench_prompt_dir": "."}, "holds neither VBench_full_info.json nor lists"),
        ({"vbench_prompt_dir": "VBench", "dimension": "scenes"}, "there is no 'scenes'; did you mean scene?"),
        ({"vbench_prompt_dir": "VBench", "dimension": "xyz"}, "there is no 'xyz'; there are temporal_flick"),
        ({"vbench_prompt_dir": "VBench", "start": 3}, "start is 3, but there are only 3 prompts"),
        ({"benchmark": "physicsiq"}, "physicsiq_data_dir is missing"),
        ({"benchmark": "physicsiq", "physicsiq_data_dir": "nowhere"}, "there is no folder nowhere"),
        ({"benchmark": "physicsiq", "physicsiq_data_dir": "."}, "holds no split-videos/conditioning/24FPS"),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "P", "descriptions_file": "no.csv"},
            "descriptions_file: no.csv cannot be read",
        ),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "P", "descriptions_file": "other.csv"},
            "other.csv must have the columns scenario, description, generated_video_name",
        ),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "physics-IQ-benchmark"},
            "there is no .*0001_conditioning-videos_24FPS_perspective-left_take-1_fall.mp4",
        ),
    ],
)
def test_what_is_missing_is_named(vbench, physics, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P" / "split-videos" / "conditioning" / "24FPS").mkdir(parents=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for video in physics.rglob("0001*.mp4"):
        video.unlink()
    with pytest.raises(ValueError, match=message):
        names(**options)
