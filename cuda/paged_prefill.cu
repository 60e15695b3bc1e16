// Attention of many queries over a paged cache, tensor cores: prompts, pieces of prompts, prompts behind a cached prefix.
//
//   grid (tiles, kv_heads, sequences), block 128, shared: see `Plan`
//   Arguments as in paged_decode.cu, but for `partial`.
//
// FlashAttention-2 (Dao 2023, arXiv:2307.08691). Rows are query x head of the group, so that one key is read once for the
// whole group; a block computes 64 rows, 16 in each warp, over SPAN tokens at a time from a ring of two stages that the
// warps share. A tile stops at the last token that its last query sees and starts at the first of its window.
#include "attention.cuh"

template <class T> struct Plan {
  static constexpr int ROWS = 64, WARPS = 4, STAGES = 2, SPAN = HEAD_DIM > 128 ? 32 : 64;
  static constexpr int PITCH = Tile<HEAD_DIM>::PITCH, STAGE = SPAN * PITCH;  // elements, of keys or of values
  static constexpr int STEPS = HEAD_DIM / 16, COLUMNS = HEAD_DIM / 8, CHUNKS = HEAD_DIM / 8, TOKENS = SPAN / 8;
  static constexpr bool HELD = HEAD_DIM <= 128;  // queries stay in registers
};

template <class T>
INLINE void load_span(T* slot, const T* keys, const T* values, const int* table, int first, int length, int head,
                      int kv_heads) {
  using P = Plan<T>;
#pragma unroll
  for (int i = threadIdx.x; i < P::SPAN * P::CHUNKS; i += 32 * P::WARPS) {
    const int row = i / P::CHUNKS, chunk = i % P::CHUNKS, token = first + row;
    const bool there = token < length;
    const u64 page = there ? (u64)table[token / BLOCK] * kv_heads + head : 0;
    const u64 from = (page * BLOCK + token % BLOCK) * HEAD_DIM + chunk * 8;
    const int at = Tile<HEAD_DIM>::at(row, chunk);
    copy_async(slot + at, keys + from, there);
    copy_async(slot + P::STAGE + at, values + from, there);
  }
}

