# The one entry point for people and CI. `make help` lists the targets.

PYTHON ?= python3
# Versions to install: constraints.txt (those CI tests), constraints-min.txt (the oldest supported) or /dev/null (newest).
CONSTRAINTS ?= constraints.txt
# COVERAGE=1: measure coverage and enforce its floor.
COVERAGE ?=

# What is installed, by the names of the constraints file and the extras: a change of either installs again.
RUN := .venv/.run-$(notdir $(CONSTRAINTS))
DEV := .venv/.dev-$(notdir $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup demo circle serve cluster-config cluster-check test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust lint format lock build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## Create .venv with the project, its sample and the developer tools

demo: $(RUN) ## Run the whole pipeline on this machine, from corpus to verdict (KEEP=1 leaves the service running)
	.venv/bin/python examples/demo.py

circle: $(RUN) ## Run the circle of operation: drift, abstain, recalibrate, retrain, deploy (half an hour)
	.venv/bin/python examples/circle.py

# The champion of the demo, unless the environment names another storage root.
serve: export DETECT_AI_STORAGE_ROOT ?= $(CURDIR)/.demo
serve: $(RUN) ## Serve the champion of the demo, or of DETECT_AI_STORAGE_ROOT (ARGS="serve.port=8123")
	.venv/bin/python -m serve_app $(ARGS)

test: $(DEV) ## Run the fast tests (COVERAGE=1 adds coverage and its floor)
	.venv/bin/pytest tests/unit -m 'not slow' -n 2 $(if $(COVERAGE),--cov --cov-report=)
	.venv/bin/pytest tests/integration tests/e2e -m 'not slow' \
	  $(if $(COVERAGE),--cov --cov-append --cov-report=term --cov-fail-under=85)

test-slow: $(DEV) ## Run the slow tests: survival, load, fuzzing, demo, object store
	.venv/bin/pytest -m slow --ignore tests/e2e/test_under_load.py
	.venv/bin/pytest -m slow tests/e2e/test_under_load.py  # needs a cluster of its own

test-gpu: $(DEV) ## Run the tests that need a GPU
	.venv/bin/pytest tests/gpu

# No target asks the network for a model, waits for a login or reports usage.
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export HF_HUB_OFFLINE = 1
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export TRANSFORMERS_OFFLINE = 1
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export WANDB_MODE = offline
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export TOKENIZERS_PARALLELISM = false
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export RAY_USAGE_STATS_ENABLED = 0

bench-corpus: $(DEV) ## Compare tokenisation with datasets.map, and measure the memory of prepare (TEXTS=path to Parquet)
	.venv/bin/python benchmarks/corpus.py $(if $(TEXTS),--texts $(TEXTS))

bench-train: $(DEV) ## Compare training with the Hugging Face Trainer and a bare loop (TEXTS=path to Parquet)
	.venv/bin/pip install -q -c constraints.txt -e '.[bench]'
	.venv/bin/python benchmarks/train.py $(if $(TEXTS),--texts $(TEXTS)) $(ARGS)

bench-serve: $(DEV) .venv-infinity/.tried ## Compare the service with a pipeline, LitServe and Infinity (ARGS="--rounds 1")
	.venv/bin/pip install -q -c constraints.txt -e '.[bench]'
	.venv/bin/python benchmarks/serve.py $(if $(TEXTS),--texts $(TEXTS)) $(ARGS)

bench-trust: $(DEV) ## Measure error rates in domains that calibration has not seen (ARGS="run=base --data set.parquet")
	.venv/bin/python benchmarks/trust.py $(ARGS)

# Infinity needs numpy < 2. Without it the benchmark reports that and continues.
.venv-infinity/.tried: benchmarks/infinity.txt
	$(PYTHON) -m venv .venv-infinity
	.venv-infinity/bin/pip install -q --no-input -r $< || rm -f .venv-infinity/bin/infinity_emb
	@touch $@

# The cluster on Google Cloud (docs/CLUSTER.md). ARGS=FILE: variables other than gcp.env.
cluster-config: $(DEV) ## Write my-cluster.yaml from cluster.yaml and gcp.env
	.venv/bin/python -m ops.gcp.config $(ARGS)

cluster-check: $(DEV) ## Check gcp.env and cluster.yaml before they cost money, and print what an hour costs
	.venv/bin/python -m ops.gcp.check $(ARGS)

lint: $(DEV) ## Check style, types and spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell

format: $(DEV) ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

build: | .venv/bin/pip ## Build the wheel into dist/
	.venv/bin/pip wheel --no-input --no-deps --wheel-dir dist .

# `pip freeze` keeps local version labels such as 2.13.0+cpu; they are dropped, other machines have other builds.
lock: ## Write constraints.txt from .venv and constraints-min.txt from the lower bounds of pyproject.toml
	.venv/bin/python -c "$$PIN_INSTALLED" > constraints.tmp
	mv constraints.tmp constraints.txt
	.venv/bin/python -c "$$PIN_LOWEST" > constraints.tmp
	mv constraints.tmp constraints-min.txt

clean: ## Remove .venv, builds and caches of this checkout
	rm -rf .venv .venv-infinity build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.*
	rm -rf ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"Python 3.11 or newer is needed, $(PYTHON) is %d.%d: run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

$(RUN): pyproject.toml $(filter-out /dev/null,$(CONSTRAINTS)) | .venv/bin/pip
	.venv/bin/pip install --no-input -c $(CONSTRAINTS) -e '.[sample]'
	@rm -f .venv/.run-* .venv/.dev-*
	@touch $@

$(DEV): $(RUN)
	.venv/bin/pip install --no-input -c $(CONSTRAINTS) -e '.[sample,dev]'
	@touch $@

define PIN_INSTALLED
import subprocess, sys
pip = [sys.executable, '-m', 'pip', 'freeze', '--exclude-editable']
lines = subprocess.run(pip, check=True, capture_output=True, text=True).stdout.split('\n')
pins = sorted((line.split('+')[0] for line in lines if line), key=str.lower)
odd = [pin for pin in pins if '==' not in pin or '@' in pin]
if odd: sys.exit(f'Cannot pin packages that do not come from a package index: {odd}')
print('# Versions that CI tests. Written by `make lock` from the packages in .venv; do not edit.')
print('# To update: make clean, make setup CONSTRAINTS=/dev/null, make test, make lock.')
print(*pins, sep='\n')
endef
export PIN_INSTALLED

define PIN_LOWEST
import re, tomllib
with open('pyproject.toml', 'rb') as file: project = tomllib.load(file)['project']
needs = project['dependencies'] + project['optional-dependencies']['sample']
print('# Oldest supported versions: the lower bounds of pyproject.toml. Written by `make lock`; do not edit.')
for need in sorted(needs, key=str.lower):
    name, version = re.match(r'([\w.-]+)(?:\[.*\])?[=>]=([\d.]+)', need).groups()
    print(name, '.'.join((version + '.0.0').split('.')[:3]), sep='==')
endef
export PIN_LOWEST
