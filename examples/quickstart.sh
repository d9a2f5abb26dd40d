#!/usr/bin/env bash
# From nothing to an answer: makes .venv, installs, and has 4 ranks on the CPU answer a
# question with the embedded toy checkpoint. Safe to repeat. Arguments go to run_pa.py: bash examples/quickstart.sh --help
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/venv.sh"
ensure_venv
export VENV="${VENV:-$root/.venv}"
unset PYTHON # it made the environment; the launcher runs in it
[ -n "${ASCEND_RT_VISIBLE_DEVICES+set}" ] || set -- --tp 4 "$@"
set -- --device cpu "$@" # a later --device counts
exec bash "$root/examples/models/deepseek/run_pa_deepseek_moe.sh" "$@"
