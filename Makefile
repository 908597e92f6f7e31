# Everything happens in .venv inside the checkout; nothing is installed globally.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= build/demo

.PHONY: setup demo test check format bench airflow clean

setup: $(VENV)/.installed

# The stamp makes set-up incremental: it is redone only when what it installs has changed.
$(VENV)/.installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/beamtag tag --input=transforms/data/demo_archive --labels=everyday --output=$(DEMO_OUTPUT)

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python tests/benchmarks/run_all.py

# An Airflow in an environment of its own, for tests/integration/test_airflow.py.
airflow: build/airflow/.installed

build/airflow/.installed: deploy/airflow/requirements.txt
	test -x build/airflow/bin/python || $(PYTHON) -m venv build/airflow
	build/airflow/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
