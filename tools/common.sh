# For the other scripts here, which source it: messages, and where the environment is.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
distro=${ROS_DISTRO:-kilted}

say() { printf '== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The prefix of the ROS that is sourced, if it is not one of our own environments.
sourced_prefix() {
  local prefixes prefix
  IFS=: read -ra prefixes <<< "${AMENT_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do
    if [[ -f $prefix/share/rclpy/package.xml ]]; then
      [[ -f $prefix/.adaptok ]] || printf '%s\n' "$prefix"
      return
    fi
  done
}

# Which distribution the ROS in prefix $1 is. ROS_DISTRO alone does not tell: `make
# ROS_DISTRO=jazzy` sets it where another one is sourced.
distro_of() {
  local hook
  for hook in "$1"/share/ros_environment/environment/*ros_distro*.sh; do
    [[ -f $hook ]] || continue
    sed -nE 's/^export ROS_DISTRO="?([a-z]+).*/\1/p' "$hook"
    return
  done
  printf '%s\n' "$distro"
}

# A Python that imports the sourced ROS: conda's or pyenv's often comes first on PATH and cannot.
ros_python() {
  local python
  for python in ${PYTHON:+"$PYTHON"} python3 /usr/bin/python3; do
    python=$(command -v "$python") || continue
    if "$python" -c 'import rclpy.node' > /dev/null 2>&1; then
      printf '%s\n' "$python"
      return
    fi
  done
  return 1
}

# Sets ros_from (system or wheels) and env, the folder of the environment.
locate() {
  local prefix
  ros_from=wheels
  prefix=$(sourced_prefix)
  if [[ -n $prefix && $(distro_of "$prefix") == "$distro" ]]; then
    ros_from=system
    env=$root/.env-$distro-system
  else
    env=$root/.env-$distro
  fi
}
