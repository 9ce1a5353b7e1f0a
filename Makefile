# Every command a person needs; `make help` lists them. The tools live in .venv, made once and
# refreshed when a lock or a package's metadata changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PEERS := $(VENV)/bench
ADAPTERS := $(VENV)/adapters
RAY := $(VENV)/ray
DEPLOY := $(VENV)/deploy
BROWSER := $(VENV)/browser
SITE := $(VENV)/site
PACKAGING := $(VENV)/package
PACKAGES := kernels service clients/python
METADATA := $(PACKAGES:%=%/pyproject.toml)
LOCKS := build dev service-cpu service-gpu service-ray
AUDITED := $(wildcard requirements/service-*.txt) requirements/dev.txt
SOURCES := kernels/quiver_kernels service/quiver_service clients/python/quiver_client
TEST_WORKERS ?= 2
# Bytecode is kept even where the environment says otherwise: it halves the start of every process.
export PYTHONDONTWRITEBYTECODE :=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-faces test-docker test-adapters test-ray test-cluster test-deploy test-browser test-site test-languages test-packages site dist test-benchmarks test-gpu demo train check audit sbom format bench bench-peers compare conform fuzz soak up down manifests lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the three packages (editable) and the tools

$(STAMP): requirements/dev.txt $(METADATA)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "QUIVER needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --no-build-isolation $(PACKAGES:%=-e ./%)
	@touch $@

serve: setup ## start the service on 127.0.0.1:8000 (QUIVER_HOST, QUIVER_PORT)
	@exec $(BIN)/python -m quiver_service

test: setup ## run the tests, except those that have commands of their own (ARGS= goes to pytest)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m "not docker and not gpu and not benchmarks and not faces" $(ARGS)
	@echo "Not among these, commands of their own: make test-faces, make test-docker, make test-adapters, make test-ray, make test-cluster, make test-deploy, make test-site, make test-packages, make test-browser, make test-languages, make test-benchmarks, make test-gpu."

test-docker: setup ## build the image and test the container
	$(BIN)/python -m pytest -m docker $(ARGS)

test-adapters: setup $(ADAPTERS)/.stamp ## test the adapters with the real PyTorch, Flower and safetensors
	PYTHONDONTWRITEBYTECODE= $(ADAPTERS)/bin/python -m pytest --confcutdir=tests/adapters -n $(TEST_WORKERS) --dist loadfile tests/adapters $(ARGS)

# Apart from the tools: PyTorch is as large as all of them, and Flower wants older versions than the service. The tests
# start processes that import PyTorch, which takes seconds each time if its bytecode may not be kept.
$(ADAPTERS)/.stamp: requirements/adapters.txt kernels/pyproject.toml clients/python/pyproject.toml | $(STAMP)
	@test -x $(ADAPTERS)/bin/python || $(BIN)/python -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/adapters.txt
	$(ADAPTERS)/bin/python -m pip install --quiet --no-deps --no-compile --no-build-isolation -e ./kernels -e ./clients/python
	@touch $@

test-ray: setup $(RAY)/.stamp ## test Ray Serve and quantization in a cluster with the real Ray
	PYTHONDONTWRITEBYTECODE= $(RAY)/bin/python -m pytest --confcutdir=tests/ray tests/ray $(ARGS)

# Apart from the tools, for its size and all that it brings. With bytecode: a node is a dozen Python processes.
$(RAY)/.stamp: requirements/ray.txt $(METADATA) | $(STAMP)
	@test -x $(RAY)/bin/python || $(BIN)/python -m venv $(RAY)
	PYTHONDONTWRITEBYTECODE= $(RAY)/bin/python -m pip install --quiet --no-deps --compile --require-hashes -r requirements/ray.txt
	$(RAY)/bin/python -m pip install --quiet --no-deps --no-compile --no-build-isolation $(PACKAGES:%=-e ./%)
	@touch $@

test-cluster: setup ## start a Ray cluster in containers and test what becomes of lost, added and replaced nodes
	$(BIN)/python -m pytest --confcutdir=tests/cluster tests/cluster $(ARGS)

test-deploy: setup $(DEPLOY)/.stamp ## render the Helm chart, check it and the manifests against Kubernetes' schemas
	PYTHONDONTWRITEBYTECODE= $(DEPLOY)/bin/python -m pytest --confcutdir=tests/deploy tests/deploy $(ARGS)

# Apart from the tools: Helm and the schemas of all versions take 350 MB.
$(DEPLOY)/.stamp: requirements/deploy.txt | $(STAMP)
	@test -x $(DEPLOY)/bin/python || $(BIN)/python -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/deploy.txt
	@touch $@

site: setup $(SITE)/.stamp ## build the documentation site into out/site, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict -f docs/site/mkdocs.yml

test-site: setup $(SITE)/.stamp ## build the site, also with planted faults, and check what came out
	$(BIN)/python -m pytest tests/site $(ARGS)

# Apart from the tools: nobody who works on the code needs them.
$(SITE)/.stamp: requirements/site.txt | $(STAMP)
	@test -x $(SITE)/bin/python || $(BIN)/python -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/site.txt
	@touch $@

