#pragma once

// Products with a few rows of activations, for weights that stand interleaved by eight columns (CPU_REPACK): Q4_0 and
// Q4_K, on processors with AVX2.
//
// Upstream unpacks the weights anew for each of up to three rows, and takes a kernel made for many for four. Here a block
// is unpacked once for up to SMALL_BATCH_ROWS rows. Each row goes through the operations of upstream's gemv (integer sums,
// which do not hang on their order, then the same multiply-adds), so that a token's result does not depend on how many
// are verified.
//
// Included by repack.cpp.

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <algorithm>
#include <utility>
#include <vector>

// Without linkage: builds for several CPUs in one process must not share kernels.
namespace {

constexpr int SMALL_BATCH_PREFETCH = 4096; // bytes of weights

#if defined(__AVX512VL__)
constexpr int SMALL_BATCH_ROWS = 8; // at once, as there are registers
#else
constexpr int SMALL_BATCH_ROWS = 4;
#endif

// Vectors of one group of eight columns, or of two side by side.
struct small_batch_vector_256 {
    static constexpr int GROUPS = 1;
    using ints   = __m256i;
    using floats = __m256;

    static ints load(const void * b, size_t) { return _mm256_loadu_si256((const __m256i *) b); }
    static ints bytes(char x) { return _mm256_set1_epi8(x); }
    static ints words(int x) { return _mm256_set1_epi32(x); }
    static ints eight(const int8_t * a) { int64_t x; memcpy(&x, a, sizeof(x)); return _mm256_set1_epi64x(x); }
    static ints both(ints a, ints b) { return _mm256_and_si256(a, b); }
    static ints flip(ints a, ints b) { return _mm256_xor_si256(a, b); }
    static ints down4(ints a) { return _mm256_srli_epi16(a, 4); }
    static ints add(ints a, ints b) { return _mm256_add_epi32(a, b); }
    static floats repeat(float x) { return _mm256_set1_ps(x); }
    static floats zero() { return _mm256_setzero_ps(); }
    static floats mul(floats a, floats b) { return _mm256_mul_ps(a, b); }
    static floats fma(ints a, floats b, floats c) { return _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), b, c); }

    // Sums of pairs of words: columns 0 to 3 of `a` and 4 to 7 of `b` become 0 1 4 5 2 3 6 7.
    static ints pairs(ints a, ints b) {
        const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
        return add(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xDD)));
    }
    static floats halves(const ggml_half * d, size_t) { // in that order
        return _mm256_cvtph_ps(_mm_shuffle_epi32(_mm_loadu_si128((const __m128i *) d), 0xD8));
    }
    static floats in_order(floats x) { // out of it
        return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8));
    }
    static void store(float * c, floats x) { _mm256_storeu_ps(c, in_order(x)); }

    // Sums of two products of unsigned and signed bytes, over four vectors of each; exact for four bits by eight.
    static ints halfwords(const ints (&w)[4], const ints (&a)[4]) {
        const ints low  = _mm256_add_epi16(_mm256_maddubs_epi16(w[0], a[0]), _mm256_maddubs_epi16(w[1], a[1]));
        const ints high = _mm256_add_epi16(_mm256_maddubs_epi16(w[2], a[2]), _mm256_maddubs_epi16(w[3], a[3]));
        return _mm256_add_epi16(low, high);
    }

    // Words: the products of unsigned and signed bytes, four vectors of each.
    static ints dot(const ints (&w)[4], const ints (&a)[4]) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
        ints sum = _mm256_setzero_si256();
        for (int k = 0; k < 4; ++k) { sum = _mm256_dpbusd_epi32(sum, w[k], a[k]); }
        return sum;
#elif defined(__AVXVNNI__)
        ints sum = _mm256_setzero_si256();
        for (int k = 0; k < 4; ++k) { sum = _mm256_dpbusd_avx_epi32(sum, w[k], a[k]); }
        return sum;
#else
        return _mm256_madd_epi16(halfwords(w, a), _mm256_set1_epi16(1));
#endif
    }
};

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
struct small_batch_vector_512 {
    static constexpr int GROUPS = 2;
    using ints   = __m512i;
    using floats = __m512;

