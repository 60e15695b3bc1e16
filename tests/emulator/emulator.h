// Runs CUDA kernels on the processor: block after block, the threads of a block as fibres of one system thread.
//
//   launch ─▶ for each block: poisoned shared memory, fresh fibres ─▶ scheduler picks one that can run ─▶ fibre runs
//                                      ▲                                                                     │
//                                      └── all waiters of a barrier or warp operation are there ◀── it waits ┘
//
// Nothing is forgiven: a barrier that some threads never reach, lanes that meet in different warp operations, misaligned
// operands, shared memory written past its end and wild addresses end the launch with a message that says who and where.
// The schedule decides who runs next: in order, the last that became ready first, or by chance. Asynchronous copies land
// at once or as late as they may. Under ThreadSanitizer each fibre has a clock of its own: barriers and __syncwarp order
// memory, warp exchanges do not.
#pragma once
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define EMULATOR_CLOCKS 1
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_STACKS 1
#endif
#if defined(__x86_64__) && !defined(EMULATOR_CLOCKS) && !defined(EMULATOR_STACKS)
#define EMULATOR_ASM 1
#else
#include <ucontext.h>
#endif
#define UNWATCHED __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))

#define __global__
#define __device__
#define __launch_bounds__(...)
#define INLINE inline
using std::max;
using std::min;

namespace emulator {

struct Dim3 { unsigned x = 1, y = 1, z = 1; };
enum class Wait { NOTHING, BLOCK, WARP, OVER };
struct Copy { void* to; const void* from; bool wanted; };
using Collective = void (*)(void** operands);  // of 32 lanes

struct Fibre {
  Dim3 thread;
  unsigned number = 0;
  Wait waits = Wait::NOTHING;
  const char* operation = "";
  void* operand = nullptr;
  std::vector<std::vector<Copy>> groups;  // asynchronous copies, the oldest group first; the last one is open
#ifdef EMULATOR_ASM
  void* stack = nullptr;
#else
  ucontext_t context;
#endif
#ifdef EMULATOR_CLOCKS
  void* clock = nullptr;
#endif
};

struct Launch {
  Dim3 grid, block, at;
  unsigned threads = 0, at_barrier = 0, over = 0;
  size_t shared_size = 0;
  unsigned char* shared = nullptr;
  uint64_t seed = 0, chance = 1;
  bool eager = false;
  Fibre* fibres = nullptr;  // plain memory: what a container does is watched by ThreadSanitizer, even where we are not
  char* stacks = nullptr;
  unsigned* ready = nullptr;  // from `head` up to `tail`
  size_t head = 0, tail = 0;
  Fibre* current = nullptr;
  void (*body)(void*) = nullptr;
  void* body_data = nullptr;
  bool failed = false;
  char message[512] = {};
  sigjmp_buf rescue;
#ifdef EMULATOR_ASM
  void* scheduler = nullptr;
#else
  ucontext_t scheduler;
#endif
#ifdef EMULATOR_CLOCKS
  void* clock = nullptr;
  char begun = 0, ended = 0, block_barrier = 0, warp_barriers[32] = {};
#endif
#ifdef EMULATOR_STACKS
  void* fake = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#endif
};

constexpr size_t STACK = 64 * 1024, GUARD = 256;
inline Launch* running = nullptr;

#ifdef EMULATOR_ASM
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.pushsection .text
.local emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.popsection
)");
#endif

// ---- fibres ----

