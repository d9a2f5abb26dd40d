"""Where a run's time goes: the operations recorded on real tensors, beside their roofline."""

from atb_models.profiler.profile import Profile
from atb_models.profiler.record import Recorder

__all__ = ["Profile", "Recorder"]
