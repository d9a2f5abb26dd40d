#!/usr/bin/env bash
# From nothing to an answer: makes .venv, installs with what `atb-models serve` needs, has 4 ranks on the CPU answer a
# question with the embedded toy checkpoint, and says what to try next. Safe to repeat. Arguments go to run_pa.py:
#     bash examples/quickstart.sh --help

# Edit these, or export them.
input_text="${input_text:-Who is the CEO of Google?}"
max_output_length="${max_output_length:-10}"
extra_param="${extra_param---is_chat_model}"
system_prompt="${system_prompt-}"

here="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
source "$here/venv.sh"
ensure_venv server
export VENV="${VENV:-$root/.venv}"
unset PYTHON # it made the environment; the launcher runs in it
source "$here/launch.sh"
program="$here/quickstart.py"
[ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ] || set -- --tp 4 "$@"
ask --device cpu "$@" # a later --device counts
