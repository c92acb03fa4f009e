"""Similarity of two videos, and Physics-IQ."""

from .similarity import load_lpips, psnr, ssim
from .stlpips import load_st_lpips

__all__ = ["load_lpips", "load_st_lpips", "psnr", "ssim"]
