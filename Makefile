# What a newcomer types: `make run` and `make test`. Each target makes the virtual environment that it needs, with Python 3.11 or newer
# and nothing else; only `make servers` needs packages of the system.

SHELL := bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Each is a distribution of its own, as another team's would be.
PLUGINS := $(wildcard plugins/*/pyproject.toml)
CONSTRAINTS := constraints.txt
# For how many seconds faults are injected.
SECONDS ?= 180
# How many tests run side by side; most of them wait for something.
JOBS ?= 3
# How many times a failed test is run again. 0 here, so that a flaky test is seen and mended; .ci/run has 1, and lists such tests.
RERUNS ?= 0
AGAIN = $(if $(filter-out 0,$(RERUNS)),--reruns $(RERUNS) --rerun-show-tracebacks --max-suite-reruns 10)
# A process that has no test left takes some of another. Until then the tests of a file stay in one process, with what they share.
SHARED = --dist worksteal $(AGAIN)
# The environment of `make lowest`.
LOWEST := .venv-lowest
# The integration tests of `make lowest`: those of what the dependencies do for us. The others are about time, crashes and races.
DEPENDENT := $(addprefix tests/integration/test_,$(addsuffix .py,actors cli cli_by_hand cli_terminal examples execution exposition migrate \
	new_plugin outbox redis_broker run_middleware running service_redis slots sweeps))
# The files that have crash tests. The others are not even read: pytest takes a quarter of a minute for all of them.
CRASHING = $(sort $(shell grep -rl --include="test_*.py" "mark\.crash" tests))
# The servers of `make servers`: `debian` starts those of the system's packages; `given` are those that DATABASE_URL and REDIS_URL name,
# which take one test at a time.
SERVERS ?= debian
# The tests that any servers can take: those that neither stop one nor look into its files.
SERVED := $(addprefix tests/integration/test_,$(addsuffix .py,leases slots outbox recovery relay running redis_broker migrate))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run check test integration conformance crash faults lowest servers bench clean

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY)  ## Start everything here, with sample data; Ctrl-C stops it
	@mkdir -p .rota/uploads .rota/mail
	@ROTA_MAINTENANCE_UPLOAD_ROOT="$(CURDIR)/.rota/uploads" \
		ROTA_MAIL_STORE="file://$(CURDIR)/.rota/mail" MAIL_SECRET_SIMULATED=simulated \
		ROTA_INVITES_GATEWAY=http://127.0.0.1:9195 INVITES_SIMULATED_MEMBERS="$(CURDIR)/.rota/invites-members" exec $(BIN)/rota up \
		--also "$(BIN)/python -m plugins.customer_service.simulation" --also "$(BIN)/python -m plugins.mail.simulation" \
		--also "$(BIN)/python -m plugins.invites.simulation"

check: $(READY)  ## Format, lint, spelling, types and unit tests: quick
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(SHARED) -n $(JOBS) tests/unit

test: check integration conformance crash faults  ## All tests that need nothing but Python

integration: $(READY)  ## All tests but those of the other targets
	$(BIN)/python -m pytest -q $(SHARED) -n $(JOBS) -m "not crash" --ignore=tests/unit --ignore=tests/servers

conformance: $(READY)  ## Run Dramatiq's own tests of its Redis broker against ours
	$(BIN)/python -m tests.conformance

crash: $(READY)  ## Kill, stop and cut off real processes
	CRASH_SECONDS=$(SECONDS) $(BIN)/python -m pytest -q $(SHARED) -n $(JOBS) -m crash $(CRASHING)

faults: $(READY)  ## Inject faults by a seed for SECONDS=180, and check every run
	$(BIN)/python -m tests.faults --seconds $(SECONDS)

lowest: $(READY)  ## Run unit tests and chosen integration tests with the lowest versions that pyproject.toml allows
	@mkdir -p $(LOWEST)
	@$(BIN)/python .ci/lowest.py > $(LOWEST)/constraints.txt
	@$(MAKE) --no-print-directory VENV=$(LOWEST) CONSTRAINTS=$(LOWEST)/constraints.txt $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -q $(SHARED) -n $(JOBS) tests/unit $(DEPENDENT)

servers: $(READY)  ## Run the tests that need PostgreSQL, Redis, PgBouncer, Dovecot, nginx and Prometheus of the system's packages
	@$(BIN)/python -m tests.servers $(SERVERS)
	$(BIN)/python -m pytest -q $(SHARED) -n $(if $(filter given,$(SERVERS)),0,$(JOBS)) --servers=$(SERVERS) tests/servers $(SERVED)

bench: $(READY)  ## Measure, against bare Dramatiq on the same servers
	$(BIN)/python -m benchmarks

clean:  ## Remove what was made here, the data of `make run` included
	rm -rf $(VENV) $(LOWEST) .bench .rota .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find * -type d \( -name __pycache__ -o -name build -o -name dist -o -name '*.egg-info' \) -prune -exec rm -rf {} +

$(READY): pyproject.toml $(CONSTRAINTS) $(PLUGINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null \
		|| { echo "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@# `compat` puts this folder on the path, where mypy finds `core` for a plugin's author; it cannot follow setuptools' other way.
	@$(call install,--config-settings editable_mode=compat -e '.[dev]')
	@$(call install,$(PLUGINS:%/pyproject.toml=-e ./%))
	@touch $@

# The addresses of package indexes are this machine's affair, and do not belong into a log.
install = set -o pipefail; $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) $(1) 2>&1 \
	| sed -E "s\#[a-z+]+://[^[:space:]'\")]+\#<address>\#g; s\#host='[^']*'\#host=<address>\#g"
