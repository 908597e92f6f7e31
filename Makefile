# Everything happens in .venv inside the checkout; nothing is installed globally.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= build/demo

# What only the integration tests need is fetched into build/, by the languages' own clients.
BEAM := 2.77.0
FLINK := 1.19.3
# Of Beam's runner for Flink the newest that all of its dependencies are published for.
FLINK_RUNNER := 2.62.0

.PHONY: setup demo test check format bench prism flink airflow integration clean

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

prism: build/bin/prism

build/bin/prism:
	GOBIN=$(CURDIR)/build/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM)

# Beam's own program that starts Python workers.
build/bin/container:
	GOBIN=$(CURDIR)/build/bin go install github.com/apache/beam/sdks/v2/python/container@v$(BEAM)

flink: build/flink/lib build/jobserver build/bin/container

# Its package for Python holds the whole distribution, without the scripts.
build/flink/lib: | $(VENV)/.installed
	rm -rf build/flink build/flink.part
	$(BIN)/python -m pip download --quiet --no-deps --no-binary=:all: -d build/flink.part apache-flink-libraries==$(FLINK)
	tar xzf build/flink.part/*.tar.gz -C build/flink.part --strip-components=2 --wildcards '*/deps/lib/*' '*/deps/bin/*'
	rm build/flink.part/*.tar.gz
	mv build/flink.part build/flink

build/jobserver: deploy/flink/pom.xml
	rm -rf $@ $@.part
	mvn -q -B -f deploy/flink/pom.xml -Dbeam.version=$(FLINK_RUNNER) dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$@.part
	mv $@.part $@

integration: setup prism flink airflow
	$(BIN)/python -m pytest tests/integration

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
