// What one core of this machine can do at most: fused multiply-adds whose operand lies in a register, in L1, in L2 or in
// L3, in GFLOP/s, and a stream from memory in GB/s. Prints JSON. Built and run by kernels.py with -O3 -march=native.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#ifdef __AVX512F__
using F = __m512;
static F all(float x) { return _mm512_set1_ps(x); }
static F load(const float* p) { return _mm512_load_ps(p); }
static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
#else
using F = __m256;
static F all(float x) { return _mm256_set1_ps(x); }
static F load(const float* p) { return _mm256_load_ps(p); }
static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
#endif
constexpr int W = sizeof(F) / 4, SUMS = 8;
static F sums[SUMS];  // what a loop found, or the compiler would leave it out

static double seconds(void (*what)(const float*, const std::vector<int>&, long), const float* data,
                      const std::vector<int>& rows, long times) {
  std::vector<double> taken;
  for (int i = 0; i < 7; i++) {
    auto began = std::chrono::steady_clock::now();
    what(data, rows, times);
    asm volatile("" : : "r"(sums) : "memory");
    taken.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }
  std::nth_element(taken.begin(), taken.begin() + 3, taken.end());
  return taken[3];
}

static void in_registers(const float* data, const std::vector<int>&, long times) {
  F s[SUMS], x = all(data[0]), w = all(1e-9f);
  for (F& each : s) each = all(0);
  for (long i = 0; i < times; i++) {
    for (F& each : s) each = fma(x, w, each);
    asm volatile("" : "+v"(x));
  }
  std::copy(s, s + SUMS, sums);
}

// As the kernel does: a weight is broadcast, and meets four vectors of a row of a tile at a place of its own.
static void in_memory(const float* data, const std::vector<int>& rows, long times) {
  F s[SUMS];
  for (F& each : s) each = all(0);
  for (long i = 0; i < times; i++)
    for (size_t r = 0; r + 1 < rows.size(); r += 2)
      for (int half = 0; half < 2; half++) {
        const float* row = data + rows[r + half];
        const F w = all(row[0]);
        for (int v = 0; v < 4; v++) s[half * 4 + v] = fma(load(row + v * W), w, s[half * 4 + v]);
      }
  std::copy(s, s + SUMS, sums);
}

static void stream(const float* data, const std::vector<int>& rows, long times) {
  F s[SUMS];
  for (F& each : s) each = all(0);
  for (long i = 0; i < times; i++)
    for (long at = 0; at < rows[0]; at += SUMS * W)
      for (int v = 0; v < SUMS; v++) s[v] = fma(load(data + at + v * W), all(0.0f), s[v]);
  std::copy(s, s + SUMS, sums);
}

int main() {
  const long floats = 64L << 20;
  float* data = (float*)std::aligned_alloc(64, floats * 4);
  std::fill(data, data + floats, 1e-3f);
  std::mt19937 draw(0);
  const long times = 40'000'000;
  std::printf("{\"registers\": %.1f", times * SUMS * W * 2 / seconds(in_registers, data, {}, times) / 1e9);
  for (auto [name, kilobytes] : {std::pair{"L1", 16L}, {"L2", 384L}, {"L3", 8192L}}) {
    std::vector<int> rows(kilobytes * 1024 / (4 * W * 4));
    for (size_t i = 0; i < rows.size(); i++) rows[i] = i * 4 * W;
    std::shuffle(rows.begin(), rows.end(), draw);
    const long again = times / (rows.size() * 4) + 1;
    std::printf(", \"%s\": %.1f", name, again * rows.size() * 4 * W * 2 / seconds(in_memory, data, rows, again) / 1e9);
  }
  std::printf(", \"memory\": %.1f}\n", floats * 4 / seconds(stream, data, {(int)floats}, 1) / 1e9);
}