    static ints load(const void * b, size_t next) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) b)),
                                  _mm256_loadu_si256((const __m256i *)((const char *) b + next)), 1);
    }
    static ints bytes(char x) { return _mm512_set1_epi8(x); }
    static ints words(int x) { return _mm512_set1_epi32(x); }
    static ints eight(const int8_t * a) { int64_t x; memcpy(&x, a, sizeof(x)); return _mm512_set1_epi64(x); }
    static ints both(ints a, ints b) { return _mm512_and_si512(a, b); }
    static ints flip(ints a, ints b) { return _mm512_xor_si512(a, b); }
    static ints down4(ints a) { return _mm512_srli_epi16(a, 4); }
    static ints add(ints a, ints b) { return _mm512_add_epi32(a, b); }
    static floats repeat(float x) { return _mm512_set1_ps(x); }
    static floats zero() { return _mm512_setzero_ps(); }
    static floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
    static floats fma(ints a, floats b, floats c) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), b, c); }

    static ints pairs(ints a, ints b) {
        const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
        return add(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
    }
    static floats halves(const ggml_half * d, size_t next) {
        const __m128i low = _mm_loadu_si128((const __m128i *) d), high = _mm_loadu_si128((const __m128i *)((const char *) d + next));
        return _mm512_cvtph_ps(_mm256_shuffle_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1), 0xD8));
    }
    static void store(float * c, floats x) {
        _mm512_storeu_ps(c, _mm512_castpd_ps(_mm512_permutex_pd(_mm512_castps_pd(x), 0xD8)));
    }
    static ints dot(const ints (&w)[4], const ints (&a)[4]) {
        ints sum = _mm512_setzero_si512();
        for (int k = 0; k < 4; ++k) { sum = _mm512_dpbusd_epi32(sum, w[k], a[k]); }
        return sum;
    }
};
#endif

// What the kernels need of the activations besides their bytes, [block][row].
struct small_batch_row_sums {
    std::vector<float>   scales;
    std::vector<int32_t> sums; // of Q4_0 times -8, of Q4_K two of 32 activations a word
};

// The kernels of a type of blocks, and whether there are any.
template <typename BLOCK> struct small_batch_interleaved { static constexpr bool KNOWN = false; };

