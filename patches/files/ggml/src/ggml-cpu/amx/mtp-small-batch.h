#pragma once

// Products with a few rows of activations, as a speculative round has them: 2 to 8 tokens, more with several sequences.
//
// AMX unpacks a block of weights into tiles made for 32 rows, which costs more than it gains when there are few. Here
// the weights are unpacked into registers once and multiplied with up to MTP_ROWS rows by VNNI, as
// tinygemm_kernel_vnni does for one. Each row goes through the same operations as there (integer sums, which do not
// hang on their order, then the same multiply-adds), so that a token's result does not depend on how many are verified.
//
// Included by mmq.cpp, whose packed layouts and one-row kernels it uses.

constexpr int MTP_ROWS = 4;

// Largest number of rows for which this was measured to be faster than the tiles.
inline int mtp_small_batch_limit(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q6_K:   return 12;
        case GGML_TYPE_Q8_0:   return 6;
        case GGML_TYPE_Q4_K:   return 5;
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_IQ4_XS: return 3;
        default:               return 2;
    }
}

// A: ROWS rows of KB blocks, B: BLOCK_N / 16 packed columns of tiles, C: ROWS rows, ldc apart.
// A type without a version of its own runs row by row: its weights stay in the cache.
template <typename TA, typename TB, int ROWS, int BLOCK_N, int BLOCK_K>
struct mtp_small_batch_kernel {
    static void apply(int KB, const TA * RESTRICT A, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        for (int r = 0; r < ROWS; ++r) {
            tinygemm_kernel_vnni<TA, TB, float, 1, BLOCK_N, BLOCK_K>::apply(KB, A + r * KB, B, C + r * ldc, ldc);
        }
    }
};

inline __m512i mtp_broadcast(const int8_t * four) {
    int32_t value;
    memcpy(&value, four, sizeof(value));
    return _mm512_set1_epi32(value);
}

template <int ROWS, int COLS>
inline void mtp_store(const __m512 (&vc)[ROWS][COLS], float * RESTRICT C, int ldc) {
    Unroll<ROWS>{}([&](auto r) {
        Unroll<COLS>{}([&](auto col) { _mm512_storeu_ps(C + r * ldc + col * 16, vc[r][col]); });
    });
}

template <int ROWS, int COLS>
inline void mtp_clear(__m512 (&vc)[ROWS][COLS]) {
    Unroll<ROWS>{}([&](auto r) { Unroll<COLS>{}([&](auto col) { vc[r][col] = _mm512_setzero_ps(); }); });
}

template <int ROWS, int BLOCK_N, int BLOCK_K>
struct mtp_small_batch_kernel<block_q8_0, block_q4_0, ROWS, BLOCK_N, BLOCK_K> {
    static void apply(int KB, const block_q8_0 * RESTRICT A, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        constexpr int COLS = BLOCK_N / 16;
        const int TILE_SIZE = TILE_N * sizeof(block_q4_0);

        const __m512i lowMask = _mm512_set1_epi8(0xF);
        const __m256i off = _mm256_set1_epi8(8);

        __m512 vc[ROWS][COLS];
        mtp_clear(vc);

        for (int i = 0; i < KB; ++i) {
            // a * (b - 8) = a * b - 8 * a
            int32_t comp[ROWS];
            float   d1[ROWS];
            Unroll<ROWS>{}([&](auto r) {
                const block_q8_0 & a = A[r * KB + i];
                const __m256i sum8 = _mm256_dpbusd_epi32(_mm256_setzero_si256(), off, _mm256_loadu_si256((const __m256i *) a.qs));
                const __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
                const __m128i sum2 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4e));
                comp[r] = -_mm_cvtsi128_si32(_mm_add_epi32(sum2, _mm_shuffle_epi32(sum2, 0xb1)));
                d1[r]   = GGML_CPU_FP16_TO_FP32(a.d);
            });

