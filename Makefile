# make: everything, from nothing to results.  make ui: the MLflow UI on this project's runs.
# make test: linters, types, and the tests that take seconds; 3 minutes.  make test-all: every test; 20 minutes.
# make torture: faults injected many times, and how often each was survived; 45 minutes.
# make bench, make quality: speed and accuracy compared with other libraries; an hour each on two cores.  make docs: the site.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: all check test test-rest test-all torture ui docs bench quality
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
	codespell
	git ls-files -z | xargs -0 detect-secrets-hook --baseline .secrets.baseline

PYTEST = coverage run -m pytest -n 2 --dist worksteal

test: check
	coverage erase
	$(PYTEST) -m "not slow and not faults"
	coverage combine --quiet
	coverage report --format total --fail-under 93

# The tests that `make test` leaves out; their coverage is added to that of `make test`.
test-rest: .venv/installed
	$(PYTEST) -m "slow or faults"
	coverage combine --quiet --append
	coverage report --fail-under 95

test-all:
	$(MAKE) test
	$(MAKE) test-rest

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
