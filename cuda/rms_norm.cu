// x / sqrt(mean(x^2) + epsilon) * weight for each row (Zhang and Sennrich 2019, arXiv:1910.07467), with a residual sum.
//
//   grid (rows), block 32 * warps, shared 128 bytes
//   out [rows, width];  x [rows, width];  weight [width]
//   residual [rows, width] or null: it becomes residual + x, rounded to its type, and that is normed
//   width is a multiple of a chunk of 16 bytes
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(1024) KERNEL(rms_norm)(SCALAR* out, const SCALAR* x, SCALAR* residual,
                                                                   const SCALAR* weight, int width,
                                                                   float epsilon) {
  constexpr int N = Items<SCALAR>::COUNT;
  SHARED_MEMORY(shared);
  const u64 row = blockIdx.x;
  const Chunk* from = (const Chunk*)(x + row * width);
  Chunk* sum = residual != nullptr ? (Chunk*)(residual + row * width) : nullptr;
  const Chunk* normed = sum != nullptr ? sum : from;
  float squares = 0;
  for (int i = threadIdx.x; i < width / N; i += blockDim.x) {
    float items[N];
    unpack<SCALAR>(from[i], items);
    if (sum != nullptr) {
      float more[N];
      unpack<SCALAR>(sum[i], more);
#pragma unroll
      for (int k = 0; k < N; k++) items[k] += more[k];
      const Chunk stored = packed<SCALAR>(items);
      sum[i] = stored;
      unpack<SCALAR>(stored, items);
    }
#pragma unroll
    for (int k = 0; k < N; k++) squares += items[k] * items[k];
  }
  const float factor = rsqrtf(block_sum(squares, (float*)shared) / (float)width + epsilon);
  for (int i = threadIdx.x; i < width / N; i += blockDim.x) {  // each thread reads again what it read or wrote before
    float items[N], weights[N];
    unpack<SCALAR>(normed[i], items);
    unpack<SCALAR>(((const Chunk*)weight)[i], weights);
#pragma unroll
    for (int k = 0; k < N; k++) items[k] *= factor * weights[k];
    ((Chunk*)(out + row * width))[i] = packed<SCALAR>(items);
  }
}
