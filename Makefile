# make demo   sets up and stylizes sample pictures into demo-output
# make test   sets up and runs every test; make test-fast only those without a server, a browser or a long optimization
# make check  lint, formatting, types and the import contracts
# make fuzz   feeds damaged manifests and pictures to their readers for FUZZ_SECONDS, 60 by default
# make soak   kills a run SOAK_KILLS times, 25 by default, and its S3 server for SOAK_OUTAGE seconds, 60 by default
# make bench  measures speed and memory against other loops, for an hour or more; TORCH names a Python that has PyTorch
# make docs   writes the settings into docs/configuration.md and .env.example
# make lock   rewrites constraints.txt with the newest versions that pyproject.toml allows
# make clean  removes everything that the other targets made

PYTHON ?= python3
SOAK_KILLS ?= 25
SOAK_OUTAGE ?= 60
BIN := .venv/bin
TORCH ?= $(BIN)/python

# some containers set it: each process of the tests would compile the project again
unexport PYTHONDONTWRITEBYTECODE
# the matrices of the tests are small: threads would spend most of their time waiting for each other
test test-fast: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo test test-fast check fuzz soak bench docs lock clean

demo: .venv/demo
	$(BIN)/nst demo --out demo-output

# more processes than cores, because many tests wait for servers and commands; a file's tests stay together
test: .venv/ready
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-fast: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not server and not browser and not slow"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz

soak: .venv/ready
	SOAK_KILLS=$(SOAK_KILLS) SOAK_OUTAGE=$(SOAK_OUTAGE) $(BIN)/python -m pytest -s tests/faults -k killed

bench: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m bench speed --torch $(TORCH)
	$(BIN)/python -m bench growth
	$(BIN)/python -m bench profiles

docs: .venv/demo
	$(BIN)/python -m docs.settings

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("nst needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12") if not (3, 11) <= sys.version_info < (3, 14) else None'
	$(PYTHON) -m venv .venv

# .venv/ready does not depend on .venv/demo, which it includes: pip takes seconds to find that everything is installed
.venv/demo: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	@touch $@

.venv/ready: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@ .venv/demo

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --editable ".[test]"
	.venv-lock/bin/pip freeze --exclude-editable | grep -v ' @ ' >constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
