// Kernels for test_interpreter_nvcc.py: between them they make nvcc emit what the interpreter has to run.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include <cassert>
#include <cstdint>

extern "C" __global__ void half_math(const __half* a, const __half* b, float* out, __half* packed, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __half x = a[i], y = b[i];
  out[4 * i] = __half2float(__hadd(x, y));
  out[4 * i + 1] = __half2float(__hmul(x, y));
  out[4 * i + 2] = __half2float(__hfma(x, y, x));
  out[4 * i + 3] = float(x > y) + 2 * float(__hisnan(x)) + 4 * float(__hmax(x, y) == x);
  __half2 p = __halves2half2(x, y);
  reinterpret_cast<__half2*>(packed)[i] = __hfma2(p, p, __half2half2(y));
}

extern "C" __global__ void bf16_math(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* out, float* wide,
                                     int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = __bfloat162float(a[i]), y = __bfloat162float(b[i]);
  out[2 * i] = __float2bfloat16(x * y);
  out[2 * i + 1] = __hadd(a[i], b[i]);
  __nv_bfloat162 p = __floats2bfloat162_rn(x + y, x - y);
  float2 f = __bfloat1622float2(p);
  wide[2 * i] = f.x;
  wide[2 * i + 1] = f.y;
}

extern "C" __global__ void scalar_functions(const float* a, const double* d, const int* k, float* f, double* g,
                                            long long* h) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float x = a[i];
  double y = d[i];
  int m = k[i];
  f[8 * i] = expf(x);
  f[8 * i + 1] = logf(fabsf(x) + 1e-3f);
  f[8 * i + 2] = rsqrtf(fabsf(x) + 1.f);
  f[8 * i + 3] = tanhf(x);
  f[8 * i + 4] = sinf(100.f * x);
  f[8 * i + 5] = x / (m | 1);
  f[8 * i + 6] = powf(fabsf(x), 1.7f);
  f[8 * i + 7] = erff(x);
  g[4 * i] = exp(y);
  g[4 * i + 1] = log(fabs(y));
  g[4 * i + 2] = sqrt(fabs(y)) / (y + 10.);
  g[4 * i + 3] = cos(1e6 * y);
  h[6 * i] = (long long)m * 1000003ll / (i + 1);
  h[6 * i + 1] = m % (i + 7);
  h[6 * i + 2] = __popc(m) + 64 * __clz(m);
  h[6 * i + 3] = __mulhi(m, m + 3);
  h[6 * i + 4] = (unsigned long long)m % 12345u;
  h[6 * i + 5] = __float2int_rn(x * 10);
}

struct Level {
  const float* data;
  int rows, columns;
  float scale;
};
struct Pyramid {
  Level level[3];
  int count;
};

extern "C" __global__ void levels(const Pyramid p, float* sums) {  // struct by value, indexed; 3-D grid
  const Level& l = p.level[blockIdx.z];
  __shared__ float partial[8][33];
  float sum = 0;
  for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < l.rows; r += gridDim.y * blockDim.y)
    for (int c = threadIdx.x; c < l.columns; c += blockDim.x) sum += l.data[r * l.columns + c] * l.scale;
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0) {
    for (int k = 1; k < 8; k++) sum += partial[k][threadIdx.x];
    for (int o = 16; o; o >>= 1) sum += __shfl_down_sync(~0u, sum, o);
    if (threadIdx.x == 0) atomicAdd(&sums[blockIdx.z], sum);
  }
}

