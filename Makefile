# `make demo` and `make test` do all set-up themselves; a second call finds it done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.triemo-installed
# What pytest is given besides: `make test PYTEST="-m corpora"` runs the tests that read the corpora.
PYTEST ?=
# Two processes: the suite is written to run on two cores. `make test WORKERS=8` on a larger machine.
WORKERS ?= 2
CODE := modeling processing training serving tests .ci

# Corpora and, if they are there, local copies of the public encoders, for `make checkpoint`.
DATA ?= $(or $(TRIEMO_DATA),../shared/data)
WEIGHTS ?= ../shared/weights

.PHONY: help venv demo test conformance checkpoint style quality clean

help:
	@echo "make demo     set up, then show the prediction for the demo clip, all seven subsets of its modalities"
	@echo "make test     set up, then run the whole test suite"
	@echo "make checkpoint  train and measure checkpoints/triemo-small again (hours; DATA=folder of the corpora)"
	@echo "make conformance  the library's own shared tests on our classes; fetches the installed release's (half an hour)"
	@echo "make venv     set up only: $(VENV) with everything that the demo and the tests need"
	@echo "make style    format the code and mend what ruff can mend"
	@echo "make quality  ruff, mypy on modeling and processing, docstring defaults equal code defaults"
	@echo "make clean    remove caches and builds ($(VENV) stays)"

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, got $$($(PYTHON) --version 2>&1): make PYTHON=python3.11 venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m triemo.serving.repair_torchaudio
	@touch $@

demo: venv
	@$(BIN)/triemo demo

test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

conformance: venv
	$(BIN)/python tests/conformance/shared_tests.py

checkpoint: venv
	$(BIN)/python training/recipes/release.py --data $(DATA) $(if $(wildcard $(WEIGHTS)),--weights $(WEIGHTS))

style: venv
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

quality: venv
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy modeling processing
	$(BIN)/python .ci/check_docstrings.py

clean:
	rm -rf build dist .ruff_cache .mypy_cache .pytest_cache .hypothesis *.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
