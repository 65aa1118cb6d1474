"""The embedded default corpora: real text that every installation of align-ray already has.

Nothing is downloaded and nothing is shipped: each corpus is read from Python itself or from the packages align-ray
depends on. The files of Python's standard library are split in two by the hash of their path: three quarters are the
candidate `python-stdlib`, one quarter is the target `python-stdlib-heldout`.
"""

import ast
import email.message
import hashlib
import importlib.metadata
import importlib.util
import site
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

PIECE = 4000  # characters of one document; longer files are cut at line ends


def _pieces(text: str) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), PIECE):  # minified JavaScript has lines of a megabyte
            part = line[start : start + PIECE]
            if size + len(part) > PIECE:
                yield "".join(piece)
                piece, size = [], 0
            piece.append(part)
            size += len(part)
    if piece:
        yield "".join(piece)


def _texts(files: list[Path]) -> Iterator[str]:
    for file in sorted(files):
        yield from _pieces(file.read_text(encoding="utf-8", errors="ignore"))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations, name
    return Path(spec.submodule_search_locations[0])


def _stdlib_files(heldout: bool) -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings", "__pycache__"}
    files = []
    for file in root.rglob("*.py"):
        relative = file.relative_to(root)
        if not skipped.intersection(relative.parts):
            quarter = hashlib.sha256(relative.as_posix().encode()).digest()[0] < 64
            if quarter == heldout:
                files.append(file)
    return files


def python_stdlib() -> Iterator[str]:
    """Source of Python's standard library, without the held-out quarter of its files."""
    return _texts(_stdlib_files(heldout=False))


def python_stdlib_heldout() -> Iterator[str]:
    """The held-out quarter of the standard library's files: the demo's target."""
    return _texts(_stdlib_files(heldout=True))


def python_packages() -> Iterator[str]:
    """Source of scikit-learn and MLflow: Python in other hands."""
    files = [p for name in ("sklearn", "mlflow") for p in _package(name).rglob("*.py")]
    return _texts([p for p in files if not {"tests", "protos", "_externals"}.intersection(p.parts)])


def docstrings() -> Iterator[str]:
    """Docstrings of NumPy and SciPy: scientific documentation in English and doctest."""
    for name in ("numpy", "scipy"):
        for file in sorted(_package(name).rglob("*.py")):
            if "tests" in file.parts:
                continue
            tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    text = ast.get_docstring(node)
                    if text and len(text) > 200:
                        yield text


def _functions(package: str) -> Iterator[str]:
    """Source of the functions of a package that have a docstring of some length, without its tests."""
    for file in sorted(_package(package).rglob("*.py")):
        if "tests" in file.parts:
            continue
        source = file.read_text(encoding="utf-8", errors="ignore")
        lines = source.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and len(ast.get_docstring(node) or "") > 200:
                yield "".join(lines[node.lineno - 1 : node.end_lineno])


def sympy_functions() -> Iterator[str]:
    """Functions of SymPy with their docstrings: symbolic mathematics in Python and doctest."""
    return _functions("sympy")


def networkx_functions() -> Iterator[str]:
    """Functions of NetworkX with their docstrings: graph algorithms."""
    return _functions("networkx")


def python_reference() -> Iterator[str]:
    """Topics of Python's language reference, as `help()` shows them."""
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items()):
        yield from _pieces(text)


def cpp_headers() -> Iterator[str]:
    """C++ headers of Apache Arrow and PyTorch's c10."""
    files = [*(_package("pyarrow") / "include").rglob("*.h"), *(_package("torch") / "include" / "c10").rglob("*.h")]
    return _texts(files)


def javascript() -> Iterator[str]:
    """JavaScript of MLflow's web interface (minified)."""
    return _texts(list((_package("mlflow") / "server" / "js" / "build").rglob("*.js")))


def _distributions() -> list[importlib.metadata.Distribution]:
    """By name, each once. From the folders of installed packages alone: others on `sys.path` (Ray adds one of its own
    when it is imported) are there in one process and not in another."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=folders):
        name = distribution.metadata["Name"]
        if name:  # an interrupted installation leaves folders without one
            found.setdefault(name.lower(), distribution)
    return [found[name] for name in sorted(found)]


def package_descriptions() -> Iterator[str]:
    """Descriptions (Markdown, reStructuredText) of the installed packages but this one, whose README would change
    the demo."""
    for distribution in _distributions():
        if distribution.metadata["Name"] == "align-ray":
            continue
        metadata = cast(email.message.Message, distribution.metadata)  # what importlib.metadata parses into
        yield from _pieces(str(metadata.get_payload() or metadata["Description"] or ""))


def licences() -> Iterator[str]:
    """Licence texts of the installed packages."""
    for distribution in _distributions():
        for file in sorted(distribution.files or []):
            if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE")) and file.suffix != ".py":
                path = Path(str(file.locate()))
                if path.is_file():
                    yield from _pieces(path.read_text(encoding="utf-8", errors="ignore"))


INSTALLED: dict[str, Callable[[], Iterator[str]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        python_stdlib, python_stdlib_heldout, python_packages, docstrings, python_reference, cpp_headers, javascript,
        package_descriptions, licences, sympy_functions, networkx_functions,
    )
}  # fmt: skip
