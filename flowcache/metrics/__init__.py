"""How close one video is to another."""

from .psnr import psnr
from .ssim import ssim

__all__ = ["psnr", "ssim"]