            Unroll<COLS>{}([&](auto col) {
                const char * b_ptr = B + PACKED_INDEX(col, i, KB, TILE_SIZE);
                __m512i vb[8];
                Unroll<4>{}([&](auto k) {
                    const __m512i bytes = _mm512_loadu_si512((const __m512i *)(b_ptr + k * 64));
                    vb[2 * k + 0] = _mm512_and_si512(bytes, lowMask);
                    vb[2 * k + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), lowMask);
                });
                const __m512 vd0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b_ptr + TILE_N * TILE_K / 2)));

                Unroll<ROWS>{}([&](auto r) {
                    const int8_t * a = A[r * KB + i].qs;
                    __m512i vsum = _mm512_set1_epi32(comp[r]);
                    Unroll<8>{}([&](auto k) { vsum = _mm512_dpbusd_epi32(vsum, vb[k], mtp_broadcast(a + 4 * k)); });
                    vc[r][col] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(vsum), _mm512_mul_ps(vd0, _mm512_set1_ps(d1[r])), vc[r][col]);
                });
            });
        }
        mtp_store(vc, C, ldc);
    }
};

template <int ROWS, int BLOCK_N, int BLOCK_K>
struct mtp_small_batch_kernel<block_q8_0, block_q8_0, ROWS, BLOCK_N, BLOCK_K> {
    static void apply(int KB, const block_q8_0 * RESTRICT A, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        constexpr int COLS = BLOCK_N / 16;
        const int TILE_SIZE = TILE_N * sizeof(block_q8_0) + TILE_N * sizeof(int32_t);

        __m512 vc[ROWS][COLS];
        mtp_clear(vc);

        for (int i = 0; i < KB; ++i) {
            // a * b = (a + 128) * b - 128 * b, the latter packed with B
            alignas(32) int8_t shifted[ROWS][QK8_0];
            float d1[ROWS];
            Unroll<ROWS>{}([&](auto r) {
                const block_q8_0 & a = A[r * KB + i];
                const __m256i qs = _mm256_loadu_si256((const __m256i *) a.qs);
                _mm256_store_si256((__m256i *) shifted[r], _mm256_xor_si256(qs, _mm256_set1_epi8((char) 0x80)));
                d1[r] = GGML_CPU_FP16_TO_FP32(a.d);
            });

            Unroll<COLS>{}([&](auto col) {
                const char * b_ptr = B + PACKED_INDEX(col, i, KB, TILE_SIZE);
                __m512i vb[8];
                Unroll<8>{}([&](auto k) { vb[k] = _mm512_loadu_si512((const __m512i *)(b_ptr + k * 64)); });
                const __m512  vd0   = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b_ptr + TILE_N * TILE_K)));
                const __m512i vcomp = _mm512_loadu_si512((const __m512i *)(b_ptr + TILE_N * TILE_K + TILE_N * sizeof(ggml_half)));

                Unroll<ROWS>{}([&](auto r) {
                    __m512i vsum = _mm512_setzero_si512();
                    Unroll<8>{}([&](auto k) { vsum = _mm512_dpbusd_epi32(vsum, mtp_broadcast(shifted[r] + 4 * k), vb[k]); });
                    vsum = _mm512_sub_epi32(vsum, vcomp);
                    vc[r][col] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(vsum), _mm512_mul_ps(vd0, _mm512_set1_ps(d1[r])), vc[r][col]);
                });
            });
        }
        mtp_store(vc, C, ldc);
    }
};

