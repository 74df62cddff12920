# The one entry point for people and CI. `make help` lists the targets.

PYTHON ?= python3
# Versions to install: requirements/dev.txt (those CI tests), constraints-min.txt (oldest supported) or /dev/null (newest).
CONSTRAINTS ?= requirements/dev.txt
# COVERAGE=1: measure coverage and enforce its floor.
COVERAGE ?=

# Stamp files of installed extras (RUN, DEV), by name of the versions file: a change of either installs again.
RUN := .venv/.run-$(notdir $(CONSTRAINTS))
DEV := .venv/.dev-$(notdir $(CONSTRAINTS))
# Versions without hashes: an editable install cannot be hashed, and torch may be a build from another index.
VERSIONS := .venv/versions-$(notdir $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup demo circle serve cluster-config cluster-check test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust \
  lint kube-check format docs lock sbom audit build dist clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## Create .venv with the project, its sample and the developer tools

demo: $(RUN) ## Run the whole pipeline on this machine, from corpus to verdict (KEEP=1 leaves the service running)
	.venv/bin/python examples/demo.py

circle: $(RUN) ## Run the operations cycle: drift, abstain, recalibrate, retrain, deploy (half an hour)
	.venv/bin/python examples/circle.py

# The champion of the demo, unless the environment names another storage root.
serve: export DETECT_AI_STORAGE_ROOT ?= $(CURDIR)/.demo
serve: $(RUN) ## Serve the champion of the demo, or of DETECT_AI_STORAGE_ROOT (ARGS="serve.port=8123")
	.venv/bin/detect-ai serve $(ARGS)

test: $(DEV) ## Run the fast tests (COVERAGE=1 adds coverage and its floor)
	.venv/bin/pytest tests/unit -m 'not slow' -n 2 $(if $(COVERAGE),--cov --cov-report=)
	.venv/bin/pytest tests/integration tests/e2e -m 'not slow' \
	  $(if $(COVERAGE),--cov --cov-append --cov-report=term --cov-fail-under=85)

test-slow: $(DEV) ## Run the slow tests: survival, load, fuzzing, demo, object store
	.venv/bin/pytest -m slow --ignore tests/e2e/test_under_load.py
	.venv/bin/pytest -m slow tests/e2e/test_under_load.py  # needs a cluster of its own

test-gpu: $(DEV) ## Run the tests that need a GPU
	.venv/bin/pytest tests/gpu

# No target downloads a model, waits for a login or reports usage.
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export HF_HUB_OFFLINE = 1
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export TRANSFORMERS_OFFLINE = 1
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export WANDB_MODE = offline
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export TOKENIZERS_PARALLELISM = false
demo circle serve test test-slow test-gpu bench-corpus bench-train bench-serve bench-trust: export RAY_USAGE_STATS_ENABLED = 0

bench-corpus: $(DEV) ## Compare tokenisation with datasets.map, and measure the memory of prepare (TEXTS=path to Parquet)
	.venv/bin/python benchmarks/corpus.py $(if $(TEXTS),--texts $(TEXTS))

bench-train: $(DEV) ## Compare training with the Hugging Face Trainer and a bare loop (TEXTS=path to Parquet)
	.venv/bin/pip install -q -c $(VERSIONS) -e '.[bench]'
	.venv/bin/python benchmarks/train.py $(if $(TEXTS),--texts $(TEXTS)) $(ARGS)

bench-serve: $(DEV) .venv-infinity/.tried ## Compare the service with a pipeline, LitServe and Infinity (ARGS="--rounds 1")
	.venv/bin/pip install -q -c $(VERSIONS) -e '.[bench]'
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

lint: $(DEV) ## Check style, types, spelling, YAML and its schemas, and look for secrets
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/pre-commit run --all-files detect-secrets
	.venv/bin/yamllint --strict .
	.venv/bin/zizmor --offline --quiet .github
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec ops/compose.yaml
	.venv/bin/check-jsonschema --builtin-schema vendor.cloudbuild cloudbuild.yaml
	@command -v actionlint > /dev/null || test -z "$$REQUIRE_ACTIONLINT" || { echo "actionlint is not installed"; exit 1; }
	if command -v actionlint > /dev/null; then actionlint; fi

kube-check: $(DEV) ## Validate the Kubernetes manifests against KubeRay (needs kubeconform and the network)
	.venv/bin/python ops/kubernetes/check.py $(ARGS)

format: $(DEV) ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: $(VERSIONS) .venv/mermaid.min.js ## Build the documentation site into site/
	.venv/bin/pip install -q --no-input -c $(VERSIONS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

# For diagrams without a CDN. npm verifies the package against the registry's hash.
.venv/mermaid.min.js: | .venv/bin/pip
	npm pack --silent --pack-destination .venv mermaid@11.17.2
	tar -xzmf .venv/mermaid-11.17.2.tgz -C .venv --strip-components=2 package/dist/mermaid.min.js
	rm .venv/mermaid-11.17.2.tgz

build: | .venv/bin/pip ## Build the wheel into dist/
	.venv/bin/pip wheel --no-input --no-deps --wheel-dir dist .

dist: $(DEV) ## Build the wheel and the source distribution into dist/
	.venv/bin/python -m build --outdir dist

# Each file has a closure with all hashes of the index, for every platform; the other files use the versions of dev.txt.
# The service runs on a CPU: no CUDA, and torch has its own file, because its CPU build has other hashes.
LOCK = .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --annotation-style line --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
lock: .venv-tools/.installed ## Write requirements/ and constraints-min.txt from pyproject.toml (UPGRADE=1: newest versions)
	$(LOCK) pyproject.toml --all-extras -o requirements/dev.txt
	$(LOCK) pyproject.toml --extra train --extra sample --extra sweep --extra gcp -c requirements/dev.txt -o requirements/train.txt
	grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' requirements/train.txt > .venv-tools/cuda.txt
	$(LOCK) pyproject.toml --extra serve -c requirements/dev.txt --excludes .venv-tools/cuda.txt --no-emit-package torch -o requirements/serve.txt
	(echo '# Of the same version as in train.txt, from any index. Written by `make lock`.'; \
	  grep -oE '^torch==[0-9.]+' requirements/train.txt) > requirements/torch.txt
	$(LOCK) --group tools -o requirements/tools.txt
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])" | \
	  $(LOCK) - -o requirements/build.txt
	$(PYTHON) -c "$$PIN_LOWEST" > constraints.tmp
	mv constraints.tmp constraints-min.txt

