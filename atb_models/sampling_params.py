"""How the tokens of one request are chosen and when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral

from atb_models.errors import RequestError
from atb_models.sampling_table import BY_NAME, FIELDS, SamplingField
from atb_models.wording import shown

# What a field that neither the request nor the checkpoint's generation_config sets means: greedy, nothing filtered.
DEFAULTS: dict[str, float] = {field.name: field.default for field in FIELDS if field.default is not None}
SIMPLE_KINDS = ("number", "whole number", "yes or no")
MOST_DIGITS = 20  # of a token id that is given as text: no vocabulary needs more


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one request. None: the checkpoint's generation_config, else greedy decoding without filters.

    Logits pass through, in this order: repetition penalty (prompt and output tokens; positive logits divided, negative
    multiplied), presence and frequency penalty (output tokens; subtracted once, and once per occurrence), logit_bias
    (added), temperature, top_k (the k most probable), top_p (of what is left, renormalised, the fewest tokens whose
    mass reaches top_p), min_p (tokens with at least min_p times the largest probability).

    max_tokens: new tokens at most, 1 or more; None: generation_config's max_new_tokens, else up to max_seq_len.
    temperature: [0, 10000]; 0 is greedy (then top_k, top_p, min_p and seed change nothing).
    top_k: 1 or more, 0 or -1: all. top_p: (0, 1]. min_p: [0, 1].
    repetition_penalty: [0.0001, 10000], 1 is none. presence_penalty, frequency_penalty: [-2, 2].
    seed: any whole number; its random numbers are the same each time. So are the tokens on a CPU that the native
    library serves, with the same ranks and level, whatever runs beside the request; on other devices the requests
    beside it can change the rounding of logits, and a token with it. None: different random numbers each time.
    stop: strings that end the text, itself cut before them. stop_token_ids: token ids that end it like the EOS token.
    ignore_eos: go on after the EOS token (stop and stop_token_ids still count).
    logprobs: N >= 0 returns for each new token the log-probability of it and of the top N in the raw model, before all
    of the above. logprob_token_ids: with or without `logprobs`, those of exactly these ids too.
    prompt_logprobs: N >= 0 returns for each prompt token its log-probability after the tokens before it, and those of
    the top N. Such a request takes nothing from the prefix cache, which has no logits, and runs in smaller chunks.
    logit_bias: {token id: number in [-100, 100]}, added to the logits of these tokens, so that -100 all but forbids a
    token and 100 all but forces it. An id may also be its decimal text, as in JSON.

    Raises RequestError naming the field, its value and its range.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: Iterable[int] | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int | str, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for row in FIELDS:
            if row.kind in SIMPLE_KINDS:
                _check(row, getattr(self, row.name))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        for name in ("stop_token_ids", "logprob_token_ids"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias) or None)

    def resolve(self, generation: Mapping[str, object]) -> SamplingParams:
        """These parameters with every None of a sampling field filled: generation_config, then the default.

        Without a temperature in either: `do_sample` true means 1, else greedy; `do_sample` false means greedy whatever
        temperature stands beside it.
        """
        values: dict[str, object] = {name: generation.get(name) for name in DEFAULTS}
        do_sample = generation.get("do_sample")
        if do_sample is False:
            values["temperature"] = 0.0
        elif do_sample and values["temperature"] is None:
            values["temperature"] = 1.0
        filled = {name: DEFAULTS[name] if value is None else value for name, value in values.items()}
        filled["max_tokens"] = generation.get("max_new_tokens")
        explicit = {name: getattr(self, name) for name in filled if getattr(self, name) is not None}
        try:
            return replace(self, **{**filled, **explicit})
        except RequestError as error:
            raise RequestError(f"generation_config.json: {error}; correct it or set the parameter yourself") from None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever it was given as."""
        return _stop_strings(self.stop)

    @property
    def logprob_ids(self) -> tuple[int, ...]:
        """`logprob_token_ids` as a tuple, whatever it was given as."""
        return _token_ids("logprob_token_ids", self.logprob_token_ids)

    @property
    def biases(self) -> dict[int, float]:
        """`logit_bias` with numbers as ids, whatever it was given as."""
        return _biases(self.logit_bias)

    @property
    def wants_logprobs(self) -> bool:
        """True when log-probabilities of the new tokens are wanted."""
        return self.logprobs is not None or bool(self.logprob_ids)

    @property
    def is_plain_greedy(self) -> bool:
        """True when the next token is the argmax of the raw logits and nothing but its id is wanted (once resolved)."""
        shapes_logits = self.has_penalties or bool(self.logit_bias)
        return not self.temperature and not shapes_logits and not self.wants_logprobs

    @property
    def has_penalties(self) -> bool:
        """True when tokens seen so far change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty not in (None, 1.0)


def _told(value: object) -> str:
    """The value as Python writes it; of a number with more digits than it writes, how many these are."""
    try:
        return repr(value)
    except ValueError:
        return shown(value)


def _check(row: SamplingField, value: object) -> None:
    """Refuse what is neither allowed nor left open."""
    is_open = value is None and row.kind != "yes or no"
    if not is_open and not row.allows(value):
        raise RequestError(f"{row.name} must be {row.allowed}, not {_told(value)}")


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise RequestError(f"stop must be a string or a list of strings, none of them empty, not {_told(stop)}")
    return strings


def _token_ids(name: str, ids: object) -> tuple[int, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, Iterable) or isinstance(ids, (str, bytes)):
        raise RequestError(f"{name} must be a list of token ids, not {_told(ids)}")
    values = tuple(ids)
    for value in values:
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 0:
            raise RequestError(f"{name} must be whole numbers of 0 or more, not {_told(value)}")
    return tuple(int(value) for value in values)


def _biases(given: object) -> dict[int, float]:
    """`logit_bias` as {id: bias}."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RequestError(f"logit_bias must be a mapping of token ids to numbers, not {_told(given)}")
    biases: dict[int, float] = {}
    for key, value in given.items():
        token = _bias_id(key)
        if token in biases:
            raise RequestError(f"logit_bias has token id {token} twice, as a number and as a text; give it once")
        if not BY_NAME["logit_bias"].allows(value):
            allowed = BY_NAME["logit_bias"].allowed
            raise RequestError(f"logit_bias of token id {token} must be {allowed}, not {_told(value)}")
        biases[token] = float(value)
    return biases


def _bias_id(key: object) -> int:
    """A token id from a number or, as JSON has it, from its digits."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= MOST_DIGITS:
        return int(key)
    if not isinstance(key, Integral) or isinstance(key, bool) or int(key) < 0:
        raise RequestError(f"token ids of logit_bias must be whole numbers of 0 or more, not {_told(key)}")
    return int(key)
