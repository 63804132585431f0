// The arithmetic, for one instruction set at a time: native.cpp includes this file once for each, in a namespace.
//
// Activations lie in tiles: [features][64 tokens] of fp32, a token in one lane, so that everything but the products
// goes down the features without a shuffle. Products of int8 read tiles of [features / 4][64 tokens][4] uint8.
// A strip is up to four vectors of a tile: 64 tokens with AVX-512, 32 with AVX2.

#if LTH_AVX512
using F = __m512;
using I = __m512i;
constexpr int W = 16, ROWS = 4, KEYS = 4;
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline F all(float x) { return _mm512_set1_ps(x); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F quotient(F a, F b) { return _mm512_div_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F larger(F a, F b) { return _mm512_max_ps(a, b); }  // b where one is NaN
static inline F smaller(F a, F b) { return _mm512_min_ps(a, b); }
static inline F rounded(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F root(F x) { return _mm512_sqrt_ps(x); }
static inline I integers(F x) { return _mm512_cvtps_epi32(x); }
static inline F floats(I x) { return _mm512_cvtepi32_ps(x); }
static inline F bits(I x) { return _mm512_castsi512_ps(x); }
static inline I load_i(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_i(void* p, I x) { _mm512_storeu_si512(p, x); }
static inline I all_i(int32_t x) { return _mm512_set1_epi32(x); }
static inline I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
static inline I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
static inline I mul_i(I a, I b) { return _mm512_mullo_epi32(a, b); }
static inline I or_i(I a, I b) { return _mm512_or_si512(a, b); }
template <int N> static inline I left(I x) { return _mm512_slli_epi32(x, N); }
static inline bool any_not_zero(F x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0; }
#else
using F = __m256;
using I = __m256i;
constexpr int W = 8, ROWS = 2, KEYS = 2;
static inline F load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
static inline F all(float x) { return _mm256_set1_ps(x); }
static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
static inline F quotient(F a, F b) { return _mm256_div_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static inline F larger(F a, F b) { return _mm256_max_ps(a, b); }
static inline F smaller(F a, F b) { return _mm256_min_ps(a, b); }
static inline F rounded(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline F root(F x) { return _mm256_sqrt_ps(x); }
static inline I integers(F x) { return _mm256_cvtps_epi32(x); }
static inline F floats(I x) { return _mm256_cvtepi32_ps(x); }
static inline F bits(I x) { return _mm256_castsi256_ps(x); }
static inline I load_i(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline void store_i(void* p, I x) { _mm256_storeu_si256((__m256i*)p, x); }
static inline I all_i(int32_t x) { return _mm256_set1_epi32(x); }
static inline I add_i(I a, I b) { return _mm256_add_epi32(a, b); }
static inline I sub_i(I a, I b) { return _mm256_sub_epi32(a, b); }
static inline I mul_i(I a, I b) { return _mm256_mullo_epi32(a, b); }
static inline I or_i(I a, I b) { return _mm256_or_si256(a, b); }
template <int N> static inline I left(I x) { return _mm256_slli_epi32(x, N); }
static inline bool any_not_zero(F x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ)) != 0;
}
#endif

constexpr int STRIP = 4 * W, SPAN = 4 * W;

// What a stored unit is: one fp32 weight, or four int8 weights along K that meet four uint8 activations.
struct Fp32 {
  using A = F;
  using B = F;
  static inline A load_a(const float* p) { return load(p); }
  static inline void store_a(float* p, A x) { store(p, x); }
  static inline A nothing() { return all(0.0f); }
  static inline B weight(int32_t unit) { return bits(all_i(unit)); }
  static inline A mac(A sum, const char* x, B w) { return fma(load((const float*)x), w, sum); }
};

struct Int8 {
  using A = I;
  static inline A load_a(const float* p) { return load_i(p); }
  static inline void store_a(float* p, A x) { store_i(p, x); }
  static inline A nothing() { return all_i(0); }
#if LTH_AVX512
  using B = I;
  static inline B weight(int32_t unit) { return all_i(unit); }
  static inline A mac(A sum, const char* x, B w) { return _mm512_dpbusd_epi32(sum, load_i(x), w); }
#else
  struct B {
    I even, odd;
  };
  static inline B weight(int32_t unit) {
    I w = all_i(unit);
    return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
  }
  static inline A mac(A sum, const char* x, B w) {  // by halves in 16 bits: vpmaddubsw would saturate
    I four = load_i(x);
    I even = _mm256_madd_epi16(_mm256_and_si256(four, _mm256_set1_epi16(255)), w.even);
    return add_i(add_i(sum, even), _mm256_madd_epi16(_mm256_srli_epi16(four, 8), w.odd));
  }
#endif
};

static inline F exponential(F x) {
  // 2^n · e^r with |r| ≤ ln 2 / 2, e^r by its Taylor polynomial of degree 6: relative error below 2e-7. NaN stays.
  x = smaller(all(88.0f), larger(all(-87.0f), x));
  F n = rounded(mul(x, all(1.44269504f)));
  F r = fma(n, all(-0.693145752f), x);
  r = fma(n, all(-1.42860677e-6f), r);
  F p = all(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, all(c));
  return mul(p, bits(left<23>(add_i(integers(n), all_i(127)))));
}

static inline F error_function(F x) {
  // x P(x²) / Q(x²) on [-4, 4]: the minimax pair of Eigen's float erf, a few units in the last place.
  x = smaller(all(4.0f), larger(all(-4.0f), x));
  F s = mul(x, x), p = all(-2.72614225801306e-10f), q = all(-1.45660718464996e-05f);
  for (float c : {2.77068142495902e-08f, -2.10102402082508e-06f, -5.69250639462346e-05f, -7.34990630326855e-04f,
                  -2.95459980854025e-03f, -1.60960333262415e-02f})
    p = fma(p, s, all(c));
  for (float c : {-2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f})
    q = fma(q, s, all(c));
  return quotient(mul(x, p), q);
}

static inline F activate(F x, int activation) {
  if (activation == GELU) return mul(mul(all(0.5f), x), add(all(1.0f), error_function(mul(x, all(0.70710678f)))));
  if (activation == GELU_TANH) {
    F u = mul(all(1.5957691216f), fma(mul(mul(x, x), x), all(0.044715f), x));  // 2 √(2/π) (x + 0.044715 x³)
    return quotient(x, add(all(1.0f), exponential(sub(all(0.0f), u))));
  }
  if (activation == RELU) return larger(all(0.0f), x);
  return x;
}

static inline F value(const Matrix&, const Place&, int, int, F sum) { return sum; }

static inline F value(const Matrix& m, const Place& at, int row, int v, I sum) {
  I exact = sub_i(sum, mul_i(load_i(at.zero + v * W), all_i(m.sums[row])));
  return mul(floats(exact), mul(load(at.scale + v * W), all(m.scales[row])));
}

template <class Op, int NV>
static inline void finish(const Matrix& m, const Place& at, int row) {
  float* out = at.out + row * TILE;
  const F bias = all(at.bias ? at.bias[row] : 0.0f);
  for (int v = 0; v < NV; v++) {
    F y = add(value(m, at, row, v, Op::load_a(out + v * W)), bias);
    if (at.residual) y = add(y, load(at.residual + row * TILE + v * W));
    store(out + v * W, activate(y, at.activation));
  }
}

// The steps of ROWS of a group's four rows, from row `first` of them; `to` has the rows' sums so far.
template <class Op, int NV, bool BEGINS>
static inline void run(const char* x, const uint16_t* offsets, const int32_t* units, int steps, float* const* to) {
  typename Op::A sum[ROWS][NV];
  for (int g = 0; g < ROWS; g++)
    for (int v = 0; v < NV; v++) sum[g][v] = BEGINS ? Op::nothing() : Op::load_a(to[g] + v * W);
  for (int i = 0; i < steps; i++, offsets += 4, units += 4) {
    uint64_t four = 0;
    std::memcpy(&four, offsets, 2 * ROWS);
    for (int g = 0; g < ROWS; g++) {
      const char* p = x + (uint16_t)(four >> 16 * g);
      const typename Op::B w = Op::weight(units[g]);
      for (int v = 0; v < NV; v++) sum[g][v] = Op::mac(sum[g][v], p + v * W * 4, w);
    }
  }
  for (int g = 0; g < ROWS; g++)
    for (int v = 0; v < NV; v++) Op::store_a(to[g] + v * W, sum[g][v]);
}

template <class Op, int NV>
static void strip(const Matrix& m, const Place& at, int row_block) {
  alignas(64) float unused[NV * W];
  for (int k = 0; k < m.k_blocks; k++) {
    const Start* start = m.starts + (int64_t)row_block * m.k_blocks + k;
    const char* x = at.x + (int64_t)k * m.k_block * TILE * 4;
    int64_t step = start->step;
    for (int64_t g = start->group; g < start[1].group; step += m.groups[g++].steps) {
      const Group& group = m.groups[g];
      float* to[4];
      for (int i = 0; i < 4; i++)
        to[i] = group.rows[i] == NO_ROW ? unused : at.out + (row_block * m.row_block + group.rows[i]) * TILE;
      for (int i = 0; i < 4; i += ROWS) {
        const uint16_t* offsets = m.offsets + step * 4 + i;
        const int32_t* units = m.units + step * 4 + i;
        if (k) run<Op, NV, false>(x, offsets, units, group.steps, to + i);
        else run<Op, NV, true>(x, offsets, units, group.steps, to + i);
      }
      if (k == m.k_blocks - 1)
        for (int i = 0; i < 4; i++)
          if (group.rows[i] != NO_ROW) finish<Op, NV>(m, at, row_block * m.row_block + group.rows[i]);
    }
  }
}

template <class Op>
static void product(const Matrix& m, Place at, int row_block, int tokens) {
  for (int t = 0; t < tokens; t += SPAN) {
    switch ((std::min(tokens - t, SPAN) + W - 1) / W) {
      case 1: strip<Op, 1>(m, at, row_block); break;
      case 2: strip<Op, 2>(m, at, row_block); break;
      case 3: strip<Op, 3>(m, at, row_block); break;
      default: strip<Op, 4>(m, at, row_block);
    }
    at.x += SPAN * 4, at.out += SPAN;
    if (at.residual) at.residual += SPAN;
    if (at.scale) at.scale += SPAN, at.zero += SPAN;
  }
}

static bool is_finite(const float* x, int64_t features, int tokens) {
  F sum = all(0.0f);
  for (int64_t k = 0; k < features; k++)
    for (int t = 0; t < tokens; t += W) sum = fma(load(x + k * TILE + t), all(0.0f), sum);
  return !any_not_zero(sum);
}

// x → uint8 with a scale and a zero point for each token: q = round(x / scale) + zero, over [min, max] with 0 in it.
// A token that is not finite gets the scale NaN, and so NaN in every output.
static void quantize(const float* x, int64_t features, int tokens, uint8_t* out, float* scale, int32_t* zero) {
  for (int t = 0; t < tokens; t += W) {
    F low = all(0.0f), high = all(0.0f), poison = all(0.0f);
    for (int64_t k = 0; k < features; k++) {
      F v = load(x + k * TILE + t);
      low = smaller(v, low), high = larger(v, high), poison = fma(v, all(0.0f), poison);
    }
    F step = larger(all(1e-30f), mul(sub(high, low), all(1.0f / 255))), inverse = quotient(all(1.0f), step);
    F origin = rounded(sub(all(0.0f), mul(low, inverse)));
    store(scale + t, add(step, poison));
    store_i(zero + t, integers(origin));
    for (int64_t k = 0; k < features; k += 4) {
      I q[4];
      for (int i = 0; i < 4; i++) {
        F v = k + i < features ? load(x + (k + i) * TILE + t) : all(0.0f);
        q[i] = integers(smaller(all(255.0f), larger(all(0.0f), add(rounded(mul(v, inverse)), origin))));
      }
      store_i(out + (k * TILE / 4 + t) * 4, or_i(or_i(q[0], left<8>(q[1])), or_i(left<16>(q[2]), left<24>(q[3]))));
    }
  }
}

// In place: (x − mean) / √(var + eps) · weight + bias down the features of each token.
static void layer_norm(float* x, int64_t features, int tokens, const float* weight, const float* bias, float eps) {
  for (int t = 0; t < tokens; t += W) {
    F sum = all(0.0f), squares = all(0.0f), size = all(1.0f / features);
    for (int64_t k = 0; k < features; k++) sum = add(sum, load(x + k * TILE + t));
    F mean = mul(sum, size);
    for (int64_t k = 0; k < features; k++) {
      F d = sub(load(x + k * TILE + t), mean);
      squares = fma(d, d, squares);
    }
    F inverse = quotient(all(1.0f), root(fma(squares, size, all(eps))));
    for (int64_t k = 0; k < features; k++) {
      F y = mul(sub(load(x + k * TILE + t), mean), inverse);
      store(x + k * TILE + t, fma(y, all(weight[k]), all(bias[k])));
    }
  }
}

// out[n][strip] = Σ_k a(k, n) · b[k][strip] for N ≤ KEYS rows: `a` is walked with two strides (along k and along n).
template <int N>
static inline void dense(const float* a, int64_t along_k, int64_t along_n, const float* b, int64_t depth, float* out,
                         F factor[4], int nv) {
  F sum[N][4];
  for (int n = 0; n < N; n++)
    for (int v = 0; v < 4; v++) sum[n][v] = all(0.0f);
  for (int64_t k = 0; k < depth; k++) {
    F x[4] = {load(b + k * TILE), load(b + k * TILE + W), load(b + k * TILE + 2 * W), load(b + k * TILE + 3 * W)};
    for (int n = 0; n < N; n++) {
      F w = all(a[k * along_k + n * along_n]);
      for (int v = 0; v < 4; v++) sum[n][v] = fma(x[v], w, sum[n][v]);
    }
  }
  for (int n = 0; n < N; n++)
    for (int v = 0; v < nv; v++) {
      float* at = out + n * TILE + v * W;
      store(at, factor ? mul(sum[n][v], factor[v]) : add(sum[n][v], load(at)));
    }
}

// One head of one tile of queries. q, k, v: tiles of the sequence at the head's first feature, `stride` floats from
// tile to tile; mask: (sequence) added to the scores; scores: room for `keys` rows of a tile; out: the head's rows.
static void attend(const float* q, const float* k, const float* v, int64_t stride, int64_t keys, int64_t width,
                   float scaling, const float* mask, float* scores, float* out, int tokens) {
  for (int t = 0; t < tokens; t += STRIP) {
    const int nv = (std::min(tokens - t, STRIP) + W - 1) / W;
    F scale[4] = {all(scaling), all(scaling), all(scaling), all(scaling)}, high[4], sum[4];
    for (int64_t j = 0; j < keys; j += KEYS)  // a last group may run past the end, inside its tile
      dense<KEYS>(k + j / TILE * stride + j % TILE, TILE, 1, q + t, width, scores + j * TILE + t, scale, 4);
    for (int n = 0; n < 4; n++) high[n] = all(-INFINITY), sum[n] = all(0.0f);
    for (int64_t j = 0; j < keys; j++)
      for (int n = 0; n < nv; n++) {
        float* at = scores + j * TILE + t + n * W;
        F s = mask ? add(load(at), all(mask[j])) : load(at);
        store(at, s);
        high[n] = larger(high[n], s);
      }
    for (int64_t j = 0; j < keys; j++)
      for (int n = 0; n < nv; n++) {
        float* at = scores + j * TILE + t + n * W;
        F e = exponential(sub(load(at), high[n]));
        store(at, e);
        sum[n] = add(sum[n], e);
      }
    F share[4];
    for (int n = 0; n < 4; n++) share[n] = n < nv ? quotient(all(1.0f), sum[n]) : all(0.0f);
    for (int64_t d = 0; d < width; d++)
      for (int n = 0; n < nv; n++) store(out + d * TILE + t + n * W, all(0.0f));
    for (int64_t j = 0; j < keys; j += TILE) {
      const int64_t depth = std::min<int64_t>(TILE, keys - j), whole = width - width % KEYS;
      const float *values = v + j / TILE * stride, *weights = scores + j * TILE + t;
      for (int64_t d = 0; d < whole; d += KEYS)
        dense<KEYS>(values + d * TILE, 1, TILE, weights, depth, out + d * TILE + t, nullptr, nv);
      for (int64_t d = whole; d < width; d++)
        dense<1>(values + d * TILE, 1, TILE, weights, depth, out + d * TILE + t, nullptr, nv);
    }
    for (int64_t d = 0; d < width; d++)
      for (int n = 0; n < nv; n++) {
        float* at = out + d * TILE + t + n * W;
        store(at, mul(load(at), share[n]));
      }
  }
}

static inline void transpose8(const float* from, int64_t from_row, float* to, int64_t to_row) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * from_row);
  for (int i = 0; i < 8; i += 2) s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(s[i + j], s[i + 2 + j], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(s[i + j], s[i + 2 + j], 0xee);
    }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + i * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_row, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// (rows, columns) → (columns, rows) in fp32; both strides in floats.
static void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  const int64_t r8 = rows / 8 * 8, c8 = columns / 8 * 8;
  for (int64_t c = 0; c < c8; c += 8)
    for (int64_t r = 0; r < r8; r += 8) transpose8(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = r < r8 ? c8 : 0; c < columns; c++) to[c * to_row + r] = from[r * from_row + c];
}
