"""The service: HTTP in front, an engine process behind, many requests in one batch.

The front (this package, asyncio, no torch) reads requests, turns text into token ids and answers clients. The engine
process holds the model, or is rank 0 of several, and runs step after step for all open requests. A socket between the
two carries the messages of `messages.py`. The endpoints are in `api/`; they use the front's `Service` and know nothing
of the engine.
"""
