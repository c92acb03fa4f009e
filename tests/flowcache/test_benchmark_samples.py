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


@pytest.fixture
def listed(tmp_path):
    """Samples of one dimension from a list with this content, one of each prompt."""
    (tmp_path / "lists").mkdir()

    def list_samples(content, **options):
        (tmp_path / "lists" / "scene.txt").write_bytes(content)
        given = {"vbench_prompt_dir": str(tmp_path / "lists"), "dimension": "scene", "samples": 1}
        return BenchmarkOptions(**{**given, **options}).list_samples(0, 24, small=False)

    return list_samples


def test_marks_and_line_ends_are_no_part_of_a_prompt(listed):
    samples = listed("\ufeffa red circle\r\n\r\n  a blue\u2028one \rlast".encode())
    assert [sample.prompt for sample in samples] == ["a red circle", "a blue\u2028one", "last"]


@pytest.mark.parametrize(
    "content", ["a\n".encode("utf-16"), "a\n".encode("utf-16-le"), b"caf\xe9\n", b"a\0b\n"]
)
def test_a_list_that_is_no_utf8_is_named(listed, content):
    with pytest.raises(ValueError, match=r"scene\.txt cannot be read as a list of prompts: .*UTF-8"):
        listed(content)


@pytest.mark.parametrize("content", [b"", b"\n \r\n"])
def test_a_list_without_prompts_is_refused(listed, content):
    with pytest.raises(ValueError, match=r"vbench_prompt_dir: .* no prompts of scene"):
        listed(content)


def test_prompts_that_no_file_can_be_named_after_get_safe_names(listed, caplog):
    long, slash = "a very long prompt " * 16, "a red and/or blue circle"
    findable = [".hidden", "x" * 249, "a red and or blue circle"]
    prompts = [long.strip(), slash, "a red and\\or blue circle", "红" * 90, *findable]
    samples = listed("\n".join(prompts).encode())
    assert [sample.prompt for sample in samples] == prompts, "none is left out, in the same order"
    names = {sample.prompt: sample.name for sample in samples}
    assert all(names[prompt] == f"{prompt}-0" for prompt in findable), "as VBench looks for them"
    assert len(set(names.values())) == len(prompts)
    assert all(len(name.encode()) <= 251 and "/" not in name for name in names.values())
    assert names == {sample.prompt: sample.name for sample in listed("\n".join(prompts).encode())}
    (record, _) = caplog.records
    assert " 3 prompts" in record.getMessage() and names[prompts[0]] in record.getMessage()


