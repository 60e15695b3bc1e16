// What the sampling kernels share: the best of a row, sums over a block, and random numbers.
#pragma once
#include "device.cuh"

struct Best { float value; int index; };

INLINE Best better(Best a, Best b) {  // of equals the first
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

// The best over the block, in every thread; `scratch` has a place for each warp.
INLINE Best block_best(Best mine, Best* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1)
    mine = better(mine, Best{shuffle_xor(mine.value, mask), shuffle_xor(mine.index, mask)});
  if (lane_index() == 0) scratch[warp_index()] = mine;
  __syncthreads();
  for (int w = 0; w < (int)(blockDim.x >> 5); w++) mine = better(mine, scratch[w]);
  __syncthreads();
  return mine;
}

// The sums over the block of N numbers each, in every thread; `scratch` has N places for each warp.
template <int N> INLINE void block_sums(float (&values)[N], float* scratch) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    values[k] = warp_sum(values[k]);
    if (lane_index() == 0) scratch[warp_index() * N + k] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; k++) {
    values[k] = 0;
    for (int w = 0; w < (int)(blockDim.x >> 5); w++) values[k] += scratch[w * N + k];
  }
  __syncthreads();
}

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four words for each counter.
struct Four { u32 word[4]; };

INLINE Four philox(u32 counter0, u32 counter1, u32 counter2, u32 counter3, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u64 a = (u64)0xd2511f53u * counter0, b = (u64)0xcd9e8d57u * counter2;
    counter0 = (u32)(b >> 32) ^ counter1 ^ key0;
    counter2 = (u32)(a >> 32) ^ counter3 ^ key1;
    counter1 = (u32)b;
    counter3 = (u32)a;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return Four{{counter0, counter1, counter2, counter3}};
}

// Unsigned numbers in the order of the floats that they stand for.
INLINE u32 ordered(float value) {
  const u32 bits = float_bits(value);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}
