# make demo: the main job on the embedded default. make test: the tests. make test-all: the long ones as well.
# make lint: ruff, mypy and import-linter. make docs: the documentation as a site, in docs/_build. make lock: resolve the
# versions of requirements.lock again (needs the package index). All create .venv first, with the versions of that file.
# PYTHON picks the interpreter (3.11 or newer); TORCH picks the torch build, for example TORCH="torch==2.13.0+cpu".
PYTHON ?= python3
TORCH ?= torch==2.13.0

.PHONY: demo test test-all lint docs lock clean

.venv/.installed: pyproject.toml requirements.lock
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet -c requirements.lock -e '.[test,docs]'
	touch $@

.venv/.dev: .venv/.installed
	.venv/bin/python -m pip install --quiet -c requirements.lock -e '.[dev]'
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

# torch is left out with what it alone depends on: its build is the user's choice. The comment on top is kept.
lock: .venv/.installed
	.venv/bin/python -m pip install --quiet uv
	sed '/^[^#]/,$$d' requirements.lock > .venv/lock
	echo torch | .venv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --extra cluster \
	  --extra test --extra docs --extra dev --excludes /dev/stdin --upgrade --no-annotate --no-header >> .venv/lock
	mv .venv/lock requirements.lock

clean:
	rm -rf .venv runs docs/_build
