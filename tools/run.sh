#!/usr/bin/env bash
# Run a command in the environment that `make build` made, or, without one, an interactive shell.
#
# ROS 2 as wheels has no launch. ADAPTOK_LAUNCH_PREFIX names a folder into which colcon installed
# launch, launch_ros and launch_pytest for the same Python, and perhaps ros2cli; it is used, too.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
locate
[[ -f $env/setup.bash ]] || die "there is no environment for ROS 2 $distro yet: make build"
python=$env/bin/python
launch_setup=/dev/null
if [[ -n ${ADAPTOK_LAUNCH_PREFIX:-} ]]; then
  launch_setup=$ADAPTOK_LAUNCH_PREFIX/local_setup.bash
  site=lib/$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')/site-packages
  [[ -f $launch_setup ]] || die "ADAPTOK_LAUNCH_PREFIX: there is no $launch_setup"
  if [[ ! -d $ADAPTOK_LAUNCH_PREFIX/$site/launch ]]; then
    say "ADAPTOK_LAUNCH_PREFIX is left out: it has no $site/launch"
    launch_setup=/dev/null
  fi
  export COLCON_PYTHON_EXECUTABLE=$python  # the one that built the prefix may be gone
fi
if (($# == 0)); then
  exec bash --rcfile <(
    printf '[[ -f ~/.bashrc ]] && source ~/.bashrc\n'
    # shellcheck disable=SC2016
    printf 'source %q\nsource %q\nPS1="(adaptok %s) $PS1"\n' \
      "$env/setup.bash" "$launch_setup" "$distro"
  ) -i
fi
set +eu  # not all of what it sources can bear these
# shellcheck source=/dev/null
source "$env/setup.bash"
# shellcheck source=/dev/null
source "$launch_setup"
exec "$@"
