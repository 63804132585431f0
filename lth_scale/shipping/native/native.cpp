// Products of sparse weights with dense activations on x86, as operators of torch: packing, one Linear, one layer.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using std::optional;

constexpr int TILE = 64;    // tokens
constexpr int AT_ONCE = 2;  // tiles that a layer takes together
constexpr int MAGIC = 0x3153544c, HEADER = 8;
constexpr uint16_t NO_ROW = 0xffff;
enum Activation { NONE, GELU, GELU_TANH, RELU };

// A packed matrix is one int32 tensor: MAGIC, rows, features, is_int8, row_block, k_block, groups, steps; then these
// arrays one after the other. A unit is an fp32 weight, or four int8 weights along K; rows and units are cut into
// blocks, and within a block the rows, sorted by how much they store, go in groups of four that take as many steps.
struct Start {
  int32_t group, step;  // the first of a (row block, unit block); one more at the end
};
struct Group {
  int32_t steps;
  uint16_t rows[4];  // in the row block; NO_ROW fills the last group
};
struct Matrix {
  int64_t n_rows, features, units_a_row;
  int row_blocks, k_blocks, row_block, k_block;
  bool is_int8;
  int64_t n_groups, n_steps;
  const Start* starts;
  const Group* groups;
  const uint16_t* offsets;  // (steps, 4): bytes from the block's first unit of a tile; a step that a row does not need
  const int32_t* units;     // (steps, 4): is 0 at a unit that the row does not store
  const float* scales;      // int8: (rows)
  const int32_t* sums;      // int8: (rows), of the weights
};

// Where one strip of one tile reads and writes.
struct Place {
  const char* x;          // the strip's first unit
  float* out;             // the strip in row 0 of the output tile
  const float* residual;  // the same in a tile that is added, or null
  const float* scale;     // int8: the tokens' scales and zero points
  const int32_t* zero;
  const float* bias;
  int activation;
};

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
namespace avx512 {
#define LTH_AVX512 1
#include "kernels.h"
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#undef LTH_AVX512
#define LTH_AVX512 0
#include "kernels.h"
}  // namespace avx2
#pragma GCC pop_options

struct Kernels {
  const char* name;
  decltype(&avx2::product<avx2::Fp32>) fp32;
  decltype(&avx2::product<avx2::Int8>) int8;
  decltype(&avx2::is_finite) is_finite;
  decltype(&avx2::quantize) quantize;
  decltype(&avx2::layer_norm) layer_norm;
  decltype(&avx2::attend) attend;
  decltype(&avx2::transpose) transpose;
};
const Kernels AVX512 = {"avx512", avx512::product<avx512::Fp32>, avx512::product<avx512::Int8>, avx512::is_finite,
                        avx512::quantize, avx512::layer_norm, avx512::attend, avx512::transpose};
const Kernels AVX2 = {"avx2", avx2::product<avx2::Fp32>, avx2::product<avx2::Int8>, avx2::is_finite,
                      avx2::quantize, avx2::layer_norm, avx2::attend, avx2::transpose};
const Kernels* kernels = nullptr;

