# Everything a newcomer types. Each target makes the virtual environment it needs; all it takes is Python 3.11 or newer.

SHELL := bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Each is a distribution of its own, as another team's would be.
PLUGINS := $(wildcard plugins/*/pyproject.toml)
# For how many seconds faults are injected after the crash tests.
SECONDS ?= 180
# How many tests run side by side; most of them wait for something.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run check test crash conformance bench clean

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY)  ## Start everything here, with sample data; Ctrl-C stops it
	@mkdir -p .rota/uploads
	@ROTA_MAINTENANCE_UPLOAD_ROOT=$(CURDIR)/.rota/uploads exec $(BIN)/rota up --also "$(BIN)/python -m plugins.customer_service.simulation"

check: $(READY)  ## Format, lint, types and unit tests: quick
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit

test: check  ## All tests but the crash tests
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not crash" --ignore=tests/unit

crash: $(READY)  ## Kill and stop real processes, then inject faults for SECONDS=180
	CRASH_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m crash
	$(BIN)/python -m tests.faults --seconds $(SECONDS)

conformance: $(READY)  ## Run Dramatiq's own tests of its Redis broker against ours
	$(BIN)/python -m tests.conformance

bench: $(READY)  ## Measure, against bare Dramatiq on the same servers
	$(BIN)/python -m benchmarks

clean:  ## Remove what was made here, the data of `make run` included
	rm -rf $(VENV) .bench .rota .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find * -type d \( -name __pycache__ -o -name build -o -name dist -o -name '*.egg-info' \) -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt $(PLUGINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null \
		|| { echo "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@# Where packages come from is this machine's affair, and does not belong into a log.
	@set -o pipefail; $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		-e '.[dev]' $(PLUGINS:%/pyproject.toml=-e ./%) 2>&1 \
		| sed -E "s#[a-z+]+://[^[:space:]'\")]+#<address>#g; s#host='[^']*'#host=<address>#g"
	@touch $@
