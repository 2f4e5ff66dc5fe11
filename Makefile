# `make demo` and `make test` set everything up first. Variables:
#
#   PYTHON=python3.13   the interpreter of the environment (3.10 or newer)
#   TORCH_INDEX=URL     another torch build than PyPI's: https://download.pytorch.org/whl/cpu,
#                       https://download.pytorch.org/whl/cu128, ...
#   VENV=.venv          the environment's folder
#   BENCH="step --batch 16"   arguments of make bench; python -m scripts.bench --help lists them
#   WEIGHTS=imagenet    make demo with the real VGG19 and ResNet-50 instead of random ones

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.setup-done
# Remove VENV only if it is an environment.
REMOVE_VENV := if test -e $(VENV)/pyvenv.cfg; then rm -rf $(VENV); fi

.PHONY: help setup demo test bench gpu-report lint docs clean

help: ## print this help
	@sed -n '/^#/!q; s/^#  \{0,1\}//p' Makefile
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(DONE) ## create the environment; does nothing if it exists
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || \
		{ echo "error: $(VENV) was made with $$($(BIN)/python -V): run make clean first, or give another VENV=" >&2; exit 1; }
endif

# The mark is written last, so that an interrupted set-up is continued by the next run.
# torch comes before BasicSR, whose setup.py imports it: an isolated build would download it a second time. PYTHONPATH is
# needed from Python 3.13 on, in this line only; the file there says why.
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
		echo "$$reason" | tail -n 1; echo 'OpenCV lacks a system library: installing its headless build instead.'; \
		$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless; }
	$(BIN)/python -c 'import dp_basicsr, basicsr, cv2'
	@touch $@

demo: setup ## prepare data, train, test, draw a picture: minutes on a CPU, offline
	$(BIN)/python scripts/demo.py $(if $(WEIGHTS),--weights $(WEIGHTS))

# A process that dies ends the run: pytest-xdist would start another one, but then waits for ever.
test: setup ## run all tests, in two processes of one thread each
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

bench: setup ## compare speed and memory with BasicSR's: 20 minutes on an idle CPU
	$(BIN)/python -m scripts.bench $(BENCH)

gpu-report: setup ## test and measure everything on this machine's GPU, into results/gpu; exits with 2 without one
	$(BIN)/python -m scripts.gpu_report

lint: setup ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff check --isolated --preview --select PLW1514 dp_basicsr scripts
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: setup ## build the documentation as a site, into site/; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the environment, builds and caches, but no data or experiments
	$(REMOVE_VENV)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
