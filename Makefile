# Almoner's entry points. `make help` lists them; every target does its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# What Python prints into a pipe or a log comes at once.
export PYTHONUNBUFFERED := 1

# The first that runs and is new enough: a version manager's shim may be on the path and refuse to run.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TESTS ?=
PYTEST_FLAGS ?=
# Tests wait more than they work: four workers keep two cores busy. Benchmarks run alone, after them.
JOBS ?= 4

.PHONY: help setup demo demo-down demo-env test test-unit test-frameworks e2e verify generate locks lint types layers bench clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install Almoner with its development tools

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv, or PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> setting up $(VENV) with $$("$(PYTHON)" --version): installs packages, once, for a minute or two"
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the main job on a real control plane (KEEP=1 leaves it running)
	@$(PY) -m almoner_dev demo $(if $(filter-out 0 no false,$(KEEP)),--keep)

demo-env: $(STAMP) ## Print the exports that lead to it (source <(make -s demo-env))
	@$(PY) -m almoner_dev demo --env

demo-down: $(STAMP) ## Stop what `make demo KEEP=1` left running
	@$(PY) -m almoner_dev demo --down

test: $(STAMP) ## Run all tests (TESTS=tests/unit for some of them)
	@case "$(TESTS)" in tests/unit|tests/unit/*) ;; *) $(PY) -m almoner_dev fetch || test -n "$${ALMONER_TEST_SKIP_MISSING:-}" ;; esac
	@if test -n "$(TESTS)"; then exec $(PY) -m pytest $(TESTS) $(PYTEST_FLAGS); fi; \
	  $(PY) -m pytest -n $(JOBS) tests/unit tests/integration tests/e2e tests/frameworks/test_quick.py $(PYTEST_FLAGS); \
	  $(PY) -m pytest tests/performance $(PYTEST_FLAGS)

test-unit: $(STAMP) ## Run the unit tests: seconds, no network
	@$(PY) -m pytest tests/unit $(PYTEST_FLAGS)

test-frameworks: $(STAMP) ## Run every framework behind the meter, and write the results of docs/frameworks.md (npm)
	@$(PY) -m almoner_dev.frameworks install || echo "those that could not be installed are left out"
	@status=0; $(PY) -m pytest -n 2 --verbose tests/frameworks/test_all.py $(PYTEST_FLAGS) || status=$$?; \
	  $(PY) -m almoner_dev.generate; exit $$status

# A KUBECONFIG of the environment is somebody's own cluster: only one that was said on the command line counts.
e2e: $(STAMP) ## Run the tests in a cluster: a real node of this machine (root), KUBECONFIG=FILE IMAGE=REF, or KIND=1
	@exec $(PY) -m almoner_dev e2e $(if $(filter-out 0 no false,$(KIND)),--kind) \
	  $(if $(filter command,$(firstword $(origin KUBECONFIG))),--kubeconfig "$(KUBECONFIG)") \
	  $(if $(filter command,$(firstword $(origin IMAGE))),--image "$(IMAGE)") -- $(TESTS) $(PYTEST_FLAGS)

locks: $(STAMP) ## Resolve the packages of the images anew and write locks/ (uv)
	@$(PY) -m almoner_dev.locks

generate: $(STAMP) ## Regenerate crds/, docs/reference/, docs/frameworks.md and the chart's copies
	@$(PY) -m almoner_dev.generate

lint: $(STAMP) ## Lint and check the formatting
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(STAMP) ## Check the types
	@$(VENV)/bin/mypy

layers: $(STAMP) ## Check who may import whom
	@$(VENV)/bin/lint-imports

verify: generate lint types layers ## Regenerate, lint, check types and layers, and demand a clean tree
	@git diff --exit-code -- crds docs charts deploy || { echo "generated files were stale: commit what 'make generate' wrote"; exit 1; }
	@test -z "$$(git status --porcelain)" || { git status --short; echo "the tree is not clean"; exit 1; }

bench: $(STAMP) ## Run a benchmark: make bench NAME=admission|history|ledger|meter
	@$(PY) -m almoner_dev.bench $(or $(NAME),--help) $(if $(NAME),--json)

clean: ## Remove the virtual environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
