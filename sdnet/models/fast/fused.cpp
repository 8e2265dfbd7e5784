// y = relu(norm(x)) and y = relu(shortcut + alpha * norm(x)), where norm is BatchNorm in training,
// with their gradients: two passes over memory forward, two back. Data are float32 or bfloat16 with
// the channels innermost (NHWC); what there is per channel is float32. fused.py calls it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

#if defined __AVX512F__  // floats in a vector: as many as in a register, or compilers do badly
constexpr int64_t WIDTH = 16;
#elif defined __AVX__
constexpr int64_t WIDTH = 8;
#else
constexpr int64_t WIDTH = 4;
#endif
constexpr int64_t LANES = 256;         // values in a row, at least
constexpr int64_t BLOCK = 32;          // rows that are summed in float32, before double takes over
constexpr int64_t AHEAD = 2048;        // bytes: what the processor would fetch too late by itself
constexpr int64_t STREAMED = 1 << 19;  // bytes per thread that are too many to be kept in a cache
constexpr int64_t ALONE = 1 << 15;     // values that are too few for a second thread

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
using Vecs = std::vector<Vec>;
struct BFloat16 {
  uint16_t bits;
};

inline Vec load(const float* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Vec load(const BFloat16* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
  Halves h;
  std::memcpy(&h, from, sizeof h);
  return reinterpret_cast<Vec>(__builtin_convertvector(h, Bits) << 16);
}

// `stream`: past the caches, which would first read what is to be overwritten; `to` is aligned.
inline void store(float* to, Vec v, bool stream) {
#if defined __AVX512F__
  if (stream) return _mm512_stream_ps(to, reinterpret_cast<__m512>(v));
#elif defined __AVX__
  if (stream) return _mm256_stream_ps(to, reinterpret_cast<__m256>(v));
#endif
  std::memcpy(to, &v, sizeof v);
}

inline void store(BFloat16* to, Vec v, bool) {
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // of two, the even one
  const Halves h = __builtin_convertvector(v == v ? nearest : Bits{} + 0x7fc0, Halves);
  std::memcpy(to, &h, sizeof h);
}

// `then` where v is positive, else 0; a NaN counts as positive, so that it is not lost.
inline Vec where_positive(Vec v, Vec then) { return v <= 0 ? Vec{} : then; }

// The data as rows of `fold` pixels, which are whole vectors whatever the number of channels; there
// may be a last row with only `rest` of its lanes.
struct Grid {
  int64_t pixels, channels, fold, lanes, vectors, whole, rest, rows;
  int threads;

  Grid(int64_t pixels, int64_t channels, int threads) : pixels(pixels), channels(channels) {
    const int64_t least = WIDTH / std::gcd(channels, WIDTH);
    fold = least * std::max<int64_t>(1, LANES / (least * channels));
    lanes = fold * channels;
    vectors = lanes / WIDTH;
    whole = pixels / fold;
    rest = pixels % fold * channels;
    rows = whole + (rest > 0);
    this->threads = pixels * channels < ALONE ? 1 : threads;
  }

  template <class Body>  // body(thread, first, last) with `count` rows divided among the threads
  void split(int64_t count, Body body) const {
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) body(t, count * t / threads, count * (t + 1) / threads);
  }

  template <class Row>  // row(i, s, q) adds row i to two sums per lane; gives those of `count` rows
  std::vector<double> sums(int64_t count, Row row) const {
    std::vector<double> total(2 * lanes * threads);
    split(count, [&](int thread, int64_t first, int64_t last) {
      double* own = &total[2 * lanes * thread];
      Vecs s(vectors), q(vectors);
      for (; first < last; first += BLOCK) {
        for (int64_t i = first; i < std::min(first + BLOCK, last); ++i) row(i, s.data(), q.data());
        for (int64_t j = 0; j < lanes; ++j) own[j] += s[j / WIDTH][j % WIDTH];
        for (int64_t j = 0; j < lanes; ++j) own[lanes + j] += q[j / WIDTH][j % WIDTH];
        std::fill(s.begin(), s.end(), Vec{});
        std::fill(q.begin(), q.end(), Vec{});
      }
    });
    for (size_t i = 2 * lanes; i < total.size(); ++i) total[i % (2 * lanes)] += total[i];
    return total;
  }

  Vecs spread(const std::vector<float>& values) const {
    Vecs out(vectors);
    for (int64_t j = 0; j < lanes; ++j) out[j / WIDTH][j % WIDTH] = values[j % channels];
    return out;
  }
};

