# Every target sets up what it needs, and reuses what is there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart digits test test-fast lint measure-report speed clean
.DEFAULT_GOAL := help

help:           ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.bench   ## race three methods on real digits (minutes); ends with a report
	$(BIN)/deelbo-bench run quickstart

digits: $(VENV)/.bench       ## three priors, two sizes, three seeds (about an hour)
	$(BIN)/deelbo-bench run digits

test: $(VENV)/.test          ## the whole test suite
	$(BIN)/python -m pytest

test-fast: $(VENV)/.test     ## without the tests marked slow
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.test          ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

measure-report: $(VENV)/.test   ## what a report costs, as JSON (a quarter of an hour); PUBLISHED=folder of the authors' files
	$(BIN)/python tests/measure_report.py $(if $(PUBLISHED),--published $(PUBLISHED))

speed: $(VENV)/.bench        ## what a step of each method costs, as JSON
	$(BIN)/deelbo-bench speed

clean:          ## remove the virtual environment and caches; benchmark results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) found, 3.11 or newer needed: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# -e: the installed commands run this checkout
$(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing; torch alone is about 6 GB with its CUDA libraries"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/.test: $(VENV)/.bench
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@
