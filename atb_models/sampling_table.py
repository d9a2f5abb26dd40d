"""Every field that says how tokens are chosen, once: flags, checks, defaults, documents and HTTP forms follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, NamedTuple, get_args

Form = Literal["chat", "completion", "vllm", "tgi", "mindie"]
FORMS: tuple[Form, ...] = get_args(Form)
# What logits may be divided by at most, and multiplied: with more, float32 overflows and infinities meet.
MOST = 1e4
# texts: one or several. biases: numbers by token id. The others as they are called.
Kind = Literal["number", "whole number", "yes or no", "texts", "token ids", "biases"]


class NamesByForm(NamedTuple):
    """What each form of request calls a field; () where it does not take it. Triton's parameters are MindIE's."""

    chat: tuple[str, ...] = ()
    completion: tuple[str, ...] = ()
    vllm: tuple[str, ...] = ()
    tgi: tuple[str, ...] = ()
    mindie: tuple[str, ...] = ()


def _openai(name: str) -> NamesByForm:
    """For a field that only OpenAI's forms and vLLM's take."""
    return NamesByForm(chat=(name,), completion=(name,), vllm=(name,))


def _everywhere(name: str) -> NamesByForm:
    return NamesByForm(*[(name,)] * len(FORMS))


@dataclass(frozen=True)
class SamplingField:
    """One field of `SamplingParams`.

    name: there, and of its flag. help: of the flag. low, high: the range of a number, or of each bias;
    above_low: low itself is outside. default: what it is where neither the request nor the checkpoint says anything;
    None: nothing is done. generation: its name in generation_config.json, if it may stand there.
    """

    name: str
    kind: Kind
    help: str
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    default: float | None = None
    generation: str | None = None
    names: NamesByForm = NamesByForm()

    @property
    def allowed(self) -> str:
        """What a value must be, as in "a number in [0, 1]"."""
        if self.kind == "whole number":
            return "a whole number" + (f" of {self.low:g} or more" if math.isfinite(self.low) else "")
        if self.kind == "yes or no":
            return "True or False"
        end = f"{self.high:g}]" if math.isfinite(self.high) else "infinity)"
        return f"a number in {'(' if self.above_low else '['}{self.low:g}, {end}"

    def allows(self, value: object) -> bool:
        """Whether it is of the kind and in the range; of `biases`: one bias."""
        if self.kind == "yes or no" or isinstance(value, bool):
            return self.kind == "yes or no" and isinstance(value, bool)
        if self.kind == "whole number":
            return isinstance(value, Integral) and int(value) >= self.low
        if not isinstance(value, Real):
            return False
        try:
            number = float(value)
        except OverflowError:  # a whole number larger than any float
            return False
        return math.isfinite(number) and self.low <= number <= self.high and not (self.above_low and number == self.low)


FIELDS = (
    SamplingField(
        "max_tokens", "whole number", "tokens of an answer at most", low=1, generation="max_new_tokens",
        names=NamesByForm(
            chat=("max_tokens", "max_completion_tokens"), completion=("max_tokens",), vllm=("max_tokens",),
            tgi=("max_new_tokens",), mindie=("max_new_tokens",),
        ),
    ),
    SamplingField(
        "temperature", "number", "0: greedy", low=0, high=MOST, default=0.0, generation="temperature",
        names=_everywhere("temperature"),
    ),
    SamplingField(
        "top_k", "whole number", "sample from the k likeliest tokens", low=-1, default=0, generation="top_k",
        names=_everywhere("top_k"),
    ),
    SamplingField(
        "top_p", "number", "sample from the likeliest tokens that hold this probability", low=0, above_low=True, high=1,
        default=1.0, generation="top_p", names=_everywhere("top_p"),
    ),
    SamplingField(
        "min_p", "number", "drop tokens below this share of the likeliest one's probability", low=0, high=1,
        default=0.0, generation="min_p", names=_openai("min_p"),
    ),
    SamplingField(
        "repetition_penalty", "number", "divide the logits of tokens seen in prompt or answer", low=1 / MOST, high=MOST,
        default=1.0, generation="repetition_penalty", names=_everywhere("repetition_penalty"),
    ),
    SamplingField(
        "presence_penalty", "number", "lower the logits of tokens of the answer", low=-2, high=2,
        default=0.0, generation="presence_penalty", names=_openai("presence_penalty"),
    ),
    SamplingField(
        "frequency_penalty", "number", "lower them by each occurrence", low=-2, high=2,
        default=0.0, generation="frequency_penalty", names=_everywhere("frequency_penalty"),
    ),
    SamplingField("seed", "whole number", "of sampling", names=_everywhere("seed")),
    SamplingField("stop", "texts", "texts that end an answer", names=_everywhere("stop")),
    SamplingField("stop_token_ids", "token ids", "tokens that end an answer", names=_openai("stop_token_ids")),
    SamplingField("ignore_eos", "yes or no", "go on after the end-of-sentence token", names=_everywhere("ignore_eos")),
    SamplingField(
        "logprobs", "whole number", "print the log probabilities of the chosen and the n likeliest tokens", low=0,
        names=NamesByForm(chat=("top_logprobs",), completion=("logprobs",), tgi=("top_n_tokens",)),
    ),
    SamplingField("logprob_token_ids", "token ids", "tokens whose log probabilities are wanted too"),
    SamplingField(
        "prompt_logprobs", "whole number", "log probabilities of the prompt's and of the n likeliest tokens", low=0
    ),
    SamplingField("logit_bias", "biases", "numbers added to the logits of single tokens", low=-100, high=100),
)  # fmt: skip
BY_NAME = {field.name: field for field in FIELDS}
