"""The engine: requests in, steps, answers out. The heart is `Engine.step`: schedule -> run, sample -> postprocess."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from time import perf_counter
from typing import Any, Protocol

from torch import Tensor

from atb_models.engine.launched import Launched, Runner
from atb_models.engine.owner import Owner
from atb_models.engine.sampling.logprobs import token_logprobs
from atb_models.engine.sampling.sampler import NO_TOKEN, sample, sample_top, top_logits_wanted
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.engine.sequence import Sequence, Status
from atb_models.errors import RequestError
from atb_models.outputs import FinishReason, RequestOutput, TokenLogprobs
from atb_models.sampling_params import SamplingParams
from atb_models.text.detokenizer import Detokenizer
from atb_models.wording import shown

logger = logging.getLogger(__name__)

NO_FINITE_LOGIT = "not one of the model's logits for the next token is a finite number, so there is no next token"
TIMED_STEPS = 100_000  # the last so many of each kind are remembered


class TextDecoder(Protocol):
    """The part of a tokenizer the engine needs."""

    def decode(self, ids: list[int], /) -> str: ...


class Engine:
    """Drives one runner with one scheduler.

    eos_token_ids: ids that end a request. generation: the checkpoint's sampling defaults. tokenizer: None leaves texts
    empty and refuses stop strings. vocab_size: ids beyond are refused.
    on_step(rows, logits [L, V], sampled tokens, NO_TOKEN where there is none): called in each step before the rows are
    marked as computed; it may look, not change. It begins with a step that is launched while it is set.
    Requests and steps raise RequestError in a process that was forked from the `owner`'s.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        eos_token_ids: Iterable[int] = (),
        generation: Mapping[str, object] | None = None,
        tokenizer: TextDecoder | None = None,
        vocab_size: int | None = None,
        on_step: Callable[[list[Row], Tensor, list[int]], None] | None = None,
    ) -> None:
        self.owner = Owner()
        self.runner, self.scheduler, self.tokenizer, self.on_step = runner, scheduler, tokenizer, on_step
        self.eos_token_ids, self.vocab_size = frozenset(eos_token_ids), vocab_size
        self.generation = dict(generation or {})
        self._launched: Launched | None = None
        self._has_warned = False  # of logits that are no numbers
        self._num_steps = self._largest_batch = self._num_prompt_tokens = self._num_generated_tokens = 0
        self.reset_timings()

    def add_request(
        self,
        prompt_token_ids: Iterable[int],
        params: SamplingParams | None = None,
        *,
        index: int = 0,
        stream: bool = False,
        want_prompt_logits: bool = False,
    ) -> Sequence:
        """Queue a request. Raises RequestError or CapacityError if it can never be served.

        stream: `step` returns an output for each of its tokens, not only the last. want_prompt_logits: the logits of
        all prompt tokens are collected in the sequence's `prompt_logits`; it ends after its first token.
        """
        self.owner.check()
        params = params or SamplingParams()
        resolved = params.resolve(self.generation)
        self._check_ids("logprob_token_ids", resolved.logprob_ids)
        self._check_ids("stop_token_ids", tuple(resolved.stop_token_ids or ()))
        self._check_ids("logit_bias", resolved.biases)
        seq = Sequence(
            prompt_token_ids,
            resolved,
            self.eos_token_ids,
            index=index,
            stream=stream,
            want_prompt_logits=want_prompt_logits,
            ends_with_pool=params.max_tokens is None,
        )
        self._check_ids("the prompt", seq.token_ids)
        stop = resolved.stop_strings
        if stop and self.tokenizer is None:
            raise RequestError(f"stop {list(stop)} needs the checkpoint's tokenizer files; use stop_token_ids instead")
        if self.tokenizer is not None and (stop or stream):
            seq.detokenizer = Detokenizer(self.tokenizer.decode, stop)
        self.scheduler.add(seq)
        self._num_prompt_tokens += seq.num_prompt_tokens
        return seq

    def step(self) -> list[RequestOutput]:
        """One step of the batch: outputs of the requests that ended in it and of streaming ones that got a token."""
        try:
            self.launch()
            return self.collect()
        finally:
            self._launched = None  # after an interrupt between the halves its rows are scheduled again

    def launch(self) -> bool:
        """First half of a step: schedule it and start the runner; False where there is nothing to do.

        `collect` must follow before the next launch. In between a program may work on the host, and add and abort
        requests.
        """
        self.owner.check()
        assert self._launched is None, "the step before was not collected"
        started = perf_counter()
        rows = self.scheduler.schedule()
        if not rows:
            return False
        is_prefill = rows[-1].is_prefill  # chunks come last
        launched = perf_counter()
        top_logits = self._top_logits(rows)
        logits_LV = self.runner.run(rows, top_logits)
        returned = perf_counter()
        self._launched = Launched(rows, logits_LV, top_logits, is_prefill, returned - started, returned - launched)
        return True

    def collect(self) -> list[RequestOutput]:
        """Second half: sample the launched step's tokens, append and deliver them; [] where none was launched."""
        self.owner.check()
        if self._launched is None:
            return []
        started, launched, self._launched = perf_counter(), self._launched, None
        seqs, tokens, logprobs = self._sample(launched)
        if self.on_step is not None and not launched.top_logits:
            self.on_step(launched.rows, launched.logits_LV, tokens)
        self.scheduler.postprocess(launched.rows, tokens)
        outputs = self._deliver(seqs, tokens, logprobs)
        self._largest_batch = max(self._largest_batch, len(launched.rows))
        self._record(launched, perf_counter() - started)
        return outputs

    def abort(self, seq_id: int) -> RequestOutput | None:
        """End a request at once with what it has; None if it has ended before."""
        self.owner.check()
        seq = self.scheduler.abort(seq_id)
        if seq is None:
            return None
        self._close_text(seq)
        return seq.output()

    def has_work(self) -> bool:
        """True while a request is running or waiting."""
        return self.scheduler.has_work()

    def counts(self) -> dict[str, Any]:
        """Counts since the start, what is running and free now, and seconds in steps since `reset_timings`.

        host_s: in steps, outside runner.run; run_s: inside. What happens between a step's halves is in neither.
        """
        scheduler, blocks = self.scheduler, self.scheduler.block_manager
        return {
            "steps": self._num_steps,
            "largest_batch": self._largest_batch,
            "chunks": scheduler.num_chunks,
            "preemptions": scheduler.num_preemptions,
            "prefix_hit_tokens": scheduler.num_prefix_hit_tokens,
            "prompt_tokens": self._num_prompt_tokens,
            "generated_tokens": self._num_generated_tokens,
            "free_blocks": blocks.num_free,
            "total_blocks": blocks.num_blocks,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "host_s": self._host_s,
            "run_s": self._run_s,
        }

    def metrics(self) -> dict[str, Any]:
        """`counts`, and each step's time as a whole since `reset_timings`, in seconds: prefill_step_s, decode_step_s.

        A step with any prompt chunk is a prefill step.
        """
        return self.counts() | {
            "prefill_step_s": list(self._prefill_step_s),
            "decode_step_s": list(self._decode_step_s),
        }

    def reset_timings(self) -> None:
        """Forget the times measured so far; counts stay."""
        self._host_s = self._run_s = 0.0
        self._prefill_step_s: deque[float] = deque(maxlen=TIMED_STEPS)
        self._decode_step_s: deque[float] = deque(maxlen=TIMED_STEPS)

    def _top_logits(self, rows: list[Row]) -> int:
        """How many of the greatest logits of each row this step needs; 0: all, or the runner gives only all."""
        others = self.on_step is not None or any(row.scores_prompt for row in rows)
        if others or not self.runner.gives_top_logits or self.vocab_size is None:
            return 0
        return top_logits_wanted(row.seq for row in rows if row.completes)

    def _sample(self, launched: Launched) -> tuple[list[Sequence], list[int], list[TokenLogprobs | None] | None]:
        """The sequences that get a token in this step, the tokens, and their log-probabilities where any are wanted."""
        seqs, logits_BV = self._rows_to_sample(launched.rows, launched.logits_LV)
        if not launched.top_logits:
            return seqs, *sample(logits_BV, seqs, self._warn_of_no_numbers)
        assert self.vocab_size is not None
        tokens = sample_top(logits_BV, launched.top_logits, seqs, self.vocab_size, self._warn_of_no_numbers)
        return seqs, tokens, None

    def _rows_to_sample(self, rows: list[Row], logits_LV: Tensor) -> tuple[list[Sequence], Tensor]:
        """The sequences that get a token in this step and the logits for it; a prompt's are kept or reduced."""
        seqs = [row.seq for row in rows if row.completes]
        if any(row.scores_prompt for row in rows):
            last: list[int] = []
            parts = logits_LV.split([row.num_logits for row in rows])
            end = 0
            for row, part in zip(rows, parts, strict=True):
                end += len(part)
                if row.completes:
                    last.append(end - 1)
                if row.scores_prompt:
                    _score_prompt(row, part)
            logits_LV = logits_LV[last]
        assert len(logits_LV) == len(seqs), f"{len(logits_LV)} rows of logits for {len(seqs)} sequences"
        return seqs, logits_LV

    def _deliver(
        self, seqs: list[Sequence], tokens: list[int], logprobs: list[TokenLogprobs | None] | None
    ) -> list[RequestOutput]:
        """End what has to end and build the outputs of requests with news."""
        outputs = []
        self._num_generated_tokens += len(seqs) - tokens.count(NO_TOKEN)
        for row, seq in enumerate(seqs):
            if seq.status is Status.FINISHED:  # aborted while the step ran
                continue
            if tokens[row] == NO_TOKEN:
                outputs.append(self._fail(seq, NO_FINITE_LOGIT))
                continue
            if seq.first_token_s is None:
                seq.first_token_s = perf_counter()
            if logprobs is not None and seq.logprobs is not None:
                seq.logprobs.append(logprobs[row] or {})
            reason = self._finish_reason(seq)
            if reason is not None:
                if self._close_text(seq):
                    reason = "stop"
                self.scheduler.finish(seq, reason)
            if reason is not None or seq.stream:
                outputs.append(seq.output())
        return outputs

    def _fail(self, seq: Sequence, error: str) -> RequestOutput:
        """End a sequence that cannot go on."""
        self._close_text(seq)
        seq.error = error
        self.scheduler.finish(seq, "error")
        return seq.output()

    def _warn_of_no_numbers(self, bad: int, of: int) -> None:
        """Say once what so many logits that are no finite numbers tell of the model."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the model gave logits that are no finite numbers, %d of %d in one step: such tokens are never chosen."
                " Weights that are no numbers, or a dtype that overflows (fp16; try --dtype bf16 or fp32), do this",
                bad, of,
            )  # fmt: skip

    @staticmethod
    def _finish_reason(seq: Sequence) -> FinishReason | None:
        """Why the sequence ends with its newest token, which is added to its text unless that hides it."""
        token = seq.token_ids[-1]
        if token in seq.stop_ids:
            return "stop"
        if seq.detokenizer is not None and seq.detokenizer.push(token):
            return "stop"
        return "length" if len(seq.token_ids) >= seq.max_len else None

    def _close_text(self, seq: Sequence) -> bool:
        """Complete the text of a sequence that ends; True if a stop string shows only now."""
        if self.tokenizer is None:
            return False
        if seq.detokenizer is None:
            seq.detokenizer = Detokenizer(self.tokenizer.decode)
            seq.detokenizer.extend(seq.text_token_ids)
        return seq.detokenizer.finish()

    def _check_ids(self, what: str, token_ids: Collection[int]) -> None:
        low, high = min(token_ids, default=0), max(token_ids, default=0)
        if low < 0 or (self.vocab_size is not None and high >= self.vocab_size):
            limit = "" if self.vocab_size is None else f" to {self.vocab_size - 1}"
            raise RequestError(f"{what} has token id {shown(low if low < 0 else high)}; ids go from 0{limit}")

    def _record(self, launched: Launched, collect_s: float) -> None:
        step_s = launched.launch_s + collect_s  # what happens between the halves is no part of the step
        self._num_steps += 1
        self._run_s += launched.run_s
        self._host_s += step_s - launched.run_s
        (self._prefill_step_s if launched.is_prefill else self._decode_step_s).append(step_s)


def _score_prompt(row: Row, logits_LV: Tensor) -> None:
    """Keep what the sequence wants of the logits of the row's tokens, each of which predicts the prompt's next.

    Log-probabilities are written to their places: a part that is computed again replaces itself.
    """
    seq = row.seq
    if seq.want_prompt_logits:
        seq.prompt_logits.append(logits_LV.to("cpu", copy=True))
    if seq.prompt_logprobs is not None:
        first = seq.num_computed_tokens + 1
        tokens = seq.prompt_token_ids[first : first + row.num_tokens]
        count = len(tokens)
        tops = [seq.params.prompt_logprobs or 0] * count
        seq.prompt_logprobs[first:] = token_logprobs(logits_LV[:count], tokens, tops, [()] * count)
