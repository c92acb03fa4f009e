"""The example of a reuse policy of one's own."""

import runpy

from reference import ROOT


def test_error_control_reuses_within_its_tolerance(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "own_policy.py"))["main"]
    reused = []
    for tolerance in ("0", "0.05"):
        main(["--tolerance", tolerance, "--steps", "16", "--output", str(tmp_path / "map.png")])
        reused.append(int(capsys.readouterr().out.split("%")[0].split()[-1]))
    assert reused[0] == 0 < reused[1]
    assert (tmp_path / "map.png").stat().st_size
