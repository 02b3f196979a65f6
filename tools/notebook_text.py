"""Print a notebook's source without its outputs: git's `textconv` for readable diffs, set by `make setup`."""

import json
import sys
from pathlib import Path

sys.stdout.reconfigure(encoding="utf-8")
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    print(f"# %% {cell['cell_type']} {cell['metadata'] or ''}\n{''.join(cell['source'])}\n")
