# The virtual environment of quickstart.sh and run_tests.sh: source this, then `ensure_venv [extra]` sets $python.
# VENV: its folder (default .venv in the project). PYTHON: the interpreter it is made with (default python3).
# TORCH: what is installed as torch (default torch==2.13.0).
# shellcheck shell=bash
set -euo pipefail

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"

fail() {
    echo "atb-models: error: $*" >&2
    exit 1
}

# Make the environment unless it is there and whole.
create_venv() {
    local venv="$1" base="${PYTHON:-python3}"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
    command -v "$base" >/dev/null || fail "$base is not installed: apt install python3 python3-venv"
    "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        fail "Python 3.10 to 3.12 is needed, $base is $("$base" --version 2>&1); export PYTHON=python3.11, say"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "python3-venv is missing: apt install $("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    echo "creating the virtual environment $venv" >&2
    "$base" -m venv "$venv"
}

# A digest of what an installation is made from: how it is done, and the sources that it compiles.
installed_files() {
    (cd "$root" && find setup.py build_backend.py pyproject.toml atb_models/ops/native/{build.py,csrc} -type f -print0) |
        LC_ALL=C sort -z | (cd "$root" && xargs -0 sha256sum) | sha256sum | cut -d' ' -f1
}

# Install the project into it unless this was done for the same files.
ensure_venv() {
    local extra="${1:-}" venv torch="${TORCH:-torch==2.13.0}" stamp done_file
    venv="$(realpath -m "${VENV:-$root/.venv}")"
    create_venv "$venv"
    python="$venv/bin/python"
    stamp="$(installed_files) $root $torch"
    done_file="$venv/.atb-models-installed${extra:+-$extra}"
    [ "$(cat "$done_file" 2>/dev/null)" = "$stamp" ] && return
    local quiet=--quiet
    [ -t 2 ] && quiet="" # a terminal shows pip's progress
    echo "installing $torch into $venv, 1 of 2 (a few minutes the first time)" >&2
    # The exact release first: it takes the build that pip finds nearest, a CPU build on a package shelf for instance,
    # where the package's range alone might choose another.
    "$python" -m pip install $quiet --disable-pip-version-check "$torch" >&2 ||
        fail "pip could not install $torch (see above); export TORCH with another release from 2.4 to 2.13.0"
    echo "installing atb-models${extra:+ with the extra $extra} and compiling its CPU operations, 2 of 2" >&2
    "$python" -m pip install $quiet --disable-pip-version-check -e "$root${extra:+[$extra]}" >&2 ||
        fail "pip could not install the project (see above)"
    echo "$stamp" >"$done_file"
}
