# Two commands are enough on a fresh machine: `make demo` and `make test`. Each first runs scripts/setup, which does
# nothing when nothing has changed.
#
# ARGS goes to the program a target runs:  make test ARGS="tests/core -x"
# PYTHON names the interpreter for .venv:  make setup PYTHON=python3.12

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup test check bench mutate-sandbox torture simulate demo pin clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: ## Make .venv and install what the project needs
	@scripts/setup

test: setup ## Run the tests (ARGS goes to pytest)
	@scripts/test $(ARGS)

check: setup ## Lint, format check, types, architecture
	@scripts/check

bench: setup ## Measure, and print the figures
	@.venv/bin/python bench/bench_toka.py $(ARGS)

mutate-sandbox: setup ## Break the sandbox in many ways; each must make a test fail (minutes)
	@scripts/mutate-sandbox $(ARGS)

torture: setup ## Run the long forms of the reliability tests (minutes)
	@scripts/torture $(ARGS)

simulate: setup ## Simulate runs with faults from SEED, for STEPS or MINUTES; the same seed gives the same trace
	@SEED=$(SEED) STEPS=$(STEPS) MINUTES=$(MINUTES) JOBS=$(JOBS) scripts/simulate $(ARGS)

demo: setup ## Run a small team of agents, no key and no account needed
	@.venv/bin/toka demo $(ARGS)

pin: setup ## Pin the dependencies anew, with hashes
	@scripts/pin $(ARGS)

clean: ## Remove .venv and whatever tools and builds left behind
	@scripts/clean
