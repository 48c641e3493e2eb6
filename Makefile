# make demo   trains on phantoms, scores, segments unseen ones and draws one; minutes on a CPU
# make test   all tests
# make lint   the style and type checks
# make test-slow   the experiments at a tenth of their budget: half an hour, needs MISSU_DATA
# make test-clients   MONAI Label, exports, DICOM, browsers, federated learning: installs an environment of gigabytes first
# make bench          speed and memory beside other networks and nnU-Net, on a CPU; installs an environment of its own first
# make package        dist/<name>_v<version>.zip of the bundle with its weights and a bill of materials
# make hugging_face   dist/hugging_face, the package as a repository with a page; says how to publish it
# make weights   the shipped weights again, in runs/weights: 4 hours of one core, needs BRATS=<cases> CHAOS=<cases>
# make lock           requirements-lock.txt anew, of today's newest versions
# make reference      docs/reference anew, from the configs and the code
# make audit          known vulnerabilities of what is locked; needs PyPI's advisories

# The first of these Pythons that is there; PYTHON=python3.12 picks another.
PYTHON ?= $(or $(firstword $(foreach minor,11 12 13 10,$(shell command -v python3.$(minor)))),python3)
# Not in the lock: builds for CPUs and GPUs differ in their bytes and in what they need, so no hash fits all machines.
TORCH := torch==2.13.0
VENV := .venv
BIN := $(abspath $(VENV)/bin)
RUN := cd bundle && $(BIN)/python -m
DEMO := bundle/demo
install = $(1)/bin/pip install --quiet --no-deps --require-hashes --requirement requirements-lock.txt && \
	$(1)/bin/pip install --quiet $(TORCH)

SBOM := bundle/docs/sbom.cdx.json
RESOLVE = echo $(TORCH) | $(BIN)/uv pip compile --quiet --python $(BIN)/python --constraint requirements-lock.txt \
	--no-header --no-annotate

.PHONY: demo test test-slow test-clients bench package hugging_face weights both_data_sets lock reference audit lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: requirements-lock.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV))
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

EXTRAS := requirements-exports.txt requirements-dicom.txt requirements-optional.txt
$(VENV)/clients: $(VENV)/installed $(EXTRAS)
	$(BIN)/pip install --quiet $(addprefix --requirement ,$(EXTRAS))
	touch $@

bench: $(VENV)-bench/installed
	PYTHONPATH=bundle:benchmarks $(VENV)-bench/bin/python -W ignore benchmarks/bench.py --output_dir benchmarks/results

$(VENV)-bench/installed: requirements-lock.txt requirements-exports.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(call install,$(VENV)-bench)
	$(VENV)-bench/bin/pip install --quiet --requirement requirements-exports.txt --requirement benchmarks/requirements.txt
	touch $@

package: $(VENV)/installed $(SBOM)
	$(BIN)/python tools/package.py

hugging_face: $(VENV)/installed $(SBOM)
	$(BIN)/python tools/hugging_face.py
	@echo 'To publish: hf upload <organization>/missu_brats_mri_segmentation dist/hugging_face . --commit-message "Version <version>"'

# Each by a command of its own, such as `make runs/weights/liver.pt CHAOS=/data/chaos_t2spir`. Nothing in bundle/models is
# touched; a training that stopped is begun again. Times are of one core with AVX512-BF16.
MADE := runs/weights
GLIOMAS := cd bundle && PYTHONPATH=. $(BIN)/python ../experiments/gliomas.py
FROM_BUNDLE := ../$(MADE)

weights: both_data_sets $(MADE)/synthetic.pt $(MADE)/model.pt $(MADE)/liver.pt
	@echo 'Done: score them (bundle/docs/README.md has the commands) before they replace those of bundle/models.'

both_data_sets:
	@test -d "$(BRATS)" && test -d "$(CHAOS)" || { echo 'Give two folders of cases: make weights BRATS=<BraTS 2018> CHAOS=<T2-SPIR>'; exit 1; }

