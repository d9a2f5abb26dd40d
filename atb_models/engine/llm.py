"""`LLM`: the engine as a Python object."""

from __future__ import annotations

import os
from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor

from atb_models import env
from atb_models.engine.arguments import Conversation, Ids, Params, Prompt, listed, one_each, plain_ids
from atb_models.engine.block_manager import BlockManager
from atb_models.engine.config import EngineConfig, config_or_fields
from atb_models.engine.engine import Engine
from atb_models.engine.expert_counts import ExpertCounts
from atb_models.engine.graph_capture import decide_capture
from atb_models.engine.kv_pool import agree_on_kv_blocks, engine_limits, sequence_limit
from atb_models.engine.model_runner import ModelRunner, serve
from atb_models.engine.owner import Owner
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.engine.sequence import Sequence
from atb_models.engine.stream import OutputStream
from atb_models.errors import RequestError
from atb_models.layers.heads import check_ranks
from atb_models.machine.device import choose_device
from atb_models.models.config import ModelConfig
from atb_models.models.generation import answer_ends
from atb_models.models.quantization import quantization_method
from atb_models.ops.native.report import log_choice
from atb_models.outputs import RequestOutput
from atb_models.ranks.spawn import open_group
from atb_models.sampling_params import SamplingParams
from atb_models.text.tokenizer import Tokenizer, load_tokenizer

StepHook = Callable[[list[Row], Tensor, list[int]], None]


