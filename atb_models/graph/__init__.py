"""The recorded graph: what a model's forward calls, with shapes, costs and memory."""

from atb_models.graph.graph import Node, OpGraph, Value
from atb_models.graph.meta import meta_caches, meta_model, meta_step
from atb_models.graph.tracing import trace

__all__ = ["Node", "OpGraph", "Value", "meta_caches", "meta_model", "meta_step", "trace"]