# Two hours and a half: 8,000 steps, and three times on from there with ever lower rates, whose ends are averaged
$(MADE)/synthetic.pt: $(VENV)/installed
	@echo 'Training on drawn brains takes hours.'
	mkdir -p $(MADE)
	$(GLIOMAS) train --steps 8000 --output $(FROM_BUNDLE)/drawn0.pt
	$(GLIOMAS) train --init $(FROM_BUNDLE)/drawn0.pt --steps 2500 --learning_rate 7e-4 --seed 1 --output $(FROM_BUNDLE)/drawn1.pt
	$(GLIOMAS) train --init $(FROM_BUNDLE)/drawn1.pt --steps 2000 --learning_rate 5e-4 --seed 2 --output $(FROM_BUNDLE)/drawn2.pt
	$(GLIOMAS) train --init $(FROM_BUNDLE)/drawn2.pt --steps 1500 --learning_rate 3e-4 --seed 3 --output $(FROM_BUNDLE)/drawn3.pt
	$(GLIOMAS) average --weights $(foreach cycle,1 2 3,$(FROM_BUNDLE)/drawn$(cycle).pt) --output $(FROM_BUNDLE)/synthetic.pt
	rm -rf $(MADE)/drawn
	$(RUN) scripts gliomas --output_dir $(FROM_BUNDLE)/drawn --num_cases 24
	$(RUN) scripts scan_range --dataset_dir $(FROM_BUNDLE)/drawn --checkpoint $(FROM_BUNDLE)/synthetic.pt

# 9 minutes
$(MADE)/tuned.pt: $(MADE)/synthetic.pt
	$(GLIOMAS) finetune --steps 750 --init $(FROM_BUNDLE)/synthetic.pt --dataset_dir $(abspath $(BRATS)) --output $(FROM_BUNDLE)/tuned.pt

$(MADE)/model.pt: $(MADE)/tuned.pt
	$(GLIOMAS) average --weights $(FROM_BUNDLE)/synthetic.pt $(FROM_BUNDLE)/tuned.pt --output $(FROM_BUNDLE)/model.pt
	$(RUN) scripts scan_range --dataset_dir $(abspath $(BRATS)) --checkpoint $(FROM_BUNDLE)/model.pt

# 33 minutes. What is validated once, at the end, are the cases of the training: a training without any is refused.
$(MADE)/liver.pt: $(VENV)/installed
	mkdir -p $(MADE)
	$(RUN) scripts datalist --dataset_dir $(abspath $(CHAOS)) --modalities "['t2spir']" --validation_fraction 0 \
		--testing_fraction 0 --output $(FROM_BUNDLE)/liver_list.json
	$(RUN) monai.bundle run training --config_file "['configs/train.json','configs/bfloat16.json','configs/chaos.json','configs/chaos_cpu.json']" \
		--dataset_dir $(abspath $(CHAOS)) --data_list_file_path $(FROM_BUNDLE)/liver_list.json --modalities "['t2spir']" \
		--validate#split training --max_epochs 125 --val_interval 125 --ckpt_dir $(FROM_BUNDLE)/liver \
		--output_dir $(FROM_BUNDLE)/liver/eval
	$(BIN)/python tools/ship.py --checkpoint $(MADE)/liver/model_final.pt --output $@ --settings "{'spacing_mm': [2.5, 2.5, 7.7]}" \
		--dataset 'CHAOS, T2-SPIR, 15 open cases' --license 'CC BY-NC-SA 4.0'
	$(RUN) scripts scan_range --dataset_dir $(abspath $(CHAOS)) --checkpoint $(FROM_BUNDLE)/liver.pt

# Of what the bundle needs, in the locked versions, on the Python of the environment.
$(SBOM): $(VENV)/installed requirements.txt requirements-lock.txt
	$(RESOLVE) requirements.txt - --output-file $(VENV)/needed.txt
	$(BIN)/uvx --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --output-reproducible \
		--output-file $@ $(VENV)/needed.txt

lock: $(VENV)/installed
	echo $(TORCH) | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --generate-hashes \
		--no-header --output-file $(VENV)/lock.txt requirements-dev.txt -
	{ echo '# Made by `make lock`: all that `make` installs, but torch and the GPU libraries that belong to a build of it.'; \
	awk '/^[a-z]/ {skip = /^(cuda|nvidia|torch|triton)[-=]/} !skip' $(VENV)/lock.txt; } > requirements-lock.txt

reference: $(VENV)/installed
	$(BIN)/python tools/reference.py

audit: $(VENV)/installed
	$(RESOLVE) requirements-dev.txt - --output-file $(VENV)/audited.txt
	$(BIN)/uvx --quiet pip-audit==2.10.1 --strict --disable-pip --no-deps --requirement $(VENV)/audited.txt

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-clients $(VENV)-deploy $(DEMO) $(SBOM)
