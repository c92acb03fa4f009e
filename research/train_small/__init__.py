"""Training of the small checkpoints on procedural videos."""
