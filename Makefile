# Every target that runs Python creates .venv first and refreshes it when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel bench bench-full bench-default

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'PYTHON=python3.12 names the interpreter of a new $(VENV) (3.10 or newer)'

demo: $(INSTALLED) ## sample, invert and compare solvers on the embedded network
	$(RUN) -m odediff

test: $(INSTALLED) ## run the tests
	$(RUN) -m pytest --numprocesses auto

WORKERS ?= 0,1
STUDY := $(RUN) -m benchmarks.nfe_quality -m worker=$(WORKERS) hydra/launcher=joblib

bench: $(INSTALLED) ## NFE against quality over all solvers, diffusers and problems; resumes where it was stopped
	$(STUDY)

bench-full: $(INSTALLED) ## the same with every variant, grid, closing and long rows; days, resumable
	$(STUDY) folder=outputs/nfe_quality_full variants=true grids=null 'closings=[denoise,extrapolate,None]' peer_grids=null \
	    networks.grids=null networks.peer_grids=null networks.nfe=null networks.tolerance=null networks.stochastic=true \
	    'nfe=[2,3,4,5,6,8,10,12,15,20,25,30,40,50,75,100,200,500,1000]' 'tolerances=[1e-1,1e-2,1e-3,1e-4,1e-5]' \
	    'images.problems=[network_1,network_2]' 'images.nfe=[5,6,8,10,15,20,50,100]' images.ours=5 images.peers=5

FOLLOWING := [DDIM,HeunDiscrete,KDPM2Discrete,LMSDiscrete,PNDM,DPMSolverMultistep,DPMSolverSinglestep,UniPCMultistep,DEISMultistep]

bench-default: $(INSTALLED) ## the default sampler against diffusers' schedulers in all their grids
	$(STUDY) folder=outputs/default_networks problems=[network_1,network_2] solvers=[gp_multistep] peers=$(FOLLOWING) \
	    peer_grids=null networks.peer_grids=null networks.nfe=null nfe=[5,6,8,10,12,15,20,30,50] tolerances=[] samples.network=10 images.problems=[]
	$(STUDY) folder=outputs/default_exact solvers=[gp_multistep] peers=$(FOLLOWING) peer_grids=null tolerances=[] \
	    problems=[mixture_2_held_out,mixture_16_held_out,mixture_64_held_out,mixture_256_held_out] \
	    nfe=[5,6,8,10,12,15,20,30,50]

lint: $(INSTALLED) ## check style, formatting and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

wheel: $(INSTALLED) ## build the wheel and try it in a clean environment
	$(RUN) tests/check_wheel.py

# pip below 21.3, which Python 3.10.0 bundles, cannot install a pyproject.toml in editable mode.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("odediff needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(RUN) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo 'installing odediff and its dependencies into $(VENV) (a few minutes the first time)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check 'pip>=21.3'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@
