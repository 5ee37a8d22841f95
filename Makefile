# make demo · make test · make bench · make lint · make docs. Each sets up .venv by itself; a second run reuses it.
PYTHON ?= python3
VENV := .venv
RUN := $(CURDIR)/$(VENV)/bin
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

SITE := NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs

.PHONY: demo test fuzz test-matrix bench wheel wheel-test lint docs docs-serve teacher format clean help gpu-report gpu-all gpu-test gpu-bench gpu-sanitize

help:
	@grep -E '^# ' Makefile | head -1

$(VENV)/.dependencies: requirements.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed for development")'
	$(RUN)/pip install --disable-pip-version-check -r requirements.txt
	touch $@

# An editable install: Python files are used where they lie, the library is built again when csrc changes. The .pth file
# is for this environment alone: with it bench/ and devtools/, which are in no package, are found from everywhere.
$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE)
	$(RUN)/pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	echo $(CURDIR) > $$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fgd_development.pth
	touch $@

# Detectors that the tests distil besides torchvision's (requirements-adapters.txt). Without them their tests are skipped.
$(VENV)/.detectors: $(VENV)/.dependencies requirements-adapters.txt
	$(RUN)/pip install --disable-pip-version-check --no-deps -r requirements-adapters.txt && touch $@ \
	  || echo "make: the packages of requirements-adapters.txt could not be installed; their tests will be skipped"

demo: $(VENV)/.installed
	$(RUN)/python -m fgd_distill.digits.demo

teacher: $(VENV)/.installed
	$(RUN)/python -m fgd_distill.digits.demo --train-teacher

# Side by side: a file's tests stay in one process, with one thread each unless a test asks for more. Files are begun in
# the order of tests/conftest.py, the slowest first; xdist's own would be by number of tests.
WORKERS ?= 2
test: $(VENV)/.installed $(VENV)/.detectors
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Against other versions of Python, torch, Lightning and so on: an environment each, hours and gigabytes.
test-matrix: $(VENV)/.dependencies
	$(RUN)/python -m devtools.versions --matrix

# Random calls of the loss on every backend that runs here; goes on where it was stopped. docs/accuracy.md has the rule.
CASES ?= 1000
SEED ?= 1
fuzz: $(VENV)/.installed
	$(RUN)/python -m devtools.fuzz --cases $(CASES) --seed $(SEED) --page build/fuzz/accuracy.md

bench: $(VENV)/.installed
	$(RUN)/python -m bench.loss_cpu

# The GPU side. The report needs nvcc and no GPU. The others need both, and run in the Python that has torch on that machine
# (PYTHON=...), without an environment of their own: python3 bench/gpu_all.py --help.
gpu-report: $(VENV)/.installed
	$(RUN)/python -m bench.gpu_report

gpu-all:
	$(PYTHON) bench/gpu_all.py

gpu-test:
	$(PYTHON) bench/gpu_all.py build tests-cuda tests-triton

gpu-sanitize:
	$(PYTHON) bench/gpu_all.py build sanitizer-memcheck sanitizer-racecheck sanitizer-synccheck sanitizer-initcheck

gpu-bench:
	$(PYTHON) bench/gpu_all.py build benchmark-ours benchmark-peers

# What a release consists of, into dist/: the source distribution, a wheel with CUDA kernels (where there is an nvcc)
# and one without.
wheel: $(VENV)/.dependencies
	$(RUN)/python devtools/wheels/build.py cpu $(if $(shell command -v nvcc),cuda)

# Slow tests of what a release consists of: the wheel with CUDA kernels, fresh environments. TORCH=2.13.0: with that one.
wheel-test: $(VENV)/.dependencies
	TORCH=$(TORCH) $(RUN)/python -m pytest -m release tests/install

lint: $(VENV)/.dependencies
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/clang-format --dry-run --Werror $(shell find csrc devtools tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

format: $(VENV)/.dependencies
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
	$(RUN)/clang-format -i $(shell find csrc devtools tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The site, build/site/index.html. Warnings are errors; --quiet would hide them from --strict.
# docs-serve shows it at http://127.0.0.1:8000 and follows changes.
docs: $(VENV)/.dependencies
	$(SITE) build --strict

docs-serve: $(VENV)/.dependencies
	$(SITE) serve

clean:
	rm -rf build dist *.egg-info fgd_kernels/_C*
