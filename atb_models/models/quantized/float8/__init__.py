"""Weights of 8-bit floats (e4m3), as DeepSeek and Qwen publish them."""
