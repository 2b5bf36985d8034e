# Every target sets up what it needs: a fresh clone wants only Python 3.11 to 3.13 and make.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
EXTRAS ?= dev

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# The first of these that runs and has a supported version; empty when there is none.
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11 python3.13 python,\
	$(shell $(p) -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $(p))))

.PHONY: help setup demo test lint format types examples docs notebooks build demo-check clean

help:
	@echo "make demo      train an agent inside its own world model and watch it play (minutes)"
	@echo "make test      run the whole test suite"
	@echo "make lint      check style          make format    fix style"
	@echo "make types     check types          make examples  run the examples"
	@echo "make docs      build the site     make notebooks run the notebooks"
	@echo "make build     build wheel and sdist into dist/, install the wheel apart, run it"
	@echo "make setup     create .venv and install everything, as the other targets do when needed"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "dreamer4 needs Python 3.11, 3.12 or 3.13, and none is on the PATH (python3 is: $$(python3 --version 2>&1))."; \
		echo "Install one, or name it: make setup PYTHON=/path/to/python3.12"; exit 1; fi
	@if ! $(PYTHON) -c '$(SUPPORTED)'; then \
		echo "dreamer4 needs Python 3.11, 3.12 or 3.13, got: $$($(PYTHON) --version 2>&1) from $(PYTHON)."; exit 1; fi
	@# A folder left by another version of Python would fail later and less clearly.
	@if [ -x $(BIN)/python ] && ! $(BIN)/python -c '$(SUPPORTED)'; then rm -rf $(VENV); fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 1 GB, some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/dreamer4 demo

# loadfile: the tests of a file share compiled functions and fixtures, so they stay on one worker. Files are handed out
# in the order of tests/conftest.py, the slowest first. A worker that dies fails the run: xdist 3.8 would wait for ever for
# the one it puts in its place.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright

examples: $(STAMP)
	@set -e; for file in examples/0[0-6]_*.py; do \
		[ -e "$$file" ] || { echo "examples/ holds no example to run"; exit 1; }; \
		echo "$$file"; $(BIN)/python "$$file"; done

# Strict: a warning, a dead link or a dead anchor fails; nothing is fetched.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

notebooks: $(STAMP)
	@mkdir -p build
	@set -e; for file in examples/notebooks/*.ipynb; do \
		$(BIN)/jupyter execute --timeout=300 "$$file" --output=../../build/$$(basename $$file); done

build: $(STAMP)
	rm -rf dist build/install build/lib
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m venv build/install
	build/install/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt dist/*.whl
	cd build && install/bin/dreamer4 config show --preset paper >/dev/null && install/bin/python -c 'from dreamer4 import Dreamer'
	@echo "dist/ is built; its wheel installs and answers."

demo-check: $(STAMP)
	@test -f .ci/demo_check.py || { echo ".ci/demo_check.py is missing: it runs the shortened demo"; exit 1; }
	$(BIN)/python .ci/demo_check.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .jax_cache
