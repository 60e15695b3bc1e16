// What the kernels need beyond C++: scalars, packing, asynchronous copies, tensor cores, warp exchange.
//
// It is inline PTX and needs no header of the toolkit. The tests compile the same kernels with a C++ compiler: `EMULATED`
// then names the header that stands for all that is special to a GPU.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct f8 { u8 bits; };  // e4m3, as in the OCP 8-bit floating point specification: no infinities, NaN is 0x7f
struct i8 { signed char value; };
struct alignas(16) Chunk { u32 word[4]; };  // what one thread reads or writes at once

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define KERNEL(stem) JOIN(stem, SUFFIX)  // the name of an instance: SUFFIX is defined by whoever compiles

constexpr int BLOCK = 16;  // tokens in one block of KV cache
constexpr float LOG2E = 1.4426950408889634f;
constexpr u32 ALL_LANES = 0xffffffffu;

#ifdef EMULATED
#include EMULATED
#else
#define INLINE __device__ __forceinline__
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

INLINE u32 float_bits(float value) { return __float_as_uint(value); }
INLINE float bits_float(u32 bits) { return __uint_as_float(bits); }
INLINE float infinity() { return __uint_as_float(0x7f800000u); }
INLINE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x)); return y; }
INLINE float widen(f16 h) { float f; asm("cvt.f32.f16 %0,%1;" : "=f"(f) : "h"(h.bits)); return f; }
INLINE u16 half_bits(float f) { u16 h; asm("cvt.rn.f16.f32 %0,%1;" : "=h"(h) : "f"(f)); return h; }
template <class T> INLINE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }
template <class T> INLINE T shuffle(T value, int lane) { return __shfl_sync(ALL_LANES, value, lane); }
INLINE u32 ballot(bool yes) { return __ballot_sync(ALL_LANES, yes); }

#if __CUDA_ARCH__ >= 800
// 16 bytes from global to shared memory, or 16 zeros where they are not `wanted`. Both addresses are multiples of 16.
INLINE void copy_async(void* shared, const void* global, bool wanted) {
  u32 to = (u32)__cvta_generic_to_shared(shared);
  int size = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0],[%1],16,%2;" ::"r"(to), "l"(global), "r"(size) : "memory");
}
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last N groups of this thread have landed.
template <int N> INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit numbers; lane 8i+r gives the address of row r of matrix i.
template <bool TRANSPOSED> INLINE void load_matrices(u32 (&to)[4], const void* row) {
  u32 at = (u32)__cvta_generic_to_shared(row);
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// c[16x8] += a[16x16] b[16x8], accumulated in fp32. Lanes hold what the PTX ISA says under mma.m16n8k16.
INLINE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
INLINE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
#endif

// ---- scalars ----

INLINE float widen(float value) { return value; }
INLINE float widen(bf16 value) { return bits_float((u32)value.bits << 16); }
INLINE float widen(i8 value) { return (float)value.value; }
INLINE float widen(f8 value) {  // as a half its exponent is 8 too low
  u32 magnitude = value.bits & 0x7fu;
  f16 half = {(u16)((u32)(value.bits & 0x80u) << 8 | magnitude << 7)};
  return magnitude == 0x7fu ? bits_float(0x7fc00000u) : widen(half) * 256.0f;
}

// To the nearest, ties to even; what does not fit an 8-bit number becomes the largest that does.
template <class T> INLINE T narrow(float value);
template <> INLINE float narrow<float>(float value) { return value; }
template <> INLINE f16 narrow<f16>(float value) { return f16{half_bits(value)}; }
template <> INLINE bf16 narrow<bf16>(float value) {
  u32 bits = float_bits(value);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return bf16{(u16)(nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <> INLINE i8 narrow<i8>(float value) {
  float bounded = fminf(fmaxf(value, -127.0f), 127.0f);
  return i8{(signed char)(int)rintf(bounded)};
}
template <> INLINE f8 narrow<f8>(float value) {
  u32 bits = float_bits(value), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return f8{0x7f};
  if (magnitude >= 0x43e00000u) return f8{(u8)(sign | 0x7eu)};                                // 448 and above
  if (magnitude < 0x3c800000u) return f8{(u8)(sign | (u32)rintf(bits_float(magnitude) * 512.0f))};  // below 2^-6
  u32 rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return f8{(u8)(sign | ((rounded >> 20) - (120u << 3)))};
}

template <class T> INLINE u32 pack(float low, float high) {
  return (u32)narrow<T>(low).bits | (u32)narrow<T>(high).bits << 16;
}

INLINE float tanh_fast(float x) { return 1.0f - 2.0f / (exp2_fast(2.0f * LOG2E * x) + 1.0f); }

// ---- chunks of 16 bytes ----

template <class T> struct Items { static constexpr int COUNT = 16 / sizeof(T); };

template <class T> INLINE void unpack(const Chunk& chunk, float (&items)[8]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    items[2 * i] = widen(T{(u16)chunk.word[i]});
    items[2 * i + 1] = widen(T{(u16)(chunk.word[i] >> 16)});
  }
}
template <class T> INLINE void unpack(const Chunk& chunk, float (&items)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) items[i] = bits_float(chunk.word[i]);
}
template <class T> INLINE Chunk packed(const float (&items)[8]) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < 4; i++) chunk.word[i] = pack<T>(items[2 * i], items[2 * i + 1]);
  return chunk;
}
template <class T> INLINE Chunk packed(const float (&items)[4]) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < 4; i++) chunk.word[i] = float_bits(items[i]);
  return chunk;
}

// ---- sums and maxima over the lanes of a warp, and over a block of whole warps ----

INLINE int lane_index() { return threadIdx.x & 31; }
INLINE int warp_index() { return threadIdx.x >> 5; }

INLINE float warp_sum(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
  return value;
}
INLINE float warp_max(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// The sum over the block, in every thread. `scratch` has a place for each warp and may be used again at once.
INLINE float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < (int)(blockDim.x >> 5); w++) total += scratch[w];
  __syncthreads();
  return total;
}
