#pragma once

// Products with a few rows of activations, as a speculative round has them: 1 to 8 tokens, more with several sequences.
//
// AMX unpacks a block of weights into tiles made for 32 rows, which costs more than it gains when there are few. Here
// 16 columns of weights go through the registers once, for up to SMALL_BATCH_ROWS rows, whose sums stay there from the first
// block to the last, and are asked for ahead of use: one row takes what reading the weights takes, further ones little
// more. Each row goes through the same operations as in tinygemm_kernel_vnni (integer sums, which do not hang on their
// order, then the same multiply-adds), so that a token's result does not depend on how many are verified.
//
// Included by mmq.cpp, whose packed layouts it reads.

constexpr int SMALL_BATCH_ROWS      = 8;    // at once
constexpr int SMALL_BATCH_MOST_ROWS = 64;   // in all
constexpr int SMALL_BATCH_PREFETCH  = 4096; // bytes of weights

// Calls of always inlined functions are what keeps sums in registers.
#if defined(__GNUC__) || defined(__clang__)
#define SMALL_BATCH_INLINE __attribute__((always_inline))
#else
#define SMALL_BATCH_INLINE
#endif

// Where this was measured to be faster than upstream's kernels: one row of Q8_0 comes from memory as fast there.
inline bool small_batch_fits(ggml_type type, int n_rows) {
    return n_rows <= SMALL_BATCH_MOST_ROWS && !(n_rows == 1 && type == GGML_TYPE_Q8_0);
}

// Packed weights (pack_B): `load` makes bytes without sign of them, in which ZERO stands for 0, four of a column side by
// side. Where they have minima, those stand behind the scales and count for the activations' sums.
template <typename TB> struct small_batch_weights;

inline SMALL_BATCH_INLINE void small_batch_load_nibbles(const char * b, __m512i & low, __m512i & high) {
    const __m512i mask  = _mm512_set1_epi8(0xF);
    const __m512i bytes = _mm512_loadu_si512((const __m512i *) b);
    low  = _mm512_and_si512(bytes, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
}

// `nibbles` with two bits of `high`, which stand at the mask's place
inline SMALL_BATCH_INLINE __m512i small_batch_with_bits(__m512i nibbles, __m512i high, char mask) {
    return _mm512_ternarylogic_epi32(high, _mm512_set1_epi8(mask), nibbles, 0xEA); // (a & b) | c
}

template <> struct small_batch_weights<block_q4_0> {
    static constexpr int  ZERO   = 8;
    static constexpr bool MINIMA = false;
    static constexpr int  SCALES = TILE_N * TILE_K / 2;

    static SMALL_BATCH_INLINE void load(const char * b, __m512i (&vb)[8]) {
        Unroll<4>{}([&](auto k) SMALL_BATCH_INLINE { small_batch_load_nibbles(b + k * 64, vb[2 * k], vb[2 * k + 1]); });
    }
};

template <> struct small_batch_weights<block_q4_1> : small_batch_weights<block_q4_0> {
    static constexpr int  ZERO   = 0;
    static constexpr bool MINIMA = true;
};

template <> struct small_batch_weights<block_q8_0> {
    static constexpr int  ZERO   = 128;
    static constexpr bool MINIMA = false;
    static constexpr int  SCALES = TILE_N * TILE_K;

    static SMALL_BATCH_INLINE void load(const char * b, __m512i (&vb)[8]) {
        const __m512i zero = _mm512_set1_epi8((char) ZERO);
        Unroll<8>{}([&](auto k) SMALL_BATCH_INLINE { vb[k] = _mm512_xor_si512(_mm512_loadu_si512((const __m512i *)(b + k * 64)), zero); });
    }
};

// Superblocks: groups of GROUP values have a scale.
template <> struct small_batch_weights<block_q4_K> {
    static constexpr int  ZERO   = 0;
    static constexpr bool MINIMA = true;
    static constexpr int  GROUP  = 32;
    static constexpr int  SCALES = (QK_K / 2) * TILE_N;

    static SMALL_BATCH_INLINE void load(const char * b, int group, __m512i (&vb)[8]) {
        small_batch_weights<block_q4_0>::load(b + group * 256, vb);
    }
};

template <> struct small_batch_weights<block_q5_K> {
    static constexpr int  ZERO   = 0;
    static constexpr bool MINIMA = true;
    static constexpr int  GROUP  = 32;
    static constexpr int  SCALES = (QK_K / 2 + QK_K / 8) * TILE_N;

    static SMALL_BATCH_INLINE void load(const char * b, int group, __m512i (&vb)[8]) {
        small_batch_weights<block_q4_0>::load(b + group * 256, vb);
        const __m512i high = _mm512_loadu_si512((const __m512i *)(b + (QK_K / 2) * TILE_N + group * 64));
        Unroll<4>{}([&](auto k) SMALL_BATCH_INLINE {
            vb[k]     = small_batch_with_bits(vb[k],     _mm512_slli_epi16(high, 4 - k), 0x10);
            vb[k + 4] = small_batch_with_bits(vb[k + 4], _mm512_srli_epi16(high, k),     0x10);
        });
    }
};

template <> struct small_batch_weights<block_q6_K> {
    static constexpr int  ZERO   = 32;
    static constexpr bool MINIMA = false;
    static constexpr int  GROUP  = 16;
    static constexpr int  SCALES = (QK_K / 2 + QK_K / 4) * TILE_N;

    static SMALL_BATCH_INLINE void load(const char * b, int group, __m512i (&vb)[4]) {
        small_batch_load_nibbles(b + group * 128,      vb[0], vb[1]);
        small_batch_load_nibbles(b + group * 128 + 64, vb[2], vb[3]);
        const __m512i high = _mm512_loadu_si512((const __m512i *)(b + (QK_K / 2) * TILE_N + group * 64));
        vb[0] = small_batch_with_bits(vb[0], _mm512_slli_epi16(high, 4), 0x30);
        vb[1] = small_batch_with_bits(vb[1], _mm512_slli_epi16(high, 2), 0x30);
        vb[2] = small_batch_with_bits(vb[2], high,                       0x30);
        vb[3] = small_batch_with_bits(vb[3], _mm512_srli_epi16(high, 2), 0x30);
    }
};

template <> struct small_batch_weights<block_iq4_xs> {
    static constexpr int  ZERO   = 128;
    static constexpr bool MINIMA = false;
    static constexpr int  GROUP  = 32;
    static constexpr int  SCALES = (QK_K / 2) * TILE_N;

    static SMALL_BATCH_INLINE void load(const char * b, int group, __m512i (&vb)[8]) {
        alignas(16) static constexpr uint8_t values[16] = {
            1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
        };
        const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *) values));
        small_batch_weights<block_q4_0>::load(b + group * 256, vb);
        Unroll<8>{}([&](auto k) SMALL_BATCH_INLINE { vb[k] = _mm512_shuffle_epi8(table, vb[k]); });
    }
};

