// The rows of a table by their numbers; a number that is none gives a row of zeros.
//
//   grid (rows), block 128
//   out [rows, width];  table [entries, width];  ids [rows];  width is a multiple of a chunk of 16 bytes
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(128) KERNEL(embedding)(SCALAR* out, const SCALAR* table, const int* ids,
                                                                  int entries, int width) {
  const u64 row = blockIdx.x;
  const int id = ids[row], chunks = width / Items<SCALAR>::COUNT;
  const bool known = id >= 0 && id < entries;
  const Chunk* from = (const Chunk*)(table + (known ? (u64)id * width : 0));
  for (int i = threadIdx.x; i < chunks; i += blockDim.x)
    ((Chunk*)(out + row * width))[i] = known ? from[i] : Chunk{{0, 0, 0, 0}};
}
