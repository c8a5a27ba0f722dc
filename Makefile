# Two commands: `make demo` measures a first sweep, `make test` proves the tree. Both set everything up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Where torch comes from; PyTorch publishes a CPU index and one per CUDA version. Empty: the default index.
TORCH_INDEX ?=
FAULT_SEED ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test lock test-security test-compose test-browser web-assets setup-quantization test-quantization test-faults test-fault-trials test-benchmarks test-faults-full lint clean

setup: $(VENV)/.installed

# torch first and pinned: a plain `torch` may resolve to a CUDA build of several gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (first time: a few minutes of downloads)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP_INSTALL) --editable '.[worker,local,dev]'
	@touch $@

demo: setup
	$(BIN)/effillm run examples/quickstart.yaml --output build/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m pip check --disable-pip-version-check | awk \
		'/^(No broken requirements|gptqmodel )/ {known = 1; next} {print; broken = 1} END {exit broken || !known}'

# Two files of tests at a time; each test stands alone, on a busy machine too.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# What runs GPTQ, torchao and tasks of lm-evaluation-harness. GPTQModel pins a numpy of its own and runs with ours, so it goes in without its dependencies.
GPTQ_NEEDS := optimum datasets defuser device-smi logbar ninja pillow pypcre threadpoolctl tokenicer torchao lm_eval
setup-quantization: $(VENV)/.quantization

$(VENV)/.quantization: $(VENV)/.installed
	$(PIP_INSTALL) $(GPTQ_NEEDS)
	$(PIP_INSTALL) --no-deps gptqmodel
	@touch $@

# Quantization methods on models that the tests train themselves, kept in the user's cache between runs: some minutes. The first
# run also builds the runtime `autogptq` there.
test-quantization: setup-quantization
	$(BIN)/python -m pytest -m quantization -s tests/worker

# Every route of the OpenAPI document with thousands of requests, well-formed and not: the long form of what `make test` has.
test-security: setup
	$(BIN)/python -m pytest -m 'security or not security' tests/security

# The pages in a real browser over a real lab: some three minutes. Installs Debian's Chromium where none is and apt may.
test-browser: setup
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		(apt-get update && apt-get install --yes --no-install-recommends chromium fonts-liberation)
	$(BIN)/python -m pytest -m browser tests/browser

# The page's libraries from npm, at the versions of their versions.json; the tree carries them, so running needs none of this.
web-assets: setup
	$(BIN)/python scripts/web_assets.py

# What the images install, with hashes, from pyproject.toml, requirements/*.in and constraints.txt. uv lists every wheel's hash.
TORCH_CPU := --index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --constraint constraints.txt --custom-compile-command 'make lock'
lock: setup
	$(PIP_INSTALL) uv
	$(COMPILE) pyproject.toml -o requirements/api.txt
	$(COMPILE) requirements/build.in -o requirements/build.txt
	$(COMPILE) requirements/worker.in -o requirements/worker-cuda.txt
	$(COMPILE) $(TORCH_CPU) --constraint requirements/torch-cpu.in requirements/worker.in -o requirements/worker-cpu.txt

# The compose file on a real Docker engine: builds both images, measures, kills every service, backs up and restores: a quarter of
# an hour. COMPOSE=docker-compose is 1.29; BUILD_FLAGS go to `docker build`, PIP_INDEX_URL and TORCH_INDEX into the builds.
COMPOSE ?= docker compose
BUILD_FLAGS ?=
IMAGE_ARGUMENTS := --build-arg REVISION=$(shell git rev-parse --short HEAD 2>/dev/null) \
	$(if $(PIP_INDEX_URL),--build-arg PIP_INDEX_URL=$(PIP_INDEX_URL))
test-compose: setup
	@docker info >/dev/null 2>&1 || { echo "no Docker engine answers: start one, then run make test-compose again" >&2; exit 1; }
	docker build --quiet $(BUILD_FLAGS) $(IMAGE_ARGUMENTS) -f Dockerfile.api -t effillm-api:latest .
	docker build --quiet $(BUILD_FLAGS) $(IMAGE_ARGUMENTS) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
		-f Dockerfile.worker -t effillm-worker:cpu .
	COMPOSE='$(COMPOSE)' $(BIN)/python -m pytest -m compose -s tests/compose

# Break a whole lab at random and look what is left: under half an hour; `test-faults-full` takes the doses of the fault table as
# written and hours.
# FAULT_SEED=N repeats a schedule; root gets the faults of network and disk too.
test-faults: setup
	EFFILLM_RACES=500 $(BIN)/python -m pytest tests/server/ledger/test_races.py
	EFFILLM_FAULT_SEED=$(FAULT_SEED) EFFILLM_FAULT_LOGS=build/faults $(BIN)/python -m pytest -m faults -s tests/faults

# Each of the rarer faults alone, in some minutes.
test-fault-trials: setup
	$(BIN)/python -m pytest -m trials -s tests/faults

# Every part of the ledger's benchmark in a small dose.
test-benchmarks: setup
	$(BIN)/python -m pytest -m benchmarks tests/benchmarks

test-faults-full: setup
	EFFILLM_RACES=500 $(BIN)/python -m pytest tests/server/ledger/test_races.py
	EFFILLM_FAULTS_FULL=1 EFFILLM_FAULTS=2000 EFFILLM_FAULT_JOBS=20000 EFFILLM_FAULT_SEED=$(FAULT_SEED) EFFILLM_FAULT_LOGS=build/faults \
		$(BIN)/python -m pytest -m faults -s tests/faults

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
