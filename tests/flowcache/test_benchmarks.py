"""What is sampled for VBench and Physics-IQ; VBench's scores, from a stand-in for its package."""

import json
import venv

import numpy as np
import pytest
from programs import assert_refused

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.prompts import DIMENSIONS
from flowcache.benchmark.samples import BenchmarkOptions, split_method
from flowcache.benchmark.vbench import QUALITY, SEMANTIC, VBenchReport
from flowcache.video import VideoWriter


@pytest.fixture
def vbench(tmp_path):
    """VBench's repository, as far as it matters."""
    prompts = {"In a still frame, a stop sign": ["temporal_flickering"]}
    prompts |= {"a dog": ["subject_consistency", "motion_smoothness"], "a beach": ["scene", "background_consistency"]}
    write_full_info(tmp_path / "VBench" / "vbench", prompts)
    return tmp_path / "VBench"


def write_full_info(folder, prompts):
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"prompt_en": prompt, "dimension": dimensions} for prompt, dimensions in prompts.items()]
    (folder / "VBench_full_info.json").write_text(json.dumps(entries))


def samples_of(folder=None, **options):
    given = {"vbench_prompt_dir": str(folder), "samples": 1} if folder else {}
    return BenchmarkOptions(**{**given, **options}).list_samples(100, 24, small=False)


def names(folder, **options):
    return [sample.name for sample in samples_of(folder, **options)]


def write(folder, **lists):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_samples_are_numbered_as_their_seeds_and_a_prompt_of_two_dimensions_comes_once(vbench):
    samples = samples_of(vbench, dimension="scene", samples=5)
    expected = [(f"a beach-{index}", "a beach", 100 + index) for index in range(5)]
    assert [(s.name, s.prompt, s.seed) for s in samples] == expected
    dimensions = "motion_smoothness, subject_consistency,scene"
    assert names(vbench, dimension=dimensions) == ["a dog-0", "a beach-0"]
    assert len(names(vbench, samples=5)) == 15 and names(vbench, start=1, end=2) == ["a dog-0"]


def test_lists_of_text_serve_as_well(tmp_path):
    text = "\ufeffa beach\r\n\r\n  a blue\u2028one \rlast"
    lists = write(tmp_path / "prompts" / "prompts_per_dimension", scene=text)
    for folder in (tmp_path, tmp_path / "prompts", lists):
        prompts = [sample.prompt for sample in samples_of(folder, dimension="background_consistency")]
        assert prompts == ["a beach", "a blue\u2028one", "last"]
    small = BenchmarkOptions(dimension="overall_consistency").list_samples(0, 24, small=True)
    assert len(small) == 50 and all(" over a " in sample.prompt for sample in small)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("scene.txt", content, r"scene\.txt .*: .*UTF-8") for content in (b"a\n\0", b"caf\xe9\n")),
        *(("scene.txt", content, "vbench_prompt_dir: .* no prompts of scene") for content in (b"", b"\n \r\n")),
        ("VBench_full_info.json", b'[{"prompt_en": "a", "dimension": "scene"}]', "cannot be read"),
        ("VBench_full_info.json", b'[{"prompt_en": "\\ud800", "dimension": ["scene"]}]', "cannot be read"),
    ],
)
def test_a_damaged_or_empty_list_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        names(tmp_path, dimension="scene")


def test_prompts_that_cannot_be_file_names_get_safe_names(tmp_path, caplog):
    findable = [".hidden", "x" * 249, "a red and or blue circle"]
    long = ("a very long prompt " * 16).strip()
    prompts = [long, "a red and/or blue circle", "a red and\\or blue circle", "红" * 90, *findable]
    samples = samples_of(write(tmp_path, scene="\n".join(prompts)), dimension="scene")
    found = {sample.prompt: sample.name for sample in samples}
    assert list(found) == prompts and len(set(found.values())) == len(prompts)
    assert all(found[prompt] == f"{prompt}-0" for prompt in findable), "as VBench looks for them"
    assert all(len(name.encode()) <= 251 and "/" not in name for name in found.values())
    assert " 3 prompts" in caplog.text and found[long] in caplog.text


def test_augmented_prompts_are_for_the_model_and_names_are_the_benchmarks(tmp_path):
    lists = write(tmp_path / "lists", scene="a beach\na/forest\n")
    longer = tmp_path / "augmented" / "prompts_per_dimension_longer"
    write(longer, scene_longer="a wide beach\n\nan old forest\n")
    for path in (longer, longer.parent, longer / "scene_longer.txt"):
        samples = samples_of(lists, dimension="scene", augmented_prompts=str(path))
        pairs = [(sample.prompt, sample.original) for sample in samples]
        assert pairs == [("a wide beach", "a beach"), ("an old forest", "a/forest")]
        assert samples[0].name == "a beach-0" and samples[1].as_dict()["original"] == "a/forest"
    write(lists, scene="a\nb\nc\n")
    for path, message in ((longer, "expected 3 prompts"), (tmp_path, "no scene_longer"), ("no", "cannot be")):
        with pytest.raises(ValueError, match=message):
            names(lists, dimension="scene", augmented_prompts=str(path))


