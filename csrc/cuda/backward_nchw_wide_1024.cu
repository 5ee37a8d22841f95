// Up to 1024 channels: a file of their own, because compiling takes its time.
#include "backward_nchw_wide.cuh"

FGD_NCHW_WIDE_1024(FGD_NCHW_WIDE_KERNEL)