// A tensor, or none. Where pixels are missing from the last row it is a copy, padded with zeros.
template <class T>
class Tensor {
  const Grid& grid;
  T* data;
  std::vector<std::remove_const_t<T>> last;
  bool large;

 public:
  Tensor(const Grid& grid, T* data) : grid(grid), data(data) {
    const int64_t share = grid.pixels * grid.channels * sizeof(T) / grid.threads;
    large = share >= STREAMED && reinterpret_cast<uintptr_t>(data) % 64 == 0;
    if (!data || !grid.rest) return;
    last.resize(grid.lanes);
    std::copy_n(data + grid.whole * grid.lanes, grid.rest, last.begin());
  }
  T* row(int64_t i) { return i < grid.whole ? data + i * grid.lanes : last.data(); }
  bool stream(int64_t i) const { return large && i < grid.whole; }
  void finish() const {  // after writing
    if (data) std::copy_n(last.begin(), grid.rest, data + grid.whole * grid.lanes);
  }
};

template <class T>
void forward(const T* x_data, const T* shortcut_data, T* y_data, const float* weight,
             const float* bias, float* mean, float* invstd, float* running_mean,
             float* running_var, int64_t pixels, int64_t channels, double eps, double momentum,
             double alpha, int threads) {
  const Grid grid(pixels, channels, threads);
  Tensor<const T> x(grid, x_data), shortcut(grid, shortcut_data);
  Tensor<T> y(grid, y_data);
  const bool add = shortcut_data;

  Vecs shift(grid.vectors);  // near the mean, so that what is summed is no larger than x deviates
  for (int64_t k = 0; k < 8 && grid.whole; ++k)
    for (int64_t j = 0; j < grid.vectors; ++j)
      shift[j] += load(x.row(grid.whole * k / 8) + j * WIDTH) * 0.125f;
  const auto sums = grid.sums(grid.whole, [&, shift = shift.data()](int64_t i, Vec* s, Vec* q) {
    const T* from = x.row(i);
    for (int64_t j = 0; j < grid.vectors; ++j) {
      const Vec d = load(from + j * WIDTH) - shift[j];
      s[j] += d;
      q[j] += d * d;
    }
  });
  std::vector<double> total(channels), squares(channels);  // of x
  for (int64_t j = 0; j < grid.lanes; ++j) {
    const double k = shift[j / WIDTH][j % WIDTH], s = sums[j], q = sums[grid.lanes + j];
    total[j % channels] += grid.whole * k + s;
    squares[j % channels] += grid.whole * k * k + 2 * k * s + q;
  }
  for (int64_t j = 0; j < grid.rest; ++j) {
    const double v = load(x.row(grid.whole) + j / WIDTH * WIDTH)[j % WIDTH];
    total[j % channels] += v;
    squares[j % channels] += v * v;
  }
  std::vector<float> center(channels), scale(channels), offset(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double m = total[c] / pixels, var = std::max(squares[c] / pixels - m * m, 0.0);
    center[c] = mean[c] = m;
    invstd[c] = 1 / std::sqrt(var + eps);
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * m;
    running_var[c] = (1 - momentum) * running_var[c] + momentum * var * pixels / (pixels - 1);
    scale[c] = alpha * weight[c] * invstd[c];
    offset[c] = alpha * bias[c];
  }
  const Vecs centers = grid.spread(center), scales = grid.spread(scale);
  const Vecs offsets = grid.spread(offset);
  grid.split(grid.rows, [&](int, int64_t first, int64_t last) {
    const Vec *m = centers.data(), *a = scales.data(), *b = offsets.data();
    for (int64_t i = first; i < last; ++i) {
      const T *from = x.row(i), *skip = shortcut.row(i);
      T* to = y.row(i);
      const bool stream = y.stream(i);
      for (int64_t j = 0; j < grid.vectors; ++j) {
        Vec v = (load(from + j * WIDTH) - m[j]) * a[j] + b[j];
        if (add) v += load(skip + j * WIDTH);
        store(to + j * WIDTH, where_positive(v, v), stream);
      }
    }
  });
  y.finish();
}

