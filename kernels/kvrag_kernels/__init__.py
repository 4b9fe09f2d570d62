"""Kernels for attention over packets, each beside its plain PyTorch reference."""
