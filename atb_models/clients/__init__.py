"""Programs that ask a service, ours or another that speaks OpenAI's protocol: chat, bench serve and batch.

They need nothing beyond the standard library where a service answers; without one they load the model themselves.
"""
