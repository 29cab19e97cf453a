# Everything a developer types. The environment is made on first use; nothing else by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

SECONDS ?= 60

# Tests start interpreters, each of which would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-plain test-gpu bench-gpu lowest test-lowest constraints check \
	format figures docs without bench fuzz dist clean

demo: $(RUN_STAMP)
	$(BIN)/loraprobe demo --exit-zero

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

# The numerical tests as another processor runs them: torch without AVX, and MKL with the order of
# sums of its oldest processors (MKL_ENABLE_INSTRUCTIONS changes nothing on AMD).
test-plain: $(DEV_STAMP)
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE $(BIN)/python -m pytest -n auto \
		--maxprocesses 8 tests/core/lora tests/core/merging tests/core/diagnostics tests/core/composition tests/core/routing

# On a CUDA device: the demo and every kind of composition beside the CPU, and what they cost.
test-gpu: $(DEV_STAMP)
	$(BIN)/python -m pytest -m gpu

bench-gpu: $(DEV_STAMP)
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/routed_layer_vs_peft.py --device cuda --dtype bfloat16

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# An environment with the lowest versions that pyproject.toml allows, and the numerical tests in it.
lowest: pyproject.toml | build/uv/bin/uv
	build/uv/bin/uv venv --quiet --clear --python $(PYTHON) build/lowest
	build/uv/bin/uv pip install --quiet --python build/lowest --resolution lowest-direct \
		--requirements pyproject.toml --extra dev

# The versions in the two environments that the tests run in: pip install --constraint FILE.
constraints: $(DEV_STAMP) | lowest
	mkdir -p constraints
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints/newest.txt
	build/uv/bin/uv pip freeze --quiet --python build/lowest --exclude-editable \
		| sed 's/+cpu//' > constraints/lowest.txt

test-lowest:
	build/lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal \
		tests/core/lora tests/core/merging tests/core/diagnostics tests/core/composition tests/core/routing

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Deletes an extension in a copy of the tree, and runs everything else there: make without EXT=ray,
# or all, one after the other; QUICK=--quick runs a part of the tests.
without: $(DEV_STAMP)
	$(BIN)/python tests/without.py $(QUICK) $(EXT)

# How large the repository is.
figures: $(RUN_STAMP)
	@$(BIN)/python tests/house.py

# The pages that come from the code and from runs, and the site, in build/site.
docs: $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check zensical
	$(BIN)/python tests/pages.py
	$(BIN)/python tests/sessions.py
	rm -rf build/pages && mkdir -p build/pages
	git ls-files -z docs examples '*.md' | xargs -0 cp --parents -t build/pages
	mv build/pages/README.md build/pages/index.md
	$(BIN)/zensical build --clean --strict

bench: $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python benchmarks/__main__.py

# Coverage-guided fuzzing of every target for SECONDS each; see fuzz/README.md.
fuzz: $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	for target in reference config task adapter tokenizer card composition responses; do \
		$(BIN)/python fuzz/run.py $$target -max_total_time=$(SECONDS) -timeout=10 || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# --no-compile: pip would compile all of torch and transformers, most of which no run imports.
$(RUN_STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --editable .
	touch $@

$(DEV_STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(RUN_STAMP) $@

# Wheel and sdist in dist/, built twice with equal bytes; the wheel is installed into an empty
# environment and runs the demo.
dist: $(DEV_STAMP)
	rm -rf dist build/again build/wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir build/again .
	diff -r dist build/again
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/wheel && bin/loraprobe demo --exit-zero --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
