# Two commands for a fresh clone: `make pretrain` (install, then train on the built-in sample) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install pretrain test check format clean

install: .venv/installed

# Every version is pinned: the direct ones in pyproject.toml, what they pull in by .ci/constraints.txt.
.venv/installed: Makefile pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[deepspeed,onnx,remote,transfer,dev]'
	touch $@

pretrain: install
	$(BIN)/accelerate launch launcher/pretrain.py

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs data
