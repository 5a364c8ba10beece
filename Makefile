# Every target makes what it needs: .venv, the locked packages, OpenBLAS (Linux), Asar (where it can be built).
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
AFS := $(BIN)/afs-mlx
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup check lint types contracts docs-check format test test-slow test-smollm2 test-all lock lock-check bench parity train-din-v2 chat clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The default python3 may be older: versioned names first, then python3 itself, then pyenv's own folder.
$(BIN)/python:
	@py=; for p in python3.13 python3.12 python3.14 python3 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[234]*/bin/python3; do \
	  if "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then py="$$p"; break; fi; \
	done; \
	if [ -z "$$py" ]; then \
	  echo "error: no Python 3.12, 3.13 or 3.14 with venv was found on PATH or in pyenv" >&2; \
	  echo "fix: brew install python@3.13 (macOS), apt-get install python3-venv (Debian 13), or pyenv install 3.13, then make again" >&2; exit 3; \
	fi; \
	echo "Python: $$("$$py" --version) ($$py)"; "$$py" -m venv $(VENV)

$(STAMP): requirements/lock.txt requirements/asar.txt pyproject.toml Makefile | $(BIN)/python
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/asar.txt 2>$(VENV)/asar.log \
	  || command -v asar >/dev/null \
	  || echo "notice: Asar could not be installed (see $(VENV)/asar.log); assembly will be reported as \"not verified\"" >&2
	@touch $@

setup: $(STAMP) $(VENV)/.openblas ## make .venv with the locked packages

# mlx's Linux wheel is linked against reference BLAS; OpenBLAS makes float32 about 20 times faster. Tried once for each .venv:
# without it all is slow, not wrong.
$(VENV)/.openblas: | $(STAMP)
	@if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null; then \
	  root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; apt="$$root apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20"; \
	  if command -v apt-get >/dev/null && { $$apt install -y libopenblas0-pthread || { $$apt update && $$apt install -y libopenblas0-pthread; }; } >$(VENV)/openblas.log 2>&1; \
	  then echo "installed libopenblas0-pthread"; \
	  else echo "notice: OpenBLAS is missing and could not be installed; training on this CPU will be about 20 times slower. Install libopenblas0-pthread (Debian, Ubuntu) or openblas (Fedora, Arch)." >&2; fi; \
	fi; touch $@

train-din-v2: setup ## the main job: data, train, evaluate, fuse, export; prints a report
	@$(AFS) build din@v2 --pull

chat: setup ## talk to an expert: make chat EXPERT=din
	@$(AFS) chat --expert $(or $(EXPERT),auto)

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports --no-cache

docs-check: setup
	$(BIN)/python docs/commands.py --check

test: setup ## the unit tests: tiny models, no network, some minutes on two cores
	$(BIN)/pytest -m "not smollm2 and not slow"

test-slow: setup ## trainings killed at random moments, every switch with every other, each curated row
	$(BIN)/pytest -m "slow and not smollm2"

test-smollm2: setup ## the tests with the embedded base and the README's commands
	$(AFS) pull smollm2-135m
	$(BIN)/pytest -m smollm2 --timeout 1200

test-all: test test-slow test-smollm2 ## all of them

check: lint types contracts docs-check lock-check test ## everything a change must pass

lock: setup ## resolve the dependencies again into requirements/*.txt
	$(BIN)/uv pip compile --universal --python-version 3.12 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet --group dev pyproject.toml -o requirements/lock.txt
	$(BIN)/uv pip compile --universal --python-version 3.12 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet requirements/asar.in -o requirements/asar.txt

# The lock must resolve where we cannot run it, too: wheels for macOS 14 arm64 and Linux, on each Python we name.
lock-check: export MACOSX_DEPLOYMENT_TARGET := 14.0
lock-check: setup
	@for platform in aarch64-apple-darwin x86_64-manylinux_2_35; do for python in 3.12 3.13 3.14; do \
	  $(BIN)/uv pip install --dry-run --quiet --target $(VENV)/lock-check --python-platform $$platform --python-version $$python --only-binary :all: --require-hashes -r requirements/lock.txt \
	    || { echo "error: requirements/lock.txt does not resolve for $$platform, Python $$python; run make lock and look at the package named above" >&2; exit 1; }; \
	done; done; echo "lock resolves: macOS arm64 and Linux x86-64, Python 3.12 to 3.14"

bench: setup ## speed and memory as ratios against mlx-lm, measured side by side
	$(BIN)/python -m benchmarks

# An environment of its own (torch is 200 MB and more); PARITY_PYTHON names another Python than .venv's.
PARITY := $(VENV)/parity
$(PARITY)/.installed: requirements/parity.txt | $(STAMP)
	$(or $(PARITY_PYTHON),$(BIN)/python) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/parity.txt
	@touch $@

parity: setup $(PARITY)/.installed ## adapters made anew by live PEFT and torch: the same logits in mlx-lm
	@rm -rf $(PARITY)/golden && mkdir -p $(PARITY)/golden
	$(BIN)/python -c "from pathlib import Path; from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2; build_tiny_qwen2(Path('$(PARITY)/golden/tiny-qwen2'), seed=0)"
	HF_HUB_OFFLINE=1 $(PARITY)/bin/python tests/golden/peft/make_golden.py --base $(PARITY)/golden/tiny-qwen2 --out $(PARITY)/golden
	AFS_MLX_PEFT_GOLDEN=$(PARITY)/golden AFS_MLX_PARITY_PYTHON=$(abspath $(PARITY))/bin/python $(BIN)/pytest tests/engine/test_peft_logits.py

clean: ## remove the environment and caches, never adapters, fused models or data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