UNWATCHED inline void to_scheduler() {
  Launch& l = *running;
#ifdef EMULATOR_CLOCKS
  __tsan_switch_to_fiber(l.clock, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATOR_ASM
  emulator_switch(&l.current->stack, l.scheduler);
#else
#ifdef EMULATOR_STACKS
  Fibre* self = l.current;
  void* fake;
  __sanitizer_start_switch_fiber(self->waits == Wait::OVER ? nullptr : &fake, l.bottom, l.size);
  swapcontext(&self->context, &l.scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  swapcontext(&l.current->context, &l.scheduler);
#endif
#endif
}

UNWATCHED inline void to_fibre(Fibre& fibre) {
  Launch& l = *running;
  l.current = &fibre;
#ifdef EMULATOR_CLOCKS
  __tsan_switch_to_fiber(fibre.clock, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMULATOR_ASM
  emulator_switch(&l.scheduler, fibre.stack);
#else
#ifdef EMULATOR_STACKS
  __sanitizer_start_switch_fiber(&l.fake, &l.stacks[STACK * fibre.number], STACK);
#endif
  swapcontext(&l.scheduler, &fibre.context);
#ifdef EMULATOR_STACKS
  __sanitizer_finish_switch_fiber(l.fake, nullptr, nullptr);
#endif
#endif
}

// Ends the launch from within a fibre.
template <class... A> [[noreturn]] UNWATCHED void fail(const char* form, A... values) {
  Launch& l = *running;
  int used = snprintf(l.message, sizeof l.message, "block %u,%u,%u thread %u: ", l.at.x, l.at.y, l.at.z,
                      l.current ? l.current->number : 0);
  snprintf(l.message + used, sizeof l.message - used, form, values...);
  l.failed = true;
  for (;;) to_scheduler();
}

UNWATCHED inline void enter() {
  Launch& l = *running;
#ifdef EMULATOR_STACKS
  __sanitizer_finish_switch_fiber(nullptr, &l.bottom, &l.size);
#endif
#ifdef EMULATOR_CLOCKS
  __tsan_acquire(&l.begun);
#endif
  l.body(l.body_data);
#ifdef EMULATOR_CLOCKS
  __tsan_release(&l.ended);
#endif
  l.current->waits = Wait::OVER;
  l.over++;
  for (;;) to_scheduler();
}

UNWATCHED inline void prepare(Fibre& fibre) {
  Launch& l = *running;
  char* stack = &l.stacks[STACK * fibre.number];
#ifdef EMULATOR_ASM
  void** top = (void**)(((uintptr_t)stack + STACK) & ~(uintptr_t)15);
  *--top = nullptr;
  *--top = (void*)enter;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fibre.stack = top;
#else
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = stack;
  fibre.context.uc_stack.ss_size = STACK;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, enter, 0);
#endif
#ifdef EMULATOR_CLOCKS
  fibre.clock = __tsan_create_fiber(0);
#endif
}

// ---- waiting for each other ----

UNWATCHED inline void make_ready(unsigned number) {
  Launch& l = *running;
  if (l.tail == 2 * l.threads) {  // no more than all threads are ready: half of the places are free
    for (size_t i = l.head; i < l.tail; i++) l.ready[i - l.head] = l.ready[i];
    l.tail -= l.head;
    l.head = 0;
  }
  l.ready[l.tail++] = number;
}

UNWATCHED inline void wake(unsigned first, unsigned count) {
  Launch& l = *running;
  for (unsigned i = first; i < first + count; i++) {
    Fibre& fibre = l.fibres[i];
    if (&fibre != l.current) make_ready(i);
    fibre.waits = Wait::NOTHING;
  }
}

UNWATCHED inline void wait_for_block() {
  Launch& l = *running;
#ifdef EMULATOR_CLOCKS
  __tsan_release(&l.block_barrier);
#endif
  l.current->waits = Wait::BLOCK;
  l.current->operation = "__syncthreads";
  if (l.over) fail("__syncthreads, but %u threads are over", l.over);
  if (++l.at_barrier == l.threads) {
    l.at_barrier = 0;
    wake(0, l.threads);
  } else {
    to_scheduler();
  }
#ifdef EMULATOR_CLOCKS
  __tsan_acquire(&l.block_barrier);
#endif
}

// The last of 32 lanes to arrive does the operation for all of them, on their operands.
UNWATCHED inline void meet(const char* operation, void* operand, Collective run) {
  Launch& l = *running;
  Fibre& self = *l.current;
  self.waits = Wait::WARP;
  self.operation = operation;
  self.operand = operand;
  const unsigned first = self.number / 32 * 32;
  if (first + 32 > l.threads) fail("%s in a warp that is not whole", operation);
  void* operands[32];
  unsigned there = 0;
  for (unsigned i = 0; i < 32; i++) {
    Fibre& other = l.fibres[first + i];
    if (other.waits == Wait::OVER) fail("%s, but lane %u is over", operation, i);
    if (other.waits != Wait::WARP) continue;
    if (strcmp(other.operation, operation)) fail("%s, while lane %u is at %s", operation, i, other.operation);
    operands[i] = other.operand;
    there++;
  }
  if (there < 32) return to_scheduler();
  if (run) run(operands);
  wake(first, 32);
}

UNWATCHED inline void wait_for_warp() {
#ifdef EMULATOR_CLOCKS
  Launch& l = *running;
  char* barrier = &l.warp_barriers[l.current->number / 32];
  __tsan_release(barrier);
  meet("__syncwarp", nullptr, nullptr);
  __tsan_acquire(barrier);
#else
  meet("__syncwarp", nullptr, nullptr);
#endif
}

// ---- the scheduler ----

UNWATCHED inline unsigned next_ready() {
  Launch& l = *running;
  if (l.seed % 3 == 1) {  // depth first
    return l.ready[--l.tail];
  }
  if (l.seed % 3 == 2) {  // by chance, else in order
    l.chance ^= l.chance << 13, l.chance ^= l.chance >> 7, l.chance ^= l.chance << 17;
    const size_t other = l.head + l.chance % (l.tail - l.head);
    const unsigned chosen = l.ready[other];
    l.ready[other] = l.ready[l.head];
    l.ready[l.head] = chosen;
  }
  const unsigned first = l.ready[l.head++];
  if (l.head == l.tail) l.head = l.tail = 0;
  return first;
}

UNWATCHED inline void check_shared() {
  Launch& l = *running;
  for (size_t i = 0; i < GUARD; i++)
    if (l.shared[l.shared_size + i] != 0xff) {
      l.failed = true;
      snprintf(l.message, sizeof l.message, "block %u,%u,%u: shared memory written %zu bytes past its end of %zu", l.at.x,
               l.at.y, l.at.z, i, l.shared_size);
      return;
    }
}

UNWATCHED inline void run_block() {
  Launch& l = *running;
#ifdef EMULATOR_STACKS
  const size_t guard = 0;  // AddressSanitizer has its own
#else
  const size_t guard = GUARD;
#endif
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, l.shared_size + guard + 16)) abort();
  l.shared = (unsigned char*)memory;
#ifdef EMULATOR_STACKS
  free(memory);
  if (posix_memalign(&memory, 1024, l.shared_size ? l.shared_size : 1)) abort();
  l.shared = (unsigned char*)memory;
#endif
  for (size_t i = 0; i < l.shared_size + guard; i++) ((volatile unsigned char*)l.shared)[i] = 0xff;  // NaN in every type
  l.head = l.tail = l.at_barrier = l.over = 0;
  for (unsigned i = 0; i < l.threads; i++) {
    Fibre& fibre = l.fibres[i];
    fibre.number = i;
    fibre.thread = {i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y};
    fibre.waits = Wait::NOTHING;
    fibre.groups.assign(1, {});
    prepare(fibre);
    make_ready(i);
  }
#ifdef EMULATOR_CLOCKS
  __tsan_release(&l.begun);
#endif
  while (l.head < l.tail && !l.failed) to_fibre(l.fibres[next_ready()]);
#ifdef EMULATOR_CLOCKS
  __tsan_acquire(&l.ended);
  for (unsigned i = 0; i < l.threads; i++) __tsan_destroy_fiber(l.fibres[i].clock);
#endif
  if (!l.failed)
    for (unsigned i = 0; i < l.threads; i++)
      if (Fibre& fibre = l.fibres[i]; fibre.waits != Wait::OVER) {
        l.current = &fibre;
        l.failed = true;
        snprintf(l.message, sizeof l.message, "block %u,%u,%u thread %u waits for ever at %s", l.at.x, l.at.y, l.at.z,
                 fibre.number, fibre.operation);
        break;
      }
  if (!l.failed && guard) check_shared();
  free(l.shared);
}