extern "C" __global__ void pipelined(const float* x, float* out, int tiles) {  // cp.async, double buffered
  extern __shared__ float4 buffer[];
  const float4* from = reinterpret_cast<const float4*>(x) + (size_t)blockIdx.x * tiles * blockDim.x;
  __pipeline_memcpy_async(&buffer[threadIdx.x], &from[threadIdx.x], 16);
  __pipeline_commit();
  float sum = 0;
  for (int t = 0; t < tiles; t++) {
    if (t + 1 < tiles)
      __pipeline_memcpy_async(&buffer[((t + 1) & 1) * blockDim.x + threadIdx.x],
                              &from[(t + 1) * blockDim.x + threadIdx.x], 16);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    float4 v = buffer[(t & 1) * blockDim.x + (threadIdx.x ^ 33)];
    sum += v.x + 2 * v.y + 3 * v.z + 4 * v.w;
#ifndef RACY
    __syncthreads();
#endif
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// The shape of the project's forward kernel: tiles of 32 pixels, 64 channels, next tile prefetched into registers,
// channel groups merged by a halving exchange, partial sums of the warps in shared memory, running maximum.
extern "C" __global__ void __launch_bounds__(128) tiles(const __nv_bfloat16* __restrict__ s, float* __restrict__ map,
                                                        float* __restrict__ state, int pixels, int count) {
  __shared__ float part[4][32];
  int lane = threadIdx.x & 31, w = threadIdx.x >> 5, group = lane & 3, channel = lane >> 2;
  float running = -1e30f, z = 0;
  size_t base = (size_t)blockIdx.x * count * 32;
  uint4 next[2];
  auto load = [&](int t) {
    for (int i = 0; i < 2; i++)
      next[i] = __ldg((const uint4*)(s + (size_t)(i * 32 + w * 8 + channel) * pixels + base + t * 32 + group * 8));
  };
  load(0);
  for (int t = 0; t < count; t++) {
    float v[8] = {};
    for (int i = 0; i < 2; i++) {
      uint32_t u[4] = {next[i].x, next[i].y, next[i].z, next[i].w};
      for (int k = 0; k < 4; k++) {
        v[2 * k] += fabsf(__uint_as_float(u[k] << 16));
        v[2 * k + 1] += fabsf(__uint_as_float(u[k] & 0xffff0000u));
      }
    }
    if (t + 1 < count) load(t + 1);
    float r4[4], r2[2];
    bool b0 = channel & 1, b1 = channel & 2, b2 = channel & 4;
    for (int j = 0; j < 4; j++) r4[j] = (b0 ? v[j + 4] : v[j]) + __shfl_xor_sync(~0u, b0 ? v[j] : v[j + 4], 4);
    for (int j = 0; j < 2; j++) r2[j] = (b1 ? r4[j + 2] : r4[j]) + __shfl_xor_sync(~0u, b1 ? r4[j] : r4[j + 2], 8);
    float r = (b2 ? r2[1] : r2[0]) + __shfl_xor_sync(~0u, b2 ? r2[0] : r2[1], 16);
    part[w][group * 8 + (b0 ? 4 : 0) + (b1 ? 2 : 0) + (b2 ? 1 : 0)] = r;
    __syncthreads();
    if (w == 0) {
      float x = (part[0][lane] + part[1][lane] + part[2][lane] + part[3][lane]) / 64;
      map[base + t * 32 + lane] = x;
      float top = x;
      for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
      float now = fmaxf(running, top), e = __expf(x - now);
      for (int o = 16; o; o >>= 1) e += __shfl_xor_sync(~0u, e, o);
      z = z * __expf(running - now) + e;
      running = now;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    state[2 * blockIdx.x] = running;
    state[2 * blockIdx.x + 1] = z;
  }
}

__device__ __noinline__ float collatz(float x, int n) {
  while (n-- > 0 && x > 1) x = x * 0.5f;
  return x;
}

extern "C" __global__ void odds_and_ends(const int* k, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int table[8];
  for (int j = 0; j < 8; j++) table[j] = k[(i + j) % n];
  float x = 0;
  switch (k[i] & 7) {
    case 0:
      x = 3;
      break;
    case 1:
      x = table[i & 7];
      break;
    case 2:
      x = table[(i * 3) & 7] * 2;
      break;
    case 3:
      x = collatz(i, 5);
      break;
    case 4:
      x = __ballot_sync(__activemask(), i & 1) != 0;
      break;
    case 5:
      x = -1;
      break;
    case 6:
      x = 66;
      break;
    default:
      x = collatz(1000, k[i] & 15);
  }
  out[i] = x;
}

extern "C" __global__ void asserting(const int* k) { assert(k[threadIdx.x] < 5); }
