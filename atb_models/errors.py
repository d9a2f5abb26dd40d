"""Errors that are no fault of the code. Each message names the numbers involved and the remedy."""

from __future__ import annotations


class AtbError(Exception):
    """Base of all errors that a user can cause or meet. exit_status: of a command that ends with it."""

    exit_status = 1


class ConfigError(AtbError, ValueError):
    """A flag, variable, argument or config.json field that cannot be honoured."""

    exit_status = 2


class CheckpointError(AtbError):
    """A checkpoint file or tensor that is missing, damaged or of the wrong shape."""


class CapacityError(AtbError):
    """The model, or one request, does not fit into the memory."""


class RankError(AtbError):
    """A rank died or could not be started."""


class RequestError(AtbError, ValueError):
    """A request whose parameters or length cannot be served."""

    exit_status = 2
