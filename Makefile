# Every target sets up .venv by itself the first time; it needs Python >= 3.11, make and git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/ready            ## train PPO on CartPole with 8 seeds and draw its learning curve
	$(BIN)/python algorithms/ppo.py --env CartPole-v1 --seeds 8 --total-steps 200_000

test: .venv/ready            ## the quick suite, under ten minutes on 2 cores
	$(BIN)/python -m pytest

test-all: lint               ## everything: lint, types, slow proofs, a smoke suite on each interpreter found
	$(BIN)/python -m pytest -m "slow or not slow" --timeout 1800
	$(BIN)/python scripts/check_interpreters.py

lint: .venv/ready            ## checks, format and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlzoo needs Python 3.11 or newer; try: make PYTHON=python3.12 " + "$(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
