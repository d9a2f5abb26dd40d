"""OpenAI's endpoints: chat and text completions, models."""
