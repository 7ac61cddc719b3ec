# make: everything, from nothing to results.  make test: the whole test suite.  make ui: the MLflow UI on this project's runs.
# make torture: faults injected many times, and how often each was survived; 45 minutes.
# make bench, make quality: speed and accuracy compared with other libraries; an hour each on two cores.  make docs: the site.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: all test check torture ui docs bench quality
all: .venv/installed
	dvc repro
	python -m pipeline show

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

check: .venv/installed
	ruff check
	ruff format --check
	mypy

test: check
	coverage erase
	coverage run -m pytest -n 2 --dist worksteal
	coverage combine --quiet
	coverage report --fail-under 90

torture: .venv/installed
	TORTURE=1 pytest -n 2 --dist worksteal tests/faults

ui: .venv/installed
	python -m pipeline ui

.venv/bench: .venv/installed
	pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

bench: .venv/bench
	python -m benchmarks.bench
	python -m benchmarks.readme

quality: .venv/bench
	python -m benchmarks.quality
	python -m benchmarks.readme

.venv/docs: .venv/installed
	pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: .venv/docs
	python -m docs
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "open $(CURDIR)/site/index.html"
