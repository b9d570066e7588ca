/* Block-quantised optimizer states: encode, decode, and AdamW on them, one pass each. The same results, bit by bit, as _blocks.py's torch operations.

   A code stands for table[code] times its block's scale, the largest magnitude in the block. Encoding looks the code up by the
   leading bits of x / scale, which is exact up to one threshold, and then compares with that threshold. Loops are written so that
   compilers vectorise them: plain indices, 32-bit tables, no aliasing. */
#include <stdint.h>

#define CELLS 3200         /* 25 binary orders of magnitude, 128 cells each; smaller magnitudes share the first cell */
#define LOWEST 0x33800000  /* the bits of 2^-24 */
#define MOST 1024          /* numbers in a block */

typedef int32_t __attribute__((may_alias)) bits32;

/* candidates[cell]: the code of the cell's smallest number; thresholds[code]: from here on the next code is nearer. */
static inline void codes_of(const float *restrict x, uint8_t *restrict out, int block, float scale, const int32_t *restrict candidates,
                            const float *restrict thresholds) {
    float values[MOST];
    int32_t found[MOST];
    const bits32 *bits = (const bits32 *)values;
    for (int i = 0; i < block; i++) values[i] = x[i] / scale;
    for (int i = 0; i < block; i++) {
        int32_t size = bits[i] & 0x7fffffff;
        int32_t place = size < LOWEST ? 0 : (size - LOWEST) >> 16;
        found[i] = candidates[place + (bits[i] < 0 ? CELLS : 0)];
    }
    for (int i = 0; i < block; i++) found[i] += values[i] >= thresholds[found[i]] ? 1 : 0;
    for (int i = 0; i < block; i++) out[i] = (uint8_t)found[i];
}

/* Magnitudes order as their bits do. */
static inline float largest(const float *restrict x, int block) {
    union { int32_t bits; float value; } most = {.value = 1e-12f};
    const bits32 *bits = (const bits32 *)x;
    int32_t top = most.bits;
    for (int i = 0; i < block; i++) {
        int32_t size = bits[i] & 0x7fffffff;
        top = size > top ? size : top;
    }
    most.bits = top;
    return most.value;
}

static inline void values_of(const uint8_t *restrict codes, float scale, int block, const float *restrict table, float *restrict out) {
    for (int i = 0; i < block; i++) out[i] = table[(int32_t)codes[i]] * scale;
}

/* 8 bits: a code a byte. 4 bits: two, the earlier one in the high half. */
static inline void encode_block(const float *x, int block, int bits, uint8_t *codes, float *scale, const int32_t *candidates, const float *thresholds) {
    uint8_t loose[MOST];
    *scale = largest(x, block);
    codes_of(x, bits == 8 ? codes : loose, block, *scale, candidates, thresholds);
    if (bits == 4)
        for (int i = 0; i < block / 2; i++) codes[i] = (uint8_t)(loose[2 * i] << 4 | loose[2 * i + 1]);
}

static inline void decode_block(const uint8_t *codes, float scale, int block, int bits, const float *table, float *out) {
    uint8_t loose[MOST];
    if (bits == 4)
        for (int i = 0; i < block / 2; i++) {
            loose[2 * i] = codes[i] >> 4;
            loose[2 * i + 1] = codes[i] & 15;
        }
    values_of(bits == 8 ? codes : loose, scale, block, table, out);
}

void encode(const float *x, long blocks, int block, int bits, uint8_t *codes, float *scales, const int32_t *candidates, const float *thresholds) {
    long bytes = block * bits / 8;
#pragma omp parallel for schedule(static) if (blocks >= 64)
    for (long b = 0; b < blocks; b++) encode_block(x + b * block, block, bits, codes + b * bytes, scales + b, candidates, thresholds);
}

void decode(const uint8_t *codes, const float *scales, long blocks, int block, int bits, const float *table, float *out) {
    long bytes = block * bits / 8;
#pragma omp parallel for schedule(static) if (blocks >= 64)
    for (long b = 0; b < blocks; b++) decode_block(codes + b * bytes, scales[b], block, bits, table, out + b * block);
}

typedef struct {
    const float *table;
    const int32_t *candidates;
    const float *thresholds;
} levels;

/* AdamW with both states coded, one block after another: the roundings of torch's lerp, addcdiv and so on, in their order. */
void adamw(float *p, const float *g, uint8_t *m_codes, float *m_scales, uint8_t *v_codes, float *v_scales, long blocks, int block, int bits,
           const levels *first, const levels *second, const float *numbers) {
    const float w1 = numbers[0], w2 = numbers[1], root = numbers[2], eps = numbers[3], shrink = numbers[4], size = numbers[5];
    long bytes = block * bits / 8;
#pragma omp parallel for schedule(static) if (blocks >= 64)
    for (long b = 0; b < blocks; b++) {
        float m[MOST], v[MOST];
        float *restrict to = p + b * block;
        const float *restrict by = g + b * block;
        decode_block(m_codes + b * bytes, m_scales[b], block, bits, first->table, m);
        decode_block(v_codes + b * bytes, v_scales[b], block, bits, second->table, v);
        for (int i = 0; i < block; i++) {
            float square = by[i] * by[i];
            m[i] = __builtin_fmaf(w1, by[i] - m[i], m[i]);
            v[i] = __builtin_fmaf(w2, square - v[i], v[i]);
            to[i] = to[i] * shrink + (size * m[i]) / (__builtin_sqrtf(v[i]) / root + eps);
        }
        encode_block(m, block, bits, m_codes + b * bytes, m_scales + b, first->candidates, first->thresholds);
        encode_block(v, block, bits, v_codes + b * bytes, v_scales + b, second->candidates, second->thresholds);
    }
}
