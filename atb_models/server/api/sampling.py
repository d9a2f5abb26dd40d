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
from atb_models.sampling_table import BY_NAME
from atb_models.server.api.common import Body, TokenId
from atb_models.server.errors import UNSUPPORTED


def _only(*values: Any) -> Callable[[Any], Any]:
    """A check that refuses all other values. 1 is not True and 0 is not False."""

    def check(given: Any) -> Any:
        if not any(given == value and isinstance(given, bool) == isinstance(value, bool) for value in values):
            raise PydanticCustomError("unsupported", UNSUPPORTED)
        return given

    return check


# Fields that some clients always send: accepted only with the value that changes nothing.
Off = Annotated[Any, AfterValidator(_only(False)), Field(json_schema_extra={"enum": [False]})] | None
On = Annotated[Any, AfterValidator(_only(True)), Field(json_schema_extra={"enum": [True]})] | None
Zero = Annotated[Any, AfterValidator(_only(0)), Field(json_schema_extra={"enum": [0]})] | None
One = Annotated[Any, AfterValidator(_only(1)), Field(json_schema_extra={"enum": [1]})] | None
Nothing = (
    Annotated[Any, AfterValidator(_only(False, "", [], {})), Field(json_schema_extra={"enum": [False, "", [], {}]})]
    | None
)


def _range(name: str) -> Any:
    """The bounds of the table of sampling fields."""
    row = BY_NAME[name]
    low = {"gt": row.low, "ge": None} if row.above_low else {"gt": None, "ge": row.low}
    return Field(gt=low["gt"], ge=low["ge"], le=row.high)


Temperature = Annotated[float, _range("temperature")]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]
TopP = Annotated[float, _range("top_p")]
MinP = Annotated[float, _range("min_p")]
Repetition = Annotated[float, _range("repetition_penalty")]
Presence = Annotated[float, _range("presence_penalty")]
Frequency = Annotated[float, _range("frequency_penalty")]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Choices = Annotated[int, Field(ge=1, le=128)]
StopText = Annotated[str, Field(min_length=1)]
MAX_STOPS = 64
Stops = Annotated[list[StopText], Field(max_length=MAX_STOPS)]


class AtRest(Body):
    """Fields that clients of all forms send by default, accepted only with the value that changes nothing.

    A form that supports one of them defines it again.
    """

    length_penalty: One = None
    early_stopping: Off = None
    use_beam_search: Off = None
    include_stop_str_in_output: Off = None
    skip_special_tokens: On = None
    spaces_between_special_tokens: On = None
    min_tokens: Zero = None
    typical_p: One = None
    watermark: Off = None
    logit_bias: Nothing = None
    bad_words: Nothing = None
    echo: Off = None
    return_token_ids: Off = None
    return_tokens_as_token_ids: Off = None


class Sampling(AtRest):
    """Fields that OpenAI's and vLLM's bodies have in common."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Presence | None = None
    frequency_penalty: Frequency | None = None
    seed: Seed | None = None
    stop: StopText | Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None

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
