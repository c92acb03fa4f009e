"""No reference case is overlooked: each is run somewhere, or named here with the reason why not."""

from __future__ import annotations

import re

import pytest
from reference import ROOT, reference_dir

#: Cases, by the beginning of their names, and the file that runs them.
RUN = {
    "dit_forward_": "magi1/test_forward.py",
    "dit_units": "magi1/test_forward.py",
    "keys_": "magi1/test_checkpoint.py",
    "kvcompress_unit": "flowcache/test_scoring.py",
    "prompt_special_tokens": "magi1/test_captions.py",
    "sample_flowcache_": "magi1/test_sampling.py",
    "sample_vanilla_": "magi1/test_sampling.py",
    "schedule": "magi1/test_schedule.py",
    "vae_": "magi1/test_vae.py",
}
NOT_RUN = {
    "checkpoint_layout": "prose; test_checkpoint and test_hub write that layout",
    "config": "every sidecar repeats it",
    "weights": "belong to the cases, whose sidecars name them",
    "weights_24b_like": "belong to a case",
    "weights_glu": "belong to a case",
}


def test_every_case_is_run_or_named():
    folder = reference_dir() / "magi1"
    if not folder.is_dir():
        pytest.skip(f"REFERENCE ABSENT: no folder {folder}; set FLOWCACHE_REFERENCE_DIR")
    names = {re.sub(r"\.(json|safetensors)$", "", path.name) for path in folder.iterdir()}
    left = {name for name in names - NOT_RUN.keys() if not name.startswith(tuple(RUN))}
    assert not left


@pytest.mark.parametrize(("case", "file"), RUN.items())
def test_the_files_that_run_them_speak_of_them(case, file):
    assert f'"{case}' in (ROOT / "tests" / file).read_text()
