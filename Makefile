# Every target first installs what it needs, `make setup` everything. Variables:
#
#   PYTHON=python3.13   the interpreter of the environment (3.10 or newer)
#   TORCH_INDEX=URL     another torch build than PyPI's: https://download.pytorch.org/whl/cu128, ...;
#                       without an NVIDIA GPU the CPU build is taken where its index answers
#   VENV=.venv          the environment's folder
#   BENCH="step --batch 16"   arguments of make bench; python -m benchmarks --help lists them
#   WEIGHTS=imagenet    make demo with the real VGG19 and ResNet-50 instead of random ones

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
# Remove VENV only if it is an environment.
REMOVE_VENV := if test -e $(VENV)/pyvenv.cfg; then rm -rf $(VENV); fi

.PHONY: help setup demo test fuzz bench gpu-report lint docs clean

help: ## print this help
	@sed -n '/^#/!q; s/^#  \{0,1\}//p' Makefile
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(VENV)/.setup-done same-python ## create the environment with everything; does nothing if it exists

.PHONY: same-python
same-python: $(VENV)/.torch-done
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || \
		{ echo "error: $(VENV) was made with $$($(BIN)/python -V): run make clean first, or give another VENV=" >&2; exit 1; }
endif

# Each mark is written last, so that an interrupted set-up is continued by the next run.
# torch comes first: its build is chosen here, and BasicSR's setup.py imports it.
$(VENV)/.torch-done:
	@$(BIN)/python -m pip --version 2>/dev/null || { \
		$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, \
	$(PYTHON) is " + sys.version.split()[0] + "; name another: make setup PYTHON=python3.12")' && \
		$(REMOVE_VENV) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install 'pip>=25' 'setuptools>=77,<82'
	@index='$(TORCH_INDEX)'; \
	if test -z "$$index" && ! command -v nvidia-smi >/dev/null && $(BIN)/python -c \
		'import urllib.request; urllib.request.urlopen("$(CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; \
	then index=$(CPU_INDEX); fi; \
	set -x; $(BIN)/python -m pip install torch torchvision $${index:+--index-url $$index}
	@touch $@

# The package with an extra of pyproject.toml: .demo-done, .lint-done, .docs-done.
$(VENV)/.%-done: $(VENV)/.torch-done pyproject.toml setup.py
	$(BIN)/python -m pip install --no-build-isolation --editable '.[$*]'
	@touch $@

$(VENV)/.demo-done $(VENV)/.dev-done: $(VENV)/.basicsr-done

$(VENV)/.basicsr-done: $(VENV)/.torch-done
	$(BIN)/python dp_basicsr/get_basicsr.py
	@reason=$$($(BIN)/python -c 'import cv2' 2>&1) || { \
		echo "$$reason" | tail -n 1; echo 'OpenCV lacks a system library: installing its headless build instead.'; \
		$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless; }
	@touch $@

$(VENV)/.setup-done: $(VENV)/.dev-done
	$(BIN)/python -c 'import dp_basicsr, basicsr, cv2'
	@touch $(VENV)/.demo-done $(VENV)/.lint-done $(VENV)/.docs-done $@

demo: $(VENV)/.demo-done same-python ## prepare data, train, test, draw a picture: minutes on a CPU, offline
	$(BIN)/python scripts/demo.py $(if $(WEIGHTS),--weights $(WEIGHTS))

# A process that dies ends the run: pytest-xdist would start another one, but then waits for ever.
test: setup ## run all tests, in two processes of one thread each
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

fuzz: setup ## draw new inputs for the generated tests, FUZZ_SECONDS=60 each; FUZZ_SEED= repeats a run
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v \
		$$(grep -lrE '^from tests.support.fuzz import .*(draws|generated)' tests --include='test_*.py')

bench: setup ## compare speed and memory with BasicSR's: 20 minutes on an idle CPU
	$(BIN)/python -m benchmarks $(BENCH)

gpu-report: setup ## test and measure everything on this machine's GPU, into results/gpu; exits with 2 without one
	$(BIN)/python -m benchmarks.gpu_report

lint: $(VENV)/.lint-done same-python ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff check --isolated --preview --select PLW1514 dp_basicsr scripts benchmarks examples
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(VENV)/.docs-done same-python ## build the documentation as a site, into site/; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the environment, builds and caches, but no data or experiments
	$(REMOVE_VENV)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
