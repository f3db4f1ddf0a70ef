# make demo: the main job on real input · make test: every check and test · make lock: exact versions again
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test lock clean

demo: $(STAMP)
	$(BIN)/glyphrun demo

# Each part says how long it took; the first that fails ends the run.
test: $(STAMP)
	@$(BIN)/python tests/run_all.py

# One pip install, and only when what is to be installed has changed.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "glyphrun needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 cannot make virtual environments: install the package python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -e .
	@touch $@

# Exact versions for every Python from 3.11 on, without naming an index or a host.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info platform/*.egg-info
