"""Where the time of a run goes: its operations, timed on real tensors, beside their roofline."""

from atb_models.profiler.profile import Profile
from atb_models.profiler.record import Recorder

__all__ = ["Profile", "Recorder"]
