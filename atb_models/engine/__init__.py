"""The engine: requests, scheduling, KV blocks, sampling, ranks."""
