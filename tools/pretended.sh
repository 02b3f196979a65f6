#!/usr/bin/env bash
# Run lessons on a pretended GPU, without dataset and network: on the drawn stand-in.
# bash tools/pretended.sh [NOTEBOOK ...]    all lessons if left out
set -euo pipefail
cd "$(dirname "$0")/.."
empty=$(mktemp -d)
mkdir -p "$empty/FashionMNIST/raw" # a download is tried there, and fails: the proxy is a port where nothing listens
launcher=$(uv run python -c "import ipykernel_launcher; print(ipykernel_launcher.__file__)")
mkdir -p "$empty/kernels/pretended"
cat >"$empty/kernels/pretended/kernel.json" <<END
{"argv": ["python", "$PWD/tests/pretend.py", "cuda-bf16", "$launcher", "-f", "{connection_file}"],
 "display_name": "A pretended GPU", "language": "python"}
END
export FMDIFF_DATA=$empty JUPYTER_PATH=$empty http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9
export no_proxy=127.0.0.1,localhost
if uv run --offline fmdiff data; then
  echo "a dataset where none should be" >&2
  exit 1
fi
# The pretence loads PyTorch before the package can keep its threads from spinning; two lessons then block each other.
export OMP_WAIT_POLICY=PASSIVE
lessons=("$@")
uv run --offline pytest -n 2 -q --durations 8 --nbmake-kernel pretended "${lessons[@]:-notebooks}"