class LLM:
    """A model, loaded and ready to answer. A context manager: leaving it ends its ranks.

    model_path: a checkpoint folder in Hugging Face layout; None is the embedded toy checkpoint.
    dtype: fp16, bf16, fp32, or auto (what the checkpoint's config.json says, fp16 where it says nothing); torch's names
    and types too. device: npu, cuda or cpu; None takes the first there is.
    tp: ranks that share the model; in a plain Python process they are started here, under torchrun the environment
    decides (there, ranks other than 0 never return from this constructor: they execute steps and leave with status 0
    when rank 0 closes). block_size: tokens of a KV block. max_batch_size: requests running at once, the others wait.
    max_seq_len: prompt and answer together. max_prefill_tokens: prompt tokens of a step; longer prompts run in chunks.
    kv_blocks: size of the KV pool; None takes what memory allows, at most what a full batch needs.
    load_format: auto, or dummy for random weights. config_overrides: fields of config.json to replace.
    deterministic: the same bits in every run; on npu and cuda a setting of the whole process, see determinism.py.
    graph_capture: capture decode steps as graphs at the start and replay them; None does so where the device can (npu).
    quantize: stores the weights of the linear maps as integers while they are loaded; embedding, head, router and norms
    stay in dtype. w8a16: int8, a scale for each output. w4a16: 4 bits, a scale for each 128 inputs. w8a8_dynamic: as
    w8a16, and the activations that meet them are int8 with a scale for each token. None: as the checkpoint has them.
    kv_dtype: int8 stores keys and values as int8, one scale for each token and head, so that about twice as many tokens
    fit; auto stores them in dtype.
    An EngineConfig in the place of model_path stands for all of them.

    It belongs to the process that made it: in a fork of that process every call raises RequestError, only `close`
    does nothing there.
    Raises ConfigError, CheckpointError, CapacityError or RankError.
    """

    @config_or_fields
    def __init__(
        self,
        model_path: str | os.PathLike[str] | EngineConfig | None = None,
        *,
        dtype: str = "fp16",
        device: str | None = None,
        tp: int = 1,
        block_size: int = 128,
        max_batch_size: int = 64,
        max_seq_len: int | None = None,
        max_prefill_tokens: int | None = None,
        kv_blocks: int | None = None,
        prefix_cache: bool = True,
        chat_template: str | None = None,
        config_overrides: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        load_format: str = "auto",
        deterministic: bool = False,
        graph_capture: bool | None = None,
        quantize: str | None = None,
        kv_dtype: str = "auto",
    ) -> None:
        assert isinstance(model_path, EngineConfig), "the decorator makes it of the fields"
        self.config = config = model_path
        self._owner = Owner()
        model_config = self._model_config()
        kind = choose_device(config.device, deterministic=config.deterministic)
        self.config = config = replace(config, graph_capture=decide_capture(config.graph_capture, kind))
        self._group = open_group(config.to_json(), config.tp, kind)
        try:
            if self._group.rank != 0:
                serve(config, model_config, self._group)
                self._group.close()
                raise SystemExit(0)
            if kind == "cpu":
                log_choice()
            with self._group.doing("reading the tokenizer"):
                self._tokenizer = load_tokenizer(config.folder, config.chat_template, config.trust_remote_code)
            blocks = agree_on_kv_blocks(config, model_config, self._group)
            assert blocks is not None, "rank 0 refuses a model by an exception"
            self._runner = ModelRunner(config, model_config, self._group, blocks)
            self._experts = ExpertCounts.start(self._runner)
            self._engine = self._build_engine()
        except BaseException:
            self._group.close()
            raise

    @overload
    def generate(
        self,
        prompts: abc.Sequence[Prompt],
        params: Params = None,
        *,
        stream: Literal[False] = False,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: abc.Sequence[Prompt],
        params: Params = None,
        *,
        stream: Literal[True],
    ) -> Iterator[RequestOutput]: ...

    def generate(
        self,
        prompts: abc.Sequence[Prompt],
        params: Params = None,
        *,
        stream: bool = False,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Complete each prompt, a text or a list of token ids -> outputs in the order of the prompts.

        params: one for all or one each. stream: an iterator that yields an output whenever a request has a new token
        (`delta` is its new text, `finish_reason` set on its last); leaving the iterator early aborts what still runs.
        Raises RequestError or CapacityError naming the prompt; then none of them is run.
        """
        self._owner.check()
        requests = [self._token_ids(prompt) for prompt in listed(prompts)]
        return self._answer(requests, params, stream=stream)

    @overload
    def chat(
        self,
        conversations: abc.Sequence[Conversation],
        params: Params = None,
        *,
        stream: Literal[False] = False,
        **variables: Any,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        conversations: abc.Sequence[Conversation],
        params: Params = None,
        *,
        stream: Literal[True],
        **variables: Any,
    ) -> Iterator[RequestOutput]: ...

    def chat(
        self,
        conversations: abc.Sequence[Conversation],
        params: Params = None,
        *,
        stream: bool = False,
        **variables: Any,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """The assistant's next turn of each conversation, a list of {"role", "content"}; otherwise like `generate`.

        variables: what the chat template reads beside the messages, such as tools, a list of JSON schemas, or
        enable_thinking. Raises RequestError too for one that the template does not read.
        """
        self._owner.check()
        tokenizer = self._need_tokenizer("a conversation")
        prompts = [tokenizer.apply_chat_template(one, **variables) for one in conversations]
        return self._answer(prompts, params, stream=stream)

    @overload
    def prompt_logits(self, token_ids: Ids) -> Tensor: ...

    @overload
    def prompt_logits(self, token_ids: abc.Sequence[Ids]) -> list[Tensor]: ...

    def prompt_logits(self, token_ids: Ids | abc.Sequence[Ids]) -> Tensor | list[Tensor]:
        """Logits at every prompt token, through the same paged steps -> [T, V] float32 on the CPU.

        A list of prompts runs as one batch and gives a list.
        """
        self._owner.check()
        token_ids = plain_ids(token_ids)
        batch = bool(token_ids) and not isinstance(token_ids[0], Integral)
        prompts: Any = [plain_ids(prompt) for prompt in token_ids] if batch else [token_ids]
        stream = self._submit(prompts, [SamplingParams(max_tokens=1)] * len(prompts), want_prompt_logits=True)
        for _ in stream:
            pass
        logits = [torch.cat(sequence.prompt_logits) for sequence in stream.sequences]
        return logits if batch else logits[0]

    @property
    def engine(self) -> Engine:
        """What answers, for programs that add and abort requests between its steps."""
        self._owner.check()
        return self._engine

    @property
    def size(self) -> int:
        """Ranks that share the model."""
        return self._group.size

    def check(self) -> None:
        """Raise RankError if a rank has died, which else shows in the next step."""
        self._owner.check()
        self._group.health.look()

    @property
    def device(self) -> torch.device:
        """Where rank 0 computes."""
        return self._group.device

    @property
    def quantization(self) -> str | None:
        """The method that quantised the weights, here or in the checkpoint: w8a16, w8a8_dynamic ...; None: floats."""
        return quantization_method(self._runner.model_config, self.config.quantize)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None where it has no tokenizer files."""
        return self._tokenizer

    @property
    def on_step(self) -> StepHook | None:
        """Called in every step with its rows, their logits [L, V] (good until the next one) and the sampled tokens."""
        return self.engine.on_step

    @on_step.setter
    def on_step(self, hook: StepHook | None) -> None:
        self.engine.on_step = hook

    def metrics(self) -> dict[str, Any]:
        """Counts of the engine since its start and step times since `reset_timings`; see Engine.metrics."""
        return self.engine.metrics()

    def reset_timings(self) -> None:
        """Forget the step times measured so far; counts stay."""
        self.engine.reset_timings()

    def close(self) -> None:
        """End the ranks and let go of the model; safe to repeat. A closed LLM answers no more."""
        if not self._owner.is_here:
            return
        experts, self._experts = getattr(self, "_experts", None), None
        try:
            if experts is not None:
                experts.save()
        finally:
            self.__dict__.pop("_runner", None)  # first: its graphs hold collectives of the group
            self.__dict__.pop("_engine", None)
            self._group.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise RequestError("an LLM cannot be sent to another process; make one in each process that needs one")

    def _model_config(self) -> ModelConfig:
        """config.json, read once; what cannot be shared is refused before any rank is started. Rank 0 logs."""
        model = self.config.load_model_config(log=not env.get("RANK"))
        sequence_limit(self.config, model)
        check_ranks(model.num_attention_heads, self.config.tp)
        return model

    def _build_engine(self) -> Engine:
        config, model = self.config, self._runner.model_config
        blocks = BlockManager(self._runner.kv_blocks, config.block_size, config.prefix_cache)
        return Engine(
            self._runner,
            Scheduler(blocks, engine_limits(config, model)),
            eos_token_ids=answer_ends(model, self._tokenizer.eos_token_ids if self._tokenizer else {}),
            generation=model.generation,
            tokenizer=self._tokenizer,
            vocab_size=model.vocab_size,
        )

    def _answer(
        self, prompts: abc.Sequence[Ids], params: Params, *, stream: bool
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        outputs = self._submit(prompts, one_each(params, len(prompts)), stream=stream)
        return outputs if stream else sorted(outputs, key=lambda output: output.index)

    def _submit(
        self, prompts: abc.Sequence[Ids], params: abc.Sequence[SamplingParams], **options: bool
    ) -> OutputStream:
        """Queue all prompts, or none where one is refused."""
        if self.engine.has_work():
            raise RequestError("a streamed call of this LLM is still open; read it to its end or close() it first")
        sequences: list[Sequence] = []
        try:
            for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
                sequences.append(self._engine.add_request(prompt, one, index=index, **options))
        except BaseException:
            OutputStream(self._engine, sequences).close()
            raise
        return OutputStream(self._engine, sequences)

    def _token_ids(self, prompt: Prompt) -> Ids:
        return self._need_tokenizer("a text prompt").encode(prompt) if isinstance(prompt, str) else plain_ids(prompt)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise RequestError(f"{what} needs the tokenizer files, which {self.config.folder} has not; give token ids")
        return self._tokenizer

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("_engine", "_runner"):
            raise RequestError("this LLM is closed")
        raise AttributeError(name)
