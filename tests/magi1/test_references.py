"""No reference case is overlooked: each is run somewhere, or named here with the reason why not."""

from reference import ROOT, present, reference_dir

#: Files, and the beginnings of the names of the cases that they run.
RUN = {
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
}
#: Prose, repeated in every sidecar, or weights of a case.
NOT_RUN = {"checkpoint_layout", "config", "weights", "weights_24b_like", "weights_glu"}


def test_every_case_is_run_or_named():
    names = {path.stem for path in present(reference_dir() / "magi1").iterdir()}
    assert not {name for name in names - NOT_RUN if not name.startswith(sum(RUN.values(), ()))}
    for file, cases in RUN.items():
        text = (ROOT / "tests" / file).read_text()
        assert all(f'"{case}' in text for case in cases)
