# `make demo` and `make test` need GNU make, Python 3.11 or later with venv, and the package registry that your pip
# or uv is configured for. Nothing is installed outside this folder.
#   another Python:          make PYTHON=python3.12 test
#   more processes:          make WORKERS=8 test   (each of one thread; 0: without processes of their own, to debug)
#   PyTorch: its CPU builds, from its own index. Where that cannot be reached, those of your registry, and a line says so.
#     for an NVIDIA GPU:     make UV_TORCH_BACKEND=auto env   (or cu130, ...: what uv calls a torch backend)
#     your registry's:       make UV_TORCH_BACKEND= env   (CUDA builds on Linux, 5.6 GB; all with the hashes of constraints.txt)
#     from elsewhere:        make ELSEWHERE=1 test   where another setting names that place (any uv or pip setting holds;
#                            constraints.txt admits local versions such as +cpu; torch and torchvision: from the same place)
# What is installed must have the hashes of constraints.txt; only PyTorch's own from elsewhere has others.
# Scripts are called as `python -m ...` throughout: installed console scripts do not start from a path with a space.

PYTHON ?= python3
WORKERS ?= 2
IN = .venv/bin/python
NEWEST_IN = .venv-newest/bin/python
ifndef ELSEWHERE
UV_TORCH_BACKEND ?= cpu
endif
ifneq ($(UV_TORCH_BACKEND),)
export UV_TORCH_BACKEND
else
unexport UV_TORCH_BACKEND
endif
ELSEWHERE ?= $(UV_TORCH_BACKEND)
BY_DEFAULT = $(if $(UV_TORCH_BACKEND),$(filter file,$(origin UV_TORCH_BACKEND)))
CONSTRAINTS = $(if $(ELSEWHERE),.venv/constraints.txt,constraints.txt)
PINNED = --verify-hashes -c $(CONSTRAINTS) -b $(CONSTRAINTS) -e '.[brainscore,dev,docs]'
NEWEST = -e '.[dev]' -r benchmarks/requirements.txt
export MPLCONFIGDIR ?= $(CURDIR)/.scratch/matplotlib# matplotlib makes its folders, and takes its settings, here
TESTS = -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder# the longest files come early in the alphabet
SUMMARY = $(or $(GITHUB_STEP_SUMMARY),.scratch/coverage/summary.md)# a workflow of GitHub shows it with the job

.PHONY: help env browser slurm demo docs test test-all coverage lint types format lock upgrade audit newest bench clean python

help:
	@echo "make demo     the environment, then a comparison on simulated V4 and IT recordings (results in results/)"
	@echo "make test     the environment, then the tests, without the slow ones (over ten seconds, or further cases)"
	@echo "make test-all all tests;  make coverage: all tests, and which lines they ran"
	@echo "make env      the environment alone, in .venv, with the versions of constraints.txt"
	@echo "make browser  a Chromium for the tests of pages, which are skipped without one (Debian and Ubuntu: asks for root)"
	@echo "make slurm    a SLURM for the tests of jobs, which are skipped without one (Debian and Ubuntu: asks for root)"
	@echo "make docs     the documentation site, in .scratch/docs; runs the notebooks whose code has changed, warnings are errors"
	@echo "make lint     ruff: rules and format; codespell: spelling;  make format: apply ruff's"
	@echo "make types    mypy"
	@echo "make newest   the tests with the newest versions that pyproject.toml admits, in .venv-newest"
	@echo "make bench    the benchmarks, beside their peers, in .venv-newest (all of them take an hour on two cores)"
	@echo "make lock     resolve constraints.txt anew for a changed pyproject.toml;  make upgrade: with the newest versions"
	@echo "make audit    known vulnerabilities of the versions of constraints.txt (asks a database in the network)"
	@echo "make clean    remove environments, builds and tool caches (results/ and runs/ stay)"

env: .venv/installed

demo: env
	$(IN) -m cnnf_brain.compare --layers V4 IT --recordings simulated-readout

test: env
	OMP_NUM_THREADS=1 $(IN) $(TESTS) -m "not slow"

test-all: env
	OMP_NUM_THREADS=1 $(IN) $(TESTS)

coverage: env
	@mkdir -p .scratch/coverage
	OMP_NUM_THREADS=1 $(IN) $(TESTS) --cov --cov-report=term --cov-report=markdown-append:"$(SUMMARY)"

docs: env
	rm -rf docs/api .scratch/docs
	$(IN) -m sphinx -q -W --keep-going -E -b html -d .scratch/doctrees docs .scratch/docs
	@echo "open .scratch/docs/index.html"

# Distributions' packages keep it up to date; playwright's own download is the way where there is no such package.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; \
	elif command -v apt-get >/dev/null; then sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	  $$sudo apt-get update && $$sudo apt-get install -y --no-install-recommends chromium; \
	else $(MAKE) env && $(IN) -m playwright install chromium && echo "set CNNF_BRAIN_BROWSER to the executable that this has installed"; fi

# The tests start daemons of their own, with a configuration of their own; those of the system stay as they are.
slurm:
	@sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	  $$sudo apt-get update && $$sudo apt-get install -y --no-install-recommends slurm-wlm munge

lint: env
	$(IN) -m ruff check .
	$(IN) -m ruff format --check .
	$(IN) -m codespell_lib

types: env
	$(IN) -m mypy

format: env
	$(IN) -m ruff check --fix .
	$(IN) -m ruff format .

