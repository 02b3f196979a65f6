.PHONY: setup lint test floor notebooks requirements colab colab-like pretended zip site clean

setup:  ## install everything, and let git show a notebook's diff as text
	uv sync --all-groups
	git config diff.ipynb.textconv "python3 tools/notebook_text.py"

lint:  ## check style, notebooks included, and types
	uv run ruff check .
	uv run ruff format --check .
	uv run pyrefly check

test:  ## everything: unit tests, every notebook, the browser
	uv run pytest -n 2

# Old packages warn about newer ones. Matplotlib 3.10 misplaces a labelled grid that shows each pixel as one pixel.
floor:  ## unit tests with the oldest versions that pyproject.toml allows, in an environment of their own
	uv venv --quiet --clear --python 3.11 .floor
	uv pip install --quiet --python .floor --resolution lowest-direct -e . --group dev --group oracle
	.floor/bin/python -m pytest tests -m "not browser" -W default -k "not (each_pixel and labels1-1)"

notebooks:  ## execute the lessons on the real dataset and write their outputs
	uv run python tools/notebooks.py

requirements:  ## export the fixed versions for pip users
	uv export --quiet --no-dev --no-emit-project --no-annotate --output-file requirements.txt

colab:  ## make colab REPO=OWNER/NAME: write the public address into badges and setup cells
	uv run python tools/colab.py "$(if $(filter undefined,$(origin REPO)),$(error say REPO=OWNER/NAME),$(REPO))"

colab-like:  ## run all lessons as on Colab: its versions, the ZIP, a stub of google.colab
	uv run python tools/colab_like.py

pretended:  ## run all lessons on a pretended GPU and the drawn stand-in, which takes ten minutes; the check runs two
	bash tools/pretended.sh

zip:  ## write fmdiff.zip, which a lesson on Colab asks for
	uv run python tools/archive.py

site:  ## write the series as web pages into site/; needs node and npm
	uv run python tools/website.py

clean:  ## remove what runs leave behind; the dataset stays
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path "./.venv/*" -prune -exec rm -rf {} +
