#pragma once

// GELU by upstream's table of halves, for eight values at a time: the same bits. Gemma's feed-forward layers take it of
// every inner value of every token.
//
// Included by vec.h.

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

// y = gelu(x) * g for as many of the `n` values as make whole vectors; returns how many that are.
inline static int vec_geglu_f32(const int n, float * y, const float * x, const float * g, const ggml_fp16_t * table) {
    int i = 0;
#if defined(__AVX2__) && defined(__F16C__)
    const __m256  top  = _mm256_set1_ps(10.0f);
    const __m256i one  = _mm256_set1_epi32(1);
    const __m256i half = _mm256_set1_epi32(0xFFFF);
    for (; i + 8 <= n; i += 8) {
        const __m256  vx = _mm256_loadu_ps(x + i);
        const __m256i at = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(vx, _MM_FROUND_TO_NEAREST_INT));
        // words of two entries, so that nothing behind the table is read
        const __m256i pair   = _mm256_i32gather_epi32((const int *) table, _mm256_srli_epi32(at, 1), 4);
        const __m256i entry  = _mm256_and_si256(_mm256_srlv_epi32(pair, _mm256_slli_epi32(_mm256_and_si256(at, one), 4)), half);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(entry, entry), 0x08);
        const __m256  gelu   = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));

        const __m256 above = _mm256_cmp_ps(vx, top, _CMP_GE_OQ);
        const __m256 below = _mm256_cmp_ps(vx, _mm256_sub_ps(_mm256_setzero_ps(), top), _CMP_LE_OQ);
        const __m256 vy    = _mm256_mul_ps(_mm256_blendv_ps(gelu, vx, above), _mm256_loadu_ps(g + i));
        _mm256_storeu_ps(y + i, _mm256_andnot_ps(below, vy));
    }
#else
    (void) n, (void) y, (void) x, (void) g, (void) table;
#endif
    return i;
}