sbom: .venv-tools/.installed ## Write CycloneDX lists of components to build/sbom/, from requirements/
	mkdir -p build/sbom
	for name in serve train dev; do cat requirements/$$name.txt $$(test $$name = serve && echo requirements/torch.txt) | \
	  .venv-tools/bin/cyclonedx-py requirements --pyproject pyproject.toml -o build/sbom/$$name.json -; done

audit: .venv-tools/.installed ## Look up known vulnerabilities of the versions in requirements/ (needs the network)
	for name in serve train dev tools; do \
	  .venv-tools/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/$$name.txt || exit 1; done

clean: ## Remove .venv, builds and caches of this checkout
	rm -rf .venv .venv-tools .venv-infinity build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.*
	rm -rf ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"Python 3.11 or newer is needed, $(PYTHON) is %d.%d: run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

$(VERSIONS): $(filter-out /dev/null,$(CONSTRAINTS)) | .venv/bin/pip
	sed -E '/^ +--hash/d; s/ *\\$$//' $(CONSTRAINTS) > $@

$(RUN): pyproject.toml $(VERSIONS)
	.venv/bin/pip install --no-input -c $(VERSIONS) -e '.[sample,train]'
	@rm -f .venv/.run-* .venv/.dev-*
	@touch $@

$(DEV): $(RUN)
	.venv/bin/pip install --no-input -c $(VERSIONS) -e '.[all,dev]'
	@touch $@

.venv-tools/.installed: requirements/tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install --no-input -q --require-hashes -r $<
	@touch $@

define PIN_LOWEST
import re, tomllib
with open('pyproject.toml', 'rb') as file: project = tomllib.load(file)['project']
extras = project['optional-dependencies']
needs = project['dependencies'] + [need for name in ('local', 'serve', 'train', 'sample') for need in extras[name]]
print('# Oldest supported versions: the lower bounds of pyproject.toml. Written by `make lock`; do not edit.')
for need in sorted(set(needs), key=str.lower):
    if need.startswith('detect-ai['): continue
    name, version = re.match(r'([\w.-]+)(?:\[.*\])?[=>]=([\d.]+)', need).groups()
    print(name, '.'.join((version + '.0.0').split('.')[:3]), sep='==')
endef
export PIN_LOWEST
