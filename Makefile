# Every target sets up what it needs in .venv and .cache; nothing outside this folder is touched.
# The choices a person may want to make:
PYTHON      ?= python3
TORCH       ?=
TORCH_INDEX ?=
WORKERS     ?= 2
KILLS       ?= 1000
SEEDS       ?= 200
REPORT      ?=
FUZZ_SECONDS ?= 60
DECODERS    ?=
ARGS        ?=

TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_VERSION   := 2.13.0

BIN    := .venv/bin
STAMPS := .venv/.stamps
MODEL  := .cache/minilm
PIP    := $(BIN)/python -m pip install -qq --progress-bar off

# A newcomer's settings for other Pythons must not leak into this environment.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test faults fuzz lint coverage bench setup lock clean

help:  ## show this list
	@echo "make TARGET [PYTHON=python3.12] [TORCH=... TORCH_INDEX=...]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMPS)/project  ## three real nodes on this machine: quantise, search, train, sync
	@$(BIN)/aios-node demo $(ARGS)

test: setup  ## all tests but the fault suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not faults" $(ARGS)

faults: setup  ## kill -9, damaged messages, full disks; KILLS=50 SEEDS=8 for a share, REPORT=1 for docs/results/faults
	@rm -rf .cache/faults
	@FAULTS_KILLS=$(KILLS) FAULTS_SEEDS=$(SEEDS) FAULTS_REPORT=$(CURDIR)/.cache/faults \
	   $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m faults $(ARGS)
	@$(if $(REPORT),$(BIN)/python tests/faults/support/report.py .cache/faults docs/results/faults)

fuzz: setup $(STAMPS)/fuzz  ## atheris on every decoder, FUZZ_SECONDS=60 each; DECODERS="delta package" for some
	@mkdir -p .cache/fuzz
	@for name in $(or $(DECODERS),$$($(BIN)/python tests/fuzz/run_fuzz.py --list)); do echo $$name; done \
	 | xargs -P $(WORKERS) -I NAME sh -c '$(BIN)/python tests/fuzz/run_fuzz.py NAME $(FUZZ_SECONDS) .cache/fuzz \
	     > .cache/fuzz/NAME.log 2>&1 && grep -o "units: .*" .cache/fuzz/NAME.log | head -1 | sed "s/units:/NAME: inputs/" \
	     || { tail -n 40 .cache/fuzz/NAME.log; echo "NAME: failed, see .cache/fuzz/NAME.log"; exit 255; }'

lint: $(STAMPS)/dev  ## ruff, mypy, pyright, import-linter
	@echo "ruff";    $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "mypy";    $(BIN)/mypy
	@echo "pyright"; $(BIN)/pyright
	@echo "layers";  $(BIN)/lint-imports --no-cache

coverage: setup  ## branch coverage, with a threshold per room
	@rm -f .coverage .coverage.*
	@PYTHONPATH=$(CURDIR)/scripts $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not faults" \
	   -q --cov --cov-report= $(ARGS)
	@PYTHONPATH=$(CURDIR)/scripts $(BIN)/coverage json --quiet -o .cache/coverage.json
	@$(BIN)/python scripts/check_coverage.py .cache/coverage.json

bench: setup $(STAMPS)/bench  ## all benchmarks; ARGS="name ..." for some; results in docs/results
	@$(BIN)/python benchmarks/run.py $(ARGS)

setup: $(STAMPS)/dev $(MODEL)/model.safetensors  ## environment, development tools and the model that tests use
	@:

lock: $(STAMPS)/dev  ## write requirements/*.txt anew; ARGS=--upgrade for newer versions
	@for name in runtime dev bench fuzz; do \
	   CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	     --no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	     $(ARGS) --output-file requirements/$$name.txt requirements/$$name.in || exit 1; \
	 done

