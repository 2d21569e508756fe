#!/usr/bin/env bash
# Run every linter there is in the environment that is active.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m ruff check .
if python -c 'import torch' 2> /dev/null; then
  python -m mypy
else
  printf '== mypy is left out: without torch it cannot check the training\n'
fi
if command -v shellcheck > /dev/null; then
  shellcheck -x -P tools tools/*.sh .ci/run
fi
