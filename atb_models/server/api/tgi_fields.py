"""What TGI's bodies and MindIE's, which follow them, share: parameters, and why an answer ended."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from atb_models.sampling_params import SamplingParams
from atb_models.server.api.common import Body
from atb_models.server.api.logprobs import finite
from atb_models.server.api.sampling import Count, Off, One, Penalty, Repetition, Seed, Stops, Temperature, TopK, TopP
from atb_models.server.job import Answer
from atb_models.server.service import Service

MAX_NEW_TOKENS = 20

EndReason = Literal["length", "eos_token", "stop_sequence"]


class CommonParameters(Body):
    """A stop string is not part of the answer's text."""

    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    typical_p: One = None
    do_sample: bool | None = None
    seed: Seed | None = None
    repetition_penalty: Repetition | None = None
    frequency_penalty: Penalty | None = None
    watermark: Off = None
    stop: Stops | None = None
    details: bool | None = None

    def params(self, **others: Any) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_new_tokens or MAX_NEW_TOKENS,
            temperature=self._temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            **others,
        )

    @property
    def _temperature(self) -> float | None:
        """As TGI decides: a temperature or a filter means to sample, whatever do_sample says, which alone means 1."""
        if self.temperature is not None:
            return self.temperature
        if self.do_sample or (self.top_k or 0) > 0 or (self.top_p is not None and self.top_p < 1):
            return 1.0
        return None if self.do_sample is None else 0.0


class Token(TypedDict):
    """text: of the token alone, or in a stream what it has added to the answer. special: no part of the answer."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(TypedDict):
    """A token of the prompt; nothing predicts the first one."""

    id: int
    text: str
    logprob: float | None


def token(service: Service, token_id: int, logprob: float, text: str | None = None) -> Token:
    word = service.words[token_id]
    return Token(id=token_id, text=word.text if text is None else text, logprob=finite(logprob), special=word.special)


def prefill(service: Service, answer: Answer) -> list[PrefillToken]:
    """The prompt's tokens, if their log-probabilities were asked for."""
    if answer.prompt_logprobs is None:
        return []
    tokens = []
    for token_id, known in zip(answer.prompt_token_ids, answer.prompt_logprobs, strict=True):
        logprob = None if known is None else finite(known[token_id])
        tokens.append(PrefillToken(id=token_id, text=service.words[token_id].text, logprob=logprob))
    return tokens


def end_reason(service: Service, answer: Answer, params: SamplingParams) -> EndReason:
    """A stop string that is in the tokens, but not in the text, has ended the answer."""
    if answer.finish_reason != "stop":
        return "length"
    if params.stop_strings:
        text = service.decode(answer.token_ids)
        if any(stop in text for stop in params.stop_strings):
            return "stop_sequence"
    return "eos_token"
