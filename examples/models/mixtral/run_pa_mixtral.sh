#!/usr/bin/env bash
# Mixtral with paged attention, one rank a device:
#     bash run_pa_mixtral.sh ${weight_path} [-trust_remote_code] [flags of run_pa.py]

# Edit these, or export them.
input_text="${input_text:-Give me a short introduction to large language model.}"
max_output_length="${max_output_length:-512}"
extra_param="${extra_param---is_chat_model}" # the question as it stands, for base weights: empty
system_prompt="${system_prompt-}" # the published chat templates take no system prompt

export ATB_LAUNCHER_MODEL=mistralai/Mixtral-8x7B-Instruct-v0.1 # what to fetch where no weight path is given
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../launch.sh"
ask "$@"
