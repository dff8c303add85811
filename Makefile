# Two commands: `make demo` trains the input-conditioned MNIST hypernetwork, `make test` runs every test.
# Each sets up its own virtual environment first; nothing but Python 3.11+, pip and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# One stamp per set of extras, so that nothing is installed that a target does not use.
$(VENV)/.stamp-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(VENV)/.stamp-examples
	$(BIN)/python examples/mnist_parallel.py $(ARGS)

test: $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torchode || echo "torchode does not install: skipped"
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
