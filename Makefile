# Every command of a contributor. Each first brings its environment up to date, which takes milliseconds if it already is:
# see tools/environment.py. `make PYTHON=/path/to/python3.12 test` takes another Python.

SHELL := /bin/sh
.DEFAULT_GOAL := help
unexport PYTHONHOME PYTHONPATH # which would point every Python here elsewhere

# The tests start hundreds of processes. Compiled modules are kept in one place, so that not each compiles them again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/compiled

# Each Python has environments of its own, so that two runs at once do not change each other's.
VENV := .venv$(if $(PYTHON),-$(shell "$(PYTHON)" -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null))
BIN := $(VENV)/bin
RANKS := $(CURDIR)/.cache/ranks/litellm/litellm_core_utils/tokenizers
SERVERS := $(CURDIR)/.cache/servers/bin
NEEDS_RANKS := TIKTOKEN_CACHE_DIR="$(RANKS)"

# The environment's own interpreter sets it up; if there is none yet, tools/find_python.sh finds one.
SETUP = python=$$([ -x $(BIN)/python ] && echo $(BIN)/python || tools/find_python.sh $(if $(PYTHON),"$(PYTHON)")) && "$$python" tools/environment.py
TESTED = $(VENV)=requirements/dev.txt .cache/ranks=requirements/ranks.txt .cache/servers=requirements/servers.txt

# The demo runs against the embedded simulator. Both limits bind: requests for short rows, tokens for long ones.
DEMO_LIMITS := requests=840/min burst 40,tokens=330k/min burst 12k
DEMO := demo-out/results.jsonl

# pyright --verifytypes takes the Python that is first on PATH, whatever --pythonpath says.
PYRIGHT := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright

PYTEST := $(NEEDS_RANKS) PENSTOCK_OPENAI2_PYTHON="$(CURDIR)/$(VENV)-openai2/bin/python" PENSTOCK_TEST_SERVERS="$(SERVERS)" \
	$(BIN)/python $(MEASURED) -m pytest -q
# These runs share the tests (tests/parts.py). There are more of them than cores, because many tests wait for processes
# and servers. Tests of what several processes get in a second run afterwards; they mostly sleep.
PARTS := 1 2 3 4 5 6
THROUGHPUT := $(shell grep -rl "pytest\.mark\.throughput" tests --include="test_*.py")

.PHONY: help demo test fuzz coverage check bench docs try-it pictures mutation kills field matrix pages pins pins-field address clean environment

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: ## run a real file of requests at full quota against the embedded simulator, and check the results
	@$(SETUP) $(VENV)-demo=requirements/demo.txt .cache/ranks=requirements/ranks.txt
	@rm -rf demo-out && mkdir demo-out
	$(NEEDS_RANKS) $(VENV)-demo/bin/penstock run examples/requests.jsonl -o $(DEMO) --simulate --limits "$(DEMO_LIMITS)"
	$(VENV)-demo/bin/python examples/check_results.py examples/requests.jsonl $(DEMO)

test: environment ## the tests; TESTS="tests/test_x.py -k word" for some of them
ifdef TESTS
	$(PYTEST) $(TESTS)
else
	@rm -rf .cache/parts && mkdir -p .cache/parts; code=0; trap '[ -z "$$parts" ] || kill $$parts 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	share() { \
		which=$$1 runs=$$2 parts= claims=.cache/parts/claims; shift 2; mkdir $$claims; \
		for part in $$runs; do \
			PENSTOCK_PARTS="$(CURDIR)/$$claims" $(PYTEST) -p tests.parts -o console_output_style=classic -m "$$which" "$$@" >.cache/parts/$$part.log 2>&1 & parts="$$parts $$!"; \
		done; \
		for part in $$parts; do wait $$part || code=1; done; \
		parts=; rm -r $$claims; cat .cache/parts/*.log; rm .cache/parts/*.log; \
	}; \
	share "not throughput" "$(PARTS)" tests; share throughput "$(PARTS)" $(THROUGHPUT); exit $$code
endif

fuzz: environment ## read 100,000 random headers, bodies, events and dates, each in linear time; MANY= for another number
	PENSTOCK_FUZZ=$(or $(MANY),100000) $(BIN)/python -m pytest -q -o faulthandler_timeout=0 tests/llm/test_hostile_text.py \
		tests/llm/test_hostile_answers.py

# Python 3.11 traces wrongly what follows an exception that was thrown into a coroutine: it counts as never run.
coverage: environment ## the tests again, and a report of the lines and branches of src/ that no test takes (build/coverage); half an hour; best with PYTHON= a 3.12 or later
	@rm -rf build/coverage && mkdir -p build/coverage
	-$(MAKE) test MEASURED="-m coverage run" # a test that measures time may fail beside a tracer
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage html -q
	$(BIN)/python -m coverage report --skip-covered --fail-under=97

