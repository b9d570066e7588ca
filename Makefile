# setup: the environment; demo: the whole way in a few minutes; test, bench and lint: what they say.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.set-up
TORCH := torch==2.13.0
# The wheels of download.pytorch.org for processors alone are a tenth of the size; where that index can't be reached, PyPI's serve as well.
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup demo smoke test bench lint methods clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || { ! ls /dev/nvidia0 >/dev/null 2>&1 && $(BIN)/pip install --timeout 15 --retries 1 $(TORCH) --index-url $(CPU_INDEX); } || $(BIN)/pip install $(TORCH)
	$(BIN)/pip install -e '.[test,lint]'
	touch $@

demo: setup
	$(BIN)/bessemer run demo

smoke: setup
	$(BIN)/bessemer run demo --smoke

test: setup
	$(BIN)/python -m pytest tests -n 2

bench: setup
	set -e; for file in $$(grep -l '"--quick"' benchmarks/*.py); do $(BIN)/python $$file --quick; done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

methods: setup
	$(BIN)/bessemer methods --markdown

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
