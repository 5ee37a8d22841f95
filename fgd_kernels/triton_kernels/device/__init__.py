"""What kernels share on the device: levels, tiles, chunks, the GcBlocks' vectors, upstream gradients."""
