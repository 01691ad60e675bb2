# Every line is a command that a person could type. `make demo` and the tests need only Python, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .venv-demo
SHARED_MODELS ?= ../shared/models

.PHONY: demo test test-all test-lowest lint mutants docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --disable-pip-version-check --no-compile --editable .
	touch $@

demo: $(DEMO)/.installed
	@echo; echo "A network that reads digits loses channels until 40 % of its multiply-accumulates are left; that takes no data:"
	$(DEMO)/bin/spa-onnx prune models/digits_resnet.onnx -o digits_resnet.pruned.onnx --target macs=0.4 --multiple 8 --force
	@echo; echo "What that costs in accuracy, on digits that the network was not trained on:"
	$(DEMO)/bin/spa-onnx compare models/digits_resnet.onnx digits_resnet.pruned.onnx --data models/digits_resnet.npz
	@echo; echo "The pruned model, an ordinary ONNX file, is $(CURDIR)/digits_resnet.pruned.onnx"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(VENV)/.installed
	SHARED_MODELS=$(SHARED_MODELS) $(BIN)/python -m pytest -n auto -m slow

test-lowest:
	PYTHON=$(PYTHON) .ci/versions

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

mutants: $(VENV)/.installed
	nice $(BIN)/python tests/mutation/run.py

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .venv-* .mutants digits_resnet.pruned.onnx build dist .mypy_cache .ruff_cache .pytest_cache
