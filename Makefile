PYTHON ?= python3
VENV := .venv
EXAMPLES := .venv-examples

.PHONY: run test test-examples lint contract clean

run: $(VENV)/ready
	$(VENV)/bin/python inventory_api.py

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest

# The examples need libraries that the programs do not: they get an environment of their own.
test-examples: $(EXAMPLES)/ready
	$(EXAMPLES)/bin/python -m pytest tests/examples --confcutdir=tests/examples -rs

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What the server answers, against what openapi.json says.
contract: $(VENV)/ready-dev
	$(VENV)/bin/python -m pytest tests/api/test_openapi.py -rs
	.ci/contract

clean:
	rm -rf $(VENV) $(EXAMPLES) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(EXAMPLES)/ready: examples/requirements.txt
	$(PYTHON) -m venv $(EXAMPLES)
	$(EXAMPLES)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/requirements.txt
	touch $@
