"""The project as pip installs it: requirements, packages, and the files of a wheel."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from reference import ROOT
from setuptools import find_packages

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PIP = [sys.executable, "-m", "pip"]


@pytest.mark.parametrize("folder", ["FlowCache4MAGI-1", "FlowCache4SkyReels-V2"])
def test_requirements_install_the_project_from_their_own_folder(folder):
    command = [*PIP, "install", "--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["-r", "requirements.txt"]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "flowcache" in done.stdout.splitlines()[-1]


def test_every_package_is_listed():
    found = {name for name in find_packages(ROOT) if name.partition(".")[0] == "flowcache"}
    for name in ("magi1", "skyreels_v2"):
        parent = Path(SETTINGS["package-dir"][name]).parent
        found |= {package for package in find_packages(ROOT / parent) if package.startswith(name)}
    assert found == {name for name in SETTINGS["packages"] if not name.startswith("flowcache.data")}


def test_files_of_an_installed_package_exist_in_the_checkout():
    for package, patterns in SETTINGS["package-data"].items():
        folder = ROOT / SETTINGS["package-dir"][package]
        assert all(any(folder.glob(pattern)) for pattern in patterns)
        assert package == f"flowcache.data.{folder.name}", "the path that flowcache.files.shipped looks for"
