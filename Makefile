# make demo: install into .venv and run the main job.  make test: the same for the tests.  test-claims: every claim, for seconds each.
# test-portable: ops, writing and training without compiled kernels.  test-fenced: kernels, any access out of bounds ending the process.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal
export PYTHONUNBUFFERED := 1
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-portable test-fenced test-claims check install install-dev clean

demo: install
	$(BIN)/seriatim demo --out runs/demo --overwrite

test: install-dev
	$(BIN)/seriatim warmup
	$(PYTEST)

test-portable: install-dev
	SERIATIM_BACKEND=torch $(PYTEST) tests/ops tests/decoding tests/train

test-fenced: install-dev
	SERIATIM_GUARD=1 $(PYTEST) tests/kernels -k "not long and not several_items"

test-claims: install-dev
	$(BIN)/seriatim claims --quick

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "seriatim needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing seriatim into $(VENV) (PyTorch is large: a few minutes on a first install)"
	$(INSTALL) --editable '.[viz]'
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing seriatim and its tests' needs into $(VENV) (PyTorch is large: a few minutes on a first install)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
