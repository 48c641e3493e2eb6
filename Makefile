# make demo   trains on phantoms, scores, segments unseen ones and draws one; minutes on a CPU
# make test   all tests
# make lint   the style and type checks
# make test-slow   the experiments at a tenth of their budget: half an hour, needs MISSU_DATA
# make test-clients   MONAI Label, exports, federated learning: installs an environment of gigabytes first
# make bench          speed and memory beside other networks and nnU-Net, on a CPU; installs an environment of its own first
# make package        dist/<name>_v<version>.zip of the bundle with its weights; WEIGHTS=none: without

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
WEIGHTS := required
BIN := $(abspath $(VENV)/bin)
RUN := cd bundle && $(BIN)/python -m
DEMO := bundle/demo

.PHONY: demo test test-slow test-clients bench package lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(RUN) scripts phantom --output_dir demo/phantoms --num_cases 40 --shape "[56,64,48]"
	$(RUN) scripts datalist --dataset_dir demo/phantoms --output demo/datalist.json --testing_fraction 0.2
	$(RUN) monai.bundle run training --config_file "['configs/train.json','configs/demo.json']"
	$(RUN) monai.bundle run --config_file "['configs/inference.json','configs/demo.json']"
	$(RUN) monai.bundle run evaluating --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
	@cd bundle && case=$$(basename $$(ls demo/eval/*_seg.nii.gz | head -1) _seg.nii.gz) && \
	$(BIN)/python -m scripts picture --case demo/phantoms/$$case/$${case}_flair.nii.gz \
		--prediction demo/eval/$${case}_seg.nii.gz --output $(abspath $(DEMO))/$$case.png

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

test-clients: $(VENV)/clients
	$(BIN)/python -m pytest -m clients

$(VENV)/clients: $(VENV)/installed requirements-exports.txt
	$(BIN)/pip install --quiet --requirement requirements-exports.txt
	touch $@

bench: $(VENV)-bench/installed
	PYTHONPATH=bundle:benchmarks $(VENV)-bench/bin/python -W ignore benchmarks/bench.py --output_dir benchmarks/results

$(VENV)-bench/installed: requirements.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --requirement requirements.txt --requirement benchmarks/requirements.txt
	touch $@

package: $(VENV)/installed
	$(BIN)/python tools/package.py --weights $(WEIGHTS)

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-clients $(VENV)-deploy $(DEMO)
