# make train   sets up .venv and trains Sf-AC on the bundled data
# make test    sets up .venv and runs the tests
# make lint    format check, linter, type checker
# make oracle  installs other people's implementations into .oracle, for tests that compare with them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint oracle format clean

train: $(VENV)/.ready
	$(BIN)/python train.py algo=sfac

test: $(VENV)/.ready
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

oracle: .oracle/.ready

# Beside .venv and without dependencies: nothing in .venv changes.
.oracle/.ready: tests/oracles/requirements.txt $(VENV)/.ready
	rm -rf .oracle
	$(BIN)/python -m pip install --quiet --no-deps --target .oracle --requirement tests/oracles/requirements.txt
	touch $@

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Made again only when the dependencies changed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .oracle .pytest_cache .ruff_cache .hypothesis
