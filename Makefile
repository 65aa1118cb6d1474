# make demo: the main job on the embedded default. make test: the tests. make test-all: the long ones as well.
# make lint: ruff, mypy and import-linter. make docs: the documentation as a site, in docs/_build. All create .venv first.
# PYTHON picks the interpreter (3.11 or newer); TORCH picks the torch build, for example TORCH="torch==2.13.0+cpu".
PYTHON ?= python3
TORCH ?= torch==2.13.0

.PHONY: demo test test-all lint docs clean

.venv/.installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet -e '.[test,docs]'
	touch $@

.venv/.dev: .venv/.installed
	.venv/bin/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: .venv/.installed
	.venv/bin/align-ray demo

test: .venv/.installed
	.venv/bin/python -m pytest

test-all: .venv/.installed
	.venv/bin/python -m pytest --full

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: .venv/.installed
	.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . docs/_build/html

clean:
	rm -rf .venv runs docs/_build