template <int ROWS, int BLOCK_N, int BLOCK_K>
struct mtp_small_batch_kernel<block_q8_K, block_q4_K, ROWS, BLOCK_N, BLOCK_K> {
    static void apply(int KB, const block_q8_K * RESTRICT A, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        constexpr int COLS = BLOCK_N / 16;
        const int TILE_SIZE = TILE_N * sizeof(block_q4_K) + TILE_N * 4;

        constexpr int offset_scales = (QK_K / 2) * TILE_N;
        constexpr int offset_mins   = (QK_K / 2) * TILE_N +  8 * TILE_N;
        constexpr int offset_d0     = (QK_K / 2) * TILE_N + 16 * TILE_N;
        constexpr int offset_dmin   = (QK_K / 2) * TILE_N + 16 * TILE_N + TILE_N * sizeof(ggml_half);

        const __m512i lowMask = _mm512_set1_epi8(0xF);

        __m512 vc[ROWS][COLS];
        mtp_clear(vc);

        for (int i = 0; i < KB; ++i) {
            // sums of 32 activations, two a word, which the minima are multiplied with
            alignas(16) int32_t sums[ROWS][4];
            Unroll<ROWS>{}([&](auto r) {
                const __m256i q8sums = _mm256_loadu_si256((const __m256i *) A[r * KB + i].bsums);
                _mm_store_si128((__m128i *) sums[r], _mm_hadd_epi16(_mm256_extracti128_si256(q8sums, 0), _mm256_extracti128_si256(q8sums, 1)));
            });

            Unroll<COLS>{}([&](auto col) {
                const char * b_ptr = B + PACKED_INDEX(col, i, KB, TILE_SIZE);
                __m512i acc[ROWS];
                Unroll<ROWS>{}([&](auto r) { acc[r] = _mm512_setzero_si512(); });
                for (int k_group = 0; k_group < QK_K / 32; ++k_group) {
                    __m512i vb[8];
                    Unroll<4>{}([&](auto k) {
                        const __m512i bytes = _mm512_loadu_si512((const __m512i *)(b_ptr + k_group * 256 + k * 64));
                        vb[2 * k + 0] = _mm512_and_si512(bytes, lowMask);
                        vb[2 * k + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), lowMask);
                    });
                    const __m512i vscale = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(b_ptr + offset_scales + k_group * TILE_N)));
                    Unroll<ROWS>{}([&](auto r) {
                        const int8_t * a = A[r * KB + i].qs + k_group * 32;
                        __m512i vsum = _mm512_setzero_si512();
                        Unroll<8>{}([&](auto k) { vsum = _mm512_dpbusd_epi32(vsum, vb[k], mtp_broadcast(a + 4 * k)); });
                        acc[r] = _mm512_add_epi32(acc[r], _mm512_mullo_epi32(vsum, vscale));
                    });
                }
                const __m512 vd0   = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b_ptr + offset_d0)));
                const __m512 vdmin = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b_ptr + offset_dmin)));
                Unroll<ROWS>{}([&](auto r) {
                    const __m512 vd1 = _mm512_set1_ps(A[r * KB + i].d);
                    vc[r][col] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r]), _mm512_mul_ps(vd0, vd1), vc[r][col]);
                    __m512i acc_m = _mm512_setzero_si512();
                    Unroll<4>{}([&](auto k) {
                        const __m512i vmin = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(b_ptr + offset_mins + k * 32)));
                        acc_m = _mm512_dpwssds_epi32(acc_m, _mm512_set1_epi32(sums[r][k]), vmin);
                    });
                    vc[r][col] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(acc_m), _mm512_mul_ps(vdmin, vd1), vc[r][col]);
                });
            });
        }
        mtp_store(vc, C, ldc);
    }
};

template <int ROWS, int BLOCK_N, int BLOCK_K>
struct mtp_small_batch_kernel<block_q8_K, block_q6_K, ROWS, BLOCK_N, BLOCK_K> {
    static void apply(int KB, const block_q8_K * RESTRICT A, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        constexpr int COLS = BLOCK_N / 16;
        const int TILE_SIZE = TILE_N * sizeof(block_q6_K);

        constexpr int offset_qh     = (QK_K / 2) * TILE_N;
        constexpr int offset_scales = (QK_K / 2) * TILE_N + (QK_K / 4) * TILE_N;
        constexpr int offset_d0     = (QK_K / 2) * TILE_N + (QK_K / 4) * TILE_N + 16 * TILE_N;

        const __m512i lowMask = _mm512_set1_epi8(0xF);
        const __m512i highMask = _mm512_set1_epi8(0x30);

        __m512 vc[ROWS][COLS];
        mtp_clear(vc);

        for (int i = 0; i < KB; ++i) {
            // a * (b - 32) = a * b - 32 * a, by groups of 16
            alignas(64) int32_t comp[ROWS][QK_K / 16];
            Unroll<ROWS>{}([&](auto r) {
                const __m512i sums = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *) A[r * KB + i].bsums));
                _mm512_store_si512((__m512i *) comp[r], _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 5)));
            });

            Unroll<COLS>{}([&](auto col) {
                const char * b_ptr = B + PACKED_INDEX(col, i, KB, TILE_SIZE);
                __m512i acc[ROWS];
                Unroll<ROWS>{}([&](auto r) { acc[r] = _mm512_setzero_si512(); });
                for (int k_group = 0; k_group < QK_K / 16; ++k_group) {
                    const __m512i low0  = _mm512_loadu_si512((const __m512i *)(b_ptr + k_group * 128));
                    const __m512i low1  = _mm512_loadu_si512((const __m512i *)(b_ptr + k_group * 128 + 64));
                    const __m512i hbits = _mm512_loadu_si512((const __m512i *)(b_ptr + offset_qh + k_group * 64));
                    const __m512i vb[4] = {
                        _mm512_or_si512(_mm512_and_si512(low0, lowMask), _mm512_and_si512(_mm512_slli_epi16(hbits, 4), highMask)),
                        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low0, 4), lowMask), _mm512_and_si512(_mm512_slli_epi16(hbits, 2), highMask)),
                        _mm512_or_si512(_mm512_and_si512(low1, lowMask), _mm512_and_si512(hbits, highMask)),
                        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low1, 4), lowMask), _mm512_and_si512(_mm512_srli_epi16(hbits, 2), highMask)),
                    };
                    const __m512i vscale = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(b_ptr + offset_scales + k_group * TILE_N)));
                    Unroll<ROWS>{}([&](auto r) {
                        const int8_t * a = A[r * KB + i].qs + k_group * 16;
                        __m512i vsum = _mm512_set1_epi32(comp[r][k_group]);
                        Unroll<4>{}([&](auto k) { vsum = _mm512_dpbusd_epi32(vsum, vb[k], mtp_broadcast(a + 4 * k)); });
                        acc[r] = _mm512_add_epi32(acc[r], _mm512_mullo_epi32(vsum, vscale));
                    });
                }
                const __m512 vd0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b_ptr + offset_d0)));
                Unroll<ROWS>{}([&](auto r) {
                    const __m512 vd1 = _mm512_set1_ps(A[r * KB + i].d);
                    vc[r][col] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r]), _mm512_mul_ps(vd0, vd1), vc[r][col]);
                });
            });
        }
        mtp_store(vc, C, ldc);
    }
};

