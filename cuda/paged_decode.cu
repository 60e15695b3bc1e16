// Attention of a few queries (at most 16 rows of query head x token for each KV head) over a paged cache, tensor cores.
//
//   grid (kv_heads, sequences, splits), block 32 * WARPS, shared: see `Plan`
//   out      [queries, kv_heads * group, HEAD_DIM]         written where splits == 1
//   partial  [queries, kv_heads * group, splits, HEAD_DIM + 2]  fp32, else: values, maximum, sum; for combine.cu
//   q        [queries, kv_heads * group, HEAD_DIM]
//   keys, values  [blocks, kv_heads, 16, HEAD_DIM]
//   tables   [sequences, table_width] block numbers; what lies past the context or before the window is never read
//   starts   [sequences + 1] first query of each;  lengths [sequences] tokens in the cache, queries included
//
// Flash decoding (Dao et al. 2023, arXiv:2307.08691) over pages (Kwon et al. 2023, arXiv:2309.06180). The group of query
// heads fills the rows of mma.m16n8k16. Each warp streams its own pages through a ring of its own, so that the loop has
// no barrier wider than a warp:
//
//   pages of this split   0 1 2 3 4 5 6 7 8 ...
//   warp                  0 1 2 3 0 1 2 3 0 ...     ring of STAGES pages of keys and of values each
#include "attention.cuh"

template <class T> struct Plan {
  static constexpr int ROWS = 16, WARPS = HEAD_DIM > 128 ? 2 : 4, STAGES = 3;
  static constexpr int PAGE = BLOCK * Tile<HEAD_DIM>::PITCH;  // elements
  static constexpr int STEPS = HEAD_DIM / 16, COLUMNS = HEAD_DIM / 8, CHUNKS = HEAD_DIM / 8;
};

template <class T> INLINE void load_page(T* slot, const T* keys, const T* values, u64 page, int tokens) {
  using P = Plan<T>;
#pragma unroll
  for (int i = lane_index(); i < BLOCK * P::CHUNKS; i += 32) {
    int row = i / P::CHUNKS, at = Tile<HEAD_DIM>::at(row, i % P::CHUNKS);
    u64 from = page * (BLOCK * HEAD_DIM) + i * 8;
    copy_async(slot + at, keys + from, row < tokens);
    copy_async(slot + P::PAGE + at, values + from, row < tokens);
  }
}

// Scores of the 16 tokens of one page: two tiles of 16 rows x 8 tokens.
template <class T> INLINE void page_scores(float (&scores)[2][4], const u32 (&queries)[Plan<T>::STEPS][4], const T* keys) {
  const int lane = lane_index();
#pragma unroll
  for (int step = 0; step < Plan<T>::STEPS; step++) {
    u32 b[4];
    load_matrices<false>(b, keys + Tile<HEAD_DIM>::at((lane >> 4) * 8 + (lane & 7), 2 * step + ((lane >> 3) & 1)));
    multiply(scores[0], queries[step], b[0], b[1], T{});
    multiply(scores[1], queries[step], b[2], b[3], T{});
  }
}

