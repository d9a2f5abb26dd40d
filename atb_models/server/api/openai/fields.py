"""The fields that OpenAI's chats and completions share, and the usage and timings at the end of their replies."""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field
from typing_extensions import TypedDict

from atb_models.server.api.common import Body
from atb_models.server.api.sampling import Choices, Count, Nothing, Off, Sampling
from atb_models.server.errors import BadRequest
from atb_models.server.job import Answer


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Off = None
    continuous_usage_stats: Off = None


class TextFormat(Body):
    type: Literal["text"]


class OpenAIBody(Sampling):
    """`user`, `safety_identifier` and `prompt_cache_key` are labels; they do not change the answer."""

    model: str | None = None
    n: Choices | None = None
    best_of: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    response_format: TextFormat | None = None
    metadata: Nothing = None
    store: Off = None
    service_tier: Literal["auto", "default"] | None = None
    priority: Annotated[int, Field(ge=0, le=0)] | None = None

    @property
    def count(self) -> int:
        """The number of answers for each prompt. Raises BadRequest for fields that contradict each other."""
        count = self.n or 1
        if self.best_of not in (None, count):
            raise BadRequest(f"best_of is {self.best_of} and n {count}; only equal ones are supported", "best_of")
        if self.wants_usage and not self.stream:
            raise BadRequest("stream_options needs stream", "stream_options")
        return count

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PromptDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(TypedDict):
    """Seconds since the request arrived: until its first step, its first token and its end.

    tokens_per_s: of all choices together, after the first token; null if there is only one token.
    """

    queue_s: float
    first_token_s: float
    total_s: float
    tokens_per_s: float | None


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The first fields of a reply and of each chunk of a stream."""
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time()), "model": model}


def sums(answers: Sequence[Answer], count: int) -> dict[str, Any]:
    """`usage` and `timings` of complete answers. A prompt counts once; it has `count` answers."""
    firsts = answers[::count]
    prompt, completion = sum(len(a.prompt_token_ids) for a in firsts), sum(len(a.token_ids) for a in answers)
    cached = sum(int(a.metrics.get("cached_tokens", 0)) for a in firsts)
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details={"cached_tokens": cached},
    )
    return {"usage": usage, "timings": _timings(answers)}


def _timings(answers: Sequence[Answer]) -> Timings:
    first = min(a.metrics["first_token_s"] for a in answers)
    total = max(a.metrics["total_s"] for a in answers)
    further = sum(max(0, len(a.token_ids) - 1) for a in answers)
    return Timings(
        queue_s=round(min(a.metrics["queue_s"] for a in answers), 6),
        first_token_s=round(first, 6),
        total_s=round(total, 6),
        tokens_per_s=round(further / (total - first), 3) if further and total > first else None,
    )
