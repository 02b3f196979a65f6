"""Print a notebook's source without outputs: `make setup` gives this to git as `textconv`, for readable diffs."""

import json
import sys
from pathlib import Path

sys.stdout.reconfigure(encoding="utf-8")
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    print(f"# %% {cell['cell_type']} {cell['metadata'] or ''}\n{''.join(cell['source'])}\n")
