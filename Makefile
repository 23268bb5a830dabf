# Two commands for a fresh clone: `make pretrain` (install, then train on the built-in sample) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Libraries that take the encoders; only the tests of the examples in docs/python.md use them.
TAKERS := segmentation-models-pytorch==0.6.0
CONSTRAINTS := --constraint .ci/constraints.txt
# The packages that an extra of pyproject.toml names, each in its quotes.
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\]/\1/p' pyproject.toml | sed 's/", "/" "/g')

.PHONY: install pretrain test check format docs clean

install: .venv/installed

# Every version is pinned by .ci/constraints.txt.
# What the extra `encoders` names goes into a folder of its own, which its tests alone look into: where torchvision's
# wheel was built for another torch (CPU and CUDA), all that would import it breaks, torchmetrics too.
.venv/installed: Makefile pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[deepspeed,onnx,remote,transfer,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-deps --upgrade --target .venv/encoders $(call extra,encoders) $(TAKERS)
	touch $@

# `python launcher/doctor.py` says beforehand what is slow or broken on this machine, and which batch settings are fastest.
# In one process, which needs no launcher: `accelerate launch launcher/pretrain.py` takes all GPUs.
pretrain: install
	$(BIN)/colorgan pretrain

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

.venv-docs/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) $(call extra,docs)
	touch $@

clean:
	rm -rf .venv .venv-docs site runs data
