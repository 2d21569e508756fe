#!/usr/bin/env bash
# Run every linter, in the environment that is active; .pre-commit-config.yaml names the same ones.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -m ruff check .
python -m ruff format --check .
lint-imports
typos
shellcheck -x -P tools tools/*.sh .ci/run
hadolint docker/Dockerfile
# It needs the types of torch and of rclpy, and Humble's rclpy has none.
if python - << 'END' 2> /dev/null; then
from importlib.resources import files

import torch

assert (files('rclpy') / 'py.typed').is_file()
END
  python -m mypy
else
  printf '== mypy is left out: torch is missing, or rclpy has no types\n'
fi