// What the kernels need of some rows of activations besides their bytes, [block][...][row].
struct small_batch_activations {
    std::vector<float>   scales;
    std::vector<float>   scaled_sums; // Q8_1
    std::vector<int32_t> sums;        // of a group times -ZERO; with minima, two sums of 32 a word
};

inline SMALL_BATCH_INLINE __m512i small_batch_broadcast(const int8_t * four) {
    int32_t value;
    memcpy(&value, four, sizeof(value));
    return _mm512_set1_epi32(value);
}

inline SMALL_BATCH_INLINE __m512 small_batch_load_halves(const char * b) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) b));
}

template <int BYTES>
inline SMALL_BATCH_INLINE void small_batch_prefetch(const char * b) {
    Unroll<(BYTES + 63) / 64>{}([&](auto i) SMALL_BATCH_INLINE { _mm_prefetch(b + SMALL_BATCH_PREFETCH + i * 64, _MM_HINT_T1); });
}

// vsum[row] += the products of VNNI of `vb` and the bytes at `a` of each row, `stride` bytes apart
template <int ROWS, int N>
inline SMALL_BATCH_INLINE void small_batch_dot(__m512i (&vsum)[ROWS], const __m512i (&vb)[N], const int8_t * a, size_t stride) {
    Unroll<N>{}([&](auto k) SMALL_BATCH_INLINE {
        Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { vsum[r] = _mm512_dpbusd_epi32(vsum[r], vb[k], small_batch_broadcast(a + r * stride + 4 * k)); });
    });
}

// A: ROWS rows of KB blocks, B: 16 packed columns, C: ROWS rows, ldc apart.
template <typename TA, typename TB, int ROWS, typename = void>
struct small_batch_kernel {
    using weights = small_batch_weights<TB>;

