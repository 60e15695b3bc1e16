// Which tokens of a draft stand: as many as the model would have chosen itself, and one more that it chose.
//
//   grid (sequences), block 32
//   kept [sequences] drafted tokens that stand;  tokens [sequences, width + 1] those and the model's next, then -1
//   drafts [sequences, width], width at most 31;  chosen [rows] the model's choice after each of its rows
//   starts [sequences + 1] the rows of each: after the last known token, then after each drafted one
// Leviathan et al. 2022 (arXiv:2211.17192) for temperature 0.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(32) KERNEL(verify)(int* kept, int* tokens, const int* drafts,
                                                              const int* chosen, const int* starts, int width) {
  const int sequence = blockIdx.x, lane = lane_index(), first = starts[sequence];
  const int drafted = starts[sequence + 1] - first - 1;
  const int choice = lane <= drafted ? chosen[first + lane] : -1;
  const u32 agree = ballot(lane < drafted && drafts[sequence * width + lane] == choice);
  int stand = 0;
  while ((agree >> stand) & 1) stand++;
  if (lane <= width) tokens[sequence * (width + 1) + lane] = lane <= stand ? choice : -1;
  if (lane == 0) kept[sequence] = stand;
}
