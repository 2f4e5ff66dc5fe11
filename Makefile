# `make demo` and `make test` do everything, set-up included. Variables:
#
#   PYTHON=python3.13   the interpreter to make the environment with (3.10 or newer)
#   TORCH_INDEX=URL     where torch comes from, for a CPU build or another CUDA: https://download.pytorch.org/whl/cpu,
#                       https://download.pytorch.org/whl/cu128, ...; PyPI's build when not given
#   VENV=.venv          the environment's folder
#   BENCH="step --batch 16"   parts and options of make bench: python -m scripts.bench --help
#   WEIGHTS=imagenet    make demo with the real VGG19 and ResNet-50 instead of random ones

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.setup-done
# Only what is an environment, whatever folder VENV names.
REMOVE_VENV := if test -e $(VENV)/pyvenv.cfg; then rm -rf $(VENV); fi

.PHONY: help setup demo test bench lint clean

help: ## print this
	@sed -n '/^#/!q; s/^#  \{0,1\}//p' Makefile
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(DONE) ## make the environment with all that is needed; an instant when it is there
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || \
		{ echo "error: $(VENV) is made with $$($(BIN)/python -V): make clean first, or another VENV=folder" >&2; exit 1; }
endif

# Only the last line says "done": after an interruption, wherever it came, the next run goes on.
# torch comes before BasicSR, whose setup.py asks for it: an isolated build would fetch it a second time. The PYTHONPATH
# is for Python 3.13 and newer, and for this one line; the file there says why.
$(DONE): setup.py pyproject.toml Makefile
	@rm -f $@
	@$(BIN)/python -m pip --version 2>/dev/null || { \
		$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, \
	$(PYTHON) is " + sys.version.split()[0] + "; name another: make setup PYTHON=python3.12")' && \
		$(REMOVE_VENV) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install 'pip>=25' 'setuptools>=77'
	$(BIN)/python -m pip install torch torchvision $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	PYTHONPATH='$(CURDIR)/scripts/py313_basicsr_shim' \
		$(BIN)/python -m pip install --no-build-isolation --no-deps 'basicsr>=1.4.2'
	$(BIN)/python -m pip install --no-build-isolation --editable '.[dev]'
	@reason=$$($(BIN)/python -c 'import cv2' 2>&1) || { \
		echo "$$reason" | tail -n 1; echo 'OpenCV misses a system library: its build without windows takes the place.'; \
		$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless; }
	$(BIN)/python -c 'import dp_basicsr, basicsr, cv2'
	@touch $@

demo: setup ## prepare data, train, test and show a picture: minutes on a CPU, nothing downloaded
	$(BIN)/python scripts/demo.py $(if $(WEIGHTS),--weights $(WEIGHTS))

test: setup ## run all tests
	$(BIN)/python -m pytest

bench: setup ## measure speed and memory beside BasicSR's: a quarter of an hour on a CPU that does nothing else
	$(BIN)/python -m scripts.bench $(BENCH)

lint: setup ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean: ## remove the environment, builds and caches; data and experiments stay
	$(REMOVE_VENV)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
