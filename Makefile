# make demo   environment, toy city, cluster, test, train, test, pictures (about 5 minutes beside the installation)
# make test   environment, ruff, all tests
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python main.py --dataset=toy --arch=alexnet --fromscratch --num_clusters=16 --seed=$(SEED)
SEED ?= 123

.PHONY: demo test environment clean

environment: $(VENV)/installed

# The stamp is made last: an installation that was cut off is made again.
$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

demo: environment
	@echo "== 1/4 visual words of the toy city, by a network with random weights"
	$(RUN) --mode=cluster
	@echo "== 2/4 what that network finds untrained"
	$(RUN) --mode=test --split=test
	@echo "== 3/4 training"
	$(RUN) --mode=train --nEpochs=5
	@echo "== 4/4 what it finds trained, on streets it has never seen"
	$(VENV)/bin/python main.py --mode=test --resume --split=test

test: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -q --durations=8

clean:
	rm -rf runs centroids toy_city
