"""Rules of the code base that no single module can keep: layers, sizes, words, documents, installation."""

import ast
import json
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import pytest
import yaml
from reference import ROOT
from setuptools import find_packages

import flowcache

MODELS = {"magi1": "FlowCache4MAGI-1", "skyreels_v2": "FlowCache4SkyReels-V2", "self_forcing": "FlowCache4SelfForcing"}
PACKAGES = {"flowcache": ".", **MODELS}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
WORDS = re.compile(r"\b(l[e]st|an[e]w|kn[o]bs?|lon[e]ly)\b", re.IGNORECASE)


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, tracked or about to be; all files outside of a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.splitlines() if (path := ROOT / name).is_file()]


def modules() -> dict[str, Path]:
    """Modules of the packages, by their dotted names."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the packages that a module imports, also within functions or for annotations alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if n in known else base for n in names}
    return {n for n in found if n in known} - {name}


def test_modules_know_their_place():
    known = modules()
    graph = {name: imported(name, path, known) for name, path in known.items()}
    for name, needs in graph.items():
        others = {need.partition(".")[0] for need in needs} - {name.partition(".")[0]}
        assert others <= {"flowcache"}, f"{name} imports {others}"
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    # Packages that re-export their parts are no circle, as long as the parts do not import the package.
    assert not graph, f"import circle among {sorted(graph)}"


@pytest.mark.parametrize(
    ("pattern", "most"), [("*.py", 400), ("FlowCache4*/README.md", 119), ("examples/own_model.py", 59)]
)
def test_files_are_short(pattern, most):
    assert [str(path) for path in tracked(pattern) if len(path.read_text().splitlines()) > most] == []


def test_words_of_the_field():
    files = tracked("*.py", "*.md", "*.sh", "*.yaml", "*.toml", "*.txt")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WORDS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("readme", ["README.md", *(f"{folder}/README.md" for folder in MODELS.values())])
def test_snippets_of_readmes_run(readme, tmp_path, monkeypatch):
    text = (ROOT / readme).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        for long, short in (("num_frames=9[67]", "num_frames=17"), ("steps=50", "steps=4")):
            block = re.sub(long, short, block)
        exec(compile(block.replace('"assets/', f'"{ROOT}/assets/'), readme, "exec"), {})


def test_reference_is_that_of_the_parsers():
    written = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["make_reference"]()
    assert written == (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), "run docs/make_reference.py"


def test_links_of_documents_lead_to_files():
    sources = {path: path.read_text() for path in tracked("*.md")}
    cells = json.loads((ROOT / "examples" / "flowcache.ipynb").read_text())["cells"]
    sources[ROOT / "examples" / "flowcache.ipynb"] = "".join(line for cell in cells for line in cell["source"])
    links = [
        (path, link)
        for path, text in sources.items()
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if "://" not in link
    ]
    assert links and [f"{path}: {link}" for path, link in links if not (path.parent / link).exists()] == []


def test_pages_of_the_site_exist():
    def pages(part):
        for value in part.values() if isinstance(part, dict) else part:
            yield from [value] if isinstance(value, str) else pages(value)

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert [name for name in listed if not (ROOT / name.replace(".ipynb.md", ".ipynb")).is_file()] == []
    assert {path.relative_to(ROOT).as_posix() for path in tracked("docs/*.md")} <= set(listed)


def test_the_staircase_is_that_of_the_preset():
    drawn = runpy.run_path(str(ROOT / "docs" / "make_staircase.py"))["make_staircase"]()
    assert drawn == (ROOT / "docs" / "staircase.svg").read_text(encoding="utf-8"), "run docs/make_staircase.py"


@pytest.mark.parametrize("folder", MODELS.values())
def test_requirements_install_the_project_from_their_own_folder(folder):
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "-r", "requirements.txt"]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "flowcache" in done.stdout.splitlines()[-1]


def test_every_package_is_listed_and_its_files_exist_in_the_checkout():
    found = {name for name in find_packages(ROOT) if name.partition(".")[0] == "flowcache"}
    for name in MODELS:
        parent = Path(SETTINGS["package-dir"][name]).parent
        found |= {package for package in find_packages(ROOT / parent) if package.startswith(name)}
    assert found == {name for name in SETTINGS["packages"] if not name.startswith("flowcache.data")}
    for package, patterns in SETTINGS["package-data"].items():
        folder = ROOT / SETTINGS["package-dir"].get(package, package.replace(".", "/"))
        assert all(any(folder.glob(pattern)) for pattern in patterns)
        own = package.removeprefix("flowcache.data.")
        assert own in (folder.name, package), "the path that flowcache.files.shipped looks for"


def test_changelog_and_citation_are_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == flowcache.__version__
    assert f"\nversion: {flowcache.__version__}\n" in (ROOT / "CITATION.cff").read_text()
