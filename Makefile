# make demo   trains on phantoms, scores, segments unseen ones and draws one; minutes on a CPU
# make test   all tests
# make lint   the style and type checks

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(abspath $(VENV)/bin)
RUN := cd bundle && $(BIN)/python -m
DEMO := bundle/demo

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(RUN) scripts.phantom --output_dir demo/phantoms --num_cases 24 --shape 64 72 56
	$(RUN) scripts.datalist --dataset_dir demo/phantoms --output demo/datalist.json --testing_fraction 0.2
	$(RUN) monai.bundle run training --config_file "['configs/train.json','configs/demo.json']"
	$(RUN) monai.bundle run evaluating --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
	$(RUN) monai.bundle run --config_file "['configs/inference.json','configs/demo.json']"

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO)
