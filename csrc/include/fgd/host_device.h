// Marks a function that nvcc compiles for both sides, and that other compilers take as inline.
#pragma once

#if defined(__CUDACC__)
#define FGD_HOST_DEVICE __host__ __device__ inline
#else
#define FGD_HOST_DEVICE inline
#endif