clean:  ## remove everything that make has made, the environment too
	rm -rf .venv .cache build dist src/*.egg-info .coverage .coverage.* htmlcov demo-run
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment, step by step; a stamp says that a step is done and what it was done from

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	   echo "Python 3.11 to 3.14 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/4] virtual environment in .venv ($$($(PYTHON) -V))"
	@$(PYTHON) -m venv .venv || { \
	   echo "Python's venv module is missing or broken; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/runtime: requirements/runtime.txt | $(STAMPS)/venv
	@echo "[2/4] libraries, pinned and hashed (about 90 MB to download)"
	@$(PIP) --require-hashes --no-deps -r requirements/runtime.txt
	@touch $@

# Asked for another torch than the one that is there: step 3 runs again.
ifneq ($(TORCH)$(TORCH_INDEX),)
ifneq ($(strip $(TORCH) $(TORCH_INDEX)),$(shell cat $(STAMPS)/torch 2>/dev/null))
.PHONY: $(STAMPS)/torch
endif
endif

# Default: the CPU build, hashed, from PyTorch's own index or wherever pip looks by default. Only if
# neither has it, whatever build pip finds: torch then brings its own dependencies along.
$(STAMPS)/torch: requirements/torch.txt | $(STAMPS)/runtime
ifeq ($(TORCH)$(TORCH_INDEX),)
	@echo "[3/4] torch $(TORCH_VERSION), CPU build (about 190 MB to download)"
	@$(PIP) --require-hashes --no-deps -r requirements/torch.txt \
	     --index-url $(TORCH_CPU_INDEX) --timeout 10 --retries 1 2> $(STAMPS)/torch.log \
	 || $(PIP) --require-hashes --no-deps -r requirements/torch.txt 2>> $(STAMPS)/torch.log \
	 || { echo "      no CPU build within reach (why: $(STAMPS)/torch.log); taking pip's default build, which may be far bigger"; \
	      $(PIP) torch==$(TORCH_VERSION); }
else
	@echo "[3/4] torch as asked for: $(or $(TORCH),torch==$(TORCH_VERSION)) $(TORCH_INDEX)"
	@$(BIN)/python -m pip uninstall --quiet --yes torch
	@$(PIP) $(and $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(or $(TORCH),torch==$(TORCH_VERSION))
endif
	@echo "$(strip $(TORCH) $(TORCH_INDEX))" > $@

$(STAMPS)/project: pyproject.toml src/aios_node/__init__.py $(STAMPS)/runtime $(STAMPS)/torch
	@echo "[4/4] AIOS Node itself"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check > $(STAMPS)/check.log || { cat $(STAMPS)/check.log >&2; exit 1; }
	@touch $@

$(STAMPS)/dev: requirements/dev.txt | $(STAMPS)/project
	@echo "[dev] tools for tests and linters, pinned and hashed (about 110 MB to download)"
	@$(PIP) --require-hashes --no-deps -r requirements/dev.txt
	@$(BIN)/python -m pip check > $(STAMPS)/check.log || { cat $(STAMPS)/check.log >&2; exit 1; }
	@touch $@

$(STAMPS)/bench: requirements/bench.txt | $(STAMPS)/dev
	@echo "[bench] what the benchmarks compare with, pinned and hashed (about 85 MB to download)"
	@$(PIP) --require-hashes --no-deps -r requirements/bench.txt
	@touch $@

$(STAMPS)/fuzz: requirements/fuzz.txt | $(STAMPS)/dev
	@echo "[fuzz] atheris, pinned and hashed (a wheel of 36 MB for x86-64; elsewhere pip builds it with clang)"
	@$(PIP) --require-hashes --no-deps -r requirements/fuzz.txt
	@touch $@

$(MODEL)/model.safetensors: | $(STAMPS)/project
	@echo "[model] all-MiniLM-L6-v2 for the tests (about 80 MB to download)"
	@$(BIN)/python -m aios_node.node.demo.minilm $(MODEL)
