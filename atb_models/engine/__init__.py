"""The engine: requests, scheduling, KV blocks, sampling, the steps of a rank."""
