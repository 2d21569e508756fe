#!/usr/bin/env bash
# Renew requirements/locked/: exact versions, with hashes, of all that `make` installs from PyPI
# where ROS comes as wheels or is not there. For every Python and platform that is supported, by uv
# (pip install uv). Only what no longer fits changes, all of it with `tools/lock.sh --upgrade`.
#
# Not in there: torch, whose builds without CUDA are of another index; and what is installed beside
# a ROS of the machine's own, because it must fit the numpy and OpenCV that ROS was built with.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root/requirements"
command -v uv > /dev/null || die 'uv is missing: pip install uv'

# lock NAME ARGUMENT...: as locked/NAME.txt what `uv pip compile ARGUMENT...` finds
lock() {
  say "locked/$1.txt"
  uv pip compile --quiet --no-config --generate-hashes --no-annotate --python-version 3.10 \
    --custom-compile-command tools/lock.sh --constraints build.txt \
    --output-file "locked/$1.txt" "${@:2}"
}

options=(--universal "$@")
mkdir -p locked
# setuptools builds our own package there, without a download.
lock core runtime.txt test.txt - "${options[@]}" <<< setuptools
# What is in several has the same version in all, because some are installed on top of others.
options+=(--constraints locked/core.txt)
for distribution in kilted jazzy; do
  lock "$distribution" "$distribution.txt" runtime.txt "${options[@]}"
done
lock lint lint.txt "${options[@]}"
# With what torch needs itself.
{
  grep -v '^torch' tokenizers.txt
  printf '%s\n' filelock fsspec jinja2 networkx sympy typing-extensions
} | lock tokenizers - "${options[@]}"
# What `make test-core LOWEST=yes` and CI install: for one Python, the oldest.
lock lowest runtime.txt test.txt - --resolution lowest-direct "$@" <<< 'setuptools>=78.1.1'
