#!/usr/bin/env bash
# Llama with paged attention, one rank a device:
#     bash run_pa_llama.sh ${weight_path} [-trust_remote_code] [flags of run_pa.py]

# Edit these, or export them.
input_text="${input_text:-Give me a short introduction to large language model.}"
max_output_length="${max_output_length:-512}"
extra_param="${extra_param---is_chat_model}" # the question as it stands, for base weights: empty
system_prompt="${system_prompt-You are a helpful assistant.}"

export ATB_LAUNCHER_MODEL=meta-llama/Llama-3.1-8B-Instruct # what to fetch where no weight path is given
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../launch.sh"
ask "$@"
