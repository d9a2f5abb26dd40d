"""The model at work, for what its numbers are: the range of inputs of its linear maps, and the logits of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from atb_models.engine.config import EngineConfig
from atb_models.engine.llm import LLM
from atb_models.graph.paths import ModulePaths
from atb_models.ops.sublayers import attention_sublayer, feed_forward_sublayer
from atb_models.ops.table import Body, Op, in_parts, recorded
from atb_models.quantizer.texts import Text, windows
from atb_models.sampling_params import SamplingParams

WINDOW = 256  # tokens of a prompt, or what the model can read


@dataclass(frozen=True)
class ModelRun:
    """How the model is run. device: None: the first there is. trust_remote_code: of a tokenizer."""

    device: str | None = None
    trust_remote_code: bool = False


@contextmanager
def running(folder: Path, run: ModelRun, longest: int) -> Iterator[LLM]:
    """The checkpoint's model, in its own data type, for one prompt at a time. longest: tokens that it can read.

    Raises what LLM raises.
    """
    config = EngineConfig(
        model_path=str(folder),
        dtype="auto",
        device=run.device,
        max_batch_size=1,
        max_seq_len=min(WINDOW + 1, longest),
        prefix_cache=False,
        trust_remote_code=run.trust_remote_code,
        graph_capture=False,
    )
    with LLM(config) as llm:
        yield llm


def prompts_for(llm: LLM, texts: Sequence[Text], tokens: int, flag: str) -> list[list[int]]:
    """The texts as prompts that leave room for one more token; see `windows`."""
    config = llm._runner.model_config
    assert llm.config.max_seq_len is not None
    return windows(texts, llm.tokenizer, config.vocab_size, llm.config.max_seq_len - 1, tokens, flag)


def input_ranges(llm: LLM, prompts: Sequence[list[int]]) -> dict[str, tuple[float, float]]:
    """The least and the largest input of each linear map that is an operation of its own, by its path in the model."""
    model = llm._runner.model
    found: dict[str, tuple[float, float]] = {}
    with ModulePaths(model) as paths:

        def watch(op: Op, run: Body, args: tuple[Any, ...]) -> Any:
            if op.name == "Linear" and paths.running:
                x_TI: Tensor = args[0]
                low, high = found.get(path := paths.current(()), (0.0, 0.0))
                found[path] = min(low, float(x_TI.amin())), max(high, float(x_TI.amax()))
            return run(*args)

        with in_parts(attention_sublayer, feed_forward_sublayer), recorded(watch):
            llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0))
    return found
