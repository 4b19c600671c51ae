# On a fresh machine, run `make demo` or `make test`. Both use the active environment if it has all requirements, and
# otherwise .venv, which they create if needed.
#
#     make demo VIDEO=my.mp4     your own video instead of the demo video
#     make test ARGS="-k hub"    further arguments for pytest

OUTPUT ?= demo_output
DEMO := src/transformers_cvis/assets/demo/moving_shapes

PYTHON := $(shell for python in python python3 .venv/bin/python; do \
	command -v $$python >/dev/null && $$python .ci/satisfied.py 2>/dev/null && echo $$python && break; done)
ifeq ($(PYTHON),)
PYTHON := .venv/bin/python
ENVIRONMENT := .venv
endif
CLI := $(PYTHON) -m transformers_cvis.cli
export PYTHONPATH := $(CURDIR)/src

.PHONY: demo test lint .venv

demo: $(ENVIRONMENT)
ifdef VIDEO
	$(CLI) segment "$(VIDEO)" --out "$(OUTPUT)" --overwrite
else
	$(CLI) segment $(DEMO).mp4 --out "$(OUTPUT)" --overwrite
	$(CLI) evaluate $(DEMO).json --results "$(OUTPUT)/results.json"
	$(PYTHON) examples/switch_tasks.py --out "$(OUTPUT)"
endif

test: $(ENVIRONMENT)
	$(PYTHON) -m pytest -q -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

.venv:
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
