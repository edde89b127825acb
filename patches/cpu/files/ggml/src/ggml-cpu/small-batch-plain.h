#pragma once

// Products with a few rows of activations, for weights that stand as in the file and on processors with AVX2: Q6_K and
// Q5_K, of which there is no interleaved form there. Upstream unpacks the weights anew for every row. Here a block is
// unpacked once for up to SMALL_BATCH_ROWS rows, each of which goes through the operations of upstream's dot product (integer
// sums, which do not hang on their order, then the same multiply-adds on the same lanes).
//
// Included by ggml-cpu.c.

#if defined(__AVX2__) && defined(__FMA__)

#if defined(__GNUC__) || defined(__clang__)
#define SMALL_BATCH_INLINE static inline __attribute__((always_inline))
#else
#define SMALL_BATCH_INLINE static __forceinline
#endif

#define SMALL_BATCH_MOST_ROWS 12 // in all: more are faster in upstream's tiles

#if defined(__AVX512VL__)
#define SMALL_BATCH_ROWS 8 // at once, as there are registers
#else
#define SMALL_BATCH_ROWS 4
#endif

// One row of weights by `rows` rows of activations, n_blocks each; the results are `stride` floats apart.
typedef void (*small_batch_kernel)(int n_blocks, const void * weights, const block_q8_K * a, float * out, size_t stride);

SMALL_BATCH_INLINE float small_batch_sum_of_lanes(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// sums[r] += the products of 32 weights and the activations at 32 * part of each row, times `scale`
SMALL_BATCH_INLINE void small_batch_add_products(const int rows, __m256i * sums, __m256i w, __m256i scale, const block_q8_K * a, int n_blocks, int part) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(a[r * n_blocks].qs + 32 * part));
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(scale, _mm256_maddubs_epi16(w, x)));
    }
}

SMALL_BATCH_INLINE void small_batch_q6_K(const int rows, int n_blocks, const block_q6_K * w, const block_q8_K * a, float * out, size_t stride) {
    const __m256i low  = _mm256_set1_epi8(0x0F);
    const __m256i high = _mm256_set1_epi8(0x30);

    __m256 total[SMALL_BATCH_ROWS];
    for (int r = 0; r < rows; ++r) {
        total[r] = _mm256_setzero_ps();
    }
    for (int i = 0; i < n_blocks; ++i, ++w, ++a) {
        const __m128i scales = _mm_loadu_si128((const __m128i *) w->scales);
        const __m256i wide   = _mm256_cvtepi8_epi16(scales);

        __m256i sums[SMALL_BATCH_ROWS]; // less 32 for every weight
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const __m256i of16 = _mm256_loadu_si256((const __m256i *) a[r * n_blocks].bsums);
            sums[r] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(_mm256_madd_epi16(of16, wide), 5));
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m256i l0 = _mm256_loadu_si256((const __m256i *)(w->ql + 64 * half));
            const __m256i l1 = _mm256_loadu_si256((const __m256i *)(w->ql + 64 * half + 32));
            const __m256i h  = _mm256_loadu_si256((const __m256i *)(w->qh + 32 * half));
            const __m256i bytes[4] = {
                _mm256_or_si256(_mm256_and_si256(l0, low),                       _mm256_and_si256(_mm256_slli_epi16(h, 4), high)),
                _mm256_or_si256(_mm256_and_si256(l1, low),                       _mm256_and_si256(_mm256_slli_epi16(h, 2), high)),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(l0, 4), low), _mm256_and_si256(h, high)),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(l1, 4), low), _mm256_and_si256(_mm256_srli_epi16(h, 2), high)),
            };
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                // two scales, of 16 weights each
                const char    at    = 8 * half + 2 * k;
                const __m128i pick  = _mm_set_epi64x(0x0101010101010101 * (at + 1), 0x0101010101010101 * at);
                const __m256i scale = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, pick));
                small_batch_add_products(rows, sums, bytes[k], scale, a, n_blocks, 4 * half + k);
            }
        }
        const float d = GGML_CPU_FP16_TO_FP32(w->d);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            total[r] = _mm256_fmadd_ps(_mm256_set1_ps(a[r * n_blocks].d * d), _mm256_cvtepi32_ps(sums[r]), total[r]);
        }
    }
    for (int r = 0; r < rows; ++r) {
        out[r * stride] = small_batch_sum_of_lanes(total[r]);
    }
}

