"""The modes that measure speed, and the one that only answers."""

from __future__ import annotations

from modeltest.speed.maxbs import run_maxbs as run_maxbs
from modeltest.speed.run import run_performance as run_performance
from modeltest.speed.single import run_single as run_single
