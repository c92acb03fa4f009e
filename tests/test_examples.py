"""The examples run and do what they claim; pipelines are loaded as diffusers' are."""

import json
import re
import runpy
import warnings

import pytest
import torch
from reference import ROOT

from magi1 import MagiPipeline
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline

EXAMPLES = [("own_model.py", "8 chunks", []), ("from_pipe.py", "reused", ["circle.mp4", "circle.png"])]


@pytest.mark.parametrize(("name", "said", "written"), EXAMPLES)
def test_example_runs(name, said, written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert said in capsys.readouterr().out and sorted(path.name for path in tmp_path.iterdir()) == written


def test_the_example_policy_reuses_within_its_tolerance(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "own_policy.py"))["main"]
    reused = []
    for tolerance in ("0", "0.05"):
        main(["--tolerance", tolerance, "--steps", "8", "--output", str(tmp_path / "map.png")])
        reused.append(int(capsys.readouterr().out.split("%")[0].split()[-1]))
    assert reused[0] == 0 < reused[1] and (tmp_path / "map.png").stat().st_size


def test_the_notebook_runs(capsys):
    """Its cells one after another, on a shorter video."""
    path = ROOT / "examples" / "flowcache.ipynb"
    cells = json.loads(path.read_text())["cells"]
    assert path.stat().st_size < 200_000, "outputs of notebooks stay small"
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in (("97", "17"), ("197", "37"), ('steps": 50', 'steps": 4')):
        source = re.sub(rf"(?<!\d){long}", short, source)
    namespace = {"__name__": "notebook"}
    exec(compile(source, str(path), "exec"), namespace)
    shown = capsys.readouterr().out
    assert "budget of 1 chunk" in shown and "dB to causal" in shown
    assert (namespace["folder"] / "own.png").stat().st_size


@pytest.mark.parametrize("kind", [FlowCacheSkyReelsV2Pipeline, MagiPipeline])
def test_torch_dtype_is_taken_without_a_warning(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        pipe = kind.from_pretrained("small", torch_dtype=torch.bfloat16)
    assert pipe.text_encoder.dtype == pipe.vae.dtype == torch.bfloat16