def test_one_augmented_list_serves_all_dimensions_or_some(vbench, tmp_path):
    write(tmp_path, all="a sign that stops\na big dog\na wide beach\n")
    pairs = [
        [(s.name, s.prompt) for s in samples_of(vbench, augmented_prompts=str(tmp_path / "all.txt"), **more)]
        for more in ({}, {"dimension": "scene"}, {"dimension": "scene,motion_smoothness"})
    ]
    assert pairs[0][1:] == [("a dog-0", "a big dog"), ("a beach-0", "a wide beach")]
    assert pairs[1:] == [pairs[0][2:], pairs[0][:0:-1]]
    write(tmp_path / "prompts_per_dimension", scene="a beach", color="a red dog")
    write(tmp_path, longer="a very red dog\na wide beach")
    options = {"augmented_prompts": str(tmp_path / "longer.txt")}
    with pytest.raises(ValueError, match="augmented_prompts: "):
        names(tmp_path, **options)
    write(tmp_path, all_dimension="a red dog\na beach")
    found = {sample.name: sample.prompt for sample in samples_of(tmp_path, **options)}
    assert found == {"a beach-0": "a wide beach", "a red dog-0": "a very red dog"}


@pytest.fixture
def physics(tmp_path):
    """Physics-IQ's folder with two scenes, of which only the first takes are to be continued."""
    root = tmp_path / "physics-IQ-benchmark"
    videos = root / "split-videos" / "conditioning" / "24FPS"
    videos.mkdir(parents=True)
    lines = ["scenario,description,category,generated_video_name"]
    for identity, take, scene in (("0002", 1, "roll"), ("0001", 1, "fall"), ("0199", 2, "fall")):
        view, rest = f"{identity}_perspective-left_{scene}.mp4", f"perspective-left_take-{take}_{scene}.mp4"
        (videos / f"{identity}_conditioning-videos_24FPS_{rest}").touch()
        lines.append(f"{identity}_{rest},what {scene} shows,Solid Mechanics,{view}")
    (root / "descriptions.csv").write_text("\n".join(lines))
    return root


def scenes(physics, fps=24, **options):
    options = BenchmarkOptions(benchmark="physicsiq", physicsiq_data_dir=str(physics), **options)
    return options.list_samples(7, fps, small=False)


def test_first_takes_are_continued_under_the_benchmarks_names(physics, caplog):
    first, second = scenes(physics)
    assert (first.name, second.name) == ("0001_perspective-left_fall", "0002_perspective-left_roll")
    assert (first.prompt, first.seed) == ("what fall shows", 7)
    assert first.video.name == "0001_conditioning-videos_24FPS_perspective-left_take-1_fall.mp4"
    assert scenes(physics, start=1) == [second]
    assert scenes(physics, fps=8) == [first, second] and "no videos of 8 FPS; those of 24" in caplog.text
    table = physics / "descriptions.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    (physics.parent / "descriptions").mkdir()
    table = table.rename(physics.parent / "descriptions" / "descriptions.csv")
    assert scenes(physics.parent) == [first, second], "the original code takes the folder above"
    table = table.rename(physics.parent / "mine.csv")
    assert scenes(physics, descriptions_file=str(table)) == [first, second]
    head = b"scenario,description,generated_video_name\n"
    for content in ("a,b\n".encode("utf-16"), head + b"a,caf\xe9,b\n", head + b'a,"b,c\n'):
        table.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.csv cannot be read as CSV"):
            scenes(physics, descriptions_file=str(table))


