"""Every environment variable this program reads or passes on, in one table.

Values are read when they are used, never at import. An empty value counts as unset. `get` raises ConfigError with the
variable, its value and what is allowed. docs and `atb-models env` are made from the same table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError

# How a variable is used.
READ = "read"  # by this program
ACCELERATOR = "npu and cuda"  # read by this program, but not on a CPU
SCRIPTS = "scripts"  # read by the shell scripts of examples/
PASSED = "passed on"  # to torch, gloo, OpenMP, NCCL ..., which read it themselves
NPU = "npu only"  # passed on to the Ascend libraries; does nothing on another device
LATER = "not read"  # known from MindIE, without effect in this version

# Set by torchrun for every rank it starts.
TORCHRUN_ID = "TORCHELASTIC_RUN_ID"
# Keys of the service: `serve` takes them, its clients send the first.
API_KEY = "ATB_API_KEY"

# Prefixes of names that nobody but this program could read: one that is set, but not in the table, is a mistake.
OWN_PREFIXES = ("ATB_LLM_", "ATB_LAUNCHER_", "MINDIE_", "MIES_", "MODELTEST_")
# Of the Ascend libraries, which read many more variables than the table has.
VENDOR_PREFIXES = ("ATB_", "HCCL_", "LCCL_", "LCAL_")
PREFIXES = (*OWN_PREFIXES, *VENDOR_PREFIXES)
# In the name of a variable that is not in the table: its value may be a key or a password, or ATB_API_KEY misspelt.
_SECRET = re.compile("API|AUTH|CREDENTIAL|KEY|PASS|PWD|SECRET|TOKEN", re.IGNORECASE)


@dataclass(frozen=True)
class Kind:
    """How a value is read. parse: raises ValueError for a value that is not `allowed`."""

    allowed: str
    parse: Callable[[str], Any]


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.strip().lower()]


def _digits(text: str) -> int:
    """Like `int`, but without signs, underscores and the digits of other scripts."""
    if not re.fullmatch("[0-9]+", text.strip()):
        raise ValueError
    return int(text)


def _whole(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        value = _digits(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", parse)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def _devices(text: str) -> tuple[int, ...]:
    ids = tuple(_digits(part) for part in text.split(","))
    if len(set(ids)) != len(ids):
        raise ValueError
    return ids


def component_value(text: str) -> str:
    """`text`, or our part of MindIE's form with components: "llm:DEBUG;INFO" -> "DEBUG"."""
    plain = ""
    for item in text.split(";"):
        name, colon, value = item.strip().rpartition(":")
        if name.strip().lower() == "llm":
            return value.strip()
        plain = plain if colon else value
    return plain.strip()


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of an unknown user
        raise ValueError from None


def _log_path(text: str) -> Path:
    """A path, or our part of the form with components. A path may contain colons."""
    pairs = re.findall(r"(?:^|;)\s*(?:(\w+):)?([^;]*)", text)
    if not any(name for name, _ in pairs):
        return _path(text)
    values = {name.lower(): value.strip() for name, value in pairs}
    return _path(values.get("llm") or values.get("") or DEFAULT_LOG_PATH)


def _level(text: str) -> str:
    level = {"WARNING": "WARN", "FATAL": "CRITICAL"}.get(component_value(text).upper(), component_value(text).upper())
    if level not in LEVELS:
        raise ValueError
    return level


def _rotation(text: str) -> tuple[int, int]:
    """As -fs 20 -r 10 -> (20 MB a file, 10 files)."""
    words, sizes = component_value(text).split(), {"-fs": 20, "-r": 10}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        sizes[flag] = int(value)
    if len(sizes) != 2 or not (1 <= sizes["-fs"] <= 500 and 1 <= sizes["-r"] <= 64):
        raise ValueError
    return sizes["-fs"], sizes["-r"]


DEFAULT_LOG_PATH = "~/mindie/log"
LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL")
SWITCH = Kind("0 or 1", _switch)
LOG_SWITCH = Kind("0, 1, true or false, or a list such as llm:true;false", lambda text: _switch(component_value(text)))
# torchrun fails with any other.
PYTHON_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET")
PYTHON_LEVEL = Kind(f"one of {', '.join(PYTHON_LEVELS)}", {level: level for level in PYTHON_LEVELS}.__getitem__)
TEXT = Kind("any text", str)
PATH = Kind("a path", _path)
LOG_PATH = Kind("a path, or a list such as llm:/var/log/llm;/var/log", _log_path)
PORT = _whole(1, 65535)
COUNT = _whole(1, 1 << 20)
RANK = _whole(0, (1 << 20) - 1)
PID = _whole(1, 1 << 22)  # Linux numbers no process higher


