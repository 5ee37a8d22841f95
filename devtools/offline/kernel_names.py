"""How our kernels' names begin: all of CUDA C++, and each of the Triton kernels."""

KERNELS = (
    "fgd_",
    "rasterise",
    "forward_pass",
    "merge",
    "finish",
    "gc_hidden",
    "gc_added",
    "total",
    "gc_hidden_grad",
    "gc_grads",
    "backward_pass",
    "sum_key_grads",
)
