#!/usr/bin/env bash
# Run every linter, in the environment that is active; .pre-commit-config.yaml names the same ones.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m ruff check .
python -m ruff format --check .
lint-imports
typos
shellcheck -x -P tools tools/*.sh .ci/run
# The types are those of torch, and of an rclpy that has any: Humble's has none.
if python -c 'from importlib import resources as r; import torch; r.files("rclpy").joinpath(
  "py.typed").read_text()' 2> /dev/null; then
  python -m mypy
else
  printf '== mypy is left out: torch is missing, or rclpy has no types\n'
fi
