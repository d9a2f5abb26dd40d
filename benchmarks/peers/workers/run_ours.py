"""This project's engine as a worker."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from serve import rate, serve
from torch.nn.functional import cross_entropy

from atb_models import LLM, SamplingParams, __version__


class Ours:
    def load(
        self, folder: str, dtype: str, sequences: int, longest: int, step_tokens: int, quantize: str | None = None
    ) -> str:
        """The version."""
        self.llm = LLM(
            folder,
            dtype=dtype,
            quantize=quantize,
            device="cpu",
            max_batch_size=sequences,
            max_seq_len=longest,
            max_prefill_tokens=step_tokens,
            prefix_cache=False,
        )
        return f"{__version__}, torch {torch.__version__}"

    def run(self, prompts: list[list[int]], new: int) -> float:
        return rate(self._arrivals(prompts, new), len(prompts), sum(map(len, prompts)), new)

    def _arrivals(self, prompts: list[list[int]], new: int) -> Iterator[int]:
        params = SamplingParams(max_tokens=new + 1, temperature=0, ignore_eos=True)
        for output in self.llm.generate(prompts, params, stream=True):
            yield output.index

    def tokens(self, prompt: list[int], new: int) -> list[int]:
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        return self.llm.generate([prompt], params)[0].token_ids

    def surprise(self, chunks: list[list[int]], first: int) -> float:
        """Mean of -log p of the tokens from place `first` + 1 on, over all chunks: the logarithm of the perplexity."""
        logits = self.llm.prompt_logits(chunks)
        losses = [
            cross_entropy(own[first:-1], torch.tensor(ids[first + 1 :]))
            for own, ids in zip(logits, chunks, strict=True)
        ]
        return float(torch.stack(losses).mean())


if __name__ == "__main__":
    serve(Ours())
