# Two commands on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_RUN := runs/digits-mlp
GATE_RUN := runs/gate

.DEFAULT_GOAL := help
.PHONY: help install demo example test gate lint format types bench accuracy clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv and install the pinned dependencies

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Score the bundled trajectory and write the report
	$(BIN)/evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --batches 20 --out $(DEMO_RUN)
	$(BIN)/evalkit report $(DEMO_RUN)

example: demo ## Replace the example report under reports/ by that of the demo
	rm -rf reports/digits-mlp
	mkdir -p reports
	cp -r $(DEMO_RUN) reports/digits-mlp

test: lint types gate ## Check format, types and scores, and run every test
	$(BIN)/python -m pytest

# One thread: small batches gain nothing from more.
gate: $(INSTALLED) ## Check the scores of the bundled trajectory against their baseline
	rm -rf $(GATE_RUN)
	OMP_NUM_THREADS=1 $(BIN)/evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --batches 8 --batch-size 16 --out $(GATE_RUN)
	$(BIN)/evalkit check $(GATE_RUN) --baseline reports/baselines/digits-mlp.csv

lint: $(INSTALLED) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## Check the type hints
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure the engine beside its peers: reports/benchmarks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks --write

accuracy: $(INSTALLED) ## Measure the errors of float32 scores: reports/accuracy.md
	$(BIN)/python -m tests.benchmarks.accuracy --write

clean: ## Remove the environment and all runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
