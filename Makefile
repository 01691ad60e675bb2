# Every line is a command that a person could type. `make demo` and `make test` need only Python, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED_MODELS ?= ../shared/models

.PHONY: demo test test-all lint docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/spa-onnx prune models/digits_resnet.onnx -o $(VENV)/digits_resnet.pruned.onnx --ratio 0.4 --multiple 8 --force

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(VENV)/.installed
	SHARED_MODELS=$(SHARED_MODELS) $(BIN)/python -m pytest -n auto -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