bool runs(const std::string& name) {
  __builtin_cpu_init();
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return name == "avx512" && runs("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Take an instruction set ("" the best there is) and say which is in use; "" where none of ours runs here.
std::string use(const std::string& name) {
  if (name == "avx512" || (name.empty() && !kernels && runs("avx512"))) {
    TORCH_CHECK_VALUE(runs("avx512"), "avx512: this processor lacks it (or VNNI); use avx2");
    kernels = &AVX512;
  } else if (name == "avx2" || (name.empty() && !kernels && runs("avx2"))) {
    TORCH_CHECK_VALUE(runs("avx2"), "avx2: this processor lacks it");
    kernels = &AVX2;
  } else {
    TORCH_CHECK_VALUE(name.empty(), name, ": no instruction set of these kernels; use avx512 or avx2");
  }
  return kernels ? kernels->name : "";
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The arrays of a packed matrix; raises ValueError where its sizes do not add up.
Matrix view(const Tensor& packed) {
  TORCH_CHECK_VALUE(packed.scalar_type() == at::kInt && packed.dim() == 1 && packed.is_contiguous() &&
                        packed.is_cpu() && packed.numel() >= HEADER,
                    "not a packed matrix: give the int32 tensor of pack");
  const int32_t *at = packed.const_data_ptr<int32_t>(), *end = at + packed.numel();
  TORCH_CHECK_VALUE(at[0] == MAGIC, "not a packed matrix, or of another version; export it again");
  for (int i = 1; i < HEADER; i++) TORCH_CHECK_VALUE(at[i] >= 0, "a packed matrix is damaged: its header");
  Matrix m;
  m.n_rows = at[1], m.features = at[2], m.is_int8 = at[3], m.row_block = at[4], m.k_block = at[5];
  m.n_groups = at[6], m.n_steps = at[7];
  TORCH_CHECK_VALUE(m.n_rows && m.features && m.row_block && m.row_block < NO_ROW && m.k_block && m.k_block <= 256,
                    "a packed matrix is damaged: its header");
  m.units_a_row = m.is_int8 ? ceil_div(m.features, 4) : m.features;
  m.row_blocks = ceil_div(m.n_rows, m.row_block), m.k_blocks = ceil_div(m.units_a_row, m.k_block);
  at += HEADER;
  m.starts = (const Start*)at, at += ((int64_t)m.row_blocks * m.k_blocks + 1) * 2;
  m.groups = (const Group*)at, at += m.n_groups * 3;
  m.offsets = (const uint16_t*)at, at += m.n_steps * 2;
  m.units = at, at += m.n_steps * 4;
  m.scales = (const float*)at, at += m.is_int8 ? m.n_rows : 0;
  m.sums = at, at += m.is_int8 ? m.n_rows : 0;
  TORCH_CHECK_VALUE(at == end, "a packed matrix is damaged: its size");
  return m;
}

// units: int32 (rows, units a row), the bits of a unit, 0 where nothing is stored; scales: fp32 (rows) for int8.
Tensor pack(const Tensor& units, int64_t features, const optional<Tensor>& scales, int64_t row_block, int64_t k_block) {
  TORCH_CHECK_VALUE(units.dim() == 2 && units.scalar_type() == at::kInt && units.numel() > 0, "pack: int32 units");
  const Tensor held = units.contiguous();
  const int32_t* from = held.const_data_ptr<int32_t>();
  const int64_t n = held.size(0), width = held.size(1);
  std::vector<Start> starts;
  std::vector<Group> groups;
  std::vector<uint16_t> offsets;
  std::vector<int32_t> stored;
  for (int64_t r0 = 0; r0 < n; r0 += row_block)
    for (int64_t k0 = 0; k0 < width; k0 += k_block) {
      const int64_t size = std::min(row_block, n - r0), depth = std::min(k_block, width - k0);
      std::vector<std::vector<uint16_t>> lists(size);
      std::vector<uint16_t> spare(size, 0);  // a unit that the row does not store
      for (int64_t r = 0; r < size; r++)
        for (int64_t k = depth - 1; k >= 0; k--)
          if (from[(r0 + r) * width + k0 + k]) lists[r].push_back(k);
          else spare[r] = k;
      for (auto& list : lists) std::reverse(list.begin(), list.end());
      std::vector<uint16_t> order(size);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](uint16_t a, uint16_t b) { return lists[a].size() > lists[b].size(); });
      order.resize(ceil_div(size, 4) * 4, NO_ROW);
      starts.push_back({(int32_t)groups.size(), (int32_t)(offsets.size() / 4)});
      for (size_t g = 0; g < order.size(); g += 4) {
        Group group = {(int32_t)lists[order[g]].size(), {order[g], order[g + 1], order[g + 2], order[g + 3]}};
        groups.push_back(group);
        for (int32_t i = 0; i < group.steps; i++)
          for (uint16_t row : group.rows) {
            const bool has = row != NO_ROW && i < (int32_t)lists[row].size();
            const int64_t k = has ? lists[row][i] : row == NO_ROW ? 0 : spare[row];
            offsets.push_back(k * TILE * 4);
            stored.push_back(has ? from[(r0 + row) * width + k0 + k] : 0);
          }
      }
    }
  starts.push_back({(int32_t)groups.size(), (int32_t)(offsets.size() / 4)});
  TORCH_CHECK_VALUE(stored.size() < (1LL << 31), "pack: too large a matrix");
  std::vector<int32_t> sums;
  if (scales)
    for (int64_t r = 0; r < n; r++) {
      const int8_t* row = (const int8_t*)(from + r * width);
      sums.push_back(std::accumulate(row, row + width * 4, 0));
    }
  const int64_t total = HEADER + starts.size() * 2 + groups.size() * 3 + offsets.size() / 2 + stored.size() +
                        2 * sums.size();
  Tensor packed = at::empty({total}, at::kInt);
  int32_t* to = packed.mutable_data_ptr<int32_t>();
  const int32_t header[HEADER] = {MAGIC, (int32_t)n, (int32_t)features, scales.has_value(), (int32_t)row_block,
                                  (int32_t)k_block, (int32_t)groups.size(), (int32_t)(offsets.size() / 4)};
  auto put = [&](const void* data, size_t bytes) { std::memcpy(to, data, bytes), to += bytes / 4; };
  put(header, sizeof header);
  put(starts.data(), starts.size() * sizeof(Start));
  put(groups.data(), groups.size() * sizeof(Group));
  put(offsets.data(), offsets.size() * 2);
  put(stored.data(), stored.size() * 4);
  if (scales) put(scales->contiguous().const_data_ptr<float>(), n * 4);
  put(sums.data(), sums.size() * 4);
  return packed;
}

// Tokens in each tile of a sequence: all of TILE but the last.
struct Tiles {
  int64_t sequences, length;
  int64_t a_sequence() const { return ceil_div(length, TILE); }
  int64_t count() const { return sequences * a_sequence(); }
  int tokens(int64_t tile) const { return std::min<int64_t>(TILE, length - tile % a_sequence() * TILE); }
};

const float* data(const optional<Tensor>& t) { return t && t->defined() ? t->const_data_ptr<float>() : nullptr; }

// 0 · x for every weight that is not stored: NaN where the dense product has one. Added to the residual.
Tensor with_poison(const Matrix& m, const float* x, const float* residual) {
  Tensor out = at::zeros({m.n_rows, TILE});
  float* to = out.mutable_data_ptr<float>();
  if (residual) std::memcpy(to, residual, out.nbytes());
  std::vector<bool> stored(m.n_rows * m.units_a_row);
  for (int64_t b = 0, group = 0, step = 0; b < (int64_t)m.row_blocks * m.k_blocks; b++)
    for (; group < m.starts[b + 1].group; step += m.groups[group++].steps)
      for (int64_t i = step * 4; i < (step + m.groups[group].steps) * 4; i++) {
        const int64_t row = b / m.k_blocks * m.row_block + m.groups[group].rows[i % 4];
        const int64_t k = b % m.k_blocks * m.k_block + m.offsets[i] / (TILE * 4);
        if (m.units[i]) stored[row * m.units_a_row + k] = true;
      }
  for (int64_t r = 0; r < m.n_rows; r++)
    for (int64_t k = 0; k < m.features; k++)
      if (!stored[r * m.features + k])
        for (int t = 0; t < TILE; t++) to[r * TILE + t] += 0.0f * x[k * TILE + t];
  return out;
}

// What products read: fp32 tiles, and for int8 matrices the same as uint8 with each token's scale and zero point.
struct Input {
  Tensor x, bytes, scale, zero;
  std::vector<char> finite;  // by tile; looked at for fp32
};

Input prepare(const Tensor& x, const Tiles& tiles, const Matrix& m) {
  const int64_t count = tiles.count(), depth = m.units_a_row * TILE * 4;
  Input in = {x, {}, {}, {}, std::vector<char>(count, true)};
  if (m.is_int8) {
    in.bytes = at::empty({count, depth}, at::kByte);
    in.scale = at::empty({count, TILE}), in.zero = at::empty({count, TILE}, at::kInt);
  }
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float* tile = x.const_data_ptr<float>() + t * m.features * TILE;
      if (m.is_int8)
        kernels->quantize(tile, m.features, tiles.tokens(t), in.bytes.mutable_data_ptr<uint8_t>() + t * depth,
                          in.scale.mutable_data_ptr<float>() + t * TILE, in.zero.mutable_data_ptr<int32_t>() + t * TILE);
      else
        in.finite[t] = kernels->is_finite(tile, m.features, tiles.tokens(t));
    }
  });
  return in;
}