lock upgrade: env
	env -u UV_TORCH_BACKEND $(IN) -m uv pip compile --universal --generate-hashes $(if $(filter upgrade,$@),--upgrade) --extra brainscore --extra dev --extra docs \
	  --no-annotate --custom-compile-command "make lock" --quiet pyproject.toml -o constraints.txt

# Of a package that the database does not know nothing is known: that is an error too (--strict).
audit: env
	$(IN) -m pip_audit --strict --require-hashes --disable-pip --progress-spinner off -r constraints.txt

newest:
	rm -rf .venv-newest
	$(MAKE) .venv-newest/installed
	OMP_NUM_THREADS=1 $(NEWEST_IN) $(TESTS)

bench: .venv-newest/installed
	$(NEWEST_IN) benchmarks/pls.py
	$(NEWEST_IN) benchmarks/inference.py
	-$(NEWEST_IN) benchmarks/small_net.py
	-$(NEWEST_IN) benchmarks/attacks.py
	-$(NEWEST_IN) benchmarks/training.py
	-$(NEWEST_IN) benchmarks/metrics.py

clean:
	rm -rf .venv .venv-newest .scratch docs/api build dist .pytest_cache .mypy_cache .ruff_cache cnnf_brain.egg-info
	find cnnf_brain tests training benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt | python
	$(call create,.venv)
	$(if $(ELSEWHERE),$(OTHER_HASHES))
	$(call install,.venv,$(PINNED),$(PINNED_BY_PIP))
	@mv .venv/unfinished $@

.venv-newest/installed: pyproject.toml benchmarks/requirements.txt | python
	$(call create,.venv-newest)
	$(call install,.venv-newest,$(NEWEST),$$pip $(NEWEST))
	@mv .venv-newest/unfinished $@

# A Python that was asked for must be the one that .venv has.
python:
ifneq ($(origin PYTHON),file)
	$(check)
	@"$(PYTHON)" -c "import glob, sys; asked = 'python%d.%d' % sys.version_info[:2]; \
	  others = [path for path in glob.glob('.venv/lib/python3*') if not path.endswith(asked)]; \
	  sys.exit('error: .venv is not of the ' + asked + ' asked for; run make clean first' if others else 0)"
endif

define check
@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
  { echo "error: Python 3.11 or later is needed, '$(PYTHON)' is not; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
endef

# The file `unfinished` in an environment marks an attempt that was interrupted or failed: the next one starts afresh.
define create
@if test -e $(1)/unfinished || ! $(1)/bin/python -c "" 2>/dev/null; then rm -rf $(1); fi
$(check)
@"$(PYTHON)" -c "import ensurepip, venv" || \
  { echo "error: '$(PYTHON)' lacks venv or ensurepip (on Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
@mkdir -p $(1) && touch $(1)/unfinished
@test -x $(1)/bin/python || "$(PYTHON)" -m venv $(1)
endef

define OTHER_HASHES
@sed -E '/^(torch|torchvision|triton|nvidia-|cuda-)/,/[^\]$$/{s/ \\$$//; /--hash/d;}' constraints.txt >$(CONSTRAINTS)
endef

# pip takes hashes for a list of packages, and none for a folder.
define PINNED_BY_PIP
$$pip --require-hashes -r $(CONSTRAINTS); $$pip --no-deps --no-build-isolation -e .
endef

# uv from PATH, else installed into the environment. Where PyTorch's CPU builds, which nobody asked for by name, are out of
# reach, those of the registry are taken, with their hashes. Where uv fails, pip tries: some registries are configured for pip
# alone. The import at the end finds a torch and a torchvision that do not fit together, and leaves byte code behind.
registry = $(if $(BY_DEFAULT),$(subst .venv/constraints.txt,constraints.txt,$(1)),$(1))

define from_registry
{ echo "PyTorch's CPU builds could not be installed; taking the builds of your registry (on Linux CUDA's, 5.6 GB)"; \
  unset UV_TORCH_BACKEND; $$uv pip install --python $(1)/bin/python $(call registry,$(2)); } ||
endef

define install
@echo "Installing into $(1), with $(if $(UV_TORCH_BACKEND),PyTorch for $(UV_TORCH_BACKEND),PyTorch as configured: up to 7 GB with CUDA); some minutes"
@$(1)/bin/python -c "import sys; sys.version_info < (3, 12) or \
  print('Python 3.12 or later: without brainscore-vision, whose xarray opens no file there; it needs Python 3.11')"
@set -e; uv=uv; if ! uv --version >/dev/null 2>&1; then \
  sed -n '/^uv==/,/[^\]$$/p' constraints.txt >$(1)/uv.txt; \
  $(1)/bin/python -m pip install --quiet --require-hashes -r $(1)/uv.txt; uv="$(1)/bin/python -m uv"; fi; \
  $$uv pip install --python $(1)/bin/python $(2) || $(if $(BY_DEFAULT),$(call from_registry,$(1),$(2))) { \
  echo "uv could not install; trying again with pip, which reads a configuration of its own"; \
  pip="$(1)/bin/python -m pip install"; $(call registry,$(3)); }
@PYTHONDONTWRITEBYTECODE= $(1)/bin/python -c "import matplotlib.pyplot, sklearn, torch, torchvision, xarray, \
  cnnf_brain; print('torch', torch.__version__, 'torchvision', torchvision.__version__)"
endef
