"""What the bodies of TGI and MindIE share: parameters, and the reason why an answer ended."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from atb_models.outputs import finite
from atb_models.sampling_params import SamplingParams
from atb_models.server.api.sampling import (
    AtRest,
    Count,
    Frequency,
    Nothing,
    One,
    Repetition,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    Zero,
)
from atb_models.server.job import Answer
from atb_models.server.service import Service

MAX_NEW_TOKENS = 20

EndReason = Literal["length", "eos_token", "stop_sequence"]


class CommonParameters(AtRest):
    """Parameters of both. A stop string is not part of the answer's text."""

    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    do_sample: bool | None = None
    seed: Seed | None = None
    repetition_penalty: Repetition | None = None
    frequency_penalty: Frequency | None = None
    min_p: Zero = None
    presence_penalty: Zero = None
    stop: Stops | None = None
    stop_token_ids: Nothing = None
    ignore_eos: bool | None = None
    n: One = None
    best_of: One = None
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
            ignore_eos=bool(self.ignore_eos),
            **others,
        )

    @property
    def _temperature(self) -> float | None:
        """As in TGI: a temperature or a filter asks for sampling, even without do_sample. do_sample alone: 1."""
        if self.temperature is not None:
            return self.temperature
        if self.do_sample or (self.top_k or 0) > 0 or (self.top_p is not None and self.top_p < 1):
            return 1.0
        return None if self.do_sample is None else 0.0


class Token(TypedDict):
    """text: of the token alone; in a stream, what it adds to the answer. special: no part of the answer."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(TypedDict):
    """A token of the prompt; the first one has no log-probability."""

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
    """Why the answer ended. By a stop string, if the text ends before one that the tokens contain."""
    if answer.finish_reason != "stop":
        return "length"
    if params.stop_strings:
        text = service.texts.answer(answer.token_ids)
        if any(stop in text for stop in params.stop_strings):
            return "stop_sequence"
    return "eos_token"