@dataclass(frozen=True)
class Variable:
    """A row of the table. default: as one would export it; None if there is no default."""

    name: str
    default: str | None
    kind: Kind
    use: str
    meaning: str


_ROWS: tuple[tuple[str, str | None, Kind, str, str], ...] = (
    # devices and memory
    ("ASCEND_RT_VISIBLE_DEVICES", None, Kind("distinct device numbers joined by commas", _devices), READ,
     "devices of the launcher scripts, one rank each (they use 0,1,2,3,4,5,6,7); on CUDA it selects there too"),
    ("CUDA_VISIBLE_DEVICES", None, TEXT, PASSED, "CUDA's own device list; ASCEND_RT_VISIBLE_DEVICES selects within it"),
    ("RESERVED_MEMORY_GB", "3", _whole(0, 63), ACCELERATOR, "GB of a device withheld from the KV cache; not of a CPU"),
    ("NPU_MEMORY_FRACTION", "1.0", Kind("above 0 and at most 1", _share), ACCELERATOR,
     "share of a device's memory to use; not of a CPU's"),
    ("BIND_CPU", None, SWITCH, READ,
     "ranks of the scripts and of torchrun, no others, get an even share of the cores each, in rank order"
     " (unset: 1 on npu and cuda, 0 on cpu)"),
    ("CPU_BINDING_NUM", None, COUNT, READ,
     "cores of each rank of the scripts and of torchrun, no others, on any device, unless BIND_CPU=0"),
    ("OMP_NUM_THREADS", None, COUNT, READ, "threads of a rank; unset: cores / ranks"),
    ("ATB_CPU_ISA", None, TEXT, READ,
     "instruction set of the CPU's operations: avx2, avx512, avx512bf16 or neon; reference: torch's; unset: the best"),
    ("CXX", None, TEXT, READ, "C++ compiler of the CPU's operations; unset: g++, clang++ or the package ziglang"),
    ("TORCH_DEVICE_BACKEND_AUTOLOAD", None, SWITCH, PASSED,
     "0 keeps a torch_npu without CANN from breaking `import torch` (the scripts export 0)"),
    # ranks
    ("MASTER_PORT", None, PORT, READ, "rendezvous port (the scripts use 20030, or another free one in 20000-20050)"),
    ("MASTER_ADDR", None, TEXT, READ, "rendezvous address; unset: MASTER_IP, else 127.0.0.1"),
    ("MASTER_IP", None, TEXT, READ, "MindIE's name for MASTER_ADDR"),
    ("RANK", None, RANK, READ, "set by torchrun"),
    ("LOCAL_RANK", None, RANK, READ, "set by torchrun"),
    ("WORLD_SIZE", None, COUNT, READ, "set by torchrun: the number of ranks"),
    ("LOCAL_WORLD_SIZE", None, COUNT, READ, "set by torchrun: ranks on this host"),
    (TORCHRUN_ID, None, TEXT, READ, "set by torchrun: this process is one of its ranks"),
    ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", None, TEXT, PASSED,
     "seconds that torchrun gives ranks to end (the scripts' launcher sets 3)"),
    ("LOGLEVEL", None, PYTHON_LEVEL, PASSED, "level of torchrun's own log; unset: none of it"),
    ("PYTHONSAFEPATH", None, TEXT, PASSED, "1 is set for the ranks that LLM starts: no modules of the working folder"),
    ("GLOO_SOCKET_IFNAME", None, TEXT, PASSED, "network interface of gloo (several hosts)"),
    ("RANK_TABLE_FILE", None, TEXT, NPU, "HCCL's topology file"),
    # checkpoint
    ("REMOVE_GENERATION_CONFIG_DICT", "0", SWITCH, READ, "1 ignores generation_config.json"),
    ("MINDIE_CHECK_INPUTFILES_PERMISSION", "1", SWITCH, READ,
     "0 leaves out the warning about weight files that others can write or own"),
    ("HF_ENDPOINT", None, TEXT, PASSED, "mirror of huggingface.co for --download"),
    ("HTTPS_PROXY", None, TEXT, PASSED, "proxy for --download"),
    ("TOKENIZERS_PARALLELISM", None, TEXT, PASSED, "threads of tokenizers; the demo's training sets false"),
    # results
    ("ATB_LLM_BENCHMARK_ENABLE", "0", SWITCH, READ, "1 times the run and writes the benchmark csv"),
    ("ATB_LLM_BENCHMARK_FILEPATH", None, PATH, READ, "the csv; unset: ./benchmark_result/benchmark.csv"),
    ("ATB_LLM_LOGITS_SAVE_ENABLE", "0", SWITCH, READ,
     "1 writes logits_<n>.pth, n = tokens the step's first request has produced"),
    ("ATB_LLM_LOGITS_SAVE_FOLDER", ".", PATH, READ, "folder of the above"),
    ("ATB_LLM_TOKEN_IDS_SAVE_ENABLE", "0", SWITCH, READ, "1 writes input_ids_<i>.pth and output_ids_<i>.txt"),
    ("ATB_LLM_TOKEN_IDS_SAVE_FOLDER", ".", PATH, READ, "folder of the above"),
    ("MINDIE_ENABLE_EXPERT_HOTPOT_GATHER", "0", SWITCH, READ, "1 counts the tokens of each expert"),
    ("MINDIE_EXPERT_HOTPOT_DUMP_PATH", None, PATH, READ, "folder of these counts"),
    ("ATB_PROFILING_ENABLE", "0", SWITCH, READ, "1 times each operation of the run, as --profile does"),
    ("PROFILING_FILEPATH", "./profiling", PATH, READ, "folder of the profile's profile.json and trace.json"),
    # service
    (API_KEY, None, TEXT, READ, "keys that clients of `serve` must send, joined by commas"),
    ("MIES_SERVICE_MONITOR_MODE", "1", SWITCH, READ, "0: `serve` has no /metrics (MindIE has it only with 1)"),
    # log
    ("MINDIE_LOG_LEVEL", "INFO", Kind(f"one of {', '.join(LEVELS)}", _level), READ, "least level that is logged"),
    ("MINDIE_LOG_TO_STDOUT", "1", LOG_SWITCH, READ, "log to the console, which is stderr"),
    ("MINDIE_LOG_TO_FILE", "0", LOG_SWITCH, READ, "log to debug/mindie-llm_<pid>_<ms>.log under MINDIE_LOG_PATH"),
    ("MINDIE_LOG_PATH", DEFAULT_LOG_PATH, LOG_PATH, READ, "folder of log files"),
    ("MINDIE_LOG_VERBOSE", "1", LOG_SWITCH, READ, "0 leaves pid, thread and code line out of log lines"),
    ("MINDIE_LOG_ROTATE", "-fs 20 -r 10", Kind("-fs MB (1-500) -r files (1-64)", _rotation), READ, "log file rotation"),
    ("PYTHON_LOG_MAXSIZE", None, TEXT, LATER, "deprecated in MindIE; use MINDIE_LOG_ROTATE"),
    # of the scripts in examples/
    ("VENV", None, TEXT, SCRIPTS, "virtual environment; unset: .venv in the project"),
    ("PYTHON", None, TEXT, SCRIPTS, "interpreter; unset: that of VENV, else python3"),
    ("TORCH", "torch==2.13.0", TEXT, SCRIPTS, "what pip installs as torch"),
    ("input_text", None, TEXT, SCRIPTS, "the question"),
    ("max_output_length", None, TEXT, SCRIPTS, "new tokens"),
    ("extra_param", None, TEXT, SCRIPTS, "more flags of run_pa.py, split at blanks; may be empty"),
    ("system_prompt", None, TEXT, SCRIPTS, "the system's text before the question of a chat; may be empty"),
    # between our own processes
    ("ATB_LAUNCHER_PID", None, PID, READ, "internal: the process whose death ends the ranks"),
    ("ATB_LAUNCHER_ERRORS", None, TEXT, READ, "internal: where ranks tell the launcher why they ended"),
    ("ATB_LAUNCHER_MODEL_PATH", None, TEXT, READ,
     "the checkpoint where no --model_path is given; the launcher tells its ranks in it what it found or fetched"),
    ("ATB_LAUNCHER_ASKED", None, TEXT, READ, "internal: the --model_path for which the launcher found the above"),
    ("ATB_LAUNCHER_MODEL", None, TEXT, READ, "internal: the model whose weights a script needs"),
    ("ATB_LAUNCHER_DEFAULTS", None, TEXT, READ, "internal: names that a script exported, not the user"),
    # read by the Ascend libraries; the scripts export the first seven, but for FORCE_DISABLE, if unset
    ("INF_NAN_MODE_ENABLE", None, TEXT, NPU, "0: saturating arithmetic instead of inf and nan"),
    ("INF_NAN_MODE_FORCE_DISABLE", None, TEXT, NPU, "1: as the above, where the device wants both (set for you)"),
    ("ATB_OPERATION_EXECUTE_ASYNC", None, TEXT, NPU, "asynchronous operation launch"),
    ("TASK_QUEUE_ENABLE", None, TEXT, NPU, "torch_npu's task queue"),
    ("ATB_CONVERT_NCHW_TO_ND", None, TEXT, NPU, "tensor format"),
    ("ATB_CONTEXT_WORKSPACE_SIZE", None, TEXT, NPU, "workspace of a context"),
    ("ATB_LLM_ENABLE_AUTO_TRANSPOSE", None, TEXT, NPU, "weight layout choice"),
    ("ATB_WORKSPACE_MEM_ALLOC_ALG_TYPE", None, TEXT, NPU, "workspace allocation, 3 is advised"),
    ("ATB_WORKSPACE_MEM_ALLOC_GLOBAL", None, TEXT, NPU, "workspace allocation"),
    ("PYTORCH_NPU_ALLOC_CONF", None, TEXT, NPU, "torch_npu's allocator, expandable_segments:True is advised"),
    ("TORCHINDUCTOR_CACHE_DIR", None, TEXT, PASSED, "cache of torch's compiler, which nothing here uses"),
    ("PYTORCH_CUDA_ALLOC_CONF", None, TEXT, PASSED, "torch's CUDA allocator"),
    ("CUBLAS_WORKSPACE_CONFIG", None, TEXT, PASSED, "cuBLAS's workspace; --deterministic sets :4096:8"),
    ("ATB_HOME_PATH", None, TEXT, NPU, "set by the vendor's set_env.sh"),
    ("ATB_SPEED_HOME_PATH", None, TEXT, NPU, "set by the vendor's set_env.sh; not needed here"),
    ("ATB_CONTEXT_HOSTTILING_RING", None, TEXT, NPU, "set by the vendor's set_env.sh"),
    ("ATB_CONTEXT_HOSTTILING_SIZE", None, TEXT, NPU, "set by the vendor's set_env.sh"),
    ("ATB_USE_TILING_COPY_STREAM", None, TEXT, NPU, "set by the vendor's set_env.sh"),
    ("ATB_OPSRUNNER_KERNEL_CACHE_LOCAL_COUNT", None, TEXT, NPU, "set by the vendor's set_env.sh"),
    ("ATB_OPSRUNNER_KERNEL_CACHE_GLOABL_COUNT", None, TEXT, NPU, "set by the vendor's set_env.sh (their spelling)"),
    ("ATB_OPSRUNNER_SETUP_CACHE_ENABLE", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_OPSRUNNER_KERNEL_CACHE_TYPE", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_OPSRUNNER_KERNEL_CACHE_TILING_SIZE", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_COMPARE_TILING_EVERY_KERNEL", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_HOST_TILING_BUFFER_BLOCK_NUM", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_DEVICE_TILING_BUFFER_BLOCK_NUM", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_LAUNCH_KERNEL_WITH_TILING", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_RUNNER_POOL_SIZE", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("LCCL_PARALLEL", None, TEXT, NPU, "set by nnal's set_env.sh"),
    ("ATB_SHARE_MEMORY_NAME_SUFFIX", None, TEXT, NPU, "several users on one host"),
    ("ATB_STREAM_SYNC_EVERY_KERNEL_ENABLE", None, TEXT, NPU, "debugging"),
    ("ATB_STREAM_SYNC_EVERY_RUNNER_ENABLE", None, TEXT, NPU, "debugging"),
    ("ATB_STREAM_SYNC_EVERY_OPERATION_ENABLE", None, TEXT, NPU, "debugging"),
    ("ASCEND_LAUNCH_BLOCKING", None, TEXT, NPU, "debugging: synchronous launches"),
    ("ATB_MATMUL_SHUFFLE_K_ENABLE", None, TEXT, NPU, "0: products add in one order (set by --deterministic)"),
    ("CLOSE_MATMUL_K_SHIFT", None, TEXT, NPU, "1: as the above (set by --deterministic)"),
    ("HCCL_DETERMINISTIC", None, TEXT, NPU, "true: HCCL sums in one order (set by --deterministic)"),
    ("LCCL_DETERMINISTIC", None, TEXT, NPU, "1: LCCL sums in one order (set by --deterministic)"),
    ("HCCL_IF_BASE_PORT", None, TEXT, NPU, "first of HCCL's ports on the host"),
    ("HCCL_HOST_SOCKET_PORT_RANGE", None, TEXT, NPU,
     "ports of HCCL on the host, auto unless it or HCCL_IF_BASE_PORT is set"),
    ("HCCL_NPU_SOCKET_PORT_RANGE", None, TEXT, NPU, "ports of HCCL on the device, auto unless set"),
    ("HCCL_BUFFSIZE", None, TEXT, NPU, "communication buffer, MB"),
    ("HCCL_OP_EXPANSION_MODE", None, TEXT, NPU, "where collectives are scheduled"),
    ("HCCL_CONNECT_TIMEOUT", None, TEXT, NPU, "seconds to wait for the other ranks"),
    ("HCCL_EXEC_TIMEOUT", None, TEXT, NPU, "seconds a collective may take"),
    ("HCCL_IF_IP", None, TEXT, NPU, "address of HCCL's root"),
    ("HCCL_SOCKET_IFNAME", None, TEXT, NPU, "network interface of HCCL"),
    ("HCCL_WHITELIST_DISABLE", None, TEXT, NPU, "HCCL's whitelist"),
    ("ATB_LLM_HCCL_ENABLE", None, TEXT, NPU, "HCCL rather than LCCL"),
    ("ATB_LLM_LCOC_ENABLE", None, TEXT, NPU, "overlap of communication and computation (--deterministic sets 0)"),
    # MindIE's, without effect here
    ("PROFILING_LEVEL", None, TEXT, LATER, "of the vendor's profiler; ours has one level"),
    ("MODELTEST_DATASET_SPECIFIED", None, TEXT, LATER, "modeltest's data set; saving logits does not need it here"),
    ("MODELTEST_PD_SPLIT_ENABLE", None, TEXT, LATER, "sizes a warm-up that is not needed here"),
    ("MODELTEST_LOG_LEVEL", None, TEXT, LATER, "modeltest's log"),
    ("MODELTEST_LOG_TO_FILE", None, TEXT, LATER, "modeltest's log"),
    ("BAD_CASE_LOGITS_DUMP", None, TEXT, LATER, "modeltest"),
    ("LOGITS_DUMP_TOKEN_MAX_LENGTH", None, TEXT, LATER, "modeltest"),
    ("BAD_CASE_LIST", None, TEXT, LATER, "modeltest"),
    ("ATB_LLM_RAZOR_ATTENTION_ENABLE", None, TEXT, LATER, "KV compression, not for these models"),
    ("ATB_LLM_RAZOR_ATTENTION_ROPE", None, TEXT, LATER, "KV compression, not for these models"),
    ("LONG_SEQ_ENABLE", None, TEXT, LATER, "position variant, not for these models"),
    ("IS_ALIBI_MASK_FREE", None, TEXT, LATER, "position variant, not for these models"),
    ("DEEPSEEK_MTP", None, TEXT, LATER, "speculative tokens of DeepSeek V3"),
    ("DP_MOVE_UP_ENABLE", None, TEXT, LATER, "attention data parallelism"),
    ("DP_PARTITION_UP_ENABLE", None, TEXT, LATER, "attention data parallelism"),
    ("LM_HEAD_LOCAL_TP", None, TEXT, LATER, "attention data parallelism"),
)  # fmt: skip

