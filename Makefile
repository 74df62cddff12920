# The one entry point for people and CI. `make help` lists the targets.

PYTHON ?= python3
# Which versions to install: constraints.txt (what CI ran), constraints-min.txt (the oldest we support)
# or /dev/null (the newest there are).
CONSTRAINTS ?= constraints.txt

# The stamp carries the name of the constraints, so that a change of file installs again.
STAMP := .venv/.installed-$(notdir $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow test-gpu bench-corpus bench-train bench-serve lint format lock build clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install the project with its sample and developer tools

demo: $(STAMP) ## Run the whole loop on this machine, from corpus to verdict (KEEP=1 leaves the service up)
	.venv/bin/python examples/demo.py

# The demo's champion, unless the storage root of your own is set.
serve: export DETECT_AI_STORAGE_ROOT ?= $(CURDIR)/.demo
serve: $(STAMP) ## Serve the champion: the demo's, or that of DETECT_AI_STORAGE_ROOT (ARGS="serve.port=8123")
	.venv/bin/python -m serve_app $(ARGS)

test: $(STAMP) ## Run the fast suite, with its floor for coverage
	.venv/bin/pytest tests/unit -n 2 --cov --cov-report=
	.venv/bin/pytest tests/integration tests/e2e -m 'not slow' --cov --cov-append --cov-report=term --cov-fail-under=85

test-slow: $(STAMP) ## Run the longer proofs
	.venv/bin/pytest -m slow

test-gpu: $(STAMP) ## Run the tests that need a GPU
	.venv/bin/pytest tests/gpu

# Nothing here may ask the network for a model, wait for a login or report home.
demo serve test test-slow test-gpu bench-corpus bench-train bench-serve: export HF_HUB_OFFLINE = 1
demo serve test test-slow test-gpu bench-corpus bench-train bench-serve: export TRANSFORMERS_OFFLINE = 1
demo serve test test-slow test-gpu bench-corpus bench-train bench-serve: export WANDB_MODE = offline
demo serve test test-slow test-gpu bench-corpus bench-train bench-serve: export TOKENIZERS_PARALLELISM = false
demo serve test test-slow test-gpu bench-corpus bench-train bench-serve: export RAY_USAGE_STATS_ENABLED = 0

bench-corpus: $(STAMP) ## Measure tokenising against datasets.map, and the memory of prepare (TEXTS=path to Parquet)
	.venv/bin/python benchmarks/corpus.py $(if $(TEXTS),--texts $(TEXTS))

bench-train: $(STAMP) ## Measure training against the Hugging Face Trainer and a bare loop (TEXTS=path to Parquet)
	.venv/bin/pip install -q -c constraints.txt -e '.[bench]'
	.venv/bin/python benchmarks/train.py $(if $(TEXTS),--texts $(TEXTS)) $(ARGS)

bench-serve: $(STAMP) .venv-infinity/.tried ## Measure the service against a pipeline, LitServe and Infinity (ARGS="--rounds 1")
	.venv/bin/pip install -q -c constraints.txt -e '.[bench]'
	.venv/bin/python benchmarks/serve.py $(if $(TEXTS),--texts $(TEXTS)) $(ARGS)

# Infinity needs numpy < 2. Where it cannot be installed the benchmark says so and goes on.
.venv-infinity/.tried: benchmarks/infinity.txt
	$(PYTHON) -m venv .venv-infinity
	.venv-infinity/bin/pip install -q --no-input -r $< || rm -f .venv-infinity/bin/infinity_emb
	@touch $@

lint: $(STAMP) ## Check style, types and spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell

format: $(STAMP) ## Rewrite the code in the project's style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

build: | .venv/bin/pip ## Build the wheel into dist/
	.venv/bin/pip wheel --no-input --no-deps --wheel-dir dist .

# pip keeps a local version label such as 2.13.0+cpu in `freeze`; other machines have other builds of that version.
lock: ## Pin what .venv holds now (constraints.txt) and what pyproject.toml allows at least (constraints-min.txt)
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

$(STAMP): pyproject.toml $(filter-out /dev/null,$(CONSTRAINTS)) | .venv/bin/pip
	.venv/bin/pip install --no-input -c $(CONSTRAINTS) -e '.[sample,dev]'
	@rm -f .venv/.installed-*
	@touch $@

define PIN_INSTALLED
import subprocess, sys
pip = [sys.executable, '-m', 'pip', 'freeze', '--exclude-editable']
lines = subprocess.run(pip, check=True, capture_output=True, text=True).stdout.split('\n')
pins = sorted((line.split('+')[0] for line in lines if line), key=str.lower)
odd = [pin for pin in pins if '==' not in pin or '@' in pin]
if odd: sys.exit(f'Not from a package index, so it cannot be pinned: {odd}')
print('# Every version that CI ran. Made by `make lock` from the packages in .venv; do not edit.')
print('# To move on: make clean, make setup CONSTRAINTS=/dev/null, make test, make lock.')
print(*pins, sep='\n')
endef
export PIN_INSTALLED

define PIN_LOWEST
import re, tomllib
with open('pyproject.toml', 'rb') as file: project = tomllib.load(file)['project']
needs = project['dependencies'] + project['optional-dependencies']['sample']
print('# The oldest versions we support: the lower bounds of pyproject.toml. Made by `make lock`; do not edit.')
for need in sorted(needs, key=str.lower):
    name, version = re.match(r'([\w.-]+)(?:\[.*\])?[=>]=([\d.]+)', need).groups()
    print(name, '.'.join((version + '.0.0').split('.')[:3]), sep='==')
endef
export PIN_LOWEST
