"""Hooks of MkDocs: pages keep their paths in the repository, so that links hold on both; formulas become MathML."""

import html
import json
import re
from pathlib import Path
from typing import Any

from math_core import LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ["*.md", "LICENSE", "FlowCache4*/*.md", "docs/*.md", "docs/*.png", "docs/*.svg", "docs/*.css"]
SHOWN += ["assets/*.webp", "assets/**/*.md", "assets/**/*.png", "examples/*.py", "examples/*.ipynb"]
SHOWN += ["integrations/**/*.md"]

_LINK = re.compile(r"(\]\([\w./-]+\.(?:py|ipynb))\)")
_FORMULA = re.compile(r'(?<=class="arithmatex">)\\([(\[])(.*?)\\[)\]](?=</)', re.DOTALL)
_DEFAULT = re.compile(r"<code><[^>]+>option</[^>]+>\(([^,()=]+)[^<]*\)</code>")
_MATHML = LatexToMathML()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of ``docs`` by those of the repository that are shown, under their paths in it."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".py", ".ipynb"):
            files.append(File.generated(config, f"{name}.md", content=_as_page(path)))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to sources lead to their pages."""
    return _LINK.sub(r"\1.md)", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script, and ``option(1, 0, 9)`` as its default."""
    return _DEFAULT.sub(r"<code>\1</code>", _FORMULA.sub(_as_mathml, content))


def _as_mathml(found: re.Match[str]) -> str:
    return _MATHML.convert_with_local_state(html.unescape(found[2]), displaystyle=found[1] == "[")


def _as_page(path: Path) -> str:
    """A source file, or a notebook with its outputs, as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return f"# {path.name}\n\n```python\n{text}```\n"
    return "\n\n".join(_cell_as_markdown(cell) for cell in json.loads(text)["cells"])


def _cell_as_markdown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        shown = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in shown:
            parts.append(f"![Output of the cell above](data:image/png;base64,{''.join(shown['image/png']).strip()})")
        else:
            parts.append(f"```text\n{''.join(shown['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts)
