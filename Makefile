# make demo    train on the checkerboard, measure, write a report     make test    all checks, then the tests
# make venv    the environment only                                   make lint    all checks without the tests
# make dist    the wheel and the source archive, in dist/             make docs    the site, in site/: open site/index.html
#
# Slow tests too, as CI runs them: make test SLOW=1. Another Python: make venv PYTHON=python3.12.
# More for pip, such as an index with the CPU build of torch: PIP_ARGS="...".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint dist docs format clean

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
RUNS := runs/checkerboard
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:
	@sed -n '1,/^$$/ s/^# \{0,1\}//p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making an environment in .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "installing flowmaps and what it needs into .venv (minutes the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt $(PIP_ARGS)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps torchcfm==1.0.7 azula==0.11.1 flow_matching==1.0.10 # which ask for torchvision
	@touch $@

demo: $(STAMP)
	@out=$(RUNS); n=2; while [ -e $$out ]; do out=$(RUNS)-$$n; n=$$((n + 1)); done; \
	if [ $$out != $(RUNS) ]; then echo "$(RUNS) exists already and is left as it is: this run goes to $$out"; fi; \
	$(BIN)/flowmaps train examples/demo.toml --out $$out

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

test: lint
	$(if $(SLOW),FLOWMAPS_ALL_CASES=1) $(BIN)/python -m pytest -n logical $(if $(SLOW),,-m "not slow")

docs: $(STAMP)
	@$(BIN)/python docs/play/make.py --runtime || echo "play/index.html of this site will say that its runtime is missing"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(STAMP)
	$(BIN)/python -m hatchling build

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
