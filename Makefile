# `make demo` and `make test` set up what they need; the rest is for working on the project.
PYTHON ?= python3
# openmmlab, or onedl: the maintained forks with the same import names, in an environment of their own.
TOOLKIT ?= openmmlab
VENV ?= $(if $(filter onedl,$(TOOLKIT)),.venv-onedl,.venv)
BIN := $(VENV)/bin
# lite: mmcv without compiled operators; convnext_dense/mmcv_ops provides them. build: compile them, 10 to 30 minutes.
# An environment that was built stays so.
MMCV ?= $(if $(wildcard $(VENV)/.installed-build),build,lite)
STAMP := $(VENV)/.installed-$(MMCV)
MMCV_DIST := $(if $(filter onedl,$(TOOLKIT)),onedl-mmcv,mmcv)
DEMO_DIR ?= demo
DEEPFOREST_DIR ?= deepforest
QUICK ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-first test-others test-slow-first test-slow-others test-export test-faults test-docs \
  test-large test-mmcv test-versions sweep deepforest docs install lint clean

demo: $(STAMP)
	$(BIN)/python tools/demo.py $(DEMO_DIR) $(if $(filter-out 0,$(QUICK)),--quick)

# Two processes side by side, since most tests use one core. The second takes every folder that the first does not name.
FIRST_TESTS := tests/tools tests/export tests/faults
OTHER_TESTS := tests $(FIRST_TESTS:%=--ignore=%)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: $(STAMP)
	@$(MAKE) --no-print-directory -j2 test-first test-others

test-slow: $(STAMP)
	@$(MAKE) --no-print-directory -j2 test-slow-first test-slow-others

test-first: $(STAMP)
	$(PYTEST) $(FIRST_TESTS)

test-others: $(STAMP)
	$(PYTEST) $(OTHER_TESTS)

test-slow-first: $(STAMP)
	$(PYTEST) -m slow $(FIRST_TESTS)

test-slow-others: $(STAMP)
	$(PYTEST) -m slow $(OTHER_TESTS)

test-export: $(STAMP)
	$(BIN)/python -m pytest -m export

# An hour and a half: random kills, full and read-only places, memory. It writes docs/benchmarks/faults.json.
test-faults: $(STAMP)
	folder=$$(mktemp -d) && $(BIN)/python tools/dev/soak.py $$folder/soak --json docs/benchmarks/faults.json; \
	  status=$$?; rm -rf $$folder; exit $$status

# Pictures to try the path of your own data on: 47 tiles of aerial photographs of trees with a table of boxes, cut from
# the wheel of deepforest (20 MB), which is downloaded and not installed.
deepforest: $(STAMP)
	folder=$$(mktemp -d) && $(BIN)/python -m pip download -q --no-deps -d $$folder deepforest==2.1.0 && \
	  $(BIN)/python tools/dev/deepforest_tiles.py $$folder/deepforest-2.1.0-*.whl $(DEEPFOREST_DIR); \
	  status=$$?; rm -rf $$folder; exit $$status

# Outputs of every size of timm's family against timm's, up to 846 M parameters. Needs 8 GB of memory.
test-large: $(STAMP)
	$(PYTEST) -m large

# The notebooks, and the code blocks of the pages that take more than 20 s.
test-docs: $(VENV)/.installed-docs
	$(PYTEST) -m docs tests/docs

# The provided operators against the compiled ones, and the losses of a model of each family, in an environment of its own.
test-mmcv:
	$(MAKE) VENV=.venv-mmcv TOOLKIT=openmmlab MMCV=build install
	OMP_NUM_THREADS=1 .venv-mmcv/bin/python -m pytest tests/mmcv_ops/compiled.py tests/mmcv_ops/compiled_models.py

# The main path with another torch, and with PYTHON=python3.12 on another Python, in an environment that is removed after.
# It writes docs/reference/versions.md. The constraints of packages that follow torch or Python are left out.
VERSIONS_VENV := .venv-versions
test-versions:
	@test -n "$(TORCH)" || { echo "error: name a version: make TORCH=2.9.1 test-versions"; exit 1; }
	rm -rf $(VERSIONS_VENV)
	$(PYTHON) -m venv $(VERSIONS_VENV)
	$(VERSIONS_VENV)/bin/python -m pip install -q uv
	grep -E '^(mm|onedl-|setuptools)' constraints.txt > $(VERSIONS_VENV)/constraints.txt
	$(VERSIONS_VENV)/bin/uv pip install --python $(VERSIONS_VENV)/bin/python -c $(VERSIONS_VENV)/constraints.txt \
	  torch==$(TORCH) torchvision setuptools -e '.[$(TOOLKIT),demo,export]'
	$(VERSIONS_VENV)/bin/python tools/dev/check_versions.py
	rm -rf $(VERSIONS_VENV)

# Every model of both zoos, as it is and swapped, for one step: about two hours. Stopped, it goes on where it was.
# It writes docs/benchmarks/swap_sweep.json.
SWEEP_DIR ?= work_dirs/sweep
SWEEP = $(BIN)/python tools/dev/swap_sweep.py
sweep: $(STAMP)
	mkdir -p $(SWEEP_DIR)
	$(SWEEP) --no-swap --out $(SWEEP_DIR)/before.json
	$(SWEEP) --baseline $(SWEEP_DIR)/before.json --out $(SWEEP_DIR)/after.json --publish docs/benchmarks/swap_sweep.json

install: $(STAMP)

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q --fail-on-warning --keep-going docs docs/_build
	@echo "written: docs/_build/index.html"

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(TOOLKIT),docs,notebooks]'
	@touch $@

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
	@case $(MMCV) in lite|build) ;; *) echo "error: MMCV=$(MMCV) is neither lite nor build"; exit 1;; esac
	@$(BIN)/python tools/install_mmcv.py --refuse-mixture $(MMCV_DIST)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt torch torchvision setuptools psutil
	@# These own the same folder: the one that is there goes first.
	@$(BIN)/uv pip uninstall -q --python $(BIN)/python mmcv mmcv-lite onedl-mmcv 2> /dev/null
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(TOOLKIT),demo,test]'
ifeq ($(MMCV),build)
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt wheel ninja
	$(BIN)/python tools/install_mmcv.py $(MMCV_DIST)
endif
	@rm -f $(VENV)/.installed*
	@touch $@

clean:
	rm -rf .venv .venv-onedl .venv-mmcv $(DEMO_DIR) $(DEEPFOREST_DIR) work_dirs docs/_build build dist *.egg-info \
	  .pytest_cache .ruff_cache
