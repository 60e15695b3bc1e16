// Turns queries and keys (RoPE, Su et al. 2021, arXiv:2104.09864) and puts keys and values into the paged cache.
//
//   grid (tokens), block 128
//   turned [tokens, heads, head_dim];  qkv [tokens, heads + 2 * kv_heads, head_dim] as one product makes them
//   keys, values [blocks, kv_heads, 16, head_dim] of type CACHED;  slots [tokens] block * 16 + place, or -1: not kept
//   positions [tokens];  rotations [positions, rotary / 2, 2] cosine and sine, fp32; whatever scales RoPE is in there
//   key_scales, value_scales [kv_heads] what a number of the cache is multiplied with, or null
//   bias [heads + 2 * kv_heads, head_dim] is added first (Qwen2), or null
//   q_norm, k_norm [head_dim] norm each head before it turns (Qwen3), or null
//   The first `rotary` numbers of a head turn; in pairs of neighbours, or (`halves`) of those half of them apart.
// A warp has a head; each of its lanes has up to four pairs of numbers, so that head_dim is at most 256.
#include "device.cuh"

constexpr int EACH = 4;

extern "C" __global__ void __launch_bounds__(128) KERNEL(write_kv)(
    SCALAR* turned, CACHED* keys, CACHED* values, const SCALAR* qkv, const i64* slots, const int* positions,
    const float* rotations, const float* key_scales, const float* value_scales, const SCALAR* bias,
    const SCALAR* q_norm, const SCALAR* k_norm, float epsilon, int heads, int kv_heads, int head_dim, int rotary,
    int halves) {
  const u64 token = blockIdx.x;
  const i64 slot = slots[token];
  const float* rotation = rotations + (u64)positions[token] * rotary;
  const int lane = lane_index(), pairs = head_dim / 2, all = heads + 2 * kv_heads;
  for (int head = warp_index(); head < all; head += (int)(blockDim.x >> 5)) {
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const int own = is_query ? head : is_value ? head - heads - kv_heads : head - heads;
    const SCALAR* from = qkv + (token * all + head) * head_dim;
    const SCALAR* norm = is_query ? q_norm : is_value ? nullptr : k_norm;
    float x[EACH], y[EACH], squares = 0;
    int first[EACH], second[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int pair = e * 32 + lane;
      const bool apart = halves && !is_value && pair < rotary / 2;
      first[e] = apart ? pair : 2 * pair;
      second[e] = apart ? pair + rotary / 2 : 2 * pair + 1;
      x[e] = y[e] = 0;
      if (pair >= pairs) continue;
      x[e] = widen(from[first[e]]);
      y[e] = widen(from[second[e]]);
      if (bias != nullptr) {
        x[e] += widen(bias[head * head_dim + first[e]]);
        y[e] += widen(bias[head * head_dim + second[e]]);
      }
      squares += x[e] * x[e] + y[e] * y[e];
    }
    const float factor = norm != nullptr ? rsqrtf(warp_sum(squares) / (float)head_dim + epsilon) : 1.0f;
    const float* scales = is_value ? value_scales : key_scales;
    const float scale = !is_query && scales != nullptr ? scales[own] : 1.0f;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int pair = e * 32 + lane;
      if (pair >= pairs) continue;
      if (norm != nullptr) {
        x[e] *= factor * widen(norm[first[e]]);
        y[e] *= factor * widen(norm[second[e]]);
      }
      if (!is_value && pair < rotary / 2) {
        const float cosine = rotation[2 * pair], sine = rotation[2 * pair + 1], before = x[e];
        x[e] = before * cosine - y[e] * sine;
        y[e] = before * sine + y[e] * cosine;
      }
      if (is_query) {
        SCALAR* to = turned + (token * heads + own) * head_dim;
        to[first[e]] = narrow<SCALAR>(x[e]);
        to[second[e]] = narrow<SCALAR>(y[e]);
      } else if (slot >= 0) {
        const u64 at = (((u64)(slot / BLOCK) * kv_heads + own) * BLOCK + (u64)(slot % BLOCK)) * head_dim;
        CACHED* to = (is_value ? values : keys) + at;
        to[first[e]] = narrow<CACHED>(x[e] / scale);
        to[second[e]] = narrow<CACHED>(y[e] / scale);
      }
    }
  }
}
