# make reproduce: the whole study.  make test: every quick check.  make ui: look at the runs.
# PYTHON= chooses the interpreter (3.11 or newer), CORES= the cores, CONFIG= the study.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONFIG ?= config/quick.yaml
STUDY = results/$(basename $(notdir $(CONFIG)))
PORT ?= 5000

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
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: reproduce test test-systems test-slow test-faults bench lint format manual ui lock clean help

reproduce: $(READY)
	@python workflow/reproduce.py $(CONFIG) $(if $(CORES),--cores $(CORES))

test: lint
	python -m pytest

# Every system on every architecture: minutes.
test-systems: $(READY)
	python -m pytest tests/slow/test_systems.py

# For every module which jobs an edit of it runs again; what the screen answers: minutes.
test-slow: $(READY)
	python -m pytest tests/slow/test_digests.py tests/slow/test_answers.py

# Runs that are killed, damaged, starved of disk or memory, moved or called twice; what was lost, in a table: minutes.
test-faults: $(READY)
	python -m pytest tests/faults

# Speed, as a table of medians and ratios: results/bench/report.md. About half an hour; BENCH="-k sweep" for a part.
bench: $(READY)
	@$(UV) pip install --quiet --no-deps --require-hashes -r bench/requirements.lock
	@mkdir -p results/bench
	python -m pytest bench -k "not evaluation" $(TIMED)=results/bench/benchmarks.json $(BENCH)
	$(if $(BENCH),,FREED_MEMORY_GIVEN_BACK=1 python -m pytest bench/test_imagenet_size.py bench/test_inference.py \
		bench/test_training.py -k "evaluation or 256-fp32 or kept" $(TIMED)=results/bench/given-back.json)
	@python bench/report.py results/bench/report.md results/bench/benchmarks.json \
		$(if $(BENCH),,results/bench/given-back.json)

TIMED = -q -W ignore --benchmark-disable-gc --benchmark-json

lint: $(READY)
	ruff check .
	ruff format --check .
	snakefmt --check workflow
	mypy
	lint-imports --no-cache > /dev/null || lint-imports --no-cache
	snakemake --lint --configfile config/quick.yaml

format: $(READY)
	ruff check --fix .
	ruff format .
	snakefmt workflow

# After changing a key of a study: the manual's tables and the editors' schema.
manual: $(READY)
	python -m ztw.study.manual

ui: $(READY)
	@python -c 'from pathlib import Path; from ztw.reporting.sqlite_store import relocate; \
		relocate(Path("$(STUDY)/mlflow.db"))'
	@echo "MLflow: http://127.0.0.1:$(PORT) (Ctrl-C stops it)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
		--backend-store-uri sqlite:///$(STUDY)/mlflow.db

# The environment: uv from pip, then every package pinned with hashes.
$(READY): requirements.lock tools.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON=$(PYTHON): Python 3.11 or newer is needed"; exit 1; }
	@echo "setting up .venv (once; about 6 GB, torch being most of it)"
	@$(PYTHON) -m pip install --quiet --upgrade --target .tools --require-hashes -r tools.lock \
		--disable-pip-version-check --root-user-action=ignore
	@$(UV) venv --quiet --clear --python $(PYTHON) .venv
	@$(UV) pip sync --require-hashes --quiet requirements.lock
	@python -c 'import site, pathlib; pathlib.Path(site.getsitepackages()[0], "ztw.pth").write_text("$(CURDIR)\n")'
	@touch $(READY)

# After changing pyproject.toml; names no address.
lock: $(READY)
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --all-extras --python-version 3.11 \
		pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-deps --python-version 3.11 \
		bench/requirements.in -o bench/requirements.lock

clean:
	rm -rf .venv .tools .snakemake .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

help:
	@sed -n 's/^# make/make/p; s/^# \([A-Z]*=\)/\1/p' Makefile
