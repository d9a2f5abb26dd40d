"""A process of its own that computes with the library: python work.py LEVEL THREADS ... [--no-openmp] [--fork].

Prints a digest of the operations that need barriers, which must be the same for each number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import os

import torch

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native import library as loader
from atb_models.ops.native.attention import paged_attention
from atb_models.ops.native.experts import experts
from atb_models.ops.native.latent.attention import latent_attention
from atb_models.ops.native.linear import linear
from tests.native.cases import pack, pack_gate_up


class Work:
    """Operations on a few tensors. A child made by fork must not make them: torch's own threads hang there."""

    def __init__(self, library: loader.Library) -> None:
        torch.manual_seed(0)
        self.library = library
        self.x, self.weights = torch.randn(70, 256).half(), torch.rand(70, 3)
        self.chosen = torch.rand(70, 8).topk(3).indices
        self.packed = pack(library, torch.randn(300, 256).half())
        self.gate_up = pack_gate_up(library, torch.randn(8, 128, 256).half())
        self.down = pack(library, torch.randn(8, 256, 64).half())
        self.q, self.k, self.v = (torch.randn(*size).half() for size in ((3, 8, 64), (40, 16, 4, 64), (40, 16, 4, 64)))
        self.table, self.starts = torch.randperm(40).view(2, 20).int(), torch.tensor([0, 1, 3]).int()
        self.lens = torch.tensor([320, 300]).int()
        self.maps, self.latent_q = torch.randn(8 * 32, 48).half(), torch.randn(3, 8, 24).half()
        self.latents = LayerCache(latent=torch.randn(40, 16, 48).half(), rope_key=torch.randn(40, 16, 8).half())

    def digest(self) -> str:
        lists = self.table, self.starts, self.lens
        results = [
            linear(self.library, self.x, self.packed, 300),
            experts(self.library, self.x, self.chosen, self.weights, self.gate_up, self.down, 64),
            paged_attention(self.library, self.q, self.k, self.v, *lists, 0.1),
            latent_attention(self.library, self.latent_q, self.maps, self.latents, *lists, 0.1),
        ]
        return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("level")
    parser.add_argument("threads", type=int, nargs="+")
    parser.add_argument("--no-openmp", action="store_true", help="as where torch has no OpenMP runtime")
    parser.add_argument("--fork", action="store_true", help="compute in a child made by fork, after the parent did")
    args = parser.parse_args()
    if args.no_openmp:
        loader.openmp = lambda: None  # type: ignore[assignment]
    work = Work(loader.load(args.level))
    digests = set()
    for threads in args.threads:
        torch.set_num_threads(threads)
        digests.add(work.digest())
    (digest,) = digests
    if args.fork:
        child = os.fork()
        if child == 0:
            os._exit(0 if work.digest() == digest else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child computed something else"
    print(digest)


if __name__ == "__main__":
    main()
