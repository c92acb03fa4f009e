"""Similarity of two videos, and Physics-IQ."""

from .similarity import load_lpips, psnr, ssim

__all__ = ["load_lpips", "psnr", "ssim"]
