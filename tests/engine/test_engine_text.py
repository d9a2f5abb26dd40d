"""The text of an answer is the same streamed, as a whole, and with a stop string that never comes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fake_runner import VOCAB, fake_engine
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models

from atb_models.sampling_params import SamplingParams
from atb_models.text.detokenizer import REPLACEMENT
from atb_models.text.tokenizer_added import JsonBackend

BYTES = [*range(0xC2, 0xCA), 0xCC, 0xCE, 0xE4, 0xE5, 0xE6, 0xF0, 0x9F, 0x98, *range(0x80, 0x98), 0xA9, 0xAD, 0xB8]
PIECES = ["</s>", "▁a", "b", "▁", "中", *(f"<0x{byte:02X}>" for byte in BYTES)]
PIECES += [f"▁w{i}" for i in range(VOCAB - len(PIECES))]


class ByteFallback:
    """A tokenizer of the fake runner's size, most of whose tokens are bytes."""

    def __init__(self) -> None:
        tokenizer = JsonTokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, [], byte_fallback=True))
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        self.backend = JsonBackend(tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(12))
def test_one_text_however_it_is_asked_for(seed: int) -> None:
    engine = fake_engine(num_blocks=200, tokenizer=ByteFallback())
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 60}
    engine.add_request([seed, 1, 2], SamplingParams(**sampling), index=0)
    engine.add_request([seed, 1, 2], SamplingParams(**sampling), index=1, stream=True)
    engine.add_request([seed, 1, 2], SamplingParams(**sampling, stop=["never to be seen"]), index=2)
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    whole, streamed, stopped = (next(o for o in reversed(outputs) if o.index == index) for index in range(3))
    assert whole.token_ids == streamed.token_ids == stopped.token_ids
    assert REPLACEMENT in whole.text and any("\x7f" < letter < REPLACEMENT for letter in whole.text)
    assert whole.text == streamed.text == stopped.text == ByteFallback().decode(whole.token_ids)
    assert whole.text == "".join(output.delta for output in outputs if output.index == 1)
