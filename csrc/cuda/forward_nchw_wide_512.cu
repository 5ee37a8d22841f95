// Up to 512 channels: a file of their own, because compiling takes its time.
#include "forward_nchw_wide.cuh"

FGD_NCHW_WIDE_512(FGD_NCHW_WIDE_KERNEL)