SMALL_BATCH_INLINE void small_batch_q5_K(const int rows, int n_blocks, const block_q5_K * w, const block_q8_K * a, float * out, size_t stride) {
    const __m256i low  = _mm256_set1_epi8(0x0F);
    const __m256i fifth = _mm256_set1_epi8(0x10);

    __m256 total[SMALL_BATCH_ROWS];
    float  minima[SMALL_BATCH_ROWS];
    for (int r = 0; r < rows; ++r) {
        total[r]  = _mm256_setzero_ps();
        minima[r] = 0.0f;
    }
    for (int i = 0; i < n_blocks; ++i, ++w, ++a) {
        // eight scales and eight minima of six bits, in twelve bytes
        uint32_t packed[3], six[4];
        memcpy(packed, w->scales, sizeof(packed));
        six[0] = packed[0] & 0x3f3f3f3f;
        six[1] = (packed[2] & 0x0f0f0f0f) | ((packed[0] >> 2) & 0x30303030);
        six[2] = packed[1] & 0x3f3f3f3f;
        six[3] = ((packed[2] >> 4) & 0x0f0f0f0f) | ((packed[1] >> 2) & 0x30303030);
        const __m256i both   = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *) six));
        const __m256i scales = _mm256_permute4x64_epi64(both, 0x44);
        const __m128i mins   = _mm256_extracti128_si256(both, 1);

        __m256i sums[SMALL_BATCH_ROWS];
        for (int r = 0; r < rows; ++r) {
            sums[r] = _mm256_setzero_si256();
        }
        const __m256i h = _mm256_loadu_si256((const __m256i *) w->qh);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const __m256i l = _mm256_loadu_si256((const __m256i *)(w->qs + 32 * k));
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                const int     bit   = 2 * k + part; // of the high bits, which go to the fifth place
                const __m256i high  = _mm256_and_si256(bit < 4 ? _mm256_slli_epi16(h, 4 - bit) : _mm256_srli_epi16(h, bit - 4), fifth);
                const __m256i bytes = _mm256_or_si256(_mm256_and_si256(part == 0 ? l : _mm256_srli_epi16(l, 4), low), high);
                const __m256i scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(2 * bit * 0x0101 + 0x0100));
                small_batch_add_products(rows, sums, bytes, scale, a, n_blocks, bit);
            }
        }
        const float d    = GGML_CPU_FP16_TO_FP32(w->d);
        const float dmin = GGML_CPU_FP16_TO_FP32(w->dmin);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const block_q8_K * block = a + r * n_blocks;
            const __m256i of16 = _mm256_loadu_si256((const __m256i *) block->bsums);
            const __m128i of32 = _mm_hadd_epi16(_mm256_castsi256_si128(of16), _mm256_extracti128_si256(of16, 1));
            __m128i sum = _mm_madd_epi16(mins, of32);
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
            minima[r] += -block->d * dmin * _mm_cvtsi128_si32(sum);
            total[r] = _mm256_fmadd_ps(_mm256_set1_ps(block->d * d), _mm256_cvtepi32_ps(sums[r]), total[r]);
        }
    }
    for (int r = 0; r < rows; ++r) {
        out[r * stride] = small_batch_sum_of_lanes(total[r]) + minima[r];
    }
}

#define SMALL_BATCH_KERNEL(type, rows) \
    static void small_batch_##type##_##rows(int n_blocks, const void * weights, const block_q8_K * a, float * out, size_t stride) { \
        small_batch_##type(rows, n_blocks, (const block_##type *) weights, a, out, stride); \
    }
#define SMALL_BATCH_KERNEL_NAME(type, rows) small_batch_##type##_##rows,
#if SMALL_BATCH_ROWS == 8
#define SMALL_BATCH_EACH(what, type) what(type, 1) what(type, 2) what(type, 3) what(type, 4) what(type, 5) what(type, 6) what(type, 7) what(type, 8)
#else
#define SMALL_BATCH_EACH(what, type) what(type, 1) what(type, 2) what(type, 3) what(type, 4)
#endif

SMALL_BATCH_EACH(SMALL_BATCH_KERNEL, q5_K)
SMALL_BATCH_EACH(SMALL_BATCH_KERNEL, q6_K)

static const small_batch_kernel * small_batch_kernels(enum ggml_type type) {
    static const small_batch_kernel q5_K[] = { SMALL_BATCH_EACH(SMALL_BATCH_KERNEL_NAME, q5_K) };
    static const small_batch_kernel q6_K[] = { SMALL_BATCH_EACH(SMALL_BATCH_KERNEL_NAME, q6_K) };
    switch (type) {
        case GGML_TYPE_Q5_K: return q5_K;
        case GGML_TYPE_Q6_K: return q6_K;
        default:             return NULL;
    }
}

// The product of `dst`; false where upstream is to do it.
static bool small_batch_plain(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * w = dst->src[0];
    const struct ggml_tensor * a = dst->src[1];
    const small_batch_kernel * kernels = small_batch_kernels(w->type);
    if (kernels == NULL || params->use_ref || a->type != GGML_TYPE_F32 || a->nb[0] != sizeof(float) || a->ne[1] > SMALL_BATCH_MOST_ROWS ||
        a->ne[2] != 1 || a->ne[3] != 1 || w->ne[2] != 1 || w->ne[3] != 1) {
        return false;
    }
    const int    n_rows    = a->ne[1];
    const int    n_blocks  = w->ne[0] / QK_K;
    const size_t stride    = dst->nb[1] / sizeof(float);
    block_q8_K * quantized = (block_q8_K *) params->wdata;
    for (int r = params->ith; r < n_rows; r += params->nth) {
        quantize_row_q8_K((const float *)((const char *) a->data + r * a->nb[1]), quantized + (size_t) r * n_blocks, w->ne[0]);
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const int     n_parts  = (n_rows + SMALL_BATCH_ROWS - 1) / SMALL_BATCH_ROWS;
    const int     per_part = (n_rows + n_parts - 1) / n_parts;
    const int64_t n_chunks = params->nth == 1 ? 1 : MIN(w->ne[1], 8 * params->nth);
    for (int64_t chunk = params->ith; chunk < n_chunks; chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        for (int64_t n = w->ne[1] * chunk / n_chunks; n < w->ne[1] * (chunk + 1) / n_chunks; ++n) {
            for (int first = 0; first < n_rows; first += per_part) {
                kernels[MIN(per_part, n_rows - first) - 1](n_blocks, (const char *) w->data + n * w->nb[1],
                    quantized + (size_t) first * n_blocks, (float *) dst->data + first * stride + n, stride);
            }
        }
    }
    return true;
}

#else

static bool small_batch_plain(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    GGML_UNUSED(params);
    GGML_UNUSED(dst);
    return false;
}

#endif
