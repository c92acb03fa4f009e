"""A web page on which the models can be tried: frames, reuse map and KV cache while a video is made."""
