"""What the methods of `LLM` take: types, and functions that bring values into one form or raise RequestError."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from atb_models.errors import RequestError
from atb_models.sampling_params import SamplingParams

Ids = abc.Sequence[int]
Prompt = str | Ids
Conversation = abc.Sequence[Mapping[str, str]]
Params = SamplingParams | abc.Sequence[SamplingParams] | None


def listed(prompts: abc.Sequence[Prompt]) -> abc.Sequence[Prompt]:
    """Several prompts as they are; a single one is refused."""
    single = isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable)
    if single or (len(prompts) and isinstance(prompts[0], Integral)):
        raise RequestError("prompts must be a list of texts or of token id lists; put the one prompt into a list")
    return prompts


def plain_ids(token_ids: Any) -> Any:
    """Token ids as a list, whatever held them: a tensor and an array have `tolist`."""
    if isinstance(token_ids, (str, bytes)) or not isinstance(token_ids, Iterable):
        raise RequestError(f"token ids must be a list of whole numbers, not {token_ids!r}")
    return token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids


def one_each(params: Params, count: int) -> abc.Sequence[SamplingParams]:
    """Parameters for each of `count` prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, (list, tuple)) or not all(isinstance(one, SamplingParams) for one in params):
        raise RequestError(f"params must be a SamplingParams or a list of them, not {params!r}")
    if len(params) != count:
        raise RequestError(f"{len(params)} SamplingParams for {count} prompts; give one for all or one each")
    return params
