#!/usr/bin/env bash
# Run pytest, of the environment that is active, on the installed package: test.sh [ARG...].
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The source folder has no messages and must not hide the installed package. This is the path as
# pytest will have it: it is started as a program, so without the current folder.
found=$(python -c 'import sys; sys.path.pop(0)
import adaptok_ros; print(adaptok_ros.__file__)')
if [[ $found == "$PWD/adaptok_ros/"* ]]; then
  printf 'error: the tests would import the source folder: unset PYTHONPATH\n' >&2
  exit 1
fi
printf '== testing %s with %s\n' "${found#"$PWD"/}" "$(python --version)"

# Robots and other tests, on the same network or machine, stay out of it.
if [[ ${ROS_DISTRO:-} == humble ]]; then
  export ROS_LOCALHOST_ONLY=1
else
  export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
fi
export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-$((RANDOM % 100 + 1))}
exec pytest test "$@"
