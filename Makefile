PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DATA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs extras bench

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Build .venv with everything that the other targets need

# torch goes first: TORCH and pip's own settings then decide between the CPU and the CUDA build.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[langchain,llamaindex,offline,pdf,eval]" --group dev
	@touch $(STAMP)

demo: setup ## Three questions answered through LangChain and LlamaIndex, offline
	$(BIN)/python examples/quickstart.py

test: setup ## Run the tests (no network)
	$(BIN)/python -m pytest

check: setup ## Lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## Check every page, link and code block of the documentation
	$(BIN)/python -m pytest tests/docs

extras: setup ## Install the wheel with each extra in an empty environment and try it
	$(BIN)/python -m tests.packaging.try_extras --torch "$(TORCH)" $(EXTRAS)

bench: setup ## Compare with published figures: make bench DATA=folder
	@test -n "$(DATA)" || { echo "make bench DATA=folder-with-the-archives (see docs/benchmarks.md)"; exit 2; }
	$(BIN)/python benchmarks/published.py --data "$(DATA)"
