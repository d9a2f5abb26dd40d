#!/usr/bin/env bash
# Installs the project with its test tools into .venv and checks everything; --full adds the wide crosses.
# Further arguments go to pytest: bash tests/run_tests.sh tests/launcher -k port
# Two tests run at a time, those of a file one after the other; -n 0 runs them one by one.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../examples/venv.sh"
selection=()
if [ "${1:-}" = "--full" ]; then
    selection=(-m "full or not full")
    shift
fi
ensure_venv test
cd "$root"
export TORCH_DEVICE_BACKEND_AUTOLOAD="${TORCH_DEVICE_BACKEND_AUTOLOAD:-0}"
echo "== ruff" && "$python" -m ruff check .
echo "== mypy" && "$python" -m mypy
echo "== syntax of Python 3.10 and 3.12" && "$python" tests/check_syntax.py
echo "== pytest" && exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