    static void prepare(int KB, const TA * A, small_batch_activations & out) {
        out.scales.resize(KB * ROWS);
        out.sums.resize(KB * ROWS);
        out.scaled_sums.resize(weights::MINIMA ? KB * ROWS : 0);
        for (int i = 0; i < KB; ++i) {
            for (int r = 0; r < ROWS; ++r) {
                const TA & a = A[r * KB + i];
                int32_t sum = 0;
                for (int k = 0; k < TILE_K; ++k) {
                    sum += a.qs[k];
                }
                out.sums[i * ROWS + r]   = -weights::ZERO * sum;
                out.scales[i * ROWS + r] = GGML_CPU_FP16_TO_FP32(a.d);
                if constexpr (weights::MINIMA) {
                    out.scaled_sums[i * ROWS + r] = GGML_CPU_FP16_TO_FP32(a.s);
                }
            }
        }
    }

    static void apply(int KB, const TA * RESTRICT A, const small_batch_activations & rows, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        const int TILE_SIZE = get_tile_size<TB>();

        __m512 vc[ROWS];
        Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { vc[r] = _mm512_setzero_ps(); });

        for (int i = 0; i < KB; ++i, B += TILE_SIZE) {
            small_batch_prefetch<TILE_N * sizeof(TB)>(B);

            __m512i vb[8];
            weights::load(B, vb);
            const __m512 vd0 = small_batch_load_halves(B + weights::SCALES);

            __m512i vsum[ROWS];
            Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { vsum[r] = _mm512_set1_epi32(rows.sums[i * ROWS + r]); });
            small_batch_dot(vsum, vb, A[i].qs, KB * sizeof(TA));
            Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE {
                const __m512 vd1 = _mm512_set1_ps(rows.scales[i * ROWS + r]);
                vc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(vsum[r]), _mm512_mul_ps(vd0, vd1), vc[r]);
                if constexpr (weights::MINIMA) {
                    const __m512 vm0 = small_batch_load_halves(B + weights::SCALES + TILE_N * sizeof(ggml_half));
                    vc[r] = _mm512_fmadd_ps(vm0, _mm512_set1_ps(rows.scaled_sums[i * ROWS + r]), vc[r]);
                }
            });
        }
        Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { _mm512_storeu_ps(C + r * ldc, vc[r]); });
    }
};

template <typename TA, typename TB, int ROWS>
struct small_batch_kernel<TA, TB, ROWS, typename std::enable_if<is_type_qkk<TB>::value>::type> {
    using weights = small_batch_weights<TB>;

    static constexpr int GROUP  = weights::GROUP;
    static constexpr int GROUPS = QK_K / GROUP;
    static constexpr int WORDS  = weights::MINIMA ? QK_K / 64 : GROUPS; // of sums, by block and row
    static constexpr int MINIMA = weights::SCALES + GROUPS * TILE_N;
    static constexpr int D0     = MINIMA + (weights::MINIMA ? 8 * TILE_N : 0);
    static constexpr int DMIN   = D0 + TILE_N * sizeof(ggml_half);

    static void prepare(int KB, const TA * A, small_batch_activations & out) {
        out.scales.resize(KB * ROWS);
        out.sums.resize(KB * WORDS * ROWS);
        for (int i = 0; i < KB; ++i) {
            for (int r = 0; r < ROWS; ++r) {
                const TA & a = A[r * KB + i];
                const auto sum32 = [&](int k) { return a.bsums[2 * k] + a.bsums[2 * k + 1]; };
                out.scales[i * ROWS + r] = a.d;
                for (int k = 0; k < WORDS; ++k) {
                    int32_t & word = out.sums[(i * WORDS + k) * ROWS + r];
                    if constexpr (weights::MINIMA) {
                        word = (int32_t) ((uint32_t) (uint16_t) sum32(2 * k) | (uint32_t) (uint16_t) sum32(2 * k + 1) << 16);
                    } else {
                        word = -weights::ZERO * (GROUP == 32 ? sum32(k) : a.bsums[k]);
                    }
                }
            }
        }
    }

    static void apply(int KB, const TA * RESTRICT A, const small_batch_activations & rows, const char * RESTRICT B, float * RESTRICT C, int ldc) {
        const int TILE_SIZE = get_tile_size<TB>();

        __m512 vc[ROWS];
        Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { vc[r] = _mm512_setzero_ps(); });

