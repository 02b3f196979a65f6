.PHONY: setup lint test notebooks requirements colab colab-like zip clean

setup:  ## install everything, and let git show a notebook's diff as text
	uv sync --all-groups
	git config diff.ipynb.textconv "python3 tools/notebook_text.py"

lint:  ## check style, notebooks included
	uv run ruff check .
	uv run ruff format --check .

test:  ## everything: unit tests, every notebook, the browser
	uv run pytest -n 2

notebooks:  ## execute the lessons on the real dataset and write their outputs
	uv run python tools/notebooks.py

requirements:  ## export the fixed versions for pip users
	uv export --quiet --no-dev --no-emit-project --no-annotate --output-file requirements.txt

colab:  ## make colab REPO=OWNER/NAME: write the public address into badges and setup cells
	uv run python tools/colab.py "$(if $(filter undefined,$(origin REPO)),$(error say REPO=OWNER/NAME),$(REPO))"

colab-like:  ## run all lessons as on Colab: its versions, the ZIP, a stub of google.colab
	uv run python tools/colab_like.py

zip:  ## write fmdiff.zip, which a lesson on Colab asks for
	uv run python tools/archive.py

clean:  ## remove what runs leave behind; the dataset stays
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path "./.venv/*" -prune -exec rm -rf {} +
