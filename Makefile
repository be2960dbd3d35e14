# Everything runs from here; nothing needs to be done before. `make help` lists the targets.
# PYTHON=/path/to/python3.x chooses the interpreter for .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export ORT_DISABLE_TELEMETRY := 1
export PYTHONUNBUFFERED := 1

PY := .venv/bin/python

.PHONY: help demo test check bench format lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

.venv/.demo: requirements/demo.txt requirements/model.txt pyproject.toml scripts/setup
	@scripts/setup demo

.venv/.dev: requirements/dev.txt requirements/model.txt pyproject.toml scripts/setup
	@scripts/setup dev

demo: .venv/.demo ## the main job on a real model, end to end; ONCE=1 stops after the closing table
	@exec $(PY) -m demo $(if $(filter-out 0,$(ONCE)),--once)

test: .venv/.dev ## all tests; POCKETFLEET_TEST_POSTGRES and POCKETFLEET_TEST_RABBITMQ add the production stack
	@scripts/run-tests $(ARGS)

check: .venv/.dev ## format, lint, types, layers, migrations, API schema: what CI runs beside the tests
	@scripts/check

bench: $(if $(NAME),.venv/.dev,.venv/.demo) ## list the benchmarks; NAME=x runs one
	@$(PY) -m benchmarks $(NAME)

format: .venv/.dev ## rewrite the code in the house format
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

lock: .venv/.dev ## compile pyproject.toml's extras into requirements/*.txt, with hashes
	@scripts/lock

clean: ## remove environments and all local state
	rm -rf .venv .venvs var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