        for (int i = 0; i < KB; ++i, B += TILE_SIZE) {
            const int32_t * sums = rows.sums.data() + i * WORDS * ROWS;

            __m512i acc[ROWS];
            Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { acc[r] = _mm512_setzero_si512(); });
            for (int group = 0; group < GROUPS; ++group) {
                small_batch_prefetch<TILE_N * sizeof(TB) / GROUPS>(B + group * (TILE_N * sizeof(TB) / GROUPS));

                __m512i vb[GROUP / 4];
                weights::load(B, group, vb);
                const __m512i vscale = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(B + weights::SCALES + group * TILE_N)));

                __m512i vsum[ROWS];
                Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE {
                    vsum[r] = weights::MINIMA ? _mm512_setzero_si512() : _mm512_set1_epi32(sums[group * ROWS + r]);
                });
                small_batch_dot(vsum, vb, A[i].qs + group * GROUP, KB * sizeof(TA));
                Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { acc[r] = _mm512_add_epi32(acc[r], _mm512_mullo_epi32(vsum[r], vscale)); });
            }

            const __m512 vd0 = small_batch_load_halves(B + D0);
            Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE {
                const __m512 vd1 = _mm512_set1_ps(rows.scales[i * ROWS + r]);
                vc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r]), _mm512_mul_ps(vd0, vd1), vc[r]);
                if constexpr (weights::MINIMA) {
                    __m512i vmins = _mm512_setzero_si512();
                    Unroll<WORDS>{}([&](auto k) SMALL_BATCH_INLINE {
                        const __m512i vmin = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(B + MINIMA + k * 32)));
                        vmins = _mm512_dpwssds_epi32(vmins, _mm512_set1_epi32(sums[k * ROWS + r]), vmin);
                    });
                    vc[r] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(vmins), _mm512_mul_ps(small_batch_load_halves(B + DMIN), vd1), vc[r]);
                }
            });
        }
        Unroll<ROWS>{}([&](auto r) SMALL_BATCH_INLINE { _mm512_storeu_ps(C + r * ldc, vc[r]); });
    }
};

// Some rows, what the kernels need of them, and the kernel for so many.
template <typename TA, typename TB>
struct small_batch_row_group {
    const TA *      A = nullptr;
    float *         C = nullptr;
    small_batch_activations rows;

    void (*kernel)(int KB, const TA * A, const small_batch_activations & rows, const char * B, float * C, int ldc) = nullptr;

    void prepare(int n_rows, int KB) {
        switch (n_rows) {
            case 1: prepare<1>(KB); break;
            case 2: prepare<2>(KB); break;
            case 3: prepare<3>(KB); break;
            case 4: prepare<4>(KB); break;
            case 5: prepare<5>(KB); break;
            case 6: prepare<6>(KB); break;
            case 7: prepare<7>(KB); break;
            case 8: prepare<8>(KB); break;
            default: GGML_ABORT("more rows than registers");
        }
    }

    template <int ROWS>
    void prepare(int KB) {
        small_batch_kernel<TA, TB, ROWS>::prepare(KB, A, rows);
        kernel = small_batch_kernel<TA, TB, ROWS>::apply;
    }
};

// The product of `dst`, whose activations stand quantized in `wdata`; false where the tiles are to do it.
inline bool small_batch_mul_mat(const ggml_compute_params * params, const void * wdata, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_type TYPE = src0->type;

    const int M = dst->ne[1];
    const int N = dst->ne[0];
    const int K = src0->ne[0];
    if (!small_batch_fits(TYPE, M) || dst->ne[2] != 1 || dst->ne[3] != 1) {
        return false;
    }
    const int ldc      = dst->nb[1] / dst->nb[0];
    const int n_groups = div_up(M, SMALL_BATCH_ROWS);
    const int n_rows   = div_up(M, n_groups);

    parallel_for_ggml(params, N / TILE_N, [&](int begin, int end) {
        if (begin >= end) {
            return;
        }
        GGML_DISPATCH_QTYPES(TYPE, [&] {
            const int KB = K / blck_size;
            const int TILE_SIZE = get_tile_size<type>();

            static thread_local std::vector<small_batch_row_group<vec_dot_type, type>> groups;
            groups.resize(n_groups);
            for (int g = 0; g < n_groups; ++g) {
                groups[g].A = (const vec_dot_type *) wdata + (size_t) g * n_rows * KB;
                groups[g].C = (float *) dst->data + (size_t) g * n_rows * ldc;
                groups[g].prepare(std::min(n_rows, M - g * n_rows), KB);
            }
            for (int n = begin; n < end; ++n) {
                const char * B = (const char *) src0->data + (size_t) n * KB * TILE_SIZE;
                for (const auto & group : groups) {
                    group.kernel(KB, group.A, group.rows, B, group.C + n * TILE_N, ldc);
                }
            }
        });
    });
    return true;
}

#undef SMALL_BATCH_INLINE
