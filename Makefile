# Zoetrope's commands. A fresh machine needs Python 3.11 or 3.12 and make, no more.
#
#   make demo    a real photo in, a real video out, through the public API
#   make test    the whole suite, on real Postgres, Redis and S3
#   make up      the whole stack until Ctrl-C
#   make check   format, lint, types, import contracts, migrations, deploy checks

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install --disable-pip-version-check
# The first Python that runs and is one we support: a version manager's stand-in may not.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && command -v $$name && break; done)
# A picture classifier, if one is there: its worker needs PyTorch.
JUDGE := $(wildcard $(or $(WEIGHTS_DIR),$(or $(ZOETROPE_HOME),.data)/weights)/safety/config.json)
WORKERS ?= 2
CODE := manage.py project jobs billing inference tests $(wildcard benchmarks)

.PHONY: help demo up test chaos check format bench worker-gpu pins clean

help:
	@sed -n 's/^#   //p' Makefile

# --- what is installed: one stamp per requirements file, so that nothing runs twice -----
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Zoetrope needs Python 3.11 or 3.12." >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half of one looks whole

$(VENV)/.base: requirements/base.txt requirements/embedded.txt | $(BIN)/python
	@echo "installing what the stack needs"
	@$(PIP) -r requirements/base.txt -r requirements/embedded.txt
	@touch $@

$(VENV)/.gpu: requirements/gpu.txt $(VENV)/.base
	@echo "installing PyTorch and diffusers"
	@$(PIP) -r requirements/base.txt -r requirements/gpu.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.gpu
	@echo "installing what the tests and checks need"
	@$(PIP) -r requirements/base.txt -r requirements/dev.txt
	@touch $@

# --- run ------------------------------------------------------------------------------
demo: $(VENV)/$(if $(filter wan%,$(MODEL))$(JUDGE),.gpu,.base)
	@$(PY) manage.py demo --stop-with-parent $(if $(MODEL),--model $(MODEL)) $(if $(PROVIDER),--provider $(PROVIDER))

up: $(VENV)/$(if $(JUDGE),.gpu,.base)
	@$(PY) manage.py up --stop-with-parent

worker-gpu: $(VENV)/.gpu
	@$(PY) manage.py worker_gpu

bench: $(VENV)/.dev
	@$(PY) -m benchmarks $(BENCH)

# --- prove ----------------------------------------------------------------------------
test: $(VENV)/.dev
	@$(BIN)/pytest -n $(WORKERS) -q $(ARGS)

chaos: $(VENV)/.dev
	@$(BIN)/pytest -m chaos -v $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(PY) -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run --settings tests.settings
	PUBLIC_URL=https://zoetrope.example TRUSTED_PROXIES=192.0.2.1 $(PY) -W error manage.py check --deploy --fail-level WARNING --settings tests.settings

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Compiles requirements/*.in for both Pythons; needs uv on the PATH. What a CUDA build of
# torch pulls in is left to torch: a CPU machine must not need it.
pins:
	@for name in base embedded gpu dev; do \
		uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
			--no-emit-index-url --no-emit-find-links requirements/$$name.in \
			$$(test $$name = base || echo -c requirements/base.txt) \
			$$(test $$name != dev || echo -c requirements/gpu.txt) \
			-o requirements/$$name.txt || exit 1; \
	done
	@sed -i -E "/^(nvidia-|cuda-|triton)/d; /sys_platform == '(emscripten|win32)'/d; \
		s/ ; sys_platform != 'emscripten'$$//; s/ and sys_platform != 'emscripten'//" requirements/*.txt

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
