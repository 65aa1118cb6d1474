"""The documentation as a site: `make docs` writes docs/_build/html, which works from a folder, without a network.

Pages are the Markdown files of the repository as GitHub shows them and the notebooks of examples/ with their stored
output. The table of contents is that of docs/index.md; formulas become MathML, so that no script draws them.
"""

import posixpath
import re
from pathlib import Path

import docutils.nodes as nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "align-ray"
extensions = ["myst_nb"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "examples/*.ipynb", "benchmarks/README.md", "align_ray/**/MODEL_CARD.md"]
exclude_patterns = [".venv", ".git", "runs", "build", "docs/_build", "**/node_modules", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "align-ray"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = "mathml"

myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_fence_as_directive = ["math"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they come from another host


def as_myst(app: Sphinx, name: str, source: list[str]) -> None:
    """GitHub's inline formulas, $`x`$, and in the index the tables of contents that its lists are."""
    source[0] = re.sub(r"\$`([^`]+)`\$", r"$\1$", source[0])
    if name != root_doc:
        return
    for title, links in re.findall(r"^\*\*(.+)\*\*\n\n((?:- .*\n)+)", source[0], re.MULTILINE):
        pages = re.findall(r"\]\(([^)#]+)\.(?:md|ipynb)\)", links)
        entries = "\n".join("/" + posixpath.normpath(f"docs/{page}") for page in pages)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n"


def visit_math(self, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    self.body.append(convert(node.astext(), display="block" if block else "inline"))
    raise nodes.SkipNode


def list_links(app: Sphinx, error: Exception | None) -> None:
    """Every address outside the site into links.txt: they are listed, not fetched."""
    if error or app.builder.format != "html":
        return
    found: dict[str, str] = {}
    for name in sorted(app.env.found_docs):
        for link in app.env.get_doctree(name).findall(nodes.reference):
            if "://" in (address := link.get("refuri", "")):
                found.setdefault(address, name)
    lines = (f"{address}  {name}\n" for address, name in sorted(found.items()))
    Path(app.outdir, "links.txt").write_text("".join(lines), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("source-read", as_myst)
    app.connect("build-finished", list_links)
    return {"parallel_read_safe": True}
