"""transformers as a worker: its model, its attention and its cache as they come, with the greatest logit's token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import transformers
from serve import rate, serve

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Transformers:
    def load(self, folder: str, dtype: str, sequences: int, longest: int, step_tokens: int) -> str:
        """The version."""
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=DTYPES[dtype])
        self.model = model.eval()
        return f"{transformers.__version__}, torch {torch.__version__}"

    def run(self, prompts: list[list[int]], new: int) -> float:
        return rate(self._arrivals(prompts, new), len(prompts), sum(map(len, prompts)), new)

    def _arrivals(self, prompts: list[list[int]], new: int) -> Iterator[int]:
        for _ in self._steps(prompts, new + 1):
            yield from range(len(prompts))

    def tokens(self, prompt: list[int], new: int) -> list[int]:
        return [token for [token] in self._steps([prompt], new)]

    @torch.inference_mode()
    def _steps(self, prompts: list[list[int]], steps: int) -> Iterator[list[int]]:
        """The new tokens of each step. Only the last place's hidden state goes through the head, as in `generate`."""
        ids, cache = torch.tensor(prompts), None
        for _ in range(steps):
            out = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = self.model.lm_head(out.last_hidden_state[:, -1:]).argmax(-1)
            yield ids[:, 0].tolist()


if __name__ == "__main__":
    serve(Transformers())
