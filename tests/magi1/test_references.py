"""No reference case is overlooked: each is run somewhere, or named here with the reason why not."""

import pytest
from reference import ROOT, reference_dir

#: Cases, by the beginning of their names, and the file that runs them.
RUN = {
    "dit_forward_": "magi1/test_reference.py",
    "dit_units": "magi1/test_reference.py",
    "keys_": "magi1/test_checkpoint.py",
    "kvcompress_unit": "flowcache/test_scoring.py",
    "prompt_special_tokens": "magi1/test_captions.py",
    "sample_flowcache_": "magi1/test_reference.py",
    "sample_vanilla_": "magi1/test_reference.py",
    "schedule": "magi1/test_reference.py",
    "vae_": "magi1/test_reference.py",
}
#: Prose, repeated in every sidecar, or weights of a case.
NOT_RUN = {"checkpoint_layout", "config", "weights", "weights_24b_like", "weights_glu"}


def test_every_case_is_run_or_named():
    folder = reference_dir() / "magi1"
    if not folder.is_dir():
        pytest.skip(f"REFERENCE ABSENT: no folder {folder}; set FLOWCACHE_REFERENCE_DIR")
    names = {path.name.removesuffix(".json").removesuffix(".safetensors") for path in folder.iterdir()}
    assert not {name for name in names - NOT_RUN if not name.startswith(tuple(RUN))}
    for case, file in RUN.items():
        assert f'"{case}' in (ROOT / "tests" / file).read_text()