// Without a shortcut y is not needed: its sign follows from x.
template <class T>
void backward(const T* dy_data, const T* x_data, const T* y_data, T* dx_data, T* dshortcut_data,
              const float* weight, const float* bias, const float* mean, const float* invstd,
              float* dweight, float* dbias, int64_t pixels, int64_t channels, double alpha,
              int threads) {
  const Grid grid(pixels, channels, threads);
  Tensor<const T> dy(grid, dy_data), x(grid, x_data), y(grid, y_data);
  Tensor<T> dx(grid, dx_data), dshortcut(grid, dshortcut_data);
  const bool add = dshortcut_data;

  std::vector<float> center(mean, mean + channels), scale(channels), offset(bias, bias + channels);
  for (int64_t c = 0; c < channels; ++c) scale[c] = alpha * weight[c] * invstd[c];
  const Vecs centers = grid.spread(center), scales = grid.spread(scale);
  const Vecs offsets = grid.spread(offset);
  const Vec *m = centers.data(), *a = scales.data(), *b = offsets.data();
  const auto sums = grid.sums(grid.rows, [&, m, a, b](int64_t i, Vec* s, Vec* q) {
    const T *gradient = dy.row(i), *from = x.row(i), *out = y.row(i);
    T* to = dshortcut.row(i);
    const bool stream = dshortcut.stream(i);
    for (int64_t j = 0; j < grid.vectors; ++j) {
      const Vec d = load(from + j * WIDTH) - m[j];
      const Vec sign = add ? load(out + j * WIDTH) : d * a[j] + b[j];
      const Vec g = where_positive(sign, load(gradient + j * WIDTH));
      if (add) store(to + j * WIDTH, g, stream);
      s[j] += g;
      q[j] += g * d;
    }
  });
  std::vector<double> total(channels), products(channels);
  for (int64_t j = 0; j < grid.lanes; ++j) {
    total[j % channels] += sums[j];
    products[j % channels] += sums[grid.lanes + j];
  }
  std::vector<float> level(channels), slope(channels);
  for (int64_t c = 0; c < channels; ++c) {
    dbias[c] = alpha * total[c];
    dweight[c] = alpha * products[c] * invstd[c];
    level[c] = total[c] / pixels;
    slope[c] = products[c] / pixels * invstd[c] * invstd[c];
  }
  const Vecs levels = grid.spread(level), slopes = grid.spread(slope);
  grid.split(grid.rows, [&, m, a, b](int, int64_t first, int64_t last) {
    const Vec *l = levels.data(), *k = slopes.data();
    for (int64_t i = first; i < last; ++i) {
      const T *gradient = add ? dshortcut.row(i) : dy.row(i), *from = x.row(i);
      T* to = dx.row(i);
      const bool stream = dx.stream(i);
      for (int64_t j = 0; j < grid.vectors; ++j) {
        const Vec d = load(from + j * WIDTH) - m[j];
        Vec g = load(gradient + j * WIDTH);
        if (!add) g = where_positive(d * a[j] + b[j], g);
        store(to + j * WIDTH, a[j] * (g - l[j] - d * k[j]), stream);
      }
    }
  });
  dx.finish();
  dshortcut.finish();
}

}  // namespace

#define EXPORT(T)                                                                               \
  extern "C" void forward_##T(const T* x, const T* s, T* y, const float* w, const float* b,     \
                              float* m, float* i, float* rm, float* rv, int64_t p, int64_t c,   \
                              double eps, double momentum, double alpha, int threads) {         \
    forward(x, s, y, w, b, m, i, rm, rv, p, c, eps, momentum, alpha, threads);                  \
  }                                                                                             \
  extern "C" void backward_##T(const T* dy, const T* x, const T* y, T* dx, T* ds,               \
                               const float* w, const float* b, const float* m, const float* i,  \
                               float* dw, float* db, int64_t p, int64_t c, double alpha,        \
                               int threads) {                                                   \
    backward(dy, x, y, dx, ds, w, b, m, i, dw, db, p, c, alpha, threads);                       \
  }
EXPORT(float)
EXPORT(BFloat16)
