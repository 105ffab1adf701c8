# `make` lists the targets. Each target that needs the environment makes it first; it is reused while the dependencies stand.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Each process begins with its share of the tests in their order, and takes from others what they have not begun: none waits at the end.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
# Processes that tests start find compiled what others compiled; a surrounding that forbids it has every one compile all anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow gpu-check check format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt torch setuptools wheel
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --no-build-isolation -c constraints.txt deepspeed
	$(RUN) -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## run the whole pipeline on the shipped data (a few minutes)
	$(RUN) -m pipelines.run experiment=demo

test: check ## check, then every test that is not slow (13 minutes on 2 cores)
	$(RUN) -m pytest -m 'not slow' $(PARALLEL)

test-slow: $(STAMP) ## the tests that take minutes each
	$(RUN) -m pytest -m slow

gpu-check: $(STAMP) ## what wants a GPU: correctness against the CPU, then benchmarks; resumable (skips itself without one)
	$(RUN) -m pipelines.gpu_check

check: $(STAMP) ## ruff, mypy, architecture
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest tests/test_architecture.py

format: $(STAMP) ## let ruff format and mend what it can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean: ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build
