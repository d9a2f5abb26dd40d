"""vLLM as a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import vllm
from serve import rate, serve
from vllm import LLM, SamplingParams

ROOM = 3 << 30  # bytes beside the weights: the cache, activations
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Vllm:
    def load(self, folder: str, dtype: str, sequences: int, longest: int, step_tokens: int) -> str:
        """The version."""
        cores = sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])]
        defaults = {
            # The engine in this process: its errors come here, and it ends with this process.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # it takes all of them otherwise
        }
        os.environ.update({name: value for name, value in defaults.items() if not os.environ.get(name)})
        self.number = 0
        self.llm = LLM(
            folder,
            dtype=DTYPES[dtype],
            max_num_seqs=sequences,
            max_model_len=longest,
            max_num_batched_tokens=max(step_tokens, longest),
            enable_prefix_caching=False,
            gpu_memory_utilization=_share_of_memory(Path(folder), dtype),
        )
        return f"{vllm.__version__}, torch {torch.__version__}"

    def run(self, prompts: list[list[int]], new: int) -> float:
        return rate(self._arrivals(prompts, new), len(prompts), sum(map(len, prompts)), new)

    def _arrivals(self, prompts: list[list[int]], new: int) -> Iterator[int]:
        params = SamplingParams(max_tokens=new + 1, temperature=0, ignore_eos=True, detokenize=False)
        engine = self.llm.llm_engine
        begin, self.number = self.number, self.number + len(prompts)
        for place, prompt in enumerate(prompts):
            engine.add_request(str(begin + place), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                yield int(output.request_id.split("-")[0]) - begin

    def tokens(self, prompt: list[int], new: int) -> list[int]:
        params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        return list(self.llm.generate([{"prompt_token_ids": prompt}], params)[0].outputs[0].token_ids)


def _share_of_memory(folder: Path, dtype: str) -> float:
    """What the model needs of the machine's; vLLM asks for nearly all unless told, and refuses to start without."""
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # of 16 bits a value
    needed = stored * (2 if dtype == "fp32" else 1) + ROOM
    return min(0.95, needed / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


if __name__ == "__main__":
    serve(Vllm())
