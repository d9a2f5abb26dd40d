#!/usr/bin/env bash
# Tests the Ascend backend on pretend devices, in an environment of its own (.venv-npu, or $VENV): torch_npu is installed
# there and nowhere else. Needs gcc and binutils, no NPU. --full adds the wide crosses; further arguments go to pytest.
: "${VENV:=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.venv-npu}"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../examples/venv.sh"
selection=()
if [ "${1:-}" = "--full" ]; then
    selection=(-m "full or not full")
    shift
fi
ensure_venv npu,test
cd "$root"
export TORCH_DEVICE_BACKEND_AUTOLOAD="${TORCH_DEVICE_BACKEND_AUTOLOAD:-0}"
# Of the tests that run_tests.sh has run without torch_npu, those again to whom its presence makes a difference.
again=(tests/machine/test_npu.py tests/engine/test_llm.py::test_arguments_that_cannot_be_honoured)
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/npu "${again[@]}" "${selection[@]}" "$@"