template <typename TA, typename TB, int BLOCK_N, int BLOCK_K>
inline void mtp_small_batch_rows(int rows, int KB, const TA * A, const char * B, float * C, int ldc) {
    switch (rows) {
        case 1: mtp_small_batch_kernel<TA, TB, 1, BLOCK_N, BLOCK_K>::apply(KB, A, B, C, ldc); break;
        case 2: mtp_small_batch_kernel<TA, TB, 2, BLOCK_N, BLOCK_K>::apply(KB, A, B, C, ldc); break;
        case 3: mtp_small_batch_kernel<TA, TB, 3, BLOCK_N, BLOCK_K>::apply(KB, A, B, C, ldc); break;
        case 4: mtp_small_batch_kernel<TA, TB, 4, BLOCK_N, BLOCK_K>::apply(KB, A, B, C, ldc); break;
    }
}

// The product of `dst`, whose activations stand quantized in `wdata`; false where the tiles are to do it.
inline bool mtp_small_batch_mul_mat(const ggml_compute_params * params, const void * wdata, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_type TYPE = src0->type;

    const int M = dst->ne[1];
    const int N = dst->ne[0];
    const int K = src0->ne[0];
    if (M > mtp_small_batch_limit(TYPE) || dst->ne[2] != 1 || dst->ne[3] != 1) {
        return false;
    }
    const int ldc = dst->nb[1] / dst->nb[0];

    constexpr int kTilesN = 4;
    constexpr int BLOCK_N = TILE_N * kTilesN;

    parallel_for_ggml(params, div_up(N, BLOCK_N), [&](int begin, int end) {
        GGML_DISPATCH_QTYPES(TYPE, [&] {
            const int KB = K / blck_size;
            const int TILE_SIZE = get_tile_size<type>();
            const vec_dot_type * A = (const vec_dot_type *) wdata;
            for (int nb = begin; nb < end; ++nb) {
                const char * B = (const char *) src0->data + PACKED_INDEX(nb * kTilesN, 0, KB, TILE_SIZE);
                float * C = (float *) dst->data + nb * BLOCK_N;
                for (int m = 0; m < M; m += MTP_ROWS) {
                    const int rows = std::min(MTP_ROWS, M - m);
                    if (N - nb * BLOCK_N >= BLOCK_N) {
                        mtp_small_batch_rows<vec_dot_type, type, BLOCK_N, blck_size>(rows, KB, A + m * KB, B, C + m * ldc, ldc);
                    } else { // N is a multiple of two tiles
                        mtp_small_batch_rows<vec_dot_type, type, BLOCK_N / 2, blck_size>(rows, KB, A + m * KB, B, C + m * ldc, ldc);
                    }
                }
            }
        });
    });
    return true;
}