dist: setup $(PACKAGING)/.stamp ## build wheels and sdists of the three packages into dist, twice, and check them
	$(PACKAGING)/bin/python scripts/dist.py dist

test-packages: setup $(PACKAGING)/.stamp ## install the built packages into clean environments and test them (ARGS=--all: every Python, oldest dependencies)
	$(PACKAGING)/bin/python scripts/dist.py dist
	$(PACKAGING)/bin/python scripts/try_packages.py dist $(ARGS)

# Apart from the tools, for the same reason.
$(PACKAGING)/.stamp: requirements/package.txt | $(STAMP)
	@test -x $(PACKAGING)/bin/python || $(BIN)/python -m venv $(PACKAGING)
	$(PACKAGING)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/package.txt
	@touch $@

test-browser: setup $(BROWSER)/.stamp ## test the pages at / and /docs in this machine's Chromium, headless
	PYTHONDONTWRITEBYTECODE= QUIVER_TEST_PYTHON=$(CURDIR)/$(BIN)/python $(BROWSER)/bin/python -m pytest --confcutdir=tests/browser tests/browser $(ARGS)

# Apart from the tools: Playwright brings a Node of its own. The browser is the machine's; none is downloaded.
$(BROWSER)/.stamp: requirements/browser.txt | $(STAMP)
	@test -x $(BROWSER)/bin/python || $(BIN)/python -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/browser.txt
	@touch $@

test-faces: setup ## the command line as its users run it, the JavaScript client, all examples of docs, killed training runs (node)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m faces $(ARGS)

test-languages: setup ## test the C++ reader with sanitizers, and every command of docs/other-languages.md (g++, curl)
	$(BIN)/python -m pytest tests/languages $(ARGS)

test-benchmarks: setup ## run every benchmark script on small sizes and check its figures
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m benchmarks $(ARGS)

test-gpu: setup ## test the kernels on this machine's GPU; needs CuPy beside the tools (docs/gpu.md)
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

demo: setup ## quantize real data through the client; print a table, write a plot
	@$(BIN)/python examples/demo.py $(ARGS)

train: setup ## train a network over a parameter server with every compression; accuracy against bytes
	@cd examples && ../$(BIN)/python -m parameter_server.run --out $(CURDIR)/out/parameter_server $(ARGS)

check: setup ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(SOURCES)

audit: setup ## look every pinned dependency up in a database of known vulnerabilities
	@$(BIN)/python scripts/audit.py $(AUDITED)

sbom: setup ## write what the images hold as CycloneDX documents: out/sbom-cpu.json, out/sbom-gpu.json
	@mkdir -p out
	$(BIN)/cyclonedx-py requirements requirements/service-cpu.txt --output-reproducible -o out/sbom-cpu.json
	$(BIN)/cyclonedx-py requirements requirements/service-gpu.txt --output-reproducible -o out/sbom-gpu.json

format: setup ## let the formatter and the safe fixes rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## run the benchmarks; writes results and the tables and plots in docs/
	$(BIN)/python benchmarks/run.py $(ARGS)

# The peers of `make bench-peers` are measured too, where that has installed them: the same versions of what both use.
compare: setup ## compare all schemes; writes docs/schemes.md (ARGS=--registry: without measuring)
	PYTHONPATH=$(firstword $(wildcard $(PEERS)/lib/python*/site-packages)) $(BIN)/python benchmarks/compare.py --write $(ARGS) > /dev/null

conform: setup ## check that every scheme holds what it declares (ARGS= names, options)
	$(BIN)/python -m quiver_kernels.schemes.conformance --golden tests/schemes/golden $(ARGS)

bench-peers: setup $(PEERS)/.stamp ## compare with other quantizers, installed beside the tools
	$(BIN)/python benchmarks/run.py peers

# Apart from the tools, for PyTorch is as large as all of them; inside .venv, for the same `make clean`.
$(PEERS)/.stamp: requirements/bench.txt | $(STAMP)
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --no-deps --no-compile --require-hashes -r requirements/bench.txt
	@touch $@

fuzz: setup ## break a million messages and 100,000 requests; writes its rows of docs/reliability.md
	$(BIN)/python tests/fuzz/run.py --write $(ARGS)

soak: setup ## overload, restarts, kills and a long run; writes docs/reliability.* (ARGS= names, options)
	$(BIN)/python benchmarks/reliability/run.py --write $(ARGS)

up: ## build, start, wait until healthy (PROFILE=gpu for a GPU, PROFILE=scale or cluster REPLICAS=n for several, OBS=1 for a dashboard)
	@scripts/compose up

down: ## stop the container; remove it, its network and its volumes (the image stays)
	@scripts/compose down

manifests: setup $(DEPLOY)/.stamp ## render the Helm chart into deploy/kubernetes
	$(DEPLOY)/bin/python scripts/manifests.py

lock: setup ## resolve requirements/*.in anew into the hashed locks (UPGRADE=1 takes newer versions)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lock $(LOCKS)

clean: ## remove .venv and what the tools left behind
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
