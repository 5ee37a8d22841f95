// Up to 2048 channels: a file of their own, because compiling takes its time.
#include "backward_nchw_wide.cuh"

FGD_NCHW_WIDE_2048(FGD_NCHW_WIDE_KERNEL)
