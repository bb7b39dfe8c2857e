# make demo: find, measure and draw a circuit.   make test: the test suite.   make docs: the documentation, into site/.
# make real: the tests on SmolLM2-135M, which is fetched and kept outside the repository (benchmarks/real_models.py).
# make installs: whether the pinned versions go together, for every Python that is there.
# make check: lint, format, types (installs what the documentation needs as well).
# All work from a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what is imported, and keeps it; compiling all that comes along takes longer than downloading it.
unexport PYTHONDONTWRITEBYTECODE
# Quiet unless it fails: then its last lines, which name the package.
define pip
@echo "pip install $(1)"
@$(BIN)/python -m pip --disable-pip-version-check install --no-compile --constraint constraints.txt $(1) > $(VENV)/pip.log 2>&1 \
  || { grep -v "^WARNING" $(VENV)/pip.log | tail -n 25 >&2; exit 1; }
endef

.PHONY: demo test real installs check docs install clean
.NOTPARALLEL:  # one pip at a time

demo: $(VENV)/installed
	$(BIN)/circuitdiscovery discover toy ioi

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not real and not installs"

real: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 0 -m real $(TESTS)

installs: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 0 -m installs

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

install: $(VENV)/installed-dev

# torch first, so that pip settles its version before anything that would draw in another. What is installed for more does for less.
$(VENV)/torch: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("circuitdiscovery needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(call pip,torch)
	@touch $@

$(VENV)/installed: $(VENV)/torch
	$(call pip,--editable .)
	@touch $@

$(VENV)/installed-test: $(VENV)/torch
	$(call pip,--editable '.[test]')
	@touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(VENV)/torch
	$(call pip,--editable '.[dev]')
	@touch $@ $(VENV)/installed $(VENV)/installed-test

clean:
	rm -rf $(VENV) dist site