template <> struct small_batch_interleaved<block_q4_0> {
    static constexpr bool KNOWN     = true;
    static constexpr int  MOST_ROWS = 64;
    using weights     = block_q4_0x8;
    using activations = block_q8_0;
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
    using vector      = small_batch_vector_512;
#else
    using vector      = small_batch_vector_256;
#endif

    static void prepare(int n_rows, int n_blocks, const activations * a, small_batch_row_sums & out) {
        out.scales.resize(n_rows * n_blocks);
        out.sums.resize(n_rows * n_blocks);
        for (int i = 0; i < n_blocks; ++i) {
            for (int r = 0; r < n_rows; ++r) {
                const activations & block = a[r * n_blocks + i];
                int sum = 0;
                for (int k = 0; k < QK8_0; ++k) { sum += block.qs[k]; }
                out.sums[i * n_rows + r]   = -8 * sum;
                out.scales[i * n_rows + r] = GGML_CPU_FP16_TO_FP32(block.d);
            }
        }
    }

    template <typename V, int ROWS>
    static void apply(int n_blocks, const activations * GGML_RESTRICT a, const small_batch_row_sums & rows, const weights * GGML_RESTRICT b, float * GGML_RESTRICT c, size_t ldc) {
        const size_t next = n_blocks * sizeof(weights);
        const auto   low  = V::bytes(0x0F);
        const auto   sign = V::bytes((char) 0x88);

        typename V::floats sums[ROWS];
        for (int r = 0; r < ROWS; ++r) { sums[r] = V::zero(); }

        for (int i = 0; i < n_blocks; ++i) {
            for (int g = 0; g < V::GROUPS; ++g) {
                for (size_t at = 0; at < sizeof(weights); at += 64) {
                    _mm_prefetch((const char *)(b + i) + g * next + SMALL_BATCH_PREFETCH + at, _MM_HINT_T1);
                }
            }
            typename V::ints w[2][4];
            for (int h = 0; h < 2; ++h) {
                for (int k = 0; k < 2; ++k) {
                    const auto packed = V::flip(V::load(b[i].qs + k * 64 + h * 32, next), sign);
                    w[h][k]     = V::both(packed, low);
                    w[h][k + 2] = V::both(V::down4(packed), low);
                }
            }
            const auto d = V::halves(b[i].d, next);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const int8_t * bytes = a[r * n_blocks + i].qs;
                const typename V::ints x[4] = { V::eight(bytes), V::eight(bytes + 8), V::eight(bytes + 16), V::eight(bytes + 24) };
                const auto sum = V::add(V::pairs(V::dot(w[0], x), V::dot(w[1], x)), V::words(rows.sums[i * ROWS + r]));
                sums[r] = V::fma(sum, V::mul(d, V::repeat(rows.scales[i * ROWS + r])), sums[r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) { V::store(c + r * ldc, sums[r]); }
    }
};

template <> struct small_batch_interleaved<block_q4_K> {
    static constexpr bool KNOWN     = true;
    static constexpr int  MOST_ROWS = 16; // more are faster in upstream's kernel
    using weights     = block_q4_Kx8;
    using activations = block_q8_K;
    using vector      = small_batch_vector_256;

    static constexpr int SUBBLOCKS = QK_K / 32;
    static constexpr int WORDS     = SUBBLOCKS / 2; // of two sums of 32 each, by block and row

    static void prepare(int n_rows, int n_blocks, const activations * a, small_batch_row_sums & out) {
        out.scales.resize(n_rows * n_blocks);
        out.sums.resize(n_rows * n_blocks * WORDS);
        for (int i = 0; i < n_blocks; ++i) {
            for (int r = 0; r < n_rows; ++r) {
                const activations & block = a[r * n_blocks + i];
                const auto sum32 = [&](int k) { return (uint32_t) (uint16_t) (block.bsums[2 * k] + block.bsums[2 * k + 1]); };
                out.scales[i * n_rows + r] = block.d;
                for (int k = 0; k < WORDS; ++k) {
                    out.sums[(i * n_rows + r) * WORDS + k] = (int32_t) (sum32(2 * k) | sum32(2 * k + 1) << 16);
                }
            }
        }
    }

    // Eight scales and eight minima of six bits, in the twelve bytes of a subblock.
    static __m128i scales_and_minima(const uint8_t * twelve) {
        uint32_t packed[3];
        memcpy(packed, twelve, sizeof(packed));
        return _mm_set_epi32(((packed[2] >> 4) & 0x0f0f0f0f) | ((packed[1] >> 2) & 0x30303030), packed[1] & 0x3f3f3f3f,
                             (packed[2] & 0x0f0f0f0f) | ((packed[0] >> 2) & 0x30303030), packed[0] & 0x3f3f3f3f);
    }

    template <typename V, int ROWS>
    static void apply(int n_blocks, const activations * GGML_RESTRICT a, const small_batch_row_sums & rows, const weights * GGML_RESTRICT b, float * GGML_RESTRICT c, size_t ldc) {
        static_assert(V::GROUPS == 1, "scales and minima of eight columns");
        const __m256i low = _mm256_set1_epi8(0x0F);
        const __m128i of_columns[2] = { // a column's scale beside each of its four sums
            _mm_set_epi32(0x03030303, 0x02020202, 0x01010101, 0x00000000),
            _mm_set_epi32(0x07070707, 0x06060606, 0x05050505, 0x04040404),
        };

        __m256 total[ROWS], minima[ROWS];
        for (int r = 0; r < ROWS; ++r) { total[r] = minima[r] = _mm256_setzero_ps(); }

        for (int i = 0; i < n_blocks; ++i) {
            __m256i sums[ROWS][2], mins[WORDS];
            for (int r = 0; r < ROWS; ++r) { sums[r][0] = sums[r][1] = _mm256_setzero_si256(); }

            for (int pair = 0; pair < WORDS; ++pair) { // of subblocks, which share bytes
                for (size_t at = 0; at < sizeof(weights) / WORDS; at += 64) {
                    _mm_prefetch((const char *)(b + i) + pair * (sizeof(weights) / WORDS) + SMALL_BATCH_PREFETCH + at, _MM_HINT_T1);
                }
                const __m128i six[2] = { scales_and_minima(b[i].scales + 24 * pair), scales_and_minima(b[i].scales + 24 * pair + 12) };
                mins[pair] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(six[0], six[1]));
#pragma GCC unroll 2
                for (int s = 0; s < 2; ++s) {
                    __m256i w[2][4], scale[2];
                    for (int h = 0; h < 2; ++h) {
                        scale[h] = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(six[s], of_columns[h]));
                        for (int k = 0; k < 4; ++k) {
                            const __m256i packed = _mm256_loadu_si256((const __m256i *)(b[i].qs + pair * 256 + k * 64 + h * 32));
                            w[h][k] = _mm256_and_si256(s == 0 ? packed : _mm256_srli_epi16(packed, 4), low);
                        }
                    }
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) {
                        const int8_t * bytes = a[r * n_blocks + i].qs + pair * 64 + s * 32;
                        const __m256i x[4] = { V::eight(bytes), V::eight(bytes + 8), V::eight(bytes + 16), V::eight(bytes + 24) };
                        for (int h = 0; h < 2; ++h) {
                            sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(scale[h], V::halfwords(w[h], x)));
                        }
                    }
                }
            }
            const __m256 d    = V::halves(b[i].d, 0);
            const __m256 dmin = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) b[i].dmin));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const int32_t * words = rows.sums.data() + (i * ROWS + r) * WORDS;
                __m256i min = _mm256_madd_epi16(V::words(words[0]), mins[0]);
                for (int k = 1; k < WORDS; ++k) {
                    min = _mm256_add_epi32(min, _mm256_madd_epi16(V::words(words[k]), mins[k]));
                }
                const __m256 scale = V::repeat(rows.scales[i * ROWS + r]);
                total[r]  = V::fma(V::pairs(sums[r][0], sums[r][1]), V::mul(d, scale), total[r]);
                minima[r] = V::fma(min, V::mul(dmin, scale), minima[r]);
            }
        }
        for (int r = 0; r < ROWS; ++r) { _mm256_storeu_ps(c + r * ldc, _mm256_sub_ps(V::in_order(total[r]), minima[r])); }
    }
};

