// Attention over a paged cache without tensor cores: for fp32, for GPUs before sm_80, and for 8-bit caches.
//
//   grid (tiles * splits, kv_heads, sequences), block 128, shared (16 * HEAD_DIM + 16 * (HEAD_DIM + 1) * 2) * 4 bytes
//   Arguments as in paged_decode.cu, and
//   keys, values  [blocks, kv_heads, 16, HEAD_DIM] of type CACHED
//   key_scales, value_scales  [kv_heads] what a number of the cache is multiplied with, or null
//
// A tile is 16 rows (query x head of the group), so that one kernel serves prompts and decoding. The block brings page
// after page into shared memory as fp32; each warp computes four rows of the tile: its lanes are halves of the 16 tokens
// for scores, and places of the head for values.
#include "attention.cuh"

constexpr int ROWS = 16, WARPS = 4, PITCH = HEAD_DIM + 1, EACH = (HEAD_DIM + 31) / 32;

extern "C" __global__ void __launch_bounds__(32 * WARPS, 4) KERNEL(paged_attention_simt)(
    SCALAR* out, float* partial, const SCALAR* q, const CACHED* keys, const CACHED* values, const int* tables,
    const int* lengths, const int* starts, const float* slopes, const float* sinks, float scale, float cap, int window,
    const float* key_scales, const float* value_scales, int group, int table_width, int splits) {
  SHARED_MEMORY(shared);
  float* query_tile = (float*)shared;  // [16, HEAD_DIM]
  float* key_page = query_tile + ROWS * HEAD_DIM;
  float* value_page = key_page + BLOCK * PITCH;
  const int tile = blockIdx.x / splits, split = blockIdx.x % splits, head = blockIdx.y, kv_heads = gridDim.y;
  const int lane = lane_index(), warp = warp_index(), heads = kv_heads * group;
  const Scoring how = {scale, cap, window, slopes, sinks};
  const Sequence sequence = sequence_of(starts, lengths, blockIdx.z);
  const int* table = tables + (u64)blockIdx.z * table_width;
  const int first = tile * ROWS, rows = min(ROWS, sequence.queries * group - first);
  if (rows <= 0) return;

  const int last_position = sequence.position((first + rows - 1) / group);
  const int begin = first_visible(how, sequence.position(first / group)) / BLOCK, end = last_position / BLOCK + 1;
  const int each = (end - begin + splits - 1) / splits;
  const int from = begin + split * each, to = min(from + each, end);
  const float key_scale = key_scales != nullptr ? key_scales[head] : 1.0f;
  const float value_scale = value_scales != nullptr ? value_scales[head] : 1.0f;

  for (int i = threadIdx.x; i < rows * HEAD_DIM; i += blockDim.x) {
    const int row = first + i / HEAD_DIM;
    const u64 at = (u64)(sequence.first + row / group) * heads + head * group + row % group;
    query_tile[i] = widen(q[at * HEAD_DIM + i % HEAD_DIM]);
  }

  float sums[ROWS / WARPS][EACH] = {}, maximum[ROWS / WARPS], total[ROWS / WARPS] = {};
#pragma unroll
  for (int r = 0; r < ROWS / WARPS; r++) maximum[r] = -infinity();

  for (int page = from; page < to; page++) {
    const u64 base = ((u64)table[page] * kv_heads + head) * BLOCK * HEAD_DIM;
    const int tokens = min(BLOCK, sequence.length - page * BLOCK);
    for (int i = threadIdx.x; i < BLOCK * HEAD_DIM; i += blockDim.x) {
      const bool there = i / HEAD_DIM < tokens;
      const int at = i / HEAD_DIM * PITCH + i % HEAD_DIM;
      key_page[at] = there ? widen(keys[base + i]) * key_scale : 0;
      value_page[at] = there ? widen(values[base + i]) * value_scale : 0;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS / WARPS; r++) {
      const int row = r * WARPS + warp;
      if (row >= rows) continue;
      const int own = head * group + (first + row) % group, token = lane & 15;
      const int behind = sequence.position((first + row) / group) - (page * BLOCK + token);
      float score = 0;
#pragma unroll 4
      for (int d = lane >> 4; d < HEAD_DIM; d += 2) score += query_tile[row * HEAD_DIM + d] * key_page[token * PITCH + d];
      score += shuffle_xor(score, 16);
      score = visible(how, behind) ? scored(how, score, slopes != nullptr ? slopes[own] : 0, behind) : -infinity();
      const float top = fmaxf(maximum[r], warp_max(score)), shrink = weight(maximum[r], top), mine = weight(score, top);
      maximum[r] = top;
      total[r] = total[r] * shrink + 0.5f * warp_sum(mine);  // each token is in two lanes
#pragma unroll
      for (int e = 0; e < EACH; e++) sums[r][e] *= shrink;
#pragma unroll 4
      for (int t = 0; t < BLOCK; t++) {
        const float share_of_token = shuffle(mine, t);
#pragma unroll
        for (int e = 0; e < EACH; e++)
          if (e * 32 + lane < HEAD_DIM) sums[r][e] += share_of_token * value_page[t * PITCH + e * 32 + lane];
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < ROWS / WARPS; r++) {
    const int row = r * WARPS + warp;
    if (row >= rows) continue;
    const int own = head * group + (first + row) % group;
    const u64 target = (u64)(sequence.first + (first + row) / group) * heads + own;
    float* part = partial + (target * splits + split) * (HEAD_DIM + 2);
    const float factor = splits == 1 ? share(how, own, maximum[r], total[r]) : 1.0f;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int d = e * 32 + lane;
      if (d >= HEAD_DIM) continue;
      if (splits == 1)
        out[target * HEAD_DIM + d] = narrow<SCALAR>(sums[r][e] * factor);
      else
        part[d] = sums[r][e];
    }
    if (splits > 1 && lane == 0) {
      part[HEAD_DIM] = maximum[r];
      part[HEAD_DIM + 1] = total[r];
    }
  }
}
