"""The service: HTTP in front, an engine process behind, many requests in one batch.

The front (this package, asyncio, no torch) reads requests, turns text into token ids and answers clients. The engine
process holds the model, or is rank 0 of several, and runs one step after the other for all requests there are. Between
them runs a socket that carries the messages of `messages.py`. The endpoints are in `api/`; they know the front's
`Service` and nothing of the engine.
"""
