// The largest logit of each row; of equals the first.
//
//   grid (rows), block 1024, shared 256 bytes
//   chosen [rows];  logits [rows, width]
#include "sampling.cuh"

extern "C" __global__ void __launch_bounds__(1024) KERNEL(argmax)(int* chosen, const SCALAR* logits, int width) {
  SHARED_MEMORY(shared);
  const SCALAR* row = logits + (u64)blockIdx.x * width;
  Best best = {-infinity(), 0x7fffffff};
  for (int i = threadIdx.x; i < width; i += blockDim.x) best = better(best, Best{widen(row[i]), i});
  best = block_best(best, (Best*)shared);
  if (threadIdx.x == 0) chosen[blockIdx.x] = best.index;
}
