"""GPTQ, as AutoGPTQ, GPTQModel, Optimum and AutoRound write it."""
