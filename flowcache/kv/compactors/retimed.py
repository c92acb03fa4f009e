"""Keep rows as they are, at the frames right before the live chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..scorers import ScoreInput
from .base import Compactor, take_rows


@dataclass(frozen=True)
class Retimed(Compactor):
    """The kept rows without a gap in time: their keys turn to consecutive frames that end with the newest clean one.

    A model then attends to no time difference that it was not trained on, however long the video. With
    ``sink_window`` it is the deep sink of Deep Forcing, with ``participative`` its compression. There, the last frame
    of the sink turns onto the frame behind it, taken literally; here, right before that. Rows of a head are counted
    from the newest: each ``tokens_per_frame`` of them, whichever frames they come from, are a frame. The place in
    height and width stays.

    A compaction turns the rows that the last one left, so keys are rounded once a chunk.
    """

    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.retime is None:
            raise ValueError("compactor: expected a model with retime for retimed, got one without; use select.")
        rows, frame = kept.shape[-1], tokens.tokens_per_frame
        # Whatever an earlier compaction left is without a gap, too.
        frames_back = (tokens.keys.shape[1] - 1 - kept) // frame
        frames_back -= torch.arange(rows - 1, -1, -1, device=kept.device) // frame
        return tokens.retime(take_rows(tokens.keys, kept), frames_back.mT), take_rows(tokens.values, kept)
