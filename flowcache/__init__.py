"""FlowCache: chunkwise caching for autoregressive video diffusion (arXiv 2602.10825)."""
