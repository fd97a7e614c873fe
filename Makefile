# `make demo` and `make test` set up what they need; the rest is for working on the project.
PYTHON ?= python3
# openmmlab, or onedl: the maintained forks with the same import names, in an environment of their own.
TOOLKIT ?= openmmlab
VENV ?= $(if $(filter onedl,$(TOOLKIT)),.venv-onedl,.venv)
MMCV := $(if $(filter onedl,$(TOOLKIT)),onedl-mmcv,mmcv)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= demo
QUICK ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-export install lint clean

demo: $(STAMP)
	$(BIN)/python tools/demo.py $(DEMO_DIR) $(if $(filter-out 0,$(QUICK)),--quick)

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-export: $(STAMP)
	$(BIN)/python -m pytest -m export

install: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Steps that are done already cost nothing: the stamp is newer than everything it was made from.
$(STAMP): setup.cfg pyproject.toml constraints.txt tools/install_mmcv.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than Python 3.10: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) -m venv failed (Debian / Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python tools/install_mmcv.py --refuse-mixture $(MMCV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt torch torchvision setuptools wheel ninja psutil
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(TOOLKIT),demo,test]'
	$(BIN)/python tools/install_mmcv.py $(MMCV)
	@touch $@

clean:
	rm -rf .venv .venv-onedl $(DEMO_DIR) work_dirs build dist *.egg-info .pytest_cache .ruff_cache
