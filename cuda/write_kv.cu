// Turns queries and keys (RoPE, Su et al. 2021, arXiv:2104.09864) and puts keys and values into the paged cache.
//
//   grid (tokens), block 128
//   turned [tokens, heads, head_dim];  qkv [tokens, heads + 2 * kv_heads, head_dim] as one product makes them
//   keys, values [blocks, kv_heads, 16, head_dim] of type CACHED;  slots [tokens] block * 16 + place, or -1: not kept
//   positions [tokens];  rotations [positions, rotary / 2, 2] cosine and sine, fp32; whatever scales RoPE is in there
//   key_scales, value_scales [kv_heads] what a number of the cache is multiplied with, or null
//   The first `rotary` numbers of a head turn; in pairs of neighbours, or (`halves`) of those half of them apart.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(128) KERNEL(write_kv)(
    SCALAR* turned, CACHED* keys, CACHED* values, const SCALAR* qkv, const i64* slots, const int* positions,
    const float* rotations, const float* key_scales, const float* value_scales, int heads, int kv_heads, int head_dim, int rotary, int halves) {
  const u64 token = blockIdx.x;
  const i64 slot = slots[token];
  const float* rotation = rotations + (u64)positions[token] * rotary;
  const int pairs = head_dim / 2;
  for (int i = threadIdx.x; i < (heads + 2 * kv_heads) * pairs; i += blockDim.x) {
    const int head = i / pairs, pair = i % pairs;
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const int own = is_query ? head : is_value ? head - heads - kv_heads : head - heads;
    const bool apart = halves && !is_value && pair < rotary / 2;
    const int first = apart ? pair : 2 * pair, second = apart ? pair + rotary / 2 : 2 * pair + 1;
    const SCALAR* from = qkv + (token * (heads + 2 * kv_heads) + head) * head_dim;
    float x = widen(from[first]), y = widen(from[second]);
    if (!is_value && pair < rotary / 2) {
      const float cosine = rotation[2 * pair], sine = rotation[2 * pair + 1], before = x;
      x = before * cosine - y * sine;
      y = before * sine + y * cosine;
    }
    if (is_query) {
      SCALAR* to = turned + (token * heads + own) * head_dim;
      to[first] = narrow<SCALAR>(x);
      to[second] = narrow<SCALAR>(y);
    } else if (slot >= 0) {
      const float* scales = is_value ? value_scales : key_scales;
      const float scale = scales != nullptr ? scales[own] : 1.0f;
      const u64 at = (((u64)(slot / BLOCK) * kv_heads + own) * BLOCK + (u64)(slot % BLOCK)) * head_dim;
      CACHED* to = (is_value ? values : keys) + at;
      to[first] = narrow<CACHED>(x / scale);
      to[second] = narrow<CACHED>(y / scale);
    }
  }
}
