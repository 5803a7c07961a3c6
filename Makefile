# Every target works from a fresh clone and installs what it needs into $(VENV).
#   make run                      run a mail server on 127.0.0.1:2525
#   make test ARGS="-k maildir"   run all tests, or as pytest's arguments say; JOBS=0 runs one after the other
#   make test-thorough            run the property tests with fifty times as many examples, new ones each time
#   make check                    run ruff, mypy and the test of the layers
#   make fuzz SECONDS=600         attack a running server with random clients; COUNT=50000 limits the sessions
#   make fuzz-sessions COUNT=1000000  run random sessions in memory
#   make fuzz-parsers SECONDS=600 fuzz every parser with atheris, which coverage guides
#   make docs                     write the pages that come from the code, and check the manuals with mandoc
#   make bench                    measure the server and the installed peers
#   make endurance                reload the server and kill its workers under load
#   make calls                    count the function calls of a message, beside the budget
#   make footprint                measure the start of commands, and the memory of a server
#   make bench-queue              measure a queue of 50,000 messages
#   make bench-filters            measure filters, beside Haraka's, and each plugin (root)
#   make peers                    install the peers of make bench (root or sudo)
#   make profile                  show where the time of a worker goes under load
#   make services                 install the Debian packages that some tests use (root or sudo)
#   make packages                 build sdist, wheel, Debian package and bill of materials into dist/
#   make release                  the same from the last commit, if CHANGELOG.md describes the version
#   make install                  install a systemd service in /opt/minismtp (root); see systemd/install for variables
#   make constraints              update systemd/constraints.txt, the packages of make install with their hashes
#   make uninstall                remove the service; configuration and mail stay
#   PYTHON=python3.13 make test   do the same with another Python, in its own virtual environment

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
ARGS ?=
JOBS ?= auto
SECONDS ?= 600
COUNT ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: run test test-thorough check fuzz fuzz-parsers fuzz-sessions coverage docs calls footprint bench bench-queue bench-filters endurance peers profile services packages release install constraints uninstall clean

run: $(VENV)/.installed
	$(BIN)/minismtp serve $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

test-thorough: $(VENV)/.installed-test
	$(BIN)/pytest --numprocesses=$(JOBS) --hypothesis-profile=thorough -m hypothesis -o faulthandler_timeout=0 $(ARGS)

check: $(VENV)/.installed-test build/typing/minismtp_plugins
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --quiet tests/test_layers.py

fuzz: $(VENV)/.installed-test
	MINISMTP_FUZZ_SECONDS=$(SECONDS) MINISMTP_FUZZ_COUNT=$(COUNT) $(BIN)/pytest -s --hypothesis-profile=random -o faulthandler_timeout=0 tests/test_fuzz.py $(ARGS)

fuzz-sessions: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m fuzz.sessions --count=$(or $(COUNT),1000000) $(ARGS)

fuzz-parsers: $(VENV)/.installed-fuzz
	PYTHONPATH=tests $(BIN)/python -m fuzz.drive --seconds=$(SECONDS) $(ARGS)

coverage: $(VENV)/.installed-test
	$(BIN)/pytest --cov --cov-report=term $(ARGS)

docs: $(VENV)/.installed-test
	$(BIN)/python docs/build.py
	mandoc -T lint -W warning docs/man/*.[58]

calls: $(VENV)/.installed-test
	$(BIN)/python tests/bench/calls.py $(ARGS)

footprint: $(VENV)/.installed-test
	$(BIN)/python tests/bench/footprint.py $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/bench.py $(ARGS)

bench-queue: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/queue_scale.py $(ARGS)

bench-filters: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/filters.py $(ARGS)

profile: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/profile_worker.py $(ARGS)

endurance: $(VENV)/.installed-bench
	$(BIN)/python tests/bench/endurance.py $(ARGS)

peers:
	.ci/peers

services:
	.ci/services

packages: .venv-release/.installed
	.ci/build-packages . dist .venv-release

release: .venv-release/.installed
	.ci/release .venv-release

# What is set on the command line reaches the script. The default of PYTHON above does not, and is not meant to: the
# script looks for an interpreter that the service's user can run.
install:
	systemd/install install

constraints: $(VENV)/pyvenv.cfg
	$(BIN)/python systemd/constraints

uninstall:
	systemd/install uninstall

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find minismtp plugins tests -name __pycache__ -prune -exec rm -rf {} +

# The installation is editable: only what pyproject.toml says makes a new one necessary.
$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) install --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) install --editable '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml $(VENV)/pyvenv.cfg
	$(PIP) install --editable '.[bench,dkim,dmarc,rules]'
	touch $@ $(VENV)/.installed

# An environment of its own, of nothing but what builds: with setuptools as in systemd/constraints.txt, because its
# version is in each wheel. Needs no minismtp.
.venv-release/.installed: pyproject.toml systemd/constraints.txt
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python .ci/release-tools | .venv-release/bin/python -m pip --quiet --disable-pip-version-check install --requirement /dev/stdin
	touch $@

# Where there is no atheris for this Python, `fuzz-parsers` says so.
$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(PIP) install --editable '.[fuzz]' || true
	touch $@

# plugins/ under its installed name, for mypy (see pyproject.toml)
build/typing/minismtp_plugins:
	mkdir -p $(@D)
	ln -sfn ../../plugins $@