// fp32 (tiles, rows, TILE): activation(W x + bias + residual).
Tensor multiply(const Matrix& m, const Input& in, const Tiles& tiles, const float* bias,
                const optional<Tensor>& residual, int activation) {
  const int64_t count = tiles.count(), depth = m.units_a_row * TILE * 4, out_size = m.n_rows * TILE;
  TORCH_CHECK_VALUE(in.x.numel() == count * m.features * TILE && m.is_int8 == in.bytes.defined(),
                    "a matrix of ", m.features, " features is given others, or another dtype than its neighbours");
  const float *from = in.x.const_data_ptr<float>(), *plus = data(residual);
  Tensor out = at::empty({count, m.n_rows, TILE});
  std::vector<Tensor> poisoned(count);
  for (int64_t t = 0; t < count; t++)
    if (!in.finite[t]) poisoned[t] = with_poison(m, from + t * m.features * TILE, plus ? plus + t * out_size : nullptr);
  at::parallel_for(0, m.row_blocks * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t t = i % count;  // the row block's weights stay in cache while the tiles pass
      Place at = {(const char*)(from + t * m.features * TILE), out.mutable_data_ptr<float>() + t * out_size,
                  in.finite[t] ? (plus ? plus + t * out_size : nullptr) : poisoned[t].const_data_ptr<float>(),
                  nullptr, nullptr, bias, activation};
      if (m.is_int8) {
        at.x = (const char*)in.bytes.const_data_ptr<uint8_t>() + t * depth;
        at.scale = in.scale.const_data_ptr<float>() + t * TILE, at.zero = in.zero.const_data_ptr<int32_t>() + t * TILE;
      }
      (m.is_int8 ? kernels->int8 : kernels->fp32)(m, at, i / count, tiles.tokens(t));
    }
  });
  return out;
}

