"""Kernels that search one layer: arrays in, arrays out."""
