#!/usr/bin/env bash
# Accuracy and speed of a model; `bash run.sh --help` lists the words, README.md explains them.
# $PYTHON, else the python of $VENV or of the project's .venv, else python3 runs it.
set -euo pipefail

here="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
venv="${VENV:-$here/../../.venv}"
if [ -n "${PYTHON:-}" ]; then
    python="$PYTHON"
elif [ -x "$venv/bin/python" ]; then
    python="$venv/bin/python"
else
    python=python3
fi
command -v "$python" >/dev/null || { echo "atb-models: error: $python: no such Python" >&2; exit 127; }
exec "$python" "$here/start.py" "$@"
