# Two commands: `make demo` trains the input-conditioned MNIST hypernetwork, `make test` runs every test.
# `make figures` makes every picture of examples/figures again, and the README's tables of figures: half an hour, of which
# runs/ keeps what is done.
# `make fuzz MINUTES=10` composes main networks at random, and holds every path to the loop on them, for that long.
# `make study` measures every path anew, less than half an hour, and draws the figures of what it found.
# Each sets up its own virtual environment first; nothing but Python 3.11+, pip and make is needed.
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 10
BIN := $(VENV)/bin

PICTURED := mnist_parallel mnist_full mnist_chunked continual_split_digits adapters lotka_volterra forecast

.PHONY: demo test fuzz lint figures study clean

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

fuzz: $(VENV)/.stamp-test
	FH_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/test_compositions.py -s $(ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

figures: $(VENV)/.stamp-test
	$(BIN)/python examples/schematic.py
	$(BIN)/python examples/batching_study.py
	for name in $(PICTURED); do \
		$(BIN)/python examples/$$name.py --resume && cp runs/$$name/$$name.png examples/figures/ || exit 1; \
	done
	$(BIN)/python examples/custom_main_network.py --part siren --resume
	cp runs/custom_main_network/siren.png examples/figures/
	FH_WRITE_TABLES=1 $(BIN)/python -m pytest -q tests/test_readme_figures.py

study: $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet jax || echo "jax does not install: skipped"
	$(BIN)/python -m pip install --quiet --no-deps hyper-nn || echo "hyper-nn does not install: skipped"
	$(BIN)/python -m functional_hyper.study --compile --json examples/figures/study.json
	$(BIN)/python examples/batching_study.py
	$(BIN)/python examples/side_by_side.py --compile --json examples/figures/side_by_side.json
	FH_WRITE_TABLES=1 $(BIN)/python -m pytest -q tests/test_readme_figures.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
