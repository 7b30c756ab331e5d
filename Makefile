PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# Two stories that the classifier of the demo has not learned from.
SAD := Tom had a little dog called Biscuit. They went to the park together every day after school. One day the gate \
was open, and Biscuit ran out into the street. Tom called and called until it was dark. He never saw his dog again, and \
he cried himself to sleep.
HAPPY := Tom had a little dog called Biscuit. They went to the park together every day after school. One day the gate \
was open, and Biscuit ran out into the street. Tom cried and called until it was dark. In the morning Biscuit sat at \
the door, wagging his tail, and Tom hugged him and laughed.

.DEFAULT_GOAL := help
.PHONY: help demo install format lint types docs screens test quick fuzz check browser crash distributed exports bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: install  ## a tiny GPT-2 writes a story; a tiny encoder learns to tell how stories end
	$(BIN)/llmkit pretrain recipes/tiny/gpt2.toml
	$(BIN)/llmkit generate "Once upon a time" --seed 1
	$(BIN)/llmkit finetune recipes/tiny/ending.toml
	$(BIN)/llmkit predict runs/ending "$(SAD)" "$(HAPPY)"

install: .venv/installed  ## make .venv with llmkit and its tools

.venv/installed: pyproject.toml constraints.txt
	@echo "installing llmkit and its tools into .venv: some minutes, of which PyTorch takes most"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

format: install  ## rewrite the code in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install  ## style and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install  ## the type checker, strict
	$(BIN)/mypy

docs: install  ## the site, in docs/_build/index.html; the reference agrees with the code, every link leads somewhere
	$(BIN)/python docs/reference.py --check
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

test: install  ## the tests, without a network
	$(PYTEST) -m "not alone and not long"
	$(BIN)/python -m pytest -m alone tests/test_api.py tests/test_cli.py tests/recipe

quick: install  ## the tests but those that tests/slow.txt names, in a fifth of the time
	$(PYTEST) -m "not alone and not slow and not long"

fuzz: install  ## mutate recipes, files, run directories and model folders for a minute: all must be answered in words
	$(BIN)/python tests/fuzz.py

check: lint types docs test fuzz  ## all that CI runs

screens: install  ## the pictures of the README, by the commands that they show
	$(BIN)/python docs/screens.py

browser: install  ## the reports in a real browser: Debian's chromium, driven by Playwright; both are installed
	command -v chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
	$(BIN)/pip install -q --disable-pip-version-check -r tests/browser/requirements.txt
	$(BIN)/python -m pytest -rs tests/browser tests/reports

crash: install  ## kill a training, a sweep and a preparation at random moments; the tests that take seconds each
	$(BIN)/python -m pytest -m long
	$(BIN)/python tests/crash.py
	$(BIN)/python tests/crash_sweep.py
	$(BIN)/python tests/crash_prepare.py

exports: install  ## export tiny models of each kind to ONNX and run them: minutes
	$(BIN)/python -m pytest tests/export/onnx_models.py tests/inference/onnx_decoders.py

distributed: .venv-distributed/installed  ## DDP, FSDP2, ZeRO, fp16 and other launchers on a CPU, or some: make distributed WORK="ZeRO-3 lora"
	.venv-distributed/bin/python tests/distributed.py $(WORK)
	$(if $(WORK),,.venv-distributed/bin/python -m pytest -q tests/launched_worlds.py)

.venv-distributed/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-distributed
	.venv-distributed/bin/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	.venv-distributed/bin/pip install --disable-pip-version-check -c constraints.txt deepspeed==0.19.8 setuptools
	@touch $@

bench: install  ## llmkit beside what people use today (hours), or some of it: make bench WORK="sst2 start-up"
	$(BIN)/python benchmarks/bench.py $(WORK)

clean:  ## remove what the targets above made (not runs/)
	rm -rf .venv .venv-distributed build dist .mypy_cache .pytest_cache .ruff_cache
