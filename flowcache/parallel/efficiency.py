"""A model of one video on several GPUs: what each computes, sends and holds. Nothing here is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import blockwise
from ..flops import TransformerFlops
from ..registry import check_options, described
from .group import Group, Traffic
from .layout import busy_share, check_count, choose_cfg_size
from .sequence import SequenceShares


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs and what connects them; the defaults are an H100's.

    Work, copies and collectives run one after another: nothing overlaps.
    """

    tflops: float = described("peak of a GPU, TFLOP/s", 989.0, limits=(1e-3, 1e6))
    utilisation: float = described("share of the peak that the transformer reaches", 0.5, limits=(1e-3, 1))
    bandwidth: float = described("bytes/s that a GPU sends to the others", 300e9, limits=(1, 1e15))
    latency: float = described("seconds of a collective without its bytes", 20e-6, limits=(0, 1))
    memory_bandwidth: float = described("bytes/s of a GPU's own memory", 3e12, limits=(1, 1e15))

    def __post_init__(self) -> None:
        check_options(self)

    def compute_seconds(self, flops: float) -> float:
        return flops / (self.tflops * 1e12 * self.utilisation)

    def exchange_seconds(self, traffic: Traffic, copied: float) -> float:
        """Time to send; ``copied`` bytes are read and written in the GPU's own memory."""
        sent = traffic.nbytes / self.bandwidth + traffic.collectives * self.latency
        return sent + 2 * copied / self.memory_bandwidth


@dataclass(frozen=True)
class Call:
    """Frames that run the block stack together, of ``tokens`` each, in each of the guidance branches."""

    branches: int
    frames: int
    tokens: int

    @property
    def num_tokens(self) -> int:
        return self.branches * self.frames * self.tokens

    def share(self, cfg_size: int) -> Call:
        """The call of one of ``cfg_size`` groups of processes, each with some of the branches."""
        return replace(self, branches=self.branches // cfg_size)


@dataclass(frozen=True)
class Workload:
    """What one video asks of the transformer, in all guidance branches together.

    Attributes:
        calls: runs of the block stack, by their shape.
        decisions: that the first process sends to the others.
        head_tokens: tokens for which a velocity is computed.
        flops: of the transformer.
        kv: bytes of the KV cache.
        guidance: whether two guidance branches may run on processes of their own.
        dtype: of queries, keys, values and what attention returns.
    """

    network: TransformerFlops
    calls: Mapping[Call, int]
    decisions: int
    head_tokens: int
    flops: float
    kv: int
    guidance: bool
    dtype: torch.dtype = torch.bfloat16

    @property
    def largest(self) -> Call:
        return max(self.calls, key=lambda call: call.num_tokens)

    @property
    def token_flops(self) -> float:
        """The part of ``flops`` that needs single tokens alone, and not what attention splits by heads."""
        return sum(self.network.blocks(call.num_tokens, 0, 0) * count for call, count in self.calls.items())


@dataclass(frozen=True)
class Prediction:
    """One video on ``cfg_size`` guidance branches x ``ranks`` token shares, of which the busiest process is told.

    Attributes:
        busy_heads, busy_tokens: mean share of the time in which a process has heads or tokens to work on.
        layer_bytes: sent by a process in one layer of the largest call.
        sent: bytes and collectives of a process in the whole video.
        call_efficiency: of the largest call, whose tokens attend to as many tokens.
        efficiency: time on one GPU over the processes' time together.
        seconds: of denoising.
        kv: bytes of a process's KV cache.
    """

    cfg_size: int
    ranks: int
    busy_heads: float
    busy_tokens: float
    layer_bytes: int
    sent: Traffic
    call_efficiency: float
    efficiency: float
    seconds: float
    kv: int


class PlannedGroup(Group):
    """A process of a group that does not run: it counts what it would send, and receives tensors without values."""

    def exchange_several(
        self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Tensor]]:
        self._count(sum(part.nbytes for place, own in enumerate(parts) if place != self.index for part in own))
        return [[parts[0][0].new_empty(torch.Size(shape)) for shape in own] for own in shapes]


