/* What kernels on vectors of sixteen 32-bit numbers share; included where those may be used. */
#include <immintrin.h>
#include <string.h>

#define SIDE 16 /* numbers of a vector */

/* The lanes that the first `count` of some numbers take. */
static inline __mmask16 first_of(long count) { return count >= SIDE ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

/* A square of SIDE x SIDE numbers. */
static inline void transpose(__m512i r[SIDE]) {
    __m512i t[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), more = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        __m512i high = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd), last = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(low, more, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(low, more, 0xdd);
        t[i + 4] = _mm512_shuffle_i32x4(high, last, 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(high, last, 0xdd);
    }
    memcpy(r, t, sizeof t);
}
