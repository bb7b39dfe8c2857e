# make demo: find, measure and draw a circuit.   make test: the test suite.   make docs: the documentation, into site/.
# make real: the tests on SmolLM2-135M, which is fetched and kept outside the repository (benchmarks/real_models.py).
# All work from a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test real check docs install clean

demo: $(VENV)/installed
	$(BIN)/circuitdiscovery discover toy ioi

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto -m "not real"

real: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 0 -m real $(TESTS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict --quiet

install: $(VENV)/installed-dev

# torch first, so that pip settles its version before anything that would draw in another.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("circuitdiscovery needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist site