def plan_layer(work: Workload, call: Call, group: Group) -> int:
    """Exchange tensors of one layer of a call in a planned group; returns the bytes that it copies."""
    network, before = work.network, group.traffic.collectives
    shares = SequenceShares(group, call.tokens, network.num_kv_heads)
    own, grouped = len(shares.own_tokens), network.num_heads // network.num_kv_heads

    def make(tokens: int, heads: int) -> Tensor:
        shape = (call.branches, call.frames, tokens, heads, network.head_dim)
        return torch.empty(shape, dtype=work.dtype, device="meta")

    parts = [make(own, count) for count in (network.num_heads, network.num_kv_heads, network.num_kv_heads)]
    shares.to_heads(*parts)
    attended = make(call.tokens, len(shares.own_heads) * grouped)
    shares.to_tokens(attended)
    if call.frames * own > blockwise.MAX_TOKENS:  # branches run one after another
        group.traffic.collectives += (call.branches - 1) * (group.traffic.collectives - before)
    # Each is packed before it is sent, and put in order behind it.
    return 2 * (sum(part.nbytes for part in parts) + attended.nbytes)


def plan_video(work: Workload, cfg_size: int, ranks: int) -> tuple[Traffic, int]:
    """What the first process sends in a whole video, and the bytes that it copies."""
    network, sent, copied = work.network, Traffic(collectives=work.decisions), 0
    for whole, count in work.calls.items():
        group = PlannedGroup(0, ranks)
        if ranks > 1:
            copied += count * network.num_layers * plan_layer(work, whole.share(cfg_size), group)
        sent.nbytes += count * network.num_layers * group.traffic.nbytes
        sent.collectives += count * network.num_layers * group.traffic.collectives
    # Then the head's patches are put together, over branches first.
    tokens, evaluations = work.largest.tokens, sum(work.calls.values())
    shares = SequenceShares(PlannedGroup(0, ranks), tokens, network.num_kv_heads)
    frames = work.head_tokens // tokens // (2 if work.guidance else 1)
    patches = torch.empty(frames, len(shares.own_tokens), network.patch_features_out, device="meta")
    if cfg_size > 1:
        sent.nbytes += patches.nbytes
        sent.collectives += evaluations
    if ranks > 1:
        shares.join(patches, dim=1)
        sent.nbytes += shares.group.traffic.nbytes
        sent.collectives += evaluations
    return sent, copied


def predict(
    work: Workload, processes: int, hardware: Hardware | None = None, cfg_size: int | str = "auto"
) -> Prediction:
    """Predict a video on several processes, the first of which has the largest shares.

    ValueError says what to start instead, as a run would.
    """
    hardware, network = hardware or Hardware(), work.network
    parts = choose_cfg_size(processes, work.guidance, cfg_size)
    check_count(processes, parts, network.num_kv_heads, work.guidance)
    ranks, tokens = processes // parts, work.largest.tokens

    def compute(token_flops: float, other: float) -> float:
        """Seconds of the process with the largest shares of a group of ``ranks``."""
        share, heads = -(-tokens // ranks) / tokens, -(-network.num_kv_heads // ranks) / network.num_kv_heads
        return hardware.compute_seconds(token_flops * share + other * heads)

    sent, copied = plan_video(work, parts, ranks) if processes > 1 else (Traffic(), 0)
    seconds = compute(work.token_flops / parts, (work.flops - work.token_flops) / parts)
    seconds += hardware.exchange_seconds(sent, copied)

    group, call = PlannedGroup(0, ranks), work.largest.share(parts)
    moved = plan_layer(work, call, group) if ranks > 1 else 0
    single = network.blocks(call.num_tokens, 0, 0) / network.num_layers
    attention = 4.0 * call.num_tokens * network.query_dim * call.frames * call.tokens
    alone = hardware.compute_seconds(single + attention)
    together = compute(single, attention) + hardware.exchange_seconds(group.traffic, moved)
    return Prediction(
        cfg_size=parts,
        ranks=ranks,
        busy_heads=busy_share(ranks, network.num_kv_heads),
        busy_tokens=busy_share(ranks, tokens),
        layer_bytes=group.traffic.nbytes,
        sent=sent,
        call_efficiency=alone / (ranks * together),
        efficiency=hardware.compute_seconds(work.flops) / (processes * seconds),
        seconds=seconds,
        kv=work.kv // parts * -(-network.num_kv_heads // ranks) // network.num_kv_heads,
    )
