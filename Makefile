# `make` alone lists the targets: each line `target: ## what it does` below.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= config/quick.yaml
# The path of a study's file may have spaces. Its name may not; reproduce.py refuses such a name.
STUDY = results/$(basename $(notdir $(lastword $(CONFIG))))
PORT ?= 5000
# For mlflow-server. HOST is never taken from the environment, because shells set a variable of this name.
HOST = 127.0.0.1
STORE ?= sqlite:///results/mlflow-server/mlflow.db

# Snakemake passes the path of its Python, which is in this folder, to a shell without quotes.
UNFIT := $(shell pwd | LC_ALL=C tr -d 'A-Za-z0-9._/+@,=~%\n\200-\377-' | tr ' \t' __)
$(if $(UNFIT),$(error the path of this folder has a space or another character that shells treat specially; move the folder))

BIN := $(CURDIR)/.venv/bin
UV := $(CURDIR)/.tools/bin/uv
READY := .venv/.ready

export PATH := $(BIN):$(PATH)
export UV_PYTHON_DOWNLOADS = never
export UV_SYSTEM_CERTS = true
export UV_COMPILE_BYTECODE = 1
export VIRTUAL_ENV = $(CURDIR)/.venv
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true
# Recipes read these variables from the environment, so that a shell runs no part of their values.
export CONFIG CORES PROFILE STUDY PORT
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: reproduce test test-systems test-slow test-faults test-slurm test-docs docs bench lint format manual ui mlflow-server lock audit clean help

# Parallel tests: a waiting thread must not use a core that another test needs.
test test-systems test-slow test-faults test-slurm: export OMP_WAIT_POLICY = passive

reproduce: $(READY) ## run a study, with set-up: data, training, tables, figures, report
	@python workflow/reproduce.py "$$CONFIG" $(if $(CORES),--cores "$$CORES") $(if $(PROFILE),--profile "$$PROFILE")

# In two processes. A file's tests run in the same process, so that shared fixtures are set up once.
test: lint ## all quick checks, and a tiny study
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

# Every system on every architecture. Takes minutes.
test-systems: $(READY) ## every system on every architecture (an hour)
	python -m pytest tests/slow/test_systems.py

# Which jobs run again after an edit of each module; real runs, a tracking server, exports. Takes minutes.
test-slow: $(READY) ## real runs, exports, many models, what runs again after an edit (an hour)
	python -m pytest tests/slow/test_digests.py tests/slow/test_real_runs.py tests/slow/test_tracking_server.py tests/slow/test_exports.py \
		tests/slow/test_torchvision.py tests/slow/test_any_model.py tests/slow/test_wheel.py

# Runs that are killed, damaged, moved, started twice, or run out of disk or memory; prints what was lost. Takes minutes.
test-faults: $(READY) ## kills, damage, full disks: what is lost (20 minutes)
	python -m pytest -n 2 --dist loadfile tests/faults

# The report and the documentation in headless Chromium.
test-docs: $(READY) ## the report and the documentation, in headless Chromium
	python -m pytest -rs tests/browser

# A real Slurm with one node on this machine, as root. Installs slurm-wlm and munge where allowed. Takes minutes.
test-slurm: $(READY) ## a real Slurm on this machine, as root (10 minutes)
	if unshare --mount true 2> /dev/null; then OWN_MOUNTS=1 unshare --mount python -m pytest -rs tests/slurm; \
		else python -m pytest -rs tests/slurm; fi

# The documentation, from docs/ and results/reference: site/index.html. Needs no network.
docs: $(READY) ## this documentation as a site, in site/
	python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# Speed, as a table of medians and ratios: results/bench/report.md. Takes about half an hour; BENCH="-k sweep" runs a part.
