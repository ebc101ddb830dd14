"""The mathematics of craftopt: one optimisation model per file, readable on its own."""
