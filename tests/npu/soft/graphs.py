"""Graph capture: calls made while a stream is captured are kept, and made again on the same memory by each replay.

A capture computes nothing. torch's and torch_npu's meta kernels give the shapes of its results, whose memory stays as
it was found; what needs values or the host fails. A replay stops at an event that an update has yet to record, and goes
on when it is recorded; until then the device does nothing else.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.npu.soft import counts
from tests.npu.soft.demands import need

# in the order of runtime.c
WHAT = "begin end replay group_begin group_end update_begin update_end wait reset set".split()


@dataclass
class Call:
    name: str
    run: Callable[[], object]
    word: int = 0  # of the device's memory, for which to wait until it is 1


class Device:
    """What runtime.c tells of, by the names of WHAT; handles are numbers."""

    def __init__(self) -> None:
        self.capture: list[Call] | None = None  # the graph that is captured
        self.group = 0  # the call with which its newest group of tasks begins
        self.updated: Call | None = None  # what the operator called now replaces
        self.graphs: dict[int, list[Call]] = {}
        self.groups: dict[int, Call] = {}
        self.left: list[Call] = []  # of a replay

    def begin(self, _: int) -> None:
        self.capture, counts.in_capture = [], True

    def end(self, handle: int) -> None:
        assert self.capture is not None
        self.graphs[handle], self.capture, counts.in_capture = self.capture, None, False
        counts.GRAPHS["captured"] += 1

    def replay(self, handle: int) -> None:
        self.idle()
        counts.GRAPHS["replayed"] += 1
        self.left = list(self.graphs[handle])
        self.go_on()

    def group_begin(self, _: int) -> None:
        assert self.capture is not None
        self.group = len(self.capture)

    def group_end(self, handle: int) -> None:
        assert self.capture is not None
        [self.groups[handle]] = self.capture[self.group :]

    def update_begin(self, handle: int) -> None:
        self.updated = self.groups[handle]

    def update_end(self, _: int) -> None:
        self.updated = None
        counts.GRAPHS["updated"] += 1

    def wait(self, word: int) -> None:
        self.keep(Call("wait", lambda: None, word))

    def reset(self, word: int) -> None:
        self.keep(Call("reset", lambda: setattr(_value(word), "value", 0)))

    def set(self, _: int) -> None:
        self.go_on()

    def go_on(self) -> None:
        while self.left and (not self.left[0].word or _value(self.left[0].word).value == 1):
            self.left.pop(0).run()

    def idle(self) -> None:
        """The device can take other work."""
        need(not self.left, f"the device waits for an update of its graph, with {len(self.left)} calls to go")

    @property
    def records(self) -> bool:
        return self.capture is not None or self.updated is not None

    def keep(self, call: Call) -> None:
        """Into the graph that is captured, or in place of the call that is updated."""
        if self.updated is not None:
            need(self.updated.name == call.name, f"{call.name} cannot update {self.updated.name}")
            self.updated.run = call.run
        else:
            assert self.capture is not None, f"{call.name} outside of a capture"
            self.capture.append(call)


def _value(word: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(word)


DEVICE = Device()


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
def _tell(what: int, handle: int | None) -> int:
    try:
        getattr(DEVICE, WHAT[what])(handle or 0)
    except Exception:  # C knows none: the caller raises
        traceback.print_exc()
        return 1
    return 0


def install() -> None:
    counts.library().soft_npu_tell(_tell)
