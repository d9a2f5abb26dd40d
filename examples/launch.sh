# The body that the run scripts share: a script makes its settings, sources this, and calls `ask` with its arguments.
# Nothing that the user exported is overwritten.
# shellcheck shell=bash
set -euo pipefail

root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
program="$root/examples/launch.py" # what `ask` starts

# Export a variable unless the user gave it a value; the launcher does not tell users of what it exported itself.
default() {
    if [ -z "${!1:-}" ]; then
        export "$1=$2"
        export ATB_LAUNCHER_DEFAULTS="${ATB_LAUNCHER_DEFAULTS:-} $1"
    fi
}

# $PYTHON, else the python of $VENV or of the project's .venv, else python3.
choose_python() {
    local venv="${VENV:-$root/.venv}"
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -x "$venv/bin/python" ]; then
        echo "$venv/bin/python"
    else
        echo python3
    fi
}

# Whether flag $1 is among the arguments after it.
given() {
    local flag="$1" word
    shift
    for word in "$@"; do
        case "$word" in "$flag" | "$flag="*) return 0 ;; esac
    done
    return 1
}

# Launch with the script's settings as flags, the given ones after them: input_text, max_output_length, extra_param, and
# system_prompt, which may be empty.
ask() {
    # Token ids are no chat; conversations come before them.
    if [ "$extra_param" = --is_chat_model ] && given --input_ids "$@" && ! given --input_file "$@"; then
        extra_param=""
    fi
    set -f # extra_param holds words, none of them a pattern of file names
    # shellcheck disable=SC2206
    local words=($extra_param)
    # Conversations bring a system text of their own.
    if [ -n "$system_prompt" ] && given --is_chat_model ${words[@]+"${words[@]}"} "$@" && ! given --input_ids ${words[@]+"${words[@]}"} "$@" &&
        ! given --input_file ${words[@]+"${words[@]}"} "$@"; then
        words+=("--system_prompt=$system_prompt")
    fi
    launch --input_texts="$input_text" --max_output_length="$max_output_length" ${words[@]+"${words[@]}"} "$@"
}

launch() {
    # For performance and memory on the NPU; usually there is no need to change them.
    [ -n "${INF_NAN_MODE_FORCE_DISABLE:-}" ] || default INF_NAN_MODE_ENABLE 0 # the two variables say the same thing
    default ATB_OPERATION_EXECUTE_ASYNC 1
    default TASK_QUEUE_ENABLE 1
    default ATB_CONVERT_NCHW_TO_ND 1
    default ATB_CONTEXT_WORKSPACE_SIZE 1
    default ATB_LLM_ENABLE_AUTO_TRANSPOSE 0
    # torchrun itself fails where torch_npu is installed without CANN.
    default TORCH_DEVICE_BACKEND_AUTOLOAD 0
    # ASCEND_RT_VISIBLE_DEVICES (default 0,1,2,3,4,5,6,7, as far as they exist) and MASTER_PORT (default 20030, or
    # another free port) are decided by atb_models/launch.py. It becomes torchrun, with this shell's pid.
    local python
    python="$(choose_python)"
    command -v "$python" >/dev/null || { echo "atb-models: error: $python: no such Python" >&2; exit 127; }
    exec "$python" "$program" "$@"
}
