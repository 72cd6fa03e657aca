# Two commands for everybody: make demo, make test. Both set up .venv first, once, from the lock.
PYTHON ?= python3
LOCK := requirements/lock.txt
OLDEST := requirements/oldest.txt
ifeq ($(OS),Windows_NT)
SCRIPTS := Scripts
else
SCRIPTS := bin
endif
BIN := .venv/$(SCRIPTS)
# As many processes as the machine has cores, but not more than its memory can be expected to hold.
PYTEST := -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-long test-newest test-oldest lock lint types docs links benchmarks clean

demo: .venv/.demo
	$(BIN)/python examples/quickstart.py

test: .venv/.dev
	$(BIN)/python $(PYTEST)

test-long: .venv/.dev
	HYPOTHESIS_PROFILE=long $(BIN)/python $(PYTEST)

# The newest releases that the metadata allows, whatever the lock says.
test-newest: .venv-newest/$(SCRIPTS)/python
	$< $(PIP) --upgrade --upgrade-strategy eager -e ".[dev]"
	$< $(PYTEST)

# The lower bounds of the metadata.
test-oldest: .venv-oldest/.dev
	.venv-oldest/$(SCRIPTS)/python $(PYTEST)

# Resolves for all platforms and Python versions at once, without installing anything.
COMPILE = .venv-lock/$(SCRIPTS)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--fork-strategy fewest --strip-extras --no-annotate --extra dev pyproject.toml

lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock: .venv-lock/$(SCRIPTS)/python
	$< $(PIP) --upgrade uv packaging
	$(COMPILE) --constraint requirements/held.txt --output-file $(LOCK)
	$(COMPILE) --constraint requirements/held-oldest.txt --resolution lowest-direct --output-file $(OLDEST)
	$< tools/check_lock.py $(LOCK)
	$< tools/supported_versions.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python tools/check_links.py docs/_build/html

# Links that lead out of the site; it needs a network.
links: .venv/.dev
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/links

benchmarks: .venv/.dev
	$(BIN)/python benchmarks/cifar10_zero_shot.py
	$(BIN)/python benchmarks/equizero_sign.py
	$(BIN)/python benchmarks/hymenoptera.py
	$(BIN)/python benchmarks/cifar10_finetune.py
	$(BIN)/python benchmarks/bfloat16_consistency.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/cheap_scores.py
	$(BIN)/python benchmarks/cheap_scores.py --cost
	$(BIN)/python benchmarks/memory.py
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
	rm -rf .venv .venv-* docs/_build docs/api/generated docs/gallery docs/notebooks/*.ipynb dist build

# Named one by one: make would remove what it makes by an implicit rule.
VENVS := .venv .venv-newest .venv-oldest .venv-lock
$(VENVS:%=%/$(SCRIPTS)/python): %/$(SCRIPTS)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "equitune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $*

# What builds the package comes from the lock as well, so it is installed first. A stamp is written
# last, so that an interrupted installation is done again.
define install
@echo "Installing equitune[$*] and PyTorch into $(@D); the first time this takes some minutes."
$(@D)/$(SCRIPTS)/python $(PIP) --constraint $(1) hatchling editables
$(@D)/$(SCRIPTS)/python $(PIP) --constraint $(1) --no-build-isolation --editable ".[$*]"
@touch $@
endef

.venv/.%: pyproject.toml $(LOCK) | .venv/$(SCRIPTS)/python
	$(call install,$(LOCK))

.venv-oldest/.%: pyproject.toml $(OLDEST) | .venv-oldest/$(SCRIPTS)/python
	$(call install,$(OLDEST))
