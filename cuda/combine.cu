// Brings the splits of paged_decode.cu or paged_attention_simt.cu together.
//
//   grid (queries * heads), block 32 * warps
//   out [queries, heads, head_dim];  partial [queries, heads, splits, head_dim + 2] fp32: values, maximum (log2), sum
//   sinks [heads] or null
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(128) KERNEL(combine)(SCALAR* out, const float* partial, const float* sinks,
                                                                  int heads, int splits, int head_dim) {
  const u64 row = blockIdx.x;
  const float* parts = partial + row * splits * (head_dim + 2);
  const Scoring how = {0, 0, 0, nullptr, sinks};
  float top = -infinity(), sum = 0;
  for (int s = 0; s < splits; s++) top = fmaxf(top, parts[s * (head_dim + 2) + head_dim]);
  for (int s = 0; s < splits; s++) {
    const float* part = parts + s * (head_dim + 2);
    sum += weight(part[head_dim], top) * part[head_dim + 1];
  }
  const float factor = share(how, (int)(row % heads), top, sum);
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
    float value = 0;
    for (int s = 0; s < splits; s++) {
      const float* part = parts + s * (head_dim + 2);
      value += weight(part[head_dim], top) * part[d];
    }
    out[row * head_dim + d] = narrow<SCALAR>(value * factor);
  }
}
