"""When a chunk may skip the model, and what stands in for it."""
