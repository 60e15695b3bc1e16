// The emulator's side of cuda/device.cuh: the operations that are inline PTX on a GPU.
#pragma once
#include "emulator.h"

INLINE u32 float_bits(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
INLINE float bits_float(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE float infinity() { return INFINITY; }
INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
INLINE float exp2_fast(float x) { return exp2f(x); }
INLINE float widen(f16 h) { _Float16 x; memcpy(&x, &h.bits, 2); return (float)x; }
INLINE u16 half_bits(float f) { _Float16 x = (_Float16)f; u16 bits; memcpy(&bits, &x, 2); return bits; }

// ---- warp exchange ----

namespace emulator {
template <class T> struct Exchange { T value; int from; T result; };
template <class T> UNWATCHED void exchange(void** operands) {
  for (int i = 0; i < 32; i++) {
    Exchange<T>& one = *(Exchange<T>*)operands[i];
    one.result = ((Exchange<T>*)operands[one.from & 31])->value;
  }
}
struct Vote { bool yes; u32 result; };
UNWATCHED inline void vote(void** operands) {
  u32 bits = 0;
  for (int i = 0; i < 32; i++) bits |= (u32)((Vote*)operands[i])->yes << i;
  for (int i = 0; i < 32; i++) ((Vote*)operands[i])->result = bits;
}
UNWATCHED inline int lane() { return running->current->number % 32; }
}  // namespace emulator

template <class T> INLINE T shuffle(T value, int from) {
  emulator::Exchange<T> mine = {value, from, value};
  emulator::meet("shuffle", &mine, emulator::exchange<T>);
  return mine.result;
}
template <class T> INLINE T shuffle_xor(T value, int mask) { return shuffle(value, emulator::lane() ^ mask); }
INLINE u32 ballot(bool yes) {
  emulator::Vote mine = {yes, 0};
  emulator::meet("ballot", &mine, emulator::vote);
  return mine.result;
}

// ---- asynchronous copies ----

INLINE void land(const emulator::Copy& copy) {
  memset(copy.to, 0, 16);
  if (copy.wanted) memcpy(copy.to, copy.from, 16);
}
INLINE void copy_async(void* shared, const void* global, bool wanted) {
  if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) emulator::fail("asynchronous copy of misaligned addresses");
  const emulator::Copy copy = {shared, global, wanted};
  if (emulator::running->eager)
    land(copy);
  else
    emulator::running->current->groups.back().push_back(copy);
}
INLINE void copy_commit() { emulator::running->current->groups.emplace_back(); }
template <int N> INLINE void copy_wait() {
  auto& groups = emulator::running->current->groups;
  while ((int)groups.size() - 1 > N) {  // the last group is open: it is not waited for
    for (const emulator::Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

// ---- matrices ----
//
// Lane layouts: PTX ISA, "Matrix multiply-accumulate operation using mma instruction", m16n8k16, and "ldmatrix".

namespace emulator {
struct Rows { u16 row[8]; u32 to[4]; };
template <bool TRANSPOSED> UNWATCHED void distribute(void** operands) {
  for (int lane = 0; lane < 32; lane++)
    for (int matrix = 0; matrix < 4; matrix++) {
      u32 word = 0;
      for (int k = 0; k < 2; k++) {
        const int row = TRANSPOSED ? lane % 4 * 2 + k : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + k;
        word |= (u32)((Rows*)operands[8 * matrix + row])->row[column] << 16 * k;
      }
      ((Rows*)operands[lane])->to[matrix] = word;
    }
}
struct Product { float c[4]; u32 a[4], b[2]; };
template <class T> UNWATCHED void multiply_all(void** operands) {
  float a[16][16], b[16][8];
  auto value = [](u32 word, int k) { return widen(T{(u16)(word >> 16 * k)}); };
  for (int lane = 0; lane < 32; lane++) {
    const Product& one = *(Product*)operands[lane];
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < 2; k++) a[lane / 4 + 8 * (i & 1)][lane % 4 * 2 + k + 8 * (i >> 1)] = value(one.a[i], k);
    for (int i = 0; i < 2; i++)
      for (int k = 0; k < 2; k++) b[lane % 4 * 2 + k + 8 * i][lane / 4] = value(one.b[i], k);
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
      float sum = 0;
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      ((Product*)operands[lane])->c[i] += sum;
    }
}
}  // namespace emulator

template <bool TRANSPOSED> INLINE void load_matrices(u32 (&to)[4], const void* row) {
  if ((uintptr_t)row % 16) emulator::fail("ldmatrix of a misaligned row");
  emulator::Rows mine;
  for (int i = 0; i < 8; i++) mine.row[i] = ((const u16*)row)[i];
  emulator::meet(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", &mine, emulator::distribute<TRANSPOSED>);
  for (int i = 0; i < 4; i++) to[i] = mine.to[i];
}
template <class T> INLINE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, T) {
  emulator::Product mine = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::meet("mma", &mine, emulator::multiply_all<T>);
  for (int i = 0; i < 4; i++) c[i] = mine.c[i];
}
