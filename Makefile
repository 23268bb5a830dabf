# Two commands for a fresh clone: `make pretrain` (install, then train on the built-in sample) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Libraries that take the encoders; only the tests of the examples in docs/python.md use them.
TAKERS := segmentation-models-pytorch==0.6.0
ENCODERS = $(shell sed -n 's/^encoders = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')

.PHONY: install pretrain test check format docs clean

install: .venv/installed

# Every version is pinned: the direct ones in pyproject.toml, what they pull in by .ci/constraints.txt.
# What the extra `encoders` names goes into a folder of its own, which its tests alone look into: where torchvision's
# wheel was built for another torch (CPU and CUDA), all that would import it breaks, torchmetrics too.
.venv/installed: Makefile pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[deepspeed,onnx,remote,transfer,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/encoders $(ENCODERS) $(TAKERS)
	touch $@

# `python launcher/doctor.py` says beforehand what is slow or broken on this machine, and which batch settings are fastest.
pretrain: install
	$(BIN)/accelerate launch launcher/pretrain.py

# Four at a time on two cores, as many tests wait; whole files each: fixtures of a file are made once. The order of
# files is that of pyproject.toml, which begins with those that wait longest.
test: install
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy launcher/*.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site's tools have an environment of their own: they share no library with the project.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv-docs/bin/mkdocs build --strict

DOCS = $(shell sed -n 's/^docs = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check $(DOCS)
	touch $@

clean:
	rm -rf .venv .venv-docs site runs data
