// Copies blocks of KV cache: copy-on-write within a cache, swapping out to pinned host memory and back in.
//
//   grid (pairs, planes), block 256
//   pairs [pairs, 2] from block, to block; no block is both
//   A plane is the keys or the values of one layer: planes begin `from_plane` and `to_plane` bytes apart, and hold blocks
//   of `size` bytes, a multiple of 16.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256) KERNEL(copy_blocks)(u8* to, const u8* from, const int* pairs,
                                                                    u64 to_plane, u64 from_plane, u64 size) {
  const u64 source = pairs[blockIdx.x * 2], target = pairs[blockIdx.x * 2 + 1];
  const Chunk* here = (const Chunk*)(from + blockIdx.y * from_plane + source * size);
  Chunk* there = (Chunk*)(to + blockIdx.y * to_plane + target * size);
  for (u64 i = threadIdx.x; i < size / 16; i += blockDim.x) there[i] = here[i];
}
