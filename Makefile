# Two commands for everybody: make demo, make test. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint types docs benchmarks clean

demo: .venv/.demo
	$(BIN)/python examples/quickstart.py

test: .venv/.dev
	$(BIN)/python -m pytest

test-long: .venv/.dev
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

benchmarks: .venv/.dev
	$(BIN)/python benchmarks/cifar10_zero_shot.py
	$(BIN)/python benchmarks/equizero_sign.py
	$(BIN)/python benchmarks/hymenoptera.py
	$(BIN)/python benchmarks/cifar10_finetune.py
	$(BIN)/python benchmarks/bfloat16_consistency.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/mutants.py
	$(BIN)/python benchmarks/false_alarms.py
	$(BIN)/python benchmarks/audit_cifar10.py
	$(BIN)/python benchmarks/regard.py
	$(BIN)/python benchmarks/fairness.py
	$(BIN)/python benchmarks/perplexity.py
	$(BIN)/python benchmarks/fairness_gap.py
	$(BIN)/python benchmarks/swapped_generations.py
	$(BIN)/python benchmarks/generate_speed.py
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/rl.py
	$(BIN)/python benchmarks/rl_speed.py
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/pictures.py

clean:
	rm -rf .venv docs/_build dist build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "equitune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

# A stamp is written last, so that an interrupted installation is done again.
.venv/.%: pyproject.toml | .venv/bin/python
	@echo "Installing equitune[$*] and PyTorch into .venv; the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@
