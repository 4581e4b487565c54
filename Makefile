# `make demo` shows what this does, `make test` and `make check` are what a change must pass.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lastro-setup
WORKERS ?= 2
TESTS ?= tests

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z][a-z-]*):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: $(STAMP) ## make .venv from requirements.lock and install the project into it, editable

# No dependency is resolved here: the lock is the whole closure, for every supported Python.
$(STAMP): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ]; then PYTHON="$(PYTHON)" bash tests/services/make-venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@

.PHONY: demo
demo: setup ## show a loss and a recovery on made-up tenants, then serve the page
	$(BIN)/python manage.py migrate --verbosity 0
	$(BIN)/python manage.py demo $(ARGS)

.PHONY: services
services: setup ## install or fetch the servers for the tests (PostgreSQL, OpenSSH, azurite) where they are not found
	@bash tests/services/install-postgres
	@$(BIN)/python -m tests.services.cached_programs

.PHONY: test
test: setup services ## run the suite on real servers that it starts itself (TESTS=… for a part)
	LASTRO_TEST_HISTORIES=$${LASTRO_TEST_HISTORIES:-1000} $(BIN)/python -m pytest -n $(WORKERS) $(TESTS) $(ARGS)

.PHONY: check lint types layers rules
check: lint types layers rules ## style, types, layers, sizes, names (make -k check: all of them, whatever fails)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The Django plugin loads the settings, which make their keys in LASTRO_DATA.
types: setup
	@mkdir -p .mypy_cache
	LASTRO_DATA=.mypy_cache/lastro-data $(BIN)/mypy

layers: setup
	$(BIN)/lint-imports --no-logo

rules: setup
	$(BIN)/python -m pytest -q tests/architecture

.PHONY: format
format: setup ## write the code in the house's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: soak
soak: setup services ## the long seeded runs (LASTRO_TEST_SCALE multiplies their counts)
	LASTRO_TEST_SCALE=$${LASTRO_TEST_SCALE:-10} LASTRO_TEST_HISTORIES=$${LASTRO_TEST_HISTORIES:-10000} $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "soak or seeded" $(TESTS) $(ARGS)

.PHONY: bench
bench: setup ## measure speed and size against peers (ARGS="files --scale 0.1" for a part)
	$(BIN)/python -m tests.bench $(ARGS)
