"""Rolling windows over the KV cache, as the original has them."""

from flowcache import KVCompressionConfig
from flowcache.kv.original import OriginalCompression
from flowcache.kv.scorers import Recency, SinkWindow


def rolling_window(frames: int, sink: int, chunk_frames: int) -> KVCompressionConfig:
    """Keep the last frames, ``frames`` with those of the running chunk, and the first ``sink`` of the video.

    Frames leave when the next chunk does not fit (``local_attn_size`` and ``sink_size``), whole or not.
    """
    if frames < chunk_frames + max(1, sink):
        expected = f"at least {chunk_frames + max(1, sink)}, a chunk and the sink"
        raise ValueError(f"local_attn_size: expected {expected}, got {frames}.")
    scorer = SinkWindow(sink=sink / chunk_frames) if sink else Recency()
    original = OriginalCompression(trigger="full", best_first=False)
    return KVCompressionConfig(window=frames, scorer=scorer, compactor="select", original=original)
