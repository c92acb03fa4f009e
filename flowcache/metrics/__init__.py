"""How close one video is to another, and how it moves."""

from .lpips import load_lpips
from .psnr import psnr
from .ssim import ssim

__all__ = ["load_lpips", "psnr", "ssim"]
