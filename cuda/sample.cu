// Draws a token of each row: top-k, then top-p, then min-p, all at temperature 1, then temperature; llama.cpp's order.
//
//   grid (rows), block 1024, shared 2048 bytes
//   chosen [rows];  logits [rows, width]
//   temperatures, top_ps, min_ps [rows] fp32;  top_ks [rows];  0 or less, 1 or more, 0 and 0 or less: not cut, greedy
//   seeds [rows] 64 bits;  positions [rows]: another number for each token of a sequence
//
// No sorting. The cut of top-k is the largest number that at least k logits reach; that of top-p the largest that logits
// of enough weight reach. Both are found bit by bit, four at a time, in eight passes over the row; what ties with a cut
// stays. The draw is that of Gumbel: the largest of logit / temperature - log(-log(u)), with u from Philox by seed,
// position and token, so that it depends neither on the order of threads nor on who else is in the batch.
#include "sampling.cuh"

constexpr int DIGITS = 15;  // a digit of four bits, but for 0

struct Row {
  const SCALAR* logits;
  int width;
  float top;  // the largest logit
  INLINE float operator[](int i) const { return widen(logits[i]); }
  INLINE float weight(float logit) const { return exp2_fast((logit - top) * LOG2E); }
};

// The largest number that logits of `wanted` weight or count reach, among those that reach `floor`.
template <bool COUNTED> INLINE u32 cut(const Row& row, u32 floor, float wanted, float* scratch) {
  u32 found = 0;
  for (int shift = 28; shift >= 0; shift -= 4) {
    float reached[DIGITS] = {};
    for (int i = threadIdx.x; i < row.width; i += blockDim.x) {
      const float logit = row[i];
      const u32 key = ordered(logit);
      if (key < found || key < floor) continue;
      const u32 digit = min((key - found) >> shift, (u32)DIGITS);
      const float gain = COUNTED ? 1.0f : row.weight(logit);
#pragma unroll
      for (int d = 0; d < DIGITS; d++) reached[d] += digit > (u32)d ? gain : 0.0f;
    }
    block_sums(reached, scratch);
    u32 digit = 0;
#pragma unroll
    for (int d = 0; d < DIGITS; d++)
      if (reached[d] > 0 && reached[d] >= wanted) digit = d + 1;  // the best stays whatever is wanted
    found += digit << shift;
  }
  return found;
}

extern "C" __global__ void __launch_bounds__(1024) KERNEL(sample)(int* chosen, const SCALAR* logits,
                                                                const float* temperatures, const int* top_ks,
                                                                const float* top_ps, const float* min_ps,
                                                                const u64* seeds, const int* positions, int width) {
  SHARED_MEMORY(shared);
  float* scratch = (float*)shared;
  const int number = blockIdx.x;
  const float temperature = temperatures[number], top_p = top_ps[number], min_p = min_ps[number];
  const int top_k = top_ks[number];
  Row row = {logits + (u64)number * width, width, 0};
  Best best = {-infinity(), 0x7fffffff};
  for (int i = threadIdx.x; i < width; i += blockDim.x) best = better(best, Best{row[i], i});
  best = block_best(best, (Best*)shared);
  if (temperature > 0) {
    row.top = best.value;
    u32 floor = 0;
    if (top_k > 0 && top_k < width) floor = cut<true>(row, 0, (float)top_k, scratch);
    if (top_p < 1.0f) {
      float total[1] = {0};
      for (int i = threadIdx.x; i < width; i += blockDim.x)
        if (ordered(row[i]) >= floor) total[0] += row.weight(row[i]);
      block_sums(total, scratch);
      const u32 narrower = cut<false>(row, floor, top_p * total[0], scratch);
      floor = narrower > floor ? narrower : floor;
    }
    const u64 seed = seeds[number];
    best = Best{-infinity(), 0x7fffffff};
    for (int four = threadIdx.x; four * 4 < width; four += blockDim.x) {
      const Four random = philox((u32)four, (u32)positions[number], 0, 0, (u32)seed, (u32)(seed >> 32));
      for (int k = 0; k < 4 && four * 4 + k < width; k++) {
        const float logit = row[four * 4 + k];
        if (ordered(logit) < floor || row.weight(logit) < min_p) continue;
        const float u = ((float)(random.word[k] >> 8) + 0.5f) * 5.9604644775390625e-8f;
        best = better(best, Best{(logit - row.top) / temperature - logf(-logf(u)), four * 4 + k});
      }
    }
    best = block_best(best, (Best*)shared);
  }
  if (threadIdx.x == 0) chosen[number] = best.index;
}
