PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DATA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PEERS := .benchmarks/venvs
MIGRATION := .migration
REFERENCE := .reference
MILVUS := .milvus
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate \
	--override locks/without-torch.txt $(if $(UPGRADE),--upgrade) pyproject.toml
SETUP_EXTRAS := langchain llamaindex offline onnx openvino pdf eval telemetry
INCUMBENTS := langchain-huggingface llama-index sentence-transformers
LIBRARIES ?= $(basename $(notdir $(wildcard benchmarks/requirements/*.txt)))
WORKLOADS ?=
ROUNDS ?=
SCALE ?=
UPGRADE ?=
RESUME ?=
WRITE ?=
GPU_PYTHON ?=
OUT ?=

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test test-of-the-runtime test-of-the-rest test-slow check docs extras migration-check reference-check milvus-check published bench tables gpu-check

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## Build .venv with everything that the other targets need

# The lock holds every version and its hashes, but torch: TORCH and pip's own settings choose its build.
$(STAMP): pyproject.toml locks/setup.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement locks/setup.txt
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $(STAMP)

# Two files that agree: what `make setup` installs, and what all extras may need. UPGRADE=1 takes the newest versions.
lock: setup ## Renew the locks after a change of pyproject.toml; UPGRADE=1 takes the newest versions
	$(LOCK) --all-extras --group dev --output-file locks/extras.txt
	$(LOCK) $(SETUP_EXTRAS:%=--extra %) --group dev --constraint locks/extras.txt --output-file locks/setup.txt

demo: setup ## Three questions answered through LangChain and LlamaIndex, offline
	$(BIN)/python examples/01_quickstart.py

# Two halves side by side, one thread each; what a half prints appears when it ends.
test: setup ## Run the tests (no network), but for the slow ones
	@$(MAKE) --no-print-directory --keep-going --jobs=2 $(filter --%,$(patsubst output-sync,--output-sync,$(.FEATURES))) \
		test-of-the-runtime test-of-the-rest

test-of-the-runtime:
	$(BIN)/python -m pytest -m "not hub and not slow" -o cache_dir=.pytest_cache/runtime tests/runtime

test-of-the-rest:
	$(BIN)/python -m pytest -m "not hub and not slow" -o cache_dir=.pytest_cache/rest tests --ignore=tests/runtime

test-slow: setup ## Run the slow tests: many processes, long soaks
	$(BIN)/python -m pytest -m "not hub and slow"

check: setup ## Lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## Check every page, link and code block of the documentation
	$(BIN)/python -m pytest tests/docs

extras: setup ## Install the wheel with each extra in an empty environment and try it
	$(BIN)/python -m tests.packaging.try_extras --torch "$(TORCH)" $(EXTRAS)

migration-check: $(MIGRATION)/.ready ## Compare results with the packages that docs/migration.md names
	$(MIGRATION)/bin/python -m pytest tests/migration/check_incumbents.py -o python_functions="check_*"

$(MIGRATION)/.ready: tests/migration/requirements.txt pyproject.toml
	rm -rf $(MIGRATION)
	$(PYTHON) -m venv $(MIGRATION)
	$(MIGRATION)/bin/python -m pip install --quiet --upgrade pip
	$(MIGRATION)/bin/python -m pip install --quiet "$(TORCH)"
	$(MIGRATION)/bin/python -m pip install --quiet --editable ".[langchain,llamaindex]" --group dev
	$(MIGRATION)/bin/python -m pip install --quiet --requirement tests/migration/requirements.txt
	@touch $@

reference-check: setup $(REFERENCE)/.ready ## Compare results with FlagEmbedding itself; WRITE=1 keeps its numbers for the tests
	$(BIN)/python -m tests.reference.check --python $(REFERENCE)/bin/python $(if $(WRITE),--write)

$(REFERENCE)/.ready: tests/reference/requirements.txt
	rm -rf $(REFERENCE)
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip install --quiet --upgrade pip
	$(REFERENCE)/bin/python -m pip install --quiet "$(TORCH)"
	$(REFERENCE)/bin/python -m pip install --quiet --requirement tests/reference/requirements.txt
	@touch $@

milvus-check: $(MILVUS)/langchain/.ready $(MILVUS)/llamaindex/.ready ## Hybrid search on Milvus Lite, through both frameworks
	$(MILVUS)/langchain/bin/python -m pytest -v tests/milvus/check_langchain.py -o python_functions="check_*"
	$(MILVUS)/llamaindex/bin/python -m pytest -v tests/milvus/check_llamaindex.py -o python_functions="check_*"

# Two environments: the frameworks' packages need different major versions of pymilvus.
$(MILVUS)/%/.ready: tests/milvus/%.txt pyproject.toml
	@mkdir -p $(MILVUS) && rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet "$(TORCH)"
	$(@D)/bin/python -m pip install --quiet --editable ".[$*]" --requirement $<
	@touch $@

published: setup ## Compare with published figures: make published DATA=folder
	@test -n "$(DATA)" || { echo "make published DATA=folder-with-the-archives (see docs/benchmarks.md)"; exit 2; }
	$(BIN)/python benchmarks/published.py --data "$(DATA)"

# A library that cannot be installed is named in the results; the others still run.
bench: setup ## Measure speed against other libraries: make bench WORKLOADS=... LIBRARIES=... ROUNDS=3 SCALE=0.1
	-@$(MAKE) --no-print-directory --keep-going $(patsubst %,$(PEERS)/%/.ready,$(sort $(LIBRARIES) $(INCUMBENTS)))
	$(BIN)/python -m benchmarks.driver --libraries $(LIBRARIES) $(if $(WORKLOADS),--workloads $(WORKLOADS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SCALE),--scale $(SCALE)) $(if $(RESUME),--resume)
	$(BIN)/python -m benchmarks.report

# Where no environment can be built, any interpreter will do that has torch and sentence-transformers: GPU_PYTHON=python3.
gpu-check: $(if $(GPU_PYTHON),,setup) ## Check a GPU's vectors, full memory and speed; without one, a CPU's: GPU_PYTHON=... OUT=folder
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu_check $(if $(OUT),--out "$(OUT)")

tables: setup ## Rewrite the tables of docs/benchmarks.md and docs/models.md
	$(BIN)/python -m benchmarks.report
	$(BIN)/python tests/docs/model_table.py --write

$(PEERS)/%/.ready: benchmarks/requirements/%.txt
	@mkdir -p $(PEERS) && rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	@if grep -qx torch $<; then $(@D)/bin/python -m pip install --quiet "$(TORCH)" >$(PEERS)/$*.log 2>&1; fi
	$(@D)/bin/python -m pip install --quiet --requirement $< >>$(PEERS)/$*.log 2>&1 || { rm -rf $(@D); exit 1; }
	@touch $@