check: environment ## ruff, codespell, mypy --strict, pyright (every public name has a known type), and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md docs src tests examples benchmarks tools
	$(BIN)/mypy src tests/typing
	$(PYRIGHT)
	@mkdir -p .cache
	$(PYRIGHT) --verifytypes penstock --ignoreexternal > .cache/types.log || (cat .cache/types.log; exit 1)
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: ## the benchmarks of benchmarks/, each beside what a user would write instead; writes benchmarks/RESULTS.md (half an hour); ONLY="shapes.py" for some
	@$(SETUP) $(TESTED) $(VENV)-bench=requirements/bench.txt
	$(NEEDS_RANKS) PENSTOCK_TEST_SERVERS="$(SERVERS)" $(VENV)-bench/bin/python benchmarks/_results.py $(ONLY)

docs: environment ## build the site into build/site, without a warning, and run every example of the docs
	@$(SETUP) $(VENV)-docs=requirements/docs.txt
	$(VENV)-docs/bin/python -m sphinx -W --keep-going -q -d build/doctrees docs build/site
	$(NEEDS_RANKS) $(BIN)/python -m pytest -q tests/test_*docs*.py tests/*/test_*docs*.py

try-it: docs ## the site with its page that runs penstock in the browser; needs npm
	$(BIN)/python tools/try_it.py build/site
	PENSTOCK_SITE=build/site $(BIN)/python -m pytest -q tests/test_try_it.py

pictures: environment ## draw the pictures of the docs and write their tables again, from runs in virtual time and benchmarks/RESULTS.md
	$(BIN)/python tools/pictures.py
	$(BIN)/python tools/measured.py

mutation: environment ## change the core one thing at a time, break each promise, and see a test fail; JOBS=2 for two at a time; QUICK="flows decision", or QUICK=all, by the pure tests alone, SAMPLE=150 of each
ifdef QUICK
	$(BIN)/python tools/quick_mutation.py $(filter-out all,$(QUICK))
else
	JOBS=$(or $(JOBS),1) $(BIN)/python tools/mutation.py
	$(BIN)/python tools/break_promises.py
endif

kills: environment ## kill penstock run 145 times at random instants; nothing may be lost, nothing paid for twice unknowingly (half an hour)
	$(BIN)/python tools/kill_runs.py

field: ## tests against what others wrote, WHAT=judges, runs, sdks, frameworks, engines, pages or peers; writes docs/field/ (tests/field/README.md)
	@$(SETUP) $(TESTED)
	$(NEEDS_RANKS) PENSTOCK_TEST_SERVERS="$(SERVERS)" $(BIN)/python tests/field $(WHAT) $(ONLY)

matrix: environment ## try the wheel with each extra on every Python of this machine: oldest versions on the oldest, newest on the others
	$(BIN)/python tools/matrix.py $(EXTRA)

pages: environment ## run each page of the docs as a reader does: the wheel, what the page says to install, its programs as printed
	$(BIN)/python tools/pages.py $(PAGES)

PIN = .cache/uv/bin/uv pip compile --quiet --python $(BIN)/python --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header $(UPGRADE)

pins: environment ## work the pins out anew from pyproject.toml and requirements/*.in; UPGRADE=--upgrade takes newer ones
	$(PIN) requirements/uv.in -o requirements/uv.txt
	$(PIN) --no-deps requirements/ranks.in -o requirements/ranks.txt
	$(PIN) --no-deps requirements/servers.in -o requirements/servers.txt
	$(PIN) pyproject.toml --all-extras requirements/dev.in -o requirements/dev.txt
	$(PIN) pyproject.toml --extra openai requirements/openai2.in -o requirements/openai2.txt
	$(PIN) pyproject.toml --all-extras -c requirements/dev.txt requirements/docs.in -o requirements/docs.txt
	$(PIN) pyproject.toml --extra openai --extra cli --extra simulator -c requirements/dev.txt requirements/demo.in -o requirements/demo.txt
	$(PIN) pyproject.toml --all-extras -c requirements/dev.txt requirements/bench.in -o requirements/bench.txt

pins-field: environment ## work out the pins of tests/field/WHAT from its *.in; UPGRADE=--upgrade takes newer ones
	@for file in tests/field/$(WHAT)/*.in; do $(PIN) pyproject.toml $$file -o $${file%.in}.txt || exit 1; done

address: environment ## set the address of the repository, in pyproject.toml and README.md: TO=https://github.com/you/penstock
	$(BIN)/python tools/address.py $(TO)

clean: ## remove everything that these commands made
	rm -rf .venv .venv-* .cache demo-out dist build mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples tools -name __pycache__ -prune -exec rm -rf {} +

environment:
	@tools/unpack_debian.sh .cache/tls-server usr/bin/redis-server redis-server redis-tools & \
	tools/unpack_debian.sh .cache/browser usr/lib/chromium/chromium chromium & \
	$(SETUP) $(TESTED) $(VENV)-openai2=requirements/openai2.txt && wait