IQ = {"benchmark": "physicsiq"}
VB = {"vbench_prompt_dir": "VBench"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "vbnech"}, "benchmark: "),
        ({"start": 3, "end": 3}, "start: "),
        *(({"samples": count}, "samples: ") for count in (0, 10**9)),
        ({**IQ, "samples": 2}, "samples: "),
        ({**IQ, "augmented_prompts": "a"}, "augmented_prompts: "),
        ({"physicsiq_data_dir": "a"}, "physicsiq_data_dir: "),
        ({"vbench_prompt_dir": "."}, "neither VBench_full_info.json nor lists"),
        ({**VB, "dimension": "scenes"}, "dimension: 'scenes' .* mean scene?"),
        ({**VB, "dimension": "xyz"}, "dimension: 'xyz' .* temporal_flick"),
        ({**VB, "start": 3}, "start: expected less than 3"),
        (IQ, "physicsiq_data_dir: "),
        ({**IQ, "physicsiq_data_dir": "nowhere"}, "physicsiq_data_dir: nowhere"),
        ({**IQ, "physicsiq_data_dir": "VBench"}, "split-videos/conditioning/24FPS"),
        ({**IQ, "physicsiq_data_dir": "P"}, "give descriptions_file"),
        ({**IQ, "physicsiq_data_dir": "P", "descriptions_file": "no.csv"}, "no.csv cannot be read"),
        ({**IQ, "physicsiq_data_dir": "P", "descriptions_file": "other.csv"}, "other.csv lacks"),
    ],
)
def test_what_is_missing_is_named(vbench, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P" / "split-videos" / "conditioning" / "24FPS").mkdir(parents=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message):
        samples_of(**options)


def test_malformed_methods_are_refused():
    assert split_method("flowcache:fast") == ("flowcache", "fast") and split_method("causal")[1] is None
    for text in ("", ":fast", "flowcache:", "a:b:c", "../vanilla"):
        with pytest.raises(ValueError, match="methods: expected METHOD"):
            split_method(text)


# Scores

PACKAGE = """
import json, os

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info, self.output = device, full_info_dir, output_path

    def evaluate(self, videos_path, name, dimension_list, mode):
        (dimension,) = dimension_list
        if dimension == "scene":
            raise RuntimeError("there is no detectron2")
        names = sorted(os.listdir(videos_path))
        results = [{"video_path": f"{videos_path}/{n}", "video_results": i / 10} for i, n in enumerate(names)]
        path = f"{self.output}/{name}_eval_results.json"
        json.dump({dimension: [0.5, results]}, open(path, "w"))
"""


@pytest.fixture
def videos(tmp_path):
    """A folder of videos; an environment has a package named vbench, and one named torch, which would take time."""
    venv.create(tmp_path / "environment", symlinks=True)
    (site,) = tmp_path.glob("environment/lib/python*/site-packages")
    (site / "torch.py").write_text("device = str\n")
    write_full_info(site / "vbench", {"a dog": ["subject_consistency"], "a beach": ["scene"], "a red car": ["color"]})
    (site / "vbench" / "__init__.py").write_text(PACKAGE)
    folder = tmp_path / "out" / "videos"
    folder.mkdir(parents=True)
    for name in [*(f"a dog-{index}" for index in range(5)), "a beach-0"]:
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
    return folder


def score(videos, *arguments):
    """The exit code, and the content of the file."""
    given = ["--generated_videos", videos, "--environment", videos.parents[1] / "environment", *arguments]
    code, output = program.main(["vbench", "--device", "cpu", *map(str, given)]), videos.parent / "vbench.json"
    return code, json.loads(output.read_text()) if output.exists() else None


def test_scores_are_read_back_into_a_table(videos, capsys):
    code, content = score(videos, "--dimension", "subject_consistency,scene,color")
    out = capsys.readouterr().out
    assert code == 0 and "subject_consistency: 50.00\n" in out
    assert "scene: none: RuntimeError: there is no detectron2" in out
    assert "color: none: no video of its prompts." in out
    assert content["mean"] == {"subject_consistency": 0.5, "scene": None, "color": None}
    assert content["videos"]["a dog-3.mp4"] == {"subject_consistency": 0.4}
    assert (videos.parent / "vbench.csv").read_text().splitlines()[-1] == "all,0.5,,"
    assert not list(videos.glob("vbench*")), "what VBench takes for a list of videos stays one"


def test_a_broken_video_is_named_and_the_others_are_scored(videos, capsys):
    (videos / "a dog-2.mp4").write_bytes(b"no video")
    code, content = score(videos, "--dimension", "subject_consistency")
    error = capsys.readouterr().err
    assert "a dog-2.mp4: " in error and "subject_consistency: 50.00" in error
    assert code == 1 and list(content["broken"]) == ["a dog-2.mp4"]
    assert sorted(content["videos"]) == ["a beach-0.mp4", *(f"a dog-{index}.mp4" for index in (0, 1, 3, 4))]
    assert content["absent_videos"] == {"subject_consistency": 1} and "1 videos are absent" in error


def test_totals_are_those_of_the_leaderboard(tmp_path):
    best = VBenchReport(tmp_path, list(DIMENSIONS), {name: d.high for name, d in DIMENSIONS.items()})
    assert best.totals() == pytest.approx({"quality": 100, "semantic": 100, "total": 100})
    assert (len(QUALITY), len(SEMANTIC)) == (7, 9)
    worse = VBenchReport(tmp_path, list(DIMENSIONS), {**best.scores, "dynamic_degree": 0.0, "scene": 0.0})
    # the dynamic degree has half a weight among 6.5, the scene one among nine
    quality, semantic = 100 * 6 / 6.5, 100 * 8 / 9
    expected = {"quality": quality, "semantic": semantic, "total": (4 * quality + semantic) / 5}
    assert worse.totals() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimension", "colour"], "did you mean color?"),
        (["--environment", "."], "environment: ."),
        (["--environment", "new", "--python", "python9"], "python: "),
        (["--generated_videos", "nowhere"], "generated_videos: nowhere"),
        (["--full_info", "list.json"], "list.json cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(videos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('["a dog"]')
    assert_refused(score(videos, *arguments)[0], message, capsys)
