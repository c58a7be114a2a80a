# Every target does its own set-up from nothing; a second call installs nothing.
#
#   make PYTHON=python3.12 test    another interpreter (3.11 or later)
#   make JOBS=0 test               one test process instead of two
#
# GNU make ends with status 2 whenever a command fails. Where the four exit statuses of calibrant matter
# (0 pass, 1 fail, 2 inconclusive, 3 tool error), run .venv/bin/calibrant itself.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.installed
# One thread a process: small tensors gain nothing from more, and two test processes share two cores. Compiled files
# are kept, whatever the shell says: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
PEERS := $(patsubst benchmarks/peers/%.txt,%,$(wildcard benchmarks/peers/*.txt))
RACES := $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/[a-z]*.py))

.PHONY: setup demo test test-all check lint bench peers docs weights clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/calibrant demo

test: $(READY)
	$(PYTEST) tests

# What is too long for every commit: tables of model families, many seeds, whole studies. Nothing of 'make test' is in it.
test-all: $(READY)
	$(PYTEST) -m 'slow and not peers and not long' tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tools benchmarks
	$(BIN)/lint-imports

# Tier 1 (within a minute), then tier 2 (within three): what to run before every commit.
check: lint
	$(PYTEST) tests/core tests/maths tests/stats tests/data tests/ledger tests/govern
	$(PYTEST) tests/contracts

# A race that loses is published like one that wins; one whose two sides disagree stops here.
bench: $(READY) peers
	@mkdir -p benchmarks/results
	@for race in $(RACES); do \
	  echo "== $$race" >&2; \
	  $(BIN)/python benchmarks/$$race.py > benchmarks/results/$$race.new || \
	    { rm -f benchmarks/results/$$race.new; exit 1; }; \
	  mv benchmarks/results/$$race.new benchmarks/results/$$race.json; \
	done
	$(BIN)/python tools/bench_table.py

# Peers that clash with Calibrant's own libraries get an environment each: .peers/NAME from benchmarks/peers/NAME.txt,
# whose own pins go before constraints.txt.
peers: $(READY) $(PEERS:%=.peers/%/.installed)

.peers/%/.installed: benchmarks/peers/%.txt constraints.txt
	test -x .peers/$*/bin/python || $(PYTHON) -m venv .peers/$*
	grep -vwF "$$(sed -n 's/==.*//p' $<)" constraints.txt > .peers/$*/constraints.txt || true
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -c .peers/$*/constraints.txt -r $<
	@echo "== .peers/$*" && .peers/$*/bin/python -m pip freeze --disable-pip-version-check
	@touch $@

docs: $(READY)
	$(BIN)/python tools/docs.py

# The testbed's models, raised again from scratch with their figures: about two hours on two quiet cores, and it goes on after a kill.
weights: $(READY)
	$(BIN)/calibrant run rebuild_testbed
	$(BIN)/python tools/weights.py

# The ledger (.calibrant) is evidence, so it stays.
clean:
	rm -rf .venv .peers dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests tools benchmarks -name __pycache__ -type d -exec rm -rf {} +
