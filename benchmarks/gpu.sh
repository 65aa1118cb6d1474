#!/bin/sh
# All that is measured on a GPU, in one command of under eight minutes, without Ray, MLflow, pydantic or typer:
#
#     benchmarks/gpu.sh OUT [--tiny]
#
# OUT/gpu.json and OUT/gpu.md are written anew with every row. Wheels that the machine lacks lie in .wheels/ (see
# benchmarks/README.md); without them LoRA and the GPU tests take their other way, which the table says.
set -eu
out=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
if [ -d "$root/.wheels" ]; then
    "${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --target "$out/carried" "$root"/.wheels/*.whl ||
        echo "the carried wheels cannot be installed; going on without them"
fi
# what the machine has itself comes first: a carried wheel never replaces it
export PYTHONPATH="$root" CARRIED="$out/carried" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$out" "$@"
