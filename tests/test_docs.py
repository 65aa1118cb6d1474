"""The documentation holds: links lead somewhere, commands parse, configurations are valid, the reference is current, the
site builds."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml
from pydantic import BaseModel, TypeAdapter

from align_ray.cli.config_page import reference
from align_ray.config import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"])
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
over_pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages ('': none named)."""
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


@cache
def prose(page: Path) -> str:
    """A page without fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page: lower case, no punctuation, hyphens for spaces, numbered where
    repeated."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


@over_pages
def test_every_relative_link_and_anchor_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@over_pages
def test_files_of_the_repository_that_are_named_exist(page):
    named = re.findall(
        r"(?<![\w./])(?:\.\./)?((?:align_ray|jobs|studies|deploy|benchmarks|tests|examples|docs)/[\w./-]+\.(?:py|yaml|json|md|ipynb))\b",
        page.read_text(encoding="utf-8"),
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def commands(page: Path) -> list[tuple[str, bool]]:
    """Every `align-ray ...` of a page, and whether it must be complete: those of fenced blocks without shell
    variables."""
    found = []
    for block in blocks(page, "", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            found += [(part.strip(), "..." not in part) for part in re.split(r"&&|;|\|", line.partition(" #")[0])]
    spans = re.findall(r"`([^`]+)`", prose(page))
    found += [(part.strip(), False) for span in spans for part in " ".join(span.split()).split("&&")]
    return [(c, whole) for c, whole in found if re.match(r"align-ray [a-z]", c) and "$" not in c]


@over_pages
def test_every_command_exists_with_the_options_and_fields_it_names(page):
    from align_ray.cli.main import app

    for line, whole in commands(page):
        command: Any = typer.main.get_command(app)
        _, *arguments = ["1" if a == "N" else a for a in shlex.split(line) if a != "..."]
        while arguments and hasattr(command, "commands"):
            assert arguments[0] in command.commands, line
            command = command.commands[arguments.pop(0)]
        try:
            context = command.make_context(line, list(arguments))
        except typer.BadParameter as error:
            assert type(error).__name__ == "MissingParameter" and not whole, f"{line}: {error}"
            continue
        for item in context.params.get("set_") or ():
            assert is_field(item.partition("=")[0]), f"{line}: no field {item}"


def is_field(path: str) -> bool:
    """Whether a dotted path names a field of the configuration; a key of a mapping may be anything."""
    model: Any = Config
    for part in path.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return True
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


@over_pages
def test_every_configuration_is_valid(page):
    """A whole one by itself; a fragment in the whole one above it on the page, or section by section where there is
    none."""
    whole: dict[str, Any] = {}
    for block in blocks(page, "yaml", "yml"):
        values = yaml.safe_load(block)
        if {"targets", "candidates"} <= set(values):
            whole = values
            Config.model_validate(whole)
        elif whole:
            Config.model_validate({**whole, **{k: joined(whole.get(k), v) for k, v in values.items()}})
        else:
            for key, value in values.items():
                TypeAdapter(Config.model_fields[key].annotation).validate_python(value)


def joined(old: Any, new: Any) -> Any:
    """A section's fields over the old ones, a list after the old one, anything else in its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **new}
    return old + new if isinstance(old, list) and isinstance(new, list) else new


def test_a_recipe_that_names_its_file_is_that_file():
    named = [b for page in PAGES for b in blocks(page, "yaml") if re.match(r"# studies/\S+\n", b)]
    assert named
    for block in named:
        file = ROOT / block.split()[1]
        assert yaml.safe_load(block) == yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", sorted(ROOT.glob("studies/*.yaml")), ids=lambda p: p.name)
def test_every_configuration_of_the_repository_is_valid(file):
    Config.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@over_pages
def test_python_examples_use_names_that_the_package_has(page):
    import align_ray

    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "align_ray":
                assert node.attr in align_ray.__all__, node.attr


def test_the_configuration_reference_is_current():
    """Else: python -m align_ray.cli.config_page > docs/configuration.md."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference()


def test_every_field_of_the_configuration_says_what_it_is():
    without = re.findall(r"^\| (`\w+`) \|.*\|  \|$", reference(), re.MULTILINE)
    assert not without


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert not [p.name for p in ROOT.glob("docs/*.md") if p.name != "index.md" and f"({p.name})" not in index]


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What `make docs` builds; a warning (a dead link, a page out of the contents) fails."""
    pytest.importorskip("myst_nb", reason="no documentation tools: pip install -e '.[docs]' (make test does)")
    folder = tmp_path_factory.mktemp("site") / "html"
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"python (-m sphinx .*) docs/_build/html$", make, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, *shlex.split(line), folder], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_example_and_finds_their_words(site):
    pages = [*PAGES, *ROOT.glob("examples/*.ipynb")]
    built = [site / p.relative_to(ROOT).with_suffix(".html") for p in pages]
    assert not [page for page in built if not page.is_file()]
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(word in index for word in ("satterthwait", "kuberay", "token_budget"))  # as stems
    contents = (site / "docs/index.html").read_text(encoding="utf-8")
    assert all(f'caption-text">{part}<' in contents for part in ("Start", "Worked cases", "Method", "Results"))


def test_the_site_needs_no_network(site):
    """Nothing is loaded from another host; the addresses that it links to are in links.txt, with the page of each."""
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\bsrc=["']?(?:https?:)?//|<link[^>]*href=["']?(?:https?:)?//"""
    )
    imported = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    assert not [sheet for sheet in site.rglob("*.css") if imported.search(sheet.read_text(encoding="utf-8"))]
    listed = (site / "links.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("https://") for line in listed)
    assert any(line.startswith("https://arxiv.org/abs/2501.08496  docs/") for line in listed)


def test_formulas_of_the_site_are_mathml(site):
    formulas = re.findall(r"<math .*?</math>", (site / "docs/concepts.html").read_text(encoding="utf-8"), re.DOTALL)
    assert len(formulas) > 60 and not [f for f in formulas if "\\" in f or "`" in f]
