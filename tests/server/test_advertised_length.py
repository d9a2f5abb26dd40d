"""The length that clients are told of is one that a request can have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.raw import PATH, completion
from tests.server.running import Running, running

POOL = 4 * 16


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    with running("--kv_blocks", "4", "--block_size", "16", "--max_seq_len", "256", "--max_batch_size", "1") as server:
        yield server


def test_every_place_tells_what_the_pool_holds(narrow: Running) -> None:
    assert narrow.json("/v1/models")["data"][0]["max_model_len"] == POOL
    assert narrow.json("/v1/models/demo")["max_model_len"] == POOL
    assert narrow.json("/tokenize", {"prompt": "x"})["max_model_len"] == POOL
    info = narrow.json("/info")
    assert (info["max_total_tokens"], info["max_input_tokens"]) == (POOL, POOL - 1)


def test_a_request_of_this_length_is_answered(narrow: Running) -> None:
    told = narrow.json("/v1/models")["data"][0]["max_model_len"]
    for prompt in (20, told - 1):
        usage = narrow.json(PATH, completion([5] * prompt, told - prompt))["usage"]
        assert usage["total_tokens"] == told
    assert "KV blocks" in narrow.json(PATH, completion([5] * 20, told), status=400)["error"]["message"]


def test_where_the_pool_is_larger_the_flag_counts(server: Running) -> None:
    assert server.json("/v1/models")["data"][0]["max_model_len"] == 8192