bench: $(READY) ## speed, as a table of medians and ratios (half an hour)
	@$(UV) pip install --quiet --no-deps --require-hashes -r bench/requirements.lock
	@mkdir -p results/bench
	python -m pytest bench -k "not evaluation" $(TIMED)=results/bench/benchmarks.json $(BENCH)
	$(if $(BENCH),,FREED_MEMORY_GIVEN_BACK=1 python -m pytest bench/test_imagenet_size.py bench/test_inference.py \
		bench/test_training.py -k "evaluation or 256-fp32 or kept" $(TIMED)=results/bench/given-back.json)
	@python bench/report.py results/bench/report.md results/bench/benchmarks.json \
		$(if $(BENCH),,results/bench/given-back.json)

TIMED = -q -W ignore --benchmark-disable-gc --benchmark-json

lint: $(READY) ## style, types and imports
	ruff check .
	ruff format --check .
	snakefmt --check workflow
	mypy
	lint-imports --no-cache > /dev/null || lint-imports --no-cache
	snakemake --lint --configfile config/quick.yaml

format: $(READY) ## format all code
	ruff check --fix .
	ruff format .
	snakefmt workflow

# Run after a change of a study's keys: writes the manual's tables and the editors' schema.
manual: $(READY) ## write the manual's tables and the editors' schema from the settings
	python -m ztw.study.manual

ui: $(READY) ## show the runs of a study in MLflow
	@python workflow/ui.py "$$STUDY" "$$PORT"

# A tracking server for studies whose jobs run on several machines (`tracking: http://<this machine>:5000`). It also stores
# the artifacts of runs. Everybody who can reach the server can read and write, so use HOST=0.0.0.0 only in a private network.
# For clients that use the server's name, set MLFLOW_SERVER_ALLOWED_HOSTS=<name>:5000. STORE=postgresql://... needs the
# package psycopg2-binary in .venv. Set a STORE with a password in the environment, where `ps` does not show it.
mlflow-server: export MLFLOW_BACKEND_STORE_URI = $(STORE)
mlflow-server: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
# One connection per thread. With fewer, the server refuses some of a hundred parallel cells.
mlflow-server: export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE = 40
mlflow-server: $(READY) ## MLflow for a study on several machines
	@mkdir -p results/mlflow-server
	@echo "MLflow: http://$(HOST):$(PORT) (Ctrl-C stops it)"
	@mlflow server --host $(HOST) --port $(PORT) --workers 1 --artifacts-destination results/mlflow-server/artifacts

# The environment: pip installs uv, uv installs all packages, pinned with hashes.
$(READY): requirements.lock tools.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON=$(PYTHON): Python 3.11 or newer is needed"; exit 1; }
	@echo "setting up .venv (once; about 6 GB, mostly torch)"
	@"$(PYTHON)" -m pip install --quiet --upgrade --target .tools --require-hashes -r tools.lock \
		--disable-pip-version-check --root-user-action=ignore
	@$(UV) venv --quiet --clear --python "$(PYTHON)" .venv
	@$(UV) pip sync --require-hashes --quiet requirements.lock
	@python -c 'import os, pathlib, site; \
		pathlib.Path(site.getsitepackages()[0], "ztw.pth").write_text(os.getcwd() + "\n")'
	@touch $(READY)

# Run after a change of pyproject.toml. The locks hold no URL of an index.
lock: $(READY) ## pin all packages again, after a change of pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --all-extras --python-version 3.11 \
		pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-deps --python-version 3.11 \
		bench/requirements.in -o bench/requirements.lock

# Known vulnerabilities of the pinned packages, from PyPI's advisories.
audit: $(READY) ## known vulnerabilities of the pinned packages
	@python .ci/audit.py requirements.lock tools.lock bench/requirements.lock

clean: ## remove the environment and caches
	rm -rf .venv .tools .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

# Targets from the lines with ##, and the variables.
help: ## this list
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "  PYTHON=         interpreter for the set-up, 3.11 or newer"
	@echo "  CONFIG=         study, default config/quick.yaml"
	@echo "  CORES=          number of cores, default all"
	@echo "  PROFILE=        a cluster, e.g. slurm (docs/cluster.md)"
