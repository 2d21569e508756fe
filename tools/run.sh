#!/usr/bin/env bash
# Run a command in the environment that `make build` made, or, without one, an interactive shell.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
locate
[[ -f $env/setup.bash ]] || die "there is no environment for ROS 2 $distro yet: make build"
if (($# == 0)); then
  exec bash --rcfile <(
    printf '[[ -f ~/.bashrc ]] && source ~/.bashrc\n'
    # shellcheck disable=SC2016
    printf 'source %q\nPS1="(adaptok %s) $PS1"\n' "$env/setup.bash" "$distro"
  ) -i
fi
set +eu  # not all of what it sources can bear these
# shellcheck source=/dev/null
source "$env/setup.bash"
exec "$@"
