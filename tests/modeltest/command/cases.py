"""What the words and the options of a command say, as the modes read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERFORMANCE_MODES = ("performance", "performance_maxbs", "performance_single")
SHOT_SETS = ("MMLU", "CEval", "CMMLU")
SETS = ("BoolQ", "GSM8K", *SHOT_SETS, "TruthfulQA", "HumanEval")
PRECISION_MODES = ("precision_single", *(f"full_{name}" for name in SETS))
MODES = (*PERFORMANCE_MODES, *PRECISION_MODES)


@dataclass(frozen=True)
class Nodes:
    """The hosts of a run. rank_table: HCCL's topology file. world_size: ranks of all hosts, as many on each.

    first_rank: the first rank of this host. master_addr: the address of the host of rank 0.
    """

    rank_table: Path
    world_size: int
    count: int
    first_rank: int
    master_addr: str

    @property
    def per_node(self) -> int:
        """Ranks of a host."""
        return self.world_size // self.count


@dataclass(frozen=True)
class Run:
    """The words of a command; see README.md for their order.

    dtype: fp16 or bf16. mode: one of MODES. model: a name of families.py. chips: ranks that share the model.
    batch_sizes: sizes to run in turn. In the mode performance one tuple for each of `pairs`, or one for all of them; in
    performance_maxbs (least, most), likewise; in the others one tuple.
    pairs: prompt and answer tokens of the performance and single modes. shots: of MMLU, CEval and CMMLU.
    time_limit_ms: of a token but the first, in performance_maxbs. texts: prompts of the single modes.
    chat: questions are put through the chat template. parallel: the parallel sizes as written, or empty.
    """

    dtype: str
    mode: str
    model: str
    weight_dir: Path
    chips: int
    batch_sizes: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...] = ()
    shots: int | None = None
    time_limit_ms: float | None = None
    texts: tuple[str, ...] = ()
    chat: bool = False
    trust_remote_code: bool = False
    max_position_embedding: int | None = None
    parallel: tuple[int, ...] = ()
    nodes: Nodes | None = None

    @property
    def set(self) -> str | None:
        """The question set of a full_ mode, as in full_BoolQ; None in the other modes."""
        return self.mode.removeprefix("full_") if self.mode.startswith("full_") else None

    @property
    def is_performance(self) -> bool:
        return self.mode in PERFORMANCE_MODES


@dataclass(frozen=True)
class Options:
    """The flags after the words; options.py says what each means."""

    limit: int | None = None
    resume: bool = False
    data_dir: Path | None = None
    output_dir: Path | None = None
    device: str | None = None
    load_format: str = "auto"
    quantize: str | None = None
    kv_dtype: str = "auto"
    config_overrides: dict[str, Any] | None = None
    allow_code_execution: bool = False
    prefix_cache: bool = False
    seed: int = 1
    kv_blocks: int | None = None
    chip: str | None = None
    chips_file: str | None = None
    no_plot: bool = False
