"""The fused kernels of `pallas`: their bodies, their blocks, what stays on the chip, and the kernel language."""
