#!/usr/bin/env bash
# DeepSeek-MoE with paged attention, one rank a device:
#     bash run_pa_deepseek_moe.sh ${weight_path} [-trust_remote_code] [flags of run_pa.py]
# No weight path: the embedded toy checkpoint.

# Edit these, or export them.
input_text="${input_text-Who is the CEO of Google?}"
max_output_length="${max_output_length-10}"
extra_param="${extra_param---is_chat_model}" # chat weights: --is_chat_model; base weights: empty

source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../launch.sh"
# Token ids are no chat; conversations come before them.
if [ "$extra_param" = --is_chat_model ] && given --input_ids "$@" && ! given --input_file "$@"; then
    extra_param=""
fi
set -f # extra_param holds words, none of them a pattern of file names
# shellcheck disable=SC2086
launch --input_texts="$input_text" --max_output_length="$max_output_length" $extra_param "$@"
