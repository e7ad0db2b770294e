"""Kernels: matrix multiplications (GEMMs), norms, attention and loss, each by the library that is fastest here."""
