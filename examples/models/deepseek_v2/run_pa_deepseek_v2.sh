#!/usr/bin/env bash
# DeepSeek-V2 and V3 with paged attention, one rank a device:
#     bash run_pa_deepseek_v2.sh ${weight_path} [-trust_remote_code] [flags of run_pa.py]

# Edit these, or export them.
input_text="${input_text:-Give me a short introduction to large language model.}"
max_output_length="${max_output_length:-512}"
extra_param="${extra_param---is_chat_model}" # the question as it stands, for base weights: empty
system_prompt="${system_prompt-}"

export ATB_LAUNCHER_MODEL=deepseek-ai/DeepSeek-V2-Lite-Chat # what to fetch where no weight path is given
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../launch.sh"
ask "$@"
