"""--profile and ATB_PROFILING_ENABLE: where the run's time goes, as a table on stderr and in two files."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from atb_models import env
from atb_models.command.engine_options import ranks
from atb_models.errors import AtbError, ConfigError
from atb_models.files import written_whole
from atb_models.launcher.results import PROFILE_FILES
from atb_models.machine.affinity import rank_cores
from atb_models.models.dtypes import AUTO
from atb_models.wording import counted

if TYPE_CHECKING:
    from atb_models import LLM
    from atb_models.plan.chips import Chip
    from atb_models.profiler import Profile
    from atb_models.profiler.report import ProfiledRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileOptions:
    """The flags of these names; `profile` is set by ATB_PROFILING_ENABLE too."""

    profile: bool
    graph_capture: bool | None
    chip: str | None
    chips_file: str | None
    tp: int


class Profiling:
    """Profiles rank 0's part of a run where the options ask for it; otherwise it does nothing."""

    def __init__(self, options: ProfileOptions, device: str) -> None:
        """Rank 0 measures its CPU here, where that is the chip: before a model takes the memory.

        Raises ConfigError for a chip that is not known.
        """
        self._on, self._device = options.profile, device
        self._chip: Chip | None = None
        self._no_chip: str | None = None  # why there is none
        if options.graph_capture and env.get("ATB_PROFILING_ENABLE"):
            logger.warning("ATB_PROFILING_ENABLE=1 has no effect: --graph_capture launches a decode step as a whole")
        if self._on:
            if device == "npu" and options.graph_capture is None and not env.get("RANK"):
                logger.info("decode steps are not captured as graphs: each operation is timed")
            self._choose_chip(options.chip, options.chips_file, ranks(options.tp))

    @contextmanager
    def around(self, llm: LLM) -> Iterator[None]:
        """Profile what `llm` does within the block; after its good end show the table and write the files.

        Raises AtbError when a file or stderr cannot be written.
        """
        if not self._on:
            yield
            return
        from atb_models.profiler import Recorder

        if env.get("ATB_LLM_BENCHMARK_ENABLE"):
            logger.warning("the benchmark's times include the work of the profile's recorder")
        run = self._run(llm)
        with Recorder(llm._runner, run.price()) as recorder:
            yield
        sys.stdout.flush()  # the answers come first on a terminal
        try:
            _write(recorder.profile, run)
        finally:
            _show(recorder.profile, run)

    def _choose_chip(self, name: str | None, file: str | None, ranks: int) -> None:
        from atb_models.plan.chips import ALL_CHIPS, THIS_CPU, chip_named_in, find_chip, load_chips

        chips = load_chips(file)
        if name is not None and name.casefold() == ALL_CHIPS:
            raise ConfigError("--chip all is of --plan only; --profile compares with one chip, name it")
        if name is None and self._device != "cpu":
            from atb_models.machine.device import device_module

            self._chip = chip_named_in(device_module(self._device).get_device_name(), chips)
            self._no_chip = None if self._chip else "this device is not in the table of chips"
        elif name is not None and name.casefold() != THIS_CPU.casefold():
            self._chip = find_chip(name, chips)
        elif not env.get("RANK"):
            try:
                self._chip = _this_cpu(ranks)
            except MemoryError:
                self._no_chip = "there is too little memory to measure this CPU"

    def _run(self, llm: LLM) -> ProfiledRun:
        import torch

        from atb_models.machine.device import device_module
        from atb_models.models.label import model_label
        from atb_models.models.quantization import quantization_name
        from atb_models.profiler.report import ProfiledRun

        build = llm._runner.model.layers[0].build
        on_cpu = self._device == "cpu"
        threads = torch.get_num_threads()
        return ProfiledRun(
            model=model_label(llm.config.folder),
            dtype=llm._runner.model_config.run_dtype(llm.config.dtype),
            device=f"cpu, {counted(threads, 'thread')}" if on_cpu else device_module(self._device).get_device_name(),
            rank=build.tensor.rank,
            ranks=build.tensor.size,
            waits=not on_cpu,
            chip=self._chip,
            no_chip=self._no_chip,
            quantize=quantization_name(llm._runner.model_config, llm.config.quantize),
            kv_dtype=None if llm.config.kv_dtype == AUTO else llm.config.kv_dtype,
        )


def _this_cpu(ranks: int) -> Chip:
    """Measured; a rank that is bound to cores has them to itself. Raises MemoryError where that needs too much."""
    import torch

    from atb_models.machine.cores import used_cores
    from atb_models.machine.memory import free_memory
    from atb_models.plan.this_cpu import measure_cpu

    bound = env.get("WORLD_SIZE") is not None and rank_cores(sorted(os.sched_getaffinity(0)), 0, 1, "cpu") is not None
    chip = measure_cpu(used_cores(1 if bound else ranks), free_memory(torch.device("cpu")).of_rank(1))
    return replace(chip, shared=False, device="the cores that rank 0 is bound to") if bound else chip


def _write(profile: Profile, run: ProfiledRun) -> None:
    """profile.json, the tables, and trace.json, for chrome://tracing and Perfetto."""
    from atb_models.profiler.chrome import trace_events
    from atb_models.profiler.report import to_json

    folder = env.get("PROFILING_FILEPATH")
    trace = {"displayTimeUnit": "ms", "traceEvents": list(trace_events(profile, run.rank))}
    for name, content in zip(PROFILE_FILES, (to_json(profile, run), trace), strict=True):
        with written_whole(folder / name) as path, path.open("w", encoding="utf-8") as stream:
            json.dump(content, stream)
    logger.info("profile written to %s: %s", folder, " and ".join(PROFILE_FILES))


def _show(profile: Profile, run: ProfiledRun) -> None:
    from atb_models.profiler.text import lines

    try:
        print(*lines(profile, run), sep="\n", file=sys.stderr, flush=True)
    except OSError as error:
        raise AtbError(f"the profile cannot be written to stderr: {error.strerror}") from error
