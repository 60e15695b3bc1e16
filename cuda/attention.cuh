// What all attention kernels share: where scores come from, what may be seen, and how parts of a softmax come together.
//
// Everything is in units of log2: weights are 2^(score - maximum). A part of the softmax of one row is its largest score,
// the sum of its weights, and the weighted sum of values; parts over different tokens merge in any order.
#pragma once
#include "device.cuh"

struct Scoring {
  float scale;          // of query times key, commonly 1/sqrt(head_dim)
  float cap;            // scores are bent to cap * tanh(score / cap); 0: they are not
  int window;           // a token sees itself and the window - 1 tokens before; 0: all
  const float* slopes;  // ALiBi: what one token of distance costs, by query head; null: nothing
  const float* sinks;   // a score without a value that takes its share of the softmax, by query head; null: none
};

// The score in units of log2; `behind` is how many tokens the key lies behind the query.
INLINE float scored(const Scoring& how, float dot, float slope, int behind) {
  float score = dot * how.scale;
  if (how.cap > 0) score = how.cap * tanh_fast(score / how.cap);
  return (score - slope * (float)behind) * LOG2E;
}

INLINE bool visible(const Scoring& how, int behind) { return behind >= 0 && (how.window == 0 || behind < how.window); }

// The first token that a query at `position` sees.
INLINE int first_visible(const Scoring& how, int position) {
  int first = position - how.window + 1;
  return how.window == 0 || first < 0 ? 0 : first;
}

// 2^(score - maximum), where both may be -inf.
INLINE float weight(float score, float maximum) { return score == -infinity() ? 0.0f : exp2_fast(score - maximum); }

// One step of the softmax of the two rows that a lane has a share of (mma's accumulators), over TILES * 8 tokens from
// `first` on: products become weights, `shrink` is what all sums so far are to be multiplied with. `total` is the lane's
// own share; the four lanes of a row add theirs up in the end.
template <int TILES>
INLINE void soften(float (&scores)[TILES][4], float (&maximum)[2], float (&total)[2], float (&shrink)[2],
                   const Scoring& how, const int (&position)[2], const float (&slope)[2], int first) {
  const int lane = lane_index();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = maximum[half], sum = 0;
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
      const int token = first + (i >> 1) * 8 + (lane & 3) * 2 + (i & 1), behind = position[half] - token;
      float& score = scores[i >> 1][half * 2 + (i & 1)];
      score = visible(how, behind) ? scored(how, score, slope[half], behind) : -infinity();
      top = fmaxf(top, score);
    }
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
      float& score = scores[i >> 1][half * 2 + (i & 1)];
      score = weight(score, top);
      sum += score;
    }
    shrink[half] = weight(maximum[half], top);
    maximum[half] = top;
    total[half] = total[half] * shrink[half] + sum;
  }
}

// What the weighted sum of a row is multiplied with in the end: its sink takes its share, and nothing is divided by 0.
INLINE float share(const Scoring& how, int head, float maximum, float sum) {
  if (how.sinks == nullptr) return sum > 0 ? 1.0f / sum : 0.0f;
  const float sink = how.sinks[head] * LOG2E, top = fmaxf(maximum, sink), shrink = weight(maximum, top);
  return shrink / (sum * shrink + exp2_fast(sink - top));
}

// Where the queries of one sequence lie: the last of them is the last token of its context.
struct Sequence {
  int first;     // row of its first query in the batch
  int queries;
  int length;    // tokens in the cache, those of the queries among them
  INLINE int position(int query) const { return length - queries + query; }
};

INLINE Sequence sequence_of(const int* starts, const int* lengths, int index) {
  return Sequence{starts[index], starts[index + 1] - starts[index], lengths[index]};
}

// Rows of 16-byte chunks in shared memory, laid out so that the eight rows of a matrix lie in different banks.
template <int WIDTH> struct Tile {
  static constexpr bool SWIZZLED = (WIDTH & (WIDTH - 1)) == 0;
  static constexpr int PITCH = SWIZZLED ? WIDTH : WIDTH + 8;
  INLINE static int at(int row, int chunk) { return row * PITCH + (SWIZZLED ? chunk ^ (row & 7) : chunk) * 8; }
};
