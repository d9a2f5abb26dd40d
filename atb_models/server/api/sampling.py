"""The fields of a body that say how tokens are chosen, as OpenAI and vLLM name them.

A field that is missing or null has the value of the checkpoint's generation_config, else of `SamplingParams`: greedy.
Fields of unsupported features are accepted only with the value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from atb_models.sampling_params import SamplingParams
from atb_models.server.api.common import Body, TokenId


def _only(value: bool) -> Callable[[bool], bool]:
    """A check that refuses the other boolean; Literal would accept 0 and 1 too."""

    def check(given: bool) -> bool:
        if given is not value:
            raise PydanticCustomError("unsupported", "is not supported")
        return given

    return check


# Fields that some clients always send: accepted only with the value that changes nothing.
Off = Annotated[bool, AfterValidator(_only(False)), Field(json_schema_extra={"const": False})] | None
On = Annotated[bool, AfterValidator(_only(True)), Field(json_schema_extra={"const": True})] | None
One = Annotated[float, Field(ge=1, le=1)] | None
Nothing = Annotated[list[Any], Field(max_length=0)] | Annotated[dict[str, Any], Field(max_length=0)] | None

Temperature = Annotated[float, Field(ge=0)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]
TopP = Annotated[float, Field(gt=0, le=1)]
Repetition = Annotated[float, Field(gt=0)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Choices = Annotated[int, Field(ge=1, le=128)]
StopText = Annotated[str, Field(min_length=1)]
MAX_STOPS = 64
Stops = Annotated[list[StopText], Field(max_length=MAX_STOPS)]


class Sampling(Body):
    """Fields that OpenAI's and vLLM's bodies have in common."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopText | Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    length_penalty: One = None
    early_stopping: Off = None
    use_beam_search: Off = None
    include_stop_str_in_output: Off = None
    skip_special_tokens: On = None
    spaces_between_special_tokens: On = None

    def params(self, **others: Any) -> SamplingParams:
        """The parameters; others: fields that differ between kinds of bodies, such as max_tokens."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=bool(self.ignore_eos),
            **others,
        )
