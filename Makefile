PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
DATA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ENVIRONMENTS := .environments
PEERS := .benchmarks/venvs
COMPILE := uv pip compile --quiet --generate-hashes --no-header --no-annotate --override locks/without-torch.txt
LOCK = $(BIN)/$(COMPILE) --universal --python-version 3.11 $(if $(UPGRADE),--upgrade)
RANGES = $(BIN)/$(COMPILE) --python $(BIN)/python pyproject.toml --all-extras --group dev
SETUP_EXTRAS := langchain llamaindex offline onnx openvino pdf eval mteb telemetry train serve remote bulk
# What others deprecate among themselves, which pyproject.toml ignores: errors where everything is the newest.
# Two of those that stand behind them say only that they are sunset; the third is Ray's own use of pydantic.
STRICT := -W error::DeprecationWarning -W error::PendingDeprecationWarning -W error::FutureWarning \
	-W "ignore:\`langchain-community\` is being sunset:DeprecationWarning" \
	-W "ignore:\`langchain-experimental\` is being sunset:DeprecationWarning" \
	-W "ignore:Using extra keyword arguments on:DeprecationWarning"
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
.PHONY: help setup lock demo test test-latest test-lowest test-of-the-runtime test-of-the-rest test-slow check docs extras migration-check reference-check milvus-check clients-check browser-check published bench tables gpu-check

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## Build .venv with everything that the other targets need

# A lock holds every version and its hashes, but torch: TORCH and pip's own settings choose its build.
define versions
	$(PYTHON) -m venv $1
	$1/bin/python -m pip install --quiet --no-deps --require-hashes --requirement $2
	$(if $3,$1/bin/python -m pip install --quiet "$(TORCH)")
endef

# The versions of a lock, torch, and this project.
define environment
	$(call versions,$1,$2,torch)
	$1/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$1/bin/python -m pip check
endef

$(STAMP): pyproject.toml locks/setup.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(call environment,$(VENV),locks/setup.txt)
	@touch $(STAMP)

# Not by `make setup`, which refuses an old lock that a new requirement is missing from.
$(BIN)/uv:
	$(call versions,$(VENV),locks/setup.txt)

