# Two commands: `make repro` runs the pipeline, `make test` lints and tests. Both set up .venv first.
PROFILE ?=
VENV := .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup repro test browser docs ui clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

# Installed anew only when the pins change.
$(VENV)/pipeline: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("gptmill needs Python 3.11 or later; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,serve]'
	@$(VENV)/bin/gptmill plots >/dev/null
	@touch $@

$(VENV)/test: $(VENV)/pipeline
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,serve,docs,sweep,test]'
	@touch $@

setup: $(VENV)/pipeline ## virtual environment with pinned packages

repro: $(VENV)/pipeline ## run the pipeline; PROFILE=name switches to profiles/name.yaml first
	@if [ -n "$(PROFILE)" ]; then gptmill profile "$(PROFILE)"; fi
	dvc repro
	@echo
	@echo "report:  $(CURDIR)/report/index.html"
	@echo "MLflow:  make ui"

# What the browser tests need: Debian's Chromium and two npm packages. Where they cannot be had those
# tests are skipped with a reason; in CI (CI=true) they fail.
browser: tests/browser/node_modules/.package-lock.json ## what the browser tests need
	@command -v chromium >/dev/null || { $(ROOT) apt-get update -qq && $(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; } \
		|| echo "chromium could not be installed: tests that need a browser are skipped"

tests/browser/node_modules/.package-lock.json: tests/browser/package-lock.json
	@npm ci --prefix tests/browser --ignore-scripts --no-audit --no-fund \
		|| echo "npm packages could not be installed: tests that need them are skipped"

test: $(VENV)/test browser ## ruff and every test
	ruff check .
	ruff format --check .
	python -m pytest -q -n 2 --dist loadfile

docs: $(VENV)/test ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "docs:  $(CURDIR)/site/index.html"

ui: $(VENV)/pipeline ## MLflow on loopback
	gptmill track ui

clean: ## remove what the pipeline made (not the environment, not the download cache)
	rm -rf data/* models/* report dvc_plots timings plots metrics .state/pretrain .state/finetune_* .dvc/cache .dvc/tmp
