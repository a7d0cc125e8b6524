// One launch of the kernel in KERNEL (a file) by its name ENTRY.
#include KERNEL

extern "C" __attribute__((visibility("default"))) void emulate(const Launch* launch, unsigned grid, unsigned threads) {
  const Launch g = *launch;
  machine::run_grid(grid, threads, [g] { ENTRY(g); });
}
