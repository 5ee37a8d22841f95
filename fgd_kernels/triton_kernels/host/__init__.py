"""What runs on the host: shapes and strides, tile sizes, the GcBlocks' tensors, and the launches."""
