"""No reference case is overlooked: each is run somewhere, or named here with the reason why not."""

import pytest
from reference import ROOT, present, reference_dir

#: By folder: files, and the beginnings of the names of the cases that they run.
RUN = {
    "magi1": {
        "magi1/test_reference.py": (
            "dit_forward_",
            "dit_units",
            "sample_flowcache_",
            "sample_vanilla_",
            "schedule",
            "vae_",
        ),
        "magi1/test_checkpoint.py": ("keys_",),
        "magi1/test_captions.py": ("prompt_special_tokens",),
        "flowcache/test_scoring.py": ("kvcompress_unit",),
    },
    "self_forcing": {
        "self_forcing/test_reference.py": (
            "causal_forcing_",
            "few_step_",
            "forward_cache",
            "forward_nocache",
            "multi_step_cfg_",
            "multi_step_tables",
            "prompt_embeds",
            "rolling_b",
            "rope",
            "scheduler",
        ),
        "self_forcing/test_checkpoint.py": ("keys_", "mapping_original_to_diffusers"),
    },
}
#: Beginnings of other names: prose, repeated in every sidecar, or weights of a case; of Self-Forcing, also the list of
#: files on the Hub, differences of another implementation, and the rolling-window loop. That loop is not here: several
#: chunks of different times see each other in one call, later ones too.
NOT_RUN = {
    "magi1": ("checkpoint_layout", "config", "weights"),
    "self_forcing": ("MANIFEST", "hf_layout", "spec_replay_max_abs_diff", "weights", "rolling_forcing_"),
}


@pytest.mark.parametrize("part", RUN)
def test_every_case_is_run_or_named(part):
    names = {path.stem for path in present(reference_dir() / part).iterdir()}
    run = RUN[part]
    assert not {name for name in names if not name.startswith((*NOT_RUN[part], *sum(run.values(), ())))}
    for file, cases in run.items():
        text = (ROOT / "tests" / file).read_text()
        assert all(f'"{case}' in text for case in cases)