TABLE: dict[str, Variable] = {row[0]: Variable(*row) for row in _ROWS}


def get(name: str, environ: Mapping[str, str] | None = None) -> Any:
    """The value of a variable of the table, in its own type; its default where unset, None where it has none.

    Raises ConfigError naming the variable, its value and what is allowed.
    """
    variable = TABLE[name]
    value = (os.environ if environ is None else environ).get(name)
    text = value or variable.default
    if text is None:
        return None
    try:
        return variable.kind.parse(text)
    except (ValueError, KeyError):
        if not value:  # a default is allowed wherever its ~ stands for a folder
            why = f"{name} is not set, and its default {text} needs a home folder, which this user has not; set it"
        else:
            why = f"{name}={text!r} must be {variable.kind.allowed}"
        raise ConfigError(why) from None


def is_set(name: str) -> bool:
    """Whether a variable of the table has a value, be it allowed or not."""
    return bool(os.environ.get(TABLE[name].name))


def set_default(name: str, value: str) -> None:
    """Set a variable of the table for this process and its children, unless the user has given it a value."""
    if not is_set(name):
        os.environ[name] = value


def shown_value(name: str, value: str) -> str:
    """The value of a variable for a report, which users show to others: `***` for keys and passwords, also in URLs."""
    if value and (name == API_KEY or (name not in TABLE and _SECRET.search(name))):
        return "***"
    return re.sub(r"//\S*@", "//***@", value)  # to the last @: a password may hold others