void check_kernels() { TORCH_CHECK(!use("").empty(), "lth_scale's kernels need AVX2 and FMA; this processor lacks them"); }

// (sequences, length, features) → (sequences, tiles, features, TILE); the lanes past the end are 0.
Tensor enter(const Tensor& x) {
  check_kernels();
  const Tensor held = x.contiguous();
  const Tiles tiles = {held.size(0), held.size(1)};
  const int64_t features = held.size(2), each = tiles.a_sequence();
  Tensor out = at::empty({tiles.sequences, each, features, TILE});
  float* to = out.mutable_data_ptr<float>();
  const float* from = held.const_data_ptr<float>();
  at::parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      float* tile = to + t * features * TILE;
      if (tiles.tokens(t) < TILE) std::memset(tile, 0, features * TILE * 4);
      const int64_t first = t / each * tiles.length + t % each * TILE;
      kernels->transpose(from + first * features, features, tiles.tokens(t), features, tile, TILE);
    }
  });
  return out;
}

// The way back: (sequences, tiles, features, TILE) → (sequences, length, features).
Tensor leave(const Tensor& x, int64_t length) {
  check_kernels();
  const Tiles tiles = {x.size(0), length};
  const int64_t features = x.size(2), each = tiles.a_sequence();
  Tensor out = at::empty({tiles.sequences, length, features});
  float* to = out.mutable_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  at::parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = t / each * tiles.length + t % each * TILE;
      kernels->transpose(from + t * features * TILE, TILE, features, tiles.tokens(t), to + first * features, features);
    }
  });
  return out;
}

// x: fp32 (…, features) → (…, rows).
Tensor linear(const Tensor& x, const Tensor& packed, int64_t rows, const optional<Tensor>& bias) {
  const Matrix m = view(packed);
  TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat && x.size(-1) == m.features && rows == m.n_rows, "linear: expected fp32 of ", m.features,
                    " features, got ", x.scalar_type(), " of ", x.size(-1));
  auto shape = x.sizes().vec();
  shape.back() = m.n_rows;
  if (x.numel() == 0) return at::empty(shape);
  const Tensor flat = x.reshape({1, -1, m.features});
  const Tiles tiles = {1, flat.size(1)};
  const Tensor out = multiply(m, prepare(enter(flat), tiles, m), tiles, data(bias), {}, NONE);
  return leave(out.view({1, tiles.count(), m.n_rows, TILE}), tiles.length).view(shape);
}

// An added mask (…, keys) that is the same for all heads and queries, as fp32 (sequences, keys).
Tensor key_mask(const Tensor& mask, const Tiles& tiles) {
  Tensor added = mask.scalar_type() == at::kBool
                     ? at::zeros({}, at::kFloat).masked_fill(mask.logical_not(), std::numeric_limits<float>::lowest())
                     : mask.to(at::kFloat).clamp_min(std::numeric_limits<float>::lowest());
  TORCH_CHECK_VALUE(added.dim() == 4 && added.size(3) == tiles.length, "attention mask: give (batch, 1, queries, keys)");
  const Tensor first = added.slice(1, 0, 1).slice(2, 0, 1);
  TORCH_CHECK_VALUE(added.eq(first).all().item<bool>(), "attention mask: it differs from query to query or head to head, "
                    "which the native encoder does not take; use the dense or csr export");
  return first.expand({tiles.sequences, 1, 1, tiles.length}).reshape({tiles.sequences, tiles.length}).contiguous();
}

void norm(Tensor& x, const Tiles& tiles, const Tensor& weight, const Tensor& bias, double eps) {
  const int64_t features = x.size(1);
  float* at = x.mutable_data_ptr<float>();
  at::parallel_for(0, tiles.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      kernels->layer_norm(at + t * features * TILE, features, tiles.tokens(t), weight.const_data_ptr<float>(),
                          bias.const_data_ptr<float>(), eps);
  });
}

