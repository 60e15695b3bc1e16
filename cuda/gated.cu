// The middle of a feed-forward block: activation(gate) * up (Shazeer 2020, arXiv:2002.05202).
//
//   grid (rows, chunks of width / block), block 256
//   out [rows, width];  x [rows, 2 * width] the gates, then the ups, as one product makes them
//   activation 0: SiLU;  1: GELU by tanh, as llama.cpp and GELU_TANH of others have it
#include "device.cuh"

INLINE float activated(float x, int activation) {
  if (activation == 0) return x / (1.0f + exp2_fast(-LOG2E * x));
  return 0.5f * x * (1.0f + tanh_fast(0.7978845608028654f * x * (1.0f + 0.044715f * x * x)));
}

extern "C" __global__ void __launch_bounds__(256) KERNEL(gated)(SCALAR* out, const SCALAR* x, int width, int activation) {
  constexpr int N = Items<SCALAR>::COUNT;
  const u64 row = blockIdx.x;
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width / N) return;
  float gates[N], ups[N];
  unpack<SCALAR>(((const Chunk*)(x + row * 2 * width))[i], gates);
  unpack<SCALAR>(((const Chunk*)(x + row * 2 * width + width))[i], ups);
#pragma unroll
  for (int k = 0; k < N; k++) gates[k] = activated(gates[k], activation) * ups[k];
  ((Chunk*)(out + row * width))[i] = packed<SCALAR>(gates);
}