UNWATCHED inline void rescue(int, siginfo_t* info, void*) {
  Launch& l = *running;
  snprintf(l.message, sizeof l.message, "block %u,%u,%u thread %u: wild address %p", l.at.x, l.at.y, l.at.z,
           l.current ? l.current->number : 0, info->si_addr);
  l.failed = true;
  siglongjmp(l.rescue, 1);
}

// Runs all blocks; 0 when all went well.
UNWATCHED inline int launch(Launch& l, char* message, size_t size) {
  running = &l;
  l.threads = l.block.x * l.block.y * l.block.z;
  l.chance = l.seed * 0x9e3779b97f4a7c15ull + 1;
  l.fibres = new Fibre[l.threads];
  l.stacks = (char*)malloc(STACK * l.threads);
  l.ready = (unsigned*)malloc(sizeof(unsigned) * 2 * l.threads);
#ifdef EMULATOR_CLOCKS
  l.clock = __tsan_get_current_fiber();
#endif
  static char alternative[64 * 1024];
  stack_t stack = {}, old_stack;
  stack.ss_sp = alternative;
  stack.ss_size = sizeof alternative;
  struct sigaction action = {}, old_fault, old_bus;
  action.sa_sigaction = rescue;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
#if !defined(EMULATOR_CLOCKS) && !defined(EMULATOR_STACKS)
  sigaltstack(&stack, &old_stack);
  sigaction(SIGSEGV, &action, &old_fault);
  sigaction(SIGBUS, &action, &old_bus);
  if (sigsetjmp(l.rescue, 1) == 0)
#endif
    for (l.at.z = 0; l.at.z < l.grid.z && !l.failed; l.at.z++)
      for (l.at.y = 0; l.at.y < l.grid.y && !l.failed; l.at.y++)
        for (l.at.x = 0; l.at.x < l.grid.x && !l.failed; l.at.x++) run_block();
#if !defined(EMULATOR_CLOCKS) && !defined(EMULATOR_STACKS)
  sigaction(SIGSEGV, &old_fault, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
#endif
  delete[] l.fibres;
  free(l.stacks);
  free(l.ready);
  if (l.failed) snprintf(message, size, "%s", l.message);
  running = nullptr;
  return l.failed;
}

// ---- kernels by name ----

struct Entry {
  const char* name;
  const char* (*check)(const size_t* sizes, int count);
  void (*call)(void** arguments);
};

template <class... A, size_t... I> void call_with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <class... A> const char* check_sizes(void (*)(A...), const size_t* sizes, int count) {
  const size_t wanted[] = {sizeof(A)...};
  if (count != (int)sizeof...(A)) return "wrong number of arguments";
  for (int i = 0; i < count; i++)
    if (sizes[i] != wanted[i]) return "an argument of the wrong size";
  return nullptr;
}
template <class... A> void call(void (*kernel)(A...), void** arguments) {
  call_with(kernel, arguments, std::index_sequence_for<A...>{});
}
}  // namespace emulator

#define threadIdx (emulator::running->current->thread)
#define blockIdx (emulator::running->at)
#define blockDim (emulator::running->block)
#define gridDim (emulator::running->grid)
#define __syncthreads() emulator::wait_for_block()
#define __syncwarp() emulator::wait_for_warp()
#define SHARED_MEMORY(name) unsigned char* name = emulator::running->shared

#define EMULATE(kernel)                                                                                        \
  static const char* check_##kernel(const size_t* sizes, int count) { return emulator::check_sizes(kernel, sizes, count); } \
  static void call_##kernel(void** arguments) { emulator::call(kernel, arguments); }                         \
  static const emulator::Entry entry_##kernel = {#kernel, check_##kernel, call_##kernel};
