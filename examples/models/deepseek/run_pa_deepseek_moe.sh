#!/usr/bin/env bash
# DeepSeek-MoE with paged attention, one rank a device:
#     bash run_pa_deepseek_moe.sh ${weight_path} [-trust_remote_code] [flags of run_pa.py]
# No weight path: the embedded toy checkpoint.

# Edit these, or export them.
input_text="${input_text:-Who is the CEO of Google?}"
max_output_length="${max_output_length:-10}"
extra_param="${extra_param---is_chat_model}" # chat weights: --is_chat_model; base weights: empty
system_prompt="${system_prompt-}"            # what stands before the question of a chat; empty: nothing

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../launch.sh"
ask "$@"
