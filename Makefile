# make check  environment, style, types, layers, quick tests (about a minute)
# make demo   environment, toy city, cluster, test, train, test, pictures (about 5 minutes on 2 cores, beside the installation)
# make test   environment, style, types, layers, all tests; what a number format can touch also with --precision=auto the other way
# make test-number-format   only the latter
# make serve  the toy city at http://127.0.0.1:8000: a page to look at, and a service to ask; Ctrl-C ends it
# make tables ROOT=DIR [DATASET=NAME] [WEIGHTS=FOLDER] [OUT=FOLDER]   recall, size and time of the README's models on
#             any data set, from nothing: two tables and a picture in OUT; started again it goes on; TABLES: further flags
# make docs   the pictures in docs/, of the toy city and the run of `make demo`, which comes first where there is none
PYTHON ?= python3
VENV ?= .venv
SEED ?= 123
MAIN := $(VENV)/bin/python main.py
TOY := --dataset=toy --arch=alexnet --fromscratch --num_clusters=16 --imageSize 96 128 --seed=$(SEED)
# A network with random weights learns here from batches of places: a panorama each, and the queries around it. Of a place
# only images that look alike are a pair's, since its images show eight directions. The paper's triplets are the default.
PLACES := --loss=multi-similarity --placeDistance=8 --placeRadius=4 --batchSize=16 --hardEvery=4 --alike --nEpochs=32 \
	--evalEvery=8 --optim=ADAM --lr=0.0001 --weightDecay=0

.PHONY: demo test test-number-format environment clean
.PHONY: check static docs serve tables

environment: $(VENV)/installed

# The stamp is made last: an installation that was cut off is made again.
REQUIREMENTS := requirements.txt $(addprefix requirements-,deploy.txt serve.txt opencv.txt keypoints.txt milvus.txt dev.txt)

$(VENV)/installed: $(REQUIREMENTS)
	@echo "installing into $(VENV): PyTorch with CUDA, ONNX Runtime, OpenVINO and others, several GB, in a minute or some."
	@echo "Without a GPU 200 MB of PyTorch suffice: $(PYTHON) -m venv $(VENV) and"
	@echo "$(VENV)/bin/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu   before this."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(addprefix -r ,$(REQUIREMENTS))
	touch $@

# axe-core judges pages in the tests: whether those who see little or use no mouse can use them.
AXE := $(VENV)/node_modules/axe-core/axe.min.js

$(AXE): Makefile | $(VENV)/installed
	npm install --silent --no-save --no-package-lock --prefix $(VENV) axe-core@4.14.1 && touch $@ \
		|| echo "no npm, or no registry of its packages: tests that use axe-core are skipped"

# Says how long a command took.
timed = @begun=$$(date +%s) && echo "$(1)" && $(1) && echo "-- $$(( $$(date +%s) - begun )) s"

# Beside the installation it downloads nothing.
demo: environment
	@echo "== 1/4 visual words of the toy city, by a network with random weights"
	$(call timed,$(MAIN) $(TOY) --mode=cluster)
	@echo "== 2/4 what that network finds untrained"
	$(call timed,$(MAIN) $(TOY) --mode=test --split=test)
	@echo "== 3/4 training"
	$(call timed,$(MAIN) $(TOY) $(PLACES) --mode=train)
	@echo "== 4/4 what it finds trained, on streets it has never seen"
	$(call timed,$(MAIN) --mode=test --resume --split=test)

# Test files side by side, one on each core.
ALL_TESTS := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --durations=8 --numprocesses=auto --dist=loadfile
IN_THE_OTHER_FORMAT := $(ALL_TESTS) -m number_format --auto=other

test: static $(AXE)
	$(ALL_TESTS)
	$(IN_THE_OTHER_FORMAT)

# Closed forms and small arrays: what most changes break first.
QUICK := $(addprefix tests/,test_netvlad.py test_pittsburgh.py test_packaging.py cli/test_options.py data/test_images.py \
	models/test_convolution.py search/test_search_and_recall.py report/test_report.py training/test_mining.py \
	training/test_losses.py training/test_rules.py)

# What needs no run of the program: style, spelling, types, and which packages may import which.
static: environment
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# The newest run on the toy city, found when it is needed.
TOY_RUN = $$(dirname "$$(grep -ls '"dataset": "toy"' runs/*/flags.json | tail -1)")

# The page and the service on the toy city, with the run of `make demo`, which comes first where there is none, and how
# sure its answers are, learnt on the streets of the validation split.
serve: environment
	grep -qs '"dataset": "toy"' runs/*/flags.json || $(MAKE) demo
	$(MAIN) test --resume=$(TOY_RUN) --split=val --rerank=50 --calibrate --panels=0
	$(MAIN) index --resume=$(TOY_RUN) --split=test --localDescriptors --utmZone=17N
	@echo "try an image of toy_city/queries_real/: drop it on the page"
	$(MAIN) serve --resume=$(TOY_RUN) --split=test --utmZone=17N

docs: environment
	grep -qs '"dataset": "toy"' runs/*/flags.json || $(MAKE) demo
	$(VENV)/bin/python -m docs.pictures

tables: environment
	$(VENV)/bin/python -m benchmarks.tables $(if $(ROOT),--root="$(ROOT)") $(if $(DATASET),--dataset=$(DATASET)) \
		$(if $(WEIGHTS),--weights="$(WEIGHTS)") $(if $(OUT),--out="$(OUT)") $(TABLES)

test-number-format: environment
	$(IN_THE_OTHER_FORMAT)

check: static
	$(VENV)/bin/python -m pytest -q -m "not slow" $(QUICK)

clean:
	rm -rf runs centroids indexes cache toy_city
