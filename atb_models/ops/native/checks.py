"""What the C side relies on."""

from __future__ import annotations

from torch import Tensor

# As in csrc/api.h, Status.
_REFUSALS = {
    1: "lengths that do not go together",
    2: "a block that the cache does not have",
    3: "a slot that the cache does not have",
    4: "an expert that there is not",
    6: "a token id that the embedding does not have",
}


def on_cpu(name: str, *tensors: Tensor) -> None:
    """Raises ValueError for a tensor elsewhere: its address means nothing here."""
    for tensor in tensors:
        if not tensor.is_cpu:
            raise ValueError(f"{name}: a tensor on {tensor.device}")


def refuse(status: int, what: str) -> None:
    """Raises ValueError for what the C side refused; nothing was written then."""
    if status:
        raise ValueError(f"{_REFUSALS[status]}: {what}")


def dense(name: str, tensor: Tensor, dims: int = 1) -> None:
    """Raises ValueError unless the elements of the last `dims` dimensions lie side by side, in order."""
    if tensor.is_contiguous():
        return
    expected = 1
    for size, stride in zip(tensor.shape[: -dims - 1 : -1], tensor.stride()[: -dims - 1 : -1], strict=True):
        if size != 1 and stride != expected:
            raise ValueError(
                f"{name}: the last {dims} of {tuple(tensor.shape)} do not lie together: strides {tensor.stride()}"
            )
        expected *= size
