# The two commands of the README. Both make what they need in .venv and work without a GPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

WEB := .venv-web

.PHONY: web test-web demo test test-slow lint clean

demo: $(VENV)/.installed
	$(BIN)/simgen generate --count 16 --heavy-atoms 9 --seed 1 --out out/

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m 'slow and not browser'

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second run skip the installation until pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@ $(VENV)/.installed

# ZnDraw brings a lot with it, so that the web tool has an environment of its own.
web: $(WEB)/.installed
	$(WEB)/bin/simgen web

test-web: $(WEB)/.installed
	OMP_NUM_THREADS=1 $(WEB)/bin/pytest tests/webtool -m 'not slow'

$(WEB)/.installed: pyproject.toml
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/python -m pip install --quiet -e '.[web]' 'playwright>=1.49' 'pytest>=8' 'hypothesis>=6.100'
	touch $@

clean:
	rm -rf $(VENV) $(WEB) out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