// Some rows, what the kernels need of them, and the kernels for so many: of as many columns as fit a vector, and of eight.
template <typename KERNEL>
struct small_batch_part {
    using function = void (*)(int, const typename KERNEL::activations *, const small_batch_row_sums &, const typename KERNEL::weights *, float *, size_t);

    const typename KERNEL::activations * a;
    float *                              c;
    small_batch_row_sums                         sums;
    function                             wide;
    function                             narrow;

    template <typename V, int... ROWS>
    static function of(int n_rows, std::integer_sequence<int, ROWS...>) {
        static constexpr function by_rows[] = { KERNEL::template apply<V, ROWS + 1>... };
        return by_rows[n_rows - 1];
    }

    void prepare(int n_rows, int n_blocks) {
        wide   = of<typename KERNEL::vector>(n_rows, std::make_integer_sequence<int, SMALL_BATCH_ROWS>{});
        narrow = of<small_batch_vector_256>(n_rows, std::make_integer_sequence<int, SMALL_BATCH_ROWS>{});
        KERNEL::prepare(n_rows, n_blocks, a, sums);
    }
};

// The product of `op`; false where upstream is to do it.
template <typename BLOCK, int64_t INTER_SIZE, int64_t NB_COLS, ggml_type PARAM_TYPE>
static bool small_batch_repack(ggml_compute_params * params, ggml_tensor * op) {
    using kernel = small_batch_interleaved<BLOCK>;
    if constexpr (kernel::KNOWN && INTER_SIZE == 8 && NB_COLS == 8) {
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * rows    = op->src[1];
        const int n_rows = rows->ne[1];
        if (n_rows > kernel::MOST_ROWS || rows->ne[2] != 1 || rows->ne[3] != 1) {
            return false;
        }
        const int    n_blocks = weights->ne[0] / ggml_blck_size(PARAM_TYPE);
        const size_t row_size = ggml_row_size(PARAM_TYPE, weights->ne[0]);
        const auto   quantize = ggml_get_type_traits_cpu(PARAM_TYPE)->from_float;
        for (int r = params->ith; r < n_rows; r += params->nth) {
            quantize((const float *)((const char *) rows->data + r * rows->nb[1]), (char *) params->wdata + r * row_size, weights->ne[0]);
        }
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);

        const int    n_parts  = (n_rows + SMALL_BATCH_ROWS - 1) / SMALL_BATCH_ROWS;
        const int    per_part = (n_rows + n_parts - 1) / n_parts;
        const size_t ldc      = op->nb[1] / sizeof(float);
        static thread_local std::vector<small_batch_part<kernel>> parts;
        parts.resize(n_parts);
        for (int p = 0; p < n_parts; ++p) {
            const int first = p * per_part;
            parts[p].a = (const typename kernel::activations *)((const char *) params->wdata + first * row_size);
            parts[p].c = (float *) op->data + first * ldc;
            parts[p].prepare(std::min(per_part, n_rows - first), n_blocks);
        }

        constexpr int WIDE = kernel::vector::GROUPS;
        const auto *  b        = (const typename kernel::weights *) weights->data;
        const int     n_groups = weights->ne[1] / NB_COLS;
        const int     n_wide   = (n_groups + WIDE - 1) / WIDE;
        const int     n_chunks = std::min(n_wide, params->nth == 1 ? 1 : 4 * params->nth);
        for (int chunk = params->ith; chunk < n_chunks; chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            for (int n = n_wide * chunk / n_chunks; n < n_wide * (chunk + 1) / n_chunks; ++n) {
                const int  first = n * WIDE;
                const bool whole = first + WIDE <= n_groups;
                for (const auto & part : parts) {
                    (whole ? part.wide : part.narrow)(n_blocks, part.a, part.sums, b + (size_t) first * n_blocks, part.c + first * NB_COLS, ldc);
                }
            }
        }
        return true;
    }
    GGML_UNUSED(params);
    GGML_UNUSED(op);
    return false;
}

} // namespace

#else

template <typename BLOCK, int64_t INTER_SIZE, int64_t NB_COLS, ggml_type PARAM_TYPE>
static bool small_batch_repack(ggml_compute_params *, ggml_tensor *) {
    return false;
}

#endif
