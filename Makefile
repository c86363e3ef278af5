# Every target that runs Python creates .venv first and refreshes it when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'PYTHON=python3.12 names the interpreter of a new $(VENV) (3.10 or newer)'

demo: $(INSTALLED) ## sample, invert and compare solvers on the embedded network
	$(RUN) -m odediff

test: $(INSTALLED) ## run the tests
	$(RUN) -m pytest --numprocesses auto

lint: $(INSTALLED) ## check style, formatting and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

wheel: $(INSTALLED) ## build the wheel and try it in a clean environment
	$(RUN) tests/check_wheel.py

# pip below 21.3, which Python 3.10.0 bundles, cannot install a pyproject.toml in editable mode.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("odediff needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo 'installing odediff and its dependencies into $(VENV) (a few minutes the first time)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check 'pip>=21.3'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@
