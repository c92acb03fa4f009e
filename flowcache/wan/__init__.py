"""What models on Wan 2.1's network share: blocks on chunks, weights, VAE, text and the multi-step solver."""