def test_augmented_prompts_are_for_the_model_and_the_names_are_the_benchmarks(listed, tmp_path):
    longer = tmp_path / "augmented" / "prompts_per_dimension_longer"
    longer.mkdir(parents=True)
    (longer / "scene_longer.txt").write_text("a wide beach\n\nan old forest\n")
    for path in (longer, longer.parent, longer / "scene_longer.txt"):
        samples = listed(b"a beach\na/forest\n", augmented_prompts=str(path))
        assert [(sample.prompt, sample.original) for sample in samples] == [
            ("a wide beach", "a beach"),
            ("an old forest", "a/forest"),
        ]
        assert samples[0].name == "a beach-0"
        assert samples[1].as_dict()["original"] == "a/forest"
    with pytest.raises(ValueError, match=r"scene_longer\.txt has 2 prompts, .* 3"):
        listed(b"a\nb\nc\n", augmented_prompts=str(longer))
    with pytest.raises(ValueError, match=r"augmented_prompts: .* holds no scene_longer\.txt"):
        listed(b"a\n", augmented_prompts=str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere cannot be read"):
        listed(b"a\n", augmented_prompts=str(tmp_path / "nowhere"))


def test_one_augmented_list_serves_all_dimensions_or_some(vbench, tmp_path):
    (tmp_path / "all.txt").write_text("a sign that stops\na big dog\na wide beach\n")
    options = {"vbench_prompt_dir": str(vbench), "augmented_prompts": str(tmp_path / "all.txt"), "samples": 1}
    pairs = [
        [
            (sample.name, sample.prompt)
            for sample in BenchmarkOptions(**options, **more).list_samples(0, 24, False)
        ]
        for more in ({}, {"dimension": "scene"}, {"dimension": "scene,motion_smoothness"})
    ]
    assert pairs[0][1:] == [("a dog-0", "a big dog"), ("a beach-0", "a wide beach")]
    assert pairs[1:] == [pairs[0][2:], pairs[0][:0:-1]]


def test_lists_of_text_say_the_order_of_all_prompts(tmp_path):
    (tmp_path / "prompts_per_dimension").mkdir()
    for name, prompt in (("scene", "a beach"), ("color", "a red dog")):
        (tmp_path / "prompts_per_dimension" / f"{name}.txt").write_text(prompt)
    (tmp_path / "longer.txt").write_text("a very red dog\na wide beach")
    options = {"vbench_prompt_dir": str(tmp_path), "augmented_prompts": str(tmp_path / "longer.txt")}
    with pytest.raises(ValueError, match="augmented_prompts: "):
        names(**options)
    (tmp_path / "all_dimension.txt").write_text("a red dog\na beach")
    samples = BenchmarkOptions(**options, samples=1).list_samples(0, 24, small=False)
    assert {sample.name: sample.prompt for sample in samples} == {
        "a beach-0": "a wide beach",
        "a red dog-0": "a very red dog",
    }


@pytest.mark.parametrize(
    "content",
    [
        "{}{",
        "3",
        '["a"]',
        '[{"prompt_en": 3, "dimension": ["scene"]}]',
        '[{"prompt_en": "a", "dimension": "scene"}]',
        '[{"prompt_en": "\\ud800", "dimension": ["scene"]}]',
        "[" * 5000,
    ],
)
def test_a_damaged_list_of_the_package_is_named(vbench, content):
    (vbench / "vbench" / "VBench_full_info.json").write_text(content)
    with pytest.raises(ValueError, match=r"VBench_full_info\.json cannot be read"):
        names(vbench_prompt_dir=str(vbench))


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


def test_the_original_names_the_folder_above(physics):
    (physics.parent / "descriptions").mkdir()
    expected = scenes(physics)
    (physics / "descriptions.csv").rename(physics.parent / "descriptions" / "descriptions.csv")
    assert scenes(physics.parent) == expected


def test_another_rate_stands_in_with_a_warning(physics, caplog):
    assert len(scenes(physics, fps=8)) == 2
    assert "no videos of 8 FPS; those of 24" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n".encode("utf-16"), "cannot be read as CSV"),
        (b"scenario,description,generated_video_name\na,caf\xe9,b\n", "cannot be read as CSV"),
        (b'scenario,description,generated_video_name\na,"b,c\n', "cannot be read as CSV"),
    ],
)
def test_a_damaged_table_is_named(physics, content, message):
    (physics / "descriptions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"descriptions\.csv {message}"):
        scenes(physics)


def test_a_mark_before_the_table_is_no_part_of_it(physics):
    table = physics / "descriptions.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(scenes(physics)) == 2


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
        ({"samples": 10**9}, "samples must be at least 1 and at most"),
        ({"benchmark": "physicsiq", "samples": 2}, "samples is for vbench, got physicsiq"),
        ({"benchmark": "physicsiq", "augmented_prompts": "a"}, "augmented_prompts is for vbench"),
        ({"physicsiq_data_dir": "a"}, "physicsiq_data_dir is for physicsiq, got vbench"),
        ({}, "vbench_prompt_dir is missing"),
        ({"vbench_prompt_dir": "nowhere"}, "vbench_prompt_dir: there is no folder nowhere"),
        ({"vbench_prompt_dir": "."}, "holds neither VBench_full_info.json nor lists"),
        ({"vbench_prompt_dir": "VBench", "dimension": "scenes"}, "there is no 'scenes'; did you mean scene?"),
        ({"vbench_prompt_dir": "VBench", "dimension": "xyz"}, "there is no 'xyz'; there are temporal_flick"),
        ({"vbench_prompt_dir": "VBench", "start": 3}, "start is 3, but there are only 3 prompts"),
        ({"benchmark": "physicsiq"}, "physicsiq_data_dir is missing"),
        ({"benchmark": "physicsiq", "physicsiq_data_dir": "nowhere"}, "there is no folder nowhere"),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "VBench"},
            "holds no split-videos/conditioning/24FPS",
        ),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "P", "descriptions_file": "no.csv"},
            "no.csv cannot be read",
        ),
        (
            {"benchmark": "physicsiq", "physicsiq_data_dir": "P", "descriptions_file": "other.csv"},
            "other.csv must have the columns scenario, description, generated_video_name",
        ),
    ],
)
def test_what_is_missing_is_named(vbench, physics, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P" / "split-videos" / "conditioning" / "24FPS").mkdir(parents=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=message):
        names(**options)