// One layer of BERT on the tiles of some sequences.
Tensor layer_of_some(const Tensor& x, int64_t length, const optional<Tensor>& mask, const std::vector<Matrix>& m,
                     at::TensorList biases, at::TensorList norms, int64_t heads, double scaling, double eps,
                     int64_t activation) {
  const Tiles tiles = {x.size(0), length};
  const int64_t each = tiles.a_sequence();
  auto apply = [&](int i, const Input& in, const optional<Tensor>& residual, int act) {
    return multiply(m[i], in, tiles, biases[i].const_data_ptr<float>(), residual, act);
  };
  const Input in = prepare(x, tiles, m[0]);  // once for all three
  const Tensor q = apply(0, in, {}, NONE), k = apply(1, in, {}, NONE), v = apply(2, in, {}, NONE);
  const Tensor masks = mask ? key_mask(*mask, tiles) : Tensor();
  Tensor context = at::empty_like(q);
  const int64_t width = q.size(1) / heads, stride = q.size(1) * TILE;
  const float *qs = q.const_data_ptr<float>(), *ks = k.const_data_ptr<float>(), *vs = v.const_data_ptr<float>();
  at::parallel_for(0, tiles.count() * heads, 1, [&](int64_t begin, int64_t end) {
    const Tensor scores = at::empty({each * TILE, TILE});
    for (int64_t i = begin; i < end; i++) {
      const int64_t sequence = i / (heads * each), head = i / each % heads, tile = sequence * each + i % each;
      const int64_t keys = sequence * each * stride + head * width * TILE, queries = tile * stride + head * width * TILE;
      kernels->attend(qs + queries, ks + keys, vs + keys, stride, length, width, scaling,
                      mask ? masks.const_data_ptr<float>() + sequence * length : nullptr, scores.mutable_data_ptr<float>(),
                      context.mutable_data_ptr<float>() + queries, tiles.tokens(tile));
    }
  });
  Tensor attended = apply(3, prepare(context, tiles, m[3]), x, NONE);
  norm(attended, tiles, norms[0], norms[1], eps);
  const Tensor wide = apply(4, prepare(attended, tiles, m[4]), {}, activation);
  Tensor out = apply(5, prepare(wide, tiles, m[5]), attended, NONE);
  norm(out, tiles, norms[2], norms[3], eps);
  return out.view({tiles.sequences, each, -1, TILE});
}

// One layer of BERT on tiles (sequences, tiles, features, TILE), some sequences at a time, whose activations stay in
// cache. packed, biases: query, key, value, attention output, intermediate, output; norms: weight and bias after the
// attention and at the end.
Tensor layer(const Tensor& x, int64_t length, const optional<Tensor>& mask, at::TensorList packed, at::TensorList biases,
             at::TensorList norms, int64_t heads, double scaling, double eps, int64_t activation) {
  check_kernels();
  if (x.numel() == 0) return at::empty_like(x);
  std::vector<Matrix> m;
  for (const Tensor& each : packed) m.push_back(view(each));
  const int64_t some = std::max<int64_t>(1, std::max(AT_ONCE, at::get_num_threads()) / x.size(1));
  std::vector<Tensor> parts;
  for (int64_t first = 0; first < x.size(0); first += some) {
    const int64_t last = std::min(first + some, x.size(0));
    const bool own_mask = mask && mask->size(0) > 1;
    const optional<Tensor> masks = own_mask ? mask->slice(0, first, last) : mask;
    parts.push_back(layer_of_some(x.slice(0, first, last), length, masks, m, biases, norms, heads, scaling, eps, activation));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace

TORCH_LIBRARY(lth_scale, m) {
  m.def("use(str name) -> str", &use);
  m.def("pack(Tensor units, int features, Tensor? scales, int row_block, int k_block) -> Tensor", &pack);
  m.def("enter(Tensor x) -> Tensor");
  m.def("leave(Tensor x, int length) -> Tensor");
  m.def("linear(Tensor x, Tensor packed, int rows, Tensor? bias) -> Tensor");
  m.def("layer(Tensor x, int length, Tensor? mask, Tensor[] packed, Tensor[] biases, Tensor[] norms, int heads, "
        "float scaling, float eps, int activation) -> Tensor");
}

TORCH_LIBRARY_IMPL(lth_scale, CPU, m) {
  m.impl("enter", &enter);
  m.impl("leave", &leave);
  m.impl("linear", &linear);
  m.impl("layer", &layer);
}