# What `make setup` installs and what all extras may need agree; the other environments are locked one by one.
lock: $(BIN)/uv ## Renew the locks after a change of requirements; UPGRADE=1 takes the newest versions
	$(LOCK) pyproject.toml --all-extras --group dev --output-file locks/extras.txt
	$(LOCK) pyproject.toml $(SETUP_EXTRAS:%=--extra %) --group dev --constraint locks/extras.txt --output-file locks/setup.txt
	$(LOCK) pyproject.toml --extra langchain --extra llamaindex --group dev tests/migration/requirements.txt \
		--output-file locks/migration.txt
	$(LOCK) tests/reference/requirements.txt --group locked --output-file locks/reference.txt
	$(LOCK) pyproject.toml --extra langchain --group locked tests/milvus/langchain.txt \
		--output-file locks/milvus-langchain.txt
	$(LOCK) pyproject.toml --extra llamaindex --group locked tests/milvus/llamaindex.txt \
		--output-file locks/milvus-llamaindex.txt
	$(LOCK) pyproject.toml --extra langchain --extra llamaindex --extra serve --extra telemetry --group locked tests/clients/requirements.txt \
		--output-file locks/clients.txt
	@for extra in serve ray; do \
		$(LOCK) pyproject.toml --extra $$extra --group locked --constraint locks/extras.txt \
			--output-file locks/$$extra.txt || exit 1; \
	done
	@mkdir -p locks/benchmarks
	@for name in $(basename $(notdir $(wildcard benchmarks/requirements/*.txt))); do \
		echo "locks/benchmarks/$$name.txt"; \
		$(LOCK) benchmarks/requirements/$$name.txt --group locked --no-emit-package bge-integrations \
			--output-file locks/benchmarks/$$name.txt || exit 1; \
	done

demo: setup ## Three questions answered through LangChain and LlamaIndex, offline
	$(BIN)/python examples/01_quickstart.py

# Two halves side by side, one thread each; what a half prints appears when it ends.
HALVES = $(MAKE) --no-print-directory --keep-going --jobs=2 $(filter --%,$(patsubst output-sync,--output-sync,$(.FEATURES))) \
	test-of-the-runtime test-of-the-rest
PYTEST = $(BIN)/python -m pytest -m "not hub and not slow" $(WARNINGS) -o cache_dir=.pytest_cache/$(notdir $(VENV))

test: setup ## Run the tests (no network), but for the slow ones
	@$(HALVES)

test-of-the-runtime:
	$(PYTEST)/runtime tests/runtime tests/training tests/serving tests/remote

test-of-the-rest:
	$(PYTEST)/rest tests --ignore=tests/runtime --ignore=tests/training --ignore=tests/serving \
		--ignore=tests/remote

# By hand: what they install changes from day to day.
test-latest: setup ## Run the tests on the newest versions that pyproject.toml admits
	@rm -rf $(ENVIRONMENTS)/latest* && mkdir -p $(ENVIRONMENTS)
	$(RANGES) --output-file $(ENVIRONMENTS)/latest.txt
	$(call environment,$(ENVIRONMENTS)/latest,$(ENVIRONMENTS)/latest.txt)
	@$(HALVES) VENV=$(ENVIRONMENTS)/latest WARNINGS='$(STRICT)'

test-lowest: setup ## Run the tests on the lowest versions that pyproject.toml admits
	@rm -rf $(ENVIRONMENTS)/lowest* && mkdir -p $(ENVIRONMENTS)
	$(RANGES) --resolution lowest-direct --output-file $(ENVIRONMENTS)/lowest.txt
	$(call environment,$(ENVIRONMENTS)/lowest,$(ENVIRONMENTS)/lowest.txt)
	$(ENVIRONMENTS)/lowest/bin/python -m pytest tests/packaging/check_lowest.py -o python_functions="check_*"
	@$(HALVES) VENV=$(ENVIRONMENTS)/lowest

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

migration-check: $(ENVIRONMENTS)/migration/.ready ## Compare results with the packages that docs/migration.md names
	$(ENVIRONMENTS)/migration/bin/python -m pytest tests/migration/check_incumbents.py -o python_functions="check_*"

reference-check: setup $(ENVIRONMENTS)/reference/.ready ## Compare results with FlagEmbedding itself; WRITE=1 keeps its numbers for the tests
	$(BIN)/python -m tests.reference.check --python $(ENVIRONMENTS)/reference/bin/python $(if $(WRITE),--write)

# Two environments: the frameworks' packages need different major versions of pymilvus.
milvus-check: $(ENVIRONMENTS)/milvus-langchain/.ready $(ENVIRONMENTS)/milvus-llamaindex/.ready ## Hybrid search on Milvus Lite, through both frameworks
	$(ENVIRONMENTS)/milvus-langchain/bin/python -m pytest -v tests/milvus/check_langchain.py -o python_functions="check_*"
	$(ENVIRONMENTS)/milvus-llamaindex/bin/python -m pytest -v tests/milvus/check_llamaindex.py -o python_functions="check_*"

clients-check: $(ENVIRONMENTS)/clients/.ready ## Clients of OpenAI, Cohere, TEI and both frameworks, and schemathesis, against a running server
	$(ENVIRONMENTS)/clients/bin/python -m pytest -v tests/clients/check_clients.py tests/clients/check_schema.py -o python_functions="check_*"

browser-check: setup ## Look at a report in headless Chromium, on a telephone and on a screen
	$(BIN)/python -m pytest tests/evaluation/check_browser.py -o python_functions="check_*"

$(ENVIRONMENTS)/reference/.ready: locks/reference.txt
	@rm -rf $(@D)
	$(call versions,$(@D),$<,torch)
	@touch $@

$(ENVIRONMENTS)/%/.ready: locks/%.txt pyproject.toml
	@rm -rf $(@D)
	$(call environment,$(@D),$<)
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

$(PEERS)/%/.ready: locks/benchmarks/%.txt
	@mkdir -p $(PEERS) && rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	@{ $(@D)/bin/python -m pip install --quiet --no-deps --require-hashes --requirement $< \
		&& if grep -qx torch benchmarks/requirements/$*.txt; then $(@D)/bin/python -m pip install --quiet "$(TORCH)"; fi \
		&& if grep -q '^-e' benchmarks/requirements/$*.txt; then \
			$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .; fi; \
	} >$(PEERS)/$*.log 2>&1 || { rm -rf $(@D); exit 1; }
	@touch $@
