"""Linear layers with weights in fp8, as the official quantised checkpoints have them."""

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn

#: The oldest GPUs that multiply in fp8 (Ada).
CAPABILITY = (8, 9)

#: Linear layers of a block in fp8, with one scale for the input, or with one for each of its channels. The
#: first and the last block are never quantised.
PLAIN = ("attention.to_q", "attention.to_q_cross", "attention.to_k", "attention.to_v", "feed_forward.up")
SMOOTHED = ("attention.to_out", "feed_forward.down")

_LARGEST = torch.finfo(FP8).max


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device multiplies fp8 matrices: CUDA from compute capability 8.9 on (Ada, Hopper)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def quantise_layout(blocks: nn.ModuleList) -> None:
    """Replace each layer that quantised checkpoints have in fp8 by a ``QuantisedLinear``."""
    for block in blocks[1:-1]:
        for name in (*PLAIN, *SMOOTHED):
            plain = block.get_submodule(name)
            block.set_submodule(name, QuantisedLinear(plain.in_features, plain.out_features))


class QuantisedLinear(nn.Module):
    """Linear layer without bias that scales its input, rounds it to fp8 and multiplies it there.

    As in the official layers, each channel of the input is divided by its scale, and the product multiplied
    by the scales of input and weight. Sizes are multiples of 16.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        # Bytes, because nothing that casts a model casts them.
        held = torch.zeros(out_features, in_features, dtype=torch.uint8)
        self.weight = nn.Parameter(held, requires_grad=False)
        self.register_buffer("channel_scale", torch.ones(in_features))
        self.register_buffer("input_scale", torch.ones(1))
        self.register_buffer("weight_scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]`` in the same type."""
        # In fp32 until the original rounds the input twice, too.
        scaled = (x / self.channel_scale).clamp_(-_LARGEST, _LARGEST).to(torch.bfloat16).to(FP8).flatten(0, -2)
        scales = {"scale_a": self.input_scale, "scale_b": self.weight_scale}
        product = torch._scaled_mm(scaled, self.weight.view(FP8).T, **scales, out_dtype=x.dtype)
        return product.unflatten(0, x.shape[:-1])
