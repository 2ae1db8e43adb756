# Needs Python 3.11, 3.12 or 3.13 and make; each target sets up its environment once.
# Another Python: make test PYTHON=python3.12. Another folder for the environment: make test SA_VENV=env.

PYTHON ?= python3
SA_VENV ?= .venv
BIN := $(SA_VENV)/bin
STAMP := $(SA_VENV)/.installed

# An environment whose Python was moved or removed is stale even if its stamp is new.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(STAMP))
endif
endif

.PHONY: demo test browser tools-test fuzz lint kills completions puppet puppet-detectors puppet-vae puppet-figures puppet-approximations puppet-refinement puppet-blending ablations

demo: $(STAMP)
	$(BIN)/sa demo

# One thread per test process: more threads than cores spin while they wait.
TEST_WORKERS ?= 2
test tools-test: export OMP_NUM_THREADS = 1
test tools-test: export PYTEST_ADDOPTS = -n $(TEST_WORKERS) --dist loadfile
test: $(STAMP) browser
	$(BIN)/python -m pytest

# A test of `sa app` drives a real browser. Where it cannot be installed, that test fails with a line that says so.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
INSTALL := apt-get install -q -y --no-install-recommends chromium
browser:
	@for name in $(BROWSERS); do if command -v $$name > /dev/null; then exit 0; fi; done; \
	if ! command -v apt-get > /dev/null; then false; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -q && $(INSTALL); \
	else sudo -n apt-get update -q && sudo -n $(INSTALL); fi \
	|| echo 'the test of `sa app` needs a browser: install the package chromium' >&2

# The tests of `tools/`, which is not in the wheel; `make test` runs them too.
tools-test: $(STAMP)
	$(BIN)/python -m pytest tools/tests

# Damaged files, odd names and odd flags against every verb; the tests include a few of them.
N ?= 500
SEED ?= 1
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.run --cases $(N) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# Fifteen kills of each verb, and three processes on one output: some minutes each.
kills: $(STAMP)
	$(BIN)/python -m tests.kills together 3 preprocess animate train demo evaluate
	$(BIN)/python -m tests.kills kill 15 preprocess animate train evaluate
	$(BIN)/python -m tests.kills_models 15

completions: $(STAMP)
	$(BIN)/python -m tests.regen completions

# The small networks that detect puppets: about an hour on one slow core. Interrupt at any time; the same command resumes.
puppet-detectors: $(STAMP)
	$(BIN)/python -m tools.figure_networks.detectors

# The first VAE and the image encoder, of 128x128, into a copy: the denoiser that ships needs the VAE that ships.
PUPPET_WORK ?= runs/puppet
puppet-vae: $(STAMP)
	mkdir -p $(PUPPET_WORK)
	test -d $(PUPPET_WORK)/first-vae || { rm -rf $(PUPPET_WORK)/.first-vae.part && \
		cp -r models/puppet $(PUPPET_WORK)/.first-vae.part && mv $(PUPPET_WORK)/.first-vae.part $(PUPPET_WORK)/first-vae; }
	$(BIN)/python -m tools.figure_networks.vae --out $(PUPPET_WORK)/first-vae

# The denoiser of models/puppet, on portraits that it draws: hours on two cores. Interrupt at any time; the same command
# resumes. ARGS="--device cuda --workers 14 --people 8000 --batch 128" for a GPU; --from-scratch for random weights.
puppet: $(STAMP)
	$(BIN)/python -m tools.puppet_training $(PUPPET_WORK) --publish $(ARGS)

puppet-figures: $(STAMP)
	$(BIN)/python -m tools.bench.puppet_figures
	-$(BIN)/python -m tools.puppet_training.score --of vae
	-$(BIN)/python -m tools.puppet_training.score --swap --out $(PUPPET_WORK)/score.jsonl
	$(BIN)/python -m tools.puppet_training.people --out $(PUPPET_WORK)/people.jsonl

# Quality losses of approximate speed on the fifty held-out clips.
puppet-approximations: $(STAMP)
	$(BIN)/python -m tools.bench.approximations $(PUPPET_WORK)/approximations --page docs/performance.md

# The gain of face optimisation on puppets, and the seams of long videos against upstream's blend.
puppet-refinement: $(STAMP)
	$(BIN)/python -m tools.bench.refinement_figures $(PUPPET_WORK)/refinement --page docs/performance.md

puppet-blending: $(STAMP)
	$(BIN)/python -m tools.bench.blending $(PUPPET_WORK)/blending --page docs/performance.md

# The paper's ablations: seven variants with five seeds from one base, ten to twelve core-hours, then Table 5 on another backbone. ABLATION_FLAGS=--pilot trains two
# with three seeds. Interrupt at any time; the same command resumes. ABLATION_FLAGS=--tables prints what is measured so far.
ABLATIONS ?= runs/ablations
ABLATION_FLAGS ?=
ablations: $(STAMP)
	$(BIN)/python -m tools.ablations $(ABLATIONS) --page docs/metrics.md $(ABLATION_FLAGS)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo '$(PYTHON) is not Python 3.11, 3.12 or 3.13: name one, as in make test PYTHON=python3.12' >&2; exit 1; }
	@test ! -e '$(SA_VENV)' || test -f '$(SA_VENV)/pyvenv.cfg' || \
		{ echo '$(SA_VENV) exists and is not a Python environment; name another SA_VENV' >&2; exit 1; }
	rm -rf '$(SA_VENV)'
	$(PYTHON) -m venv $(SA_VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
