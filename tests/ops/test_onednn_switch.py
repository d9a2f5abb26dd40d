"""oneDNN's switch belongs to the process: products of one bfloat16 row in several threads must leave it as it was."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from atb_models.ops import cpu_torch
from atb_models.ops.weight import Weight

PRODUCTS = 300


@pytest.fixture(autouse=True)
def threads_change_often() -> Iterator[None]:
    before, was_on = sys.getswitchinterval(), torch.backends.mkldnn.enabled
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    torch.backends.mkldnn.enabled = was_on  # type: ignore[assignment]


def weight() -> Weight:
    return Weight.plain(torch.randn(96, 64).bfloat16())


def in_threads(*works: Callable[[], None]) -> None:
    """Run all at the same time; the first exception of any is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def repeat_linear() -> None:
    matrix, row = weight(), torch.randn(1, 64).bfloat16()
    for _ in range(PRODUCTS):
        cpu_torch.linear(row, matrix)


def repeat_grouped() -> None:
    stack, rows = Weight.plain(torch.randn(3, 96, 64).bfloat16()), torch.randn(3, 64).bfloat16()
    for _ in range(PRODUCTS):
        cpu_torch.grouped_matmul(rows, stack, torch.tensor([1, 1, 1]), 1)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_switch_is_left_as_it_was(was_on: bool) -> None:
    torch.backends.mkldnn.enabled = was_on  # type: ignore[assignment]
    for _ in range(5):
        in_threads(repeat_linear, repeat_linear, repeat_grouped)
        assert torch.backends.mkldnn.enabled == was_on


def test_a_failing_product_puts_it_back() -> None:
    with pytest.raises(RuntimeError):
        cpu_torch.linear(torch.randn(1, 65).bfloat16(), weight())
    assert torch.backends.mkldnn.enabled
    in_threads(repeat_linear)  # and nobody holds it


@pytest.mark.parametrize("grouped", [False, True])
def test_many_rows_never_meet_another_threads_switch(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever product of several rows runs beside products of one row: oneDNN is on for it."""
    seen: list[bool] = []

    def look(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def looking(x: Tensor, *rest: Tensor, **options: Tensor) -> Tensor:
            if len(x) > 1:
                seen.append(torch.backends.mkldnn.enabled)
            return product(x, *rest, **options)

        return looking

    monkeypatch.setattr(torch, "mm", look(torch.mm))
    monkeypatch.setattr(torch.nn.functional, "linear", look(torch.nn.functional.linear))
    rows = torch.randn(4, 64).bfloat16()
    stack = Weight.plain(torch.randn(2, 96, 64).bfloat16())

    def many() -> None:
        for _ in range(PRODUCTS):
            if grouped:
                cpu_torch.grouped_matmul(rows, stack, torch.tensor([2, 2]), 1)
            else:
                cpu_torch.linear(rows, Weight.plain(stack.rows[0]))

    in_threads(repeat_linear, many)
    assert len(seen) >= PRODUCTS and all(seen)


def test_a_child_forked_beside_a_product_can_multiply() -> None:
    """It finds the switch on and the lock free, wherever the other thread was."""
    stop = threading.Event()

    def multiply() -> None:
        while not stop.is_set():
            repeat_linear()

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                free = cpu_torch.ONEDNN_SWITCH.acquire(timeout=5)
                os._exit(0 if free and torch.backends.mkldnn.enabled else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