extern "C" __global__ void __launch_bounds__(128) KERNEL(paged_prefill)(
    SCALAR* out, const SCALAR* q, const SCALAR* keys, const SCALAR* values, const int* tables, const int* lengths,
    const int* starts, const float* slopes, const float* sinks, float scale, float cap, int window, int group,
    int table_width) {
  using T = SCALAR;
  using P = Plan<T>;
  SHARED_MEMORY(shared);
  T* query_tile = (T*)shared;
  T* ring = query_tile + P::ROWS * P::PITCH;
  const int head = blockIdx.y, kv_heads = gridDim.y, heads = kv_heads * group;
  const int lane = lane_index(), warp = warp_index();
  const Scoring how = {scale, cap, window, slopes, sinks};
  const Sequence sequence = sequence_of(starts, lengths, blockIdx.z);
  const int* table = tables + (u64)blockIdx.z * table_width;
  const int first = blockIdx.x * P::ROWS, rows = min(P::ROWS, sequence.queries * group - first);
  if (rows <= 0) return;
  const int from = first_visible(how, sequence.position(first / group)) / BLOCK * BLOCK;
  const int to = sequence.position((first + rows - 1) / group) + 1;

#pragma unroll
  for (int i = threadIdx.x; i < P::ROWS * P::CHUNKS; i += 128) {
    const int row = i / P::CHUNKS, chunk = i % P::CHUNKS, absolute = first + row;
    const bool there = row < rows;
    const u64 at = there ? (u64)(sequence.first + absolute / group) * heads + head * group + absolute % group : 0;
    copy_async(query_tile + Tile<HEAD_DIM>::at(row, chunk), q + at * HEAD_DIM + chunk * 8, there);
  }
  load_span(ring, keys, values, table, from, to, head, kv_heads);
  copy_commit();

  float slope[2];
  int position[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first + warp * 16 + (lane >> 2) + 8 * half, own = head * group + row % group;
    position[half] = sequence.position(row / group);
    slope[half] = slopes != nullptr ? slopes[own] : 0;
  }
  const T* my_queries = query_tile + (warp * 16) * P::PITCH;
  u32 held[P::HELD ? P::STEPS : 1][4];
  float sums[P::COLUMNS][4] = {}, maximum[2] = {-infinity(), -infinity()}, total[2] = {0, 0};

  int stage = 0;
  for (int span = from; span < to; span += P::SPAN) {
    if (span + P::SPAN < to)
      load_span(ring + (stage ^ 1) * 2 * P::STAGE, keys, values, table, span + P::SPAN, to, head, kv_heads);
    copy_commit();
    copy_wait<1>();
    __syncthreads();  // everybody's copies have landed
    if (P::HELD && span == from) {
#pragma unroll
      for (int step = 0; step < (P::HELD ? P::STEPS : 1); step++)
        load_matrices<false>(held[step], my_queries + Tile<HEAD_DIM>::at(lane & 15, 2 * step + (lane >> 4)));
    }
    const T* key_span = ring + stage * 2 * P::STAGE;
    const T* value_span = key_span + P::STAGE;

    float scores[P::TOKENS][4] = {};
#pragma unroll
    for (int step = 0; step < P::STEPS; step++) {
      u32 a[4];
      if (P::HELD) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = held[P::HELD ? step : 0][i];
      } else {
        load_matrices<false>(a, my_queries + Tile<HEAD_DIM>::at(lane & 15, 2 * step + (lane >> 4)));
      }
#pragma unroll
      for (int token = 0; token < P::TOKENS; token += 2) {
        u32 b[4];
        const int row = token * 8 + (lane >> 4) * 8 + (lane & 7);
        load_matrices<false>(b, key_span + Tile<HEAD_DIM>::at(row, 2 * step + ((lane >> 3) & 1)));
        multiply(scores[token], a, b[0], b[1], T{});
        multiply(scores[token + 1], a, b[2], b[3], T{});
      }
    }

    float shrink[2];
    soften(scores, maximum, total, shrink, how, position, slope, span);
#pragma unroll
    for (int column = 0; column < P::COLUMNS; column++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[column][i] *= shrink[i >> 1];

#pragma unroll
    for (int token = 0; token < P::TOKENS; token += 2) {
      const u32 weights[4] = {
          pack<T>(scores[token][0], scores[token][1]), pack<T>(scores[token][2], scores[token][3]),
          pack<T>(scores[token + 1][0], scores[token + 1][1]), pack<T>(scores[token + 1][2], scores[token + 1][3])};
#pragma unroll
      for (int column = 0; column < P::COLUMNS; column += 2) {
        u32 b[4];
        const int row = token * 8 + ((lane >> 3) & 1) * 8 + (lane & 7);
        load_matrices<true>(b, value_span + Tile<HEAD_DIM>::at(row, column + (lane >> 4)));
        multiply(sums[column], weights, b[0], b[1], T{});
        multiply(sums[column + 1], weights, b[2], b[3], T{});
      }
    }
    __syncthreads();  // the stage is read: it may be filled again
    stage ^= 1;
  }

#pragma unroll
  for (int half = 0; half < 2; half++) {
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    const int row = warp * 16 + (lane >> 2) + 8 * half, absolute = first + row, own = head * group + absolute % group;
    if (row >= rows) continue;
    const float factor = share(how, own, maximum[half], total[half]);
    T* target = out + ((u64)(sequence.first + absolute / group) * heads + own) * HEAD_DIM + (lane & 3) * 2;
#pragma unroll
    for (int column = 0; column < P::COLUMNS; column++)
      *(u32*)(target + column * 8) = pack<T>(sums[column][half * 2] * factor, sums[column][half * 2 + 1] * factor);
  }
}