extern "C" __global__ void __launch_bounds__(32 * Plan<SCALAR>::WARPS) KERNEL(paged_decode)(
    SCALAR* out, float* partial, const SCALAR* q, const SCALAR* keys, const SCALAR* values, const int* tables,
    const int* lengths, const int* starts, const float* slopes, const float* sinks, float scale, float cap, int window,
    int group, int table_width) {
  using T = SCALAR;
  using P = Plan<T>;
  SHARED_MEMORY(shared);
  const int head = blockIdx.x, kv_heads = gridDim.x, split = blockIdx.z, splits = gridDim.z;
  const int lane = lane_index(), warp = warp_index();
  const Scoring how = {scale, cap, window, slopes, sinks};
  const Sequence sequence = sequence_of(starts, lengths, blockIdx.y);
  const int* table = tables + (u64)blockIdx.y * table_width;
  const int rows = sequence.queries * group, heads = kv_heads * group;

  const int begin = first_visible(how, sequence.position(0)) / BLOCK, end = (sequence.length + BLOCK - 1) / BLOCK;
  const int each = (end - begin + splits - 1) / splits;
  const int from = begin + split * each, to = min(from + each, end);

  // Row r is the query r / group under the head r % group of this KV head.
  u32 queries[P::STEPS][4];
  float slope[2];
  int position[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = (lane >> 2) + 8 * half, query = row / group, own = head * group + row % group;
    position[half] = sequence.position(query);
    slope[half] = slopes != nullptr && row < rows ? slopes[own] : 0;
    const T* at = q + ((u64)(sequence.first + query) * heads + own) * HEAD_DIM + (lane & 3) * 2;
#pragma unroll
    for (int step = 0; step < P::STEPS; step++) {
      queries[step][half] = row < rows ? *(const u32*)(at + step * 16) : 0;
      queries[step][half + 2] = row < rows ? *(const u32*)(at + step * 16 + 8) : 0;
    }
  }

  T* ring = (T*)shared + warp * P::STAGES * 2 * P::PAGE;
  auto fetch = [&](int page, int stage) {
    if (page < to)
      load_page(ring + stage * 2 * P::PAGE, keys, values, (u64)table[page] * kv_heads + head,
                sequence.length - page * BLOCK);
    copy_commit();
  };
  float sums[P::COLUMNS][4] = {}, maximum[2] = {-infinity(), -infinity()}, total[2] = {0, 0};
#pragma unroll
  for (int stage = 0; stage < P::STAGES - 1; stage++) fetch(from + warp + stage * P::WARPS, stage);

  int stage = 0;
  for (int page = from + warp; page < to; page += P::WARPS) {
    fetch(page + (P::STAGES - 1) * P::WARPS, (stage + P::STAGES - 1) % P::STAGES);
    copy_wait<P::STAGES - 1>();
    __syncwarp();
    const T* slot = ring + stage * 2 * P::PAGE;
    float scores[2][4] = {};
    page_scores<T>(scores, queries, slot);

    float shrink[2];
    soften(scores, maximum, total, shrink, how, position, slope, page * BLOCK);

    const u32 weights[4] = {pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
                            pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
    for (int column = 0; column < P::COLUMNS; column += 2) {
      u32 b[4];
      load_matrices<true>(b, slot + P::PAGE + Tile<HEAD_DIM>::at(((lane >> 3) & 1) * 8 + (lane & 7), column + (lane >> 4)));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[column][i] *= shrink[i >> 1];
        sums[column + 1][i] *= shrink[i >> 1];
      }
      multiply(sums[column], weights, b[0], b[1], T{});
      multiply(sums[column + 1], weights, b[2], b[3], T{});
    }
    __syncwarp();  // the slot is read: it may be filled again
    stage = (stage + 1) % P::STAGES;
  }
  copy_wait<0>();
  __syncthreads();  // the rings are no longer needed: what the warps found takes their place

  float* found = (float*)shared;
  float* marks = found + P::WARPS * P::ROWS * HEAD_DIM;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * P::ROWS + (lane >> 2) + 8 * half;
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    if ((lane & 3) == 0) {
      marks[row * 2] = maximum[half];
      marks[row * 2 + 1] = total[half];
    }
#pragma unroll
    for (int column = 0; column < P::COLUMNS; column++) {
      found[row * HEAD_DIM + column * 8 + (lane & 3) * 2] = sums[column][half * 2];
      found[row * HEAD_DIM + column * 8 + (lane & 3) * 2 + 1] = sums[column][half * 2 + 1];
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < rows * HEAD_DIM; i += blockDim.x) {
    const int row = i / HEAD_DIM, d = i % HEAD_DIM, own = head * group + row % group;
    float top = -infinity(), sum = 0, value = 0;
    for (int w = 0; w < P::WARPS; w++) top = fmaxf(top, marks[(w * P::ROWS + row) * 2]);
    for (int w = 0; w < P::WARPS; w++) {
      const float factor = weight(marks[(w * P::ROWS + row) * 2], top);
      sum += factor * marks[(w * P::ROWS + row) * 2 + 1];
      value += factor * found[(w * P::ROWS + row) * HEAD_DIM + d];
    }
    const u64 target = (u64)(sequence.first + row / group) * heads + own;
    if (splits == 1) {
      out[target * HEAD_DIM + d] = narrow<T>(value * share(how, own, top, sum));
    } else {
      float* part = partial + (target * splits + split) * (HEAD_DIM + 2);
      part[d] = value;
      if (d == 0) {
        part[HEAD_DIM] = top;
        part[HEAD_DIM + 1] = sum;
      }
    }
  }
}
