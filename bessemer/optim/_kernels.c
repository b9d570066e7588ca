/* Block-quantised optimizer states: encode and decode, one pass each. The same results, bit by bit, as _blocks.py's torch operations.

   A code stands for table[code] times its block's scale, the largest magnitude in the block. Encoding looks the code up by the
   leading bits of x / scale, which is exact up to one threshold, and then compares with that threshold. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define CELLS 3200          /* 25 binary orders of magnitude, 128 cells each; smaller magnitudes share the first cell */
#define LOWEST 0x33800000u  /* the bits of 2^-24 */

static inline int cell(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t size = bits & 0x7fffffffu;
    int place = size < LOWEST ? 0 : (int)((size - LOWEST) >> 16);
    return place + (int)(bits >> 31) * CELLS;
}

/* candidates[cell]: the code of the cell's smallest number; thresholds[code]: from here on the next code is nearer. */
static void codes_of(const float *x, uint8_t *out, int block, float scale, const uint8_t *candidates, const float *thresholds) {
    for (int i = 0; i < block; i++) {
        float value = x[i] / scale;
        int code = candidates[cell(value)];
        out[i] = (uint8_t)(code + (value >= thresholds[code]));
    }
}

static float largest(const float *x, int block) {
    float most = 0.0f;
    for (int i = 0; i < block; i++) most = fmaxf(most, fabsf(x[i]));
    return fmaxf(most, 1e-12f);
}

void encode8(const float *x, long blocks, int block, uint8_t *codes, float *scales, const uint8_t *candidates, const float *thresholds) {
#pragma omp parallel for schedule(static)
    for (long b = 0; b < blocks; b++) {
        scales[b] = largest(x + b * block, block);
        codes_of(x + b * block, codes + b * block, block, scales[b], candidates, thresholds);
    }
}

void decode8(const uint8_t *codes, const float *scales, long blocks, int block, const float *table, float *out) {
#pragma omp parallel for schedule(static)
    for (long b = 0; b < blocks; b++)
        for (int i = 0; i < block; i++) out[b * block + i] = table[codes[b * block + i]] * scales[b];
}

/* Two codes a byte, the earlier one in the high half. */
void encode4(const float *x, long blocks, int block, uint8_t *codes, float *scales, const uint8_t *candidates, const float *thresholds) {
#pragma omp parallel for schedule(static)
    for (long b = 0; b < blocks; b++) {
        uint8_t loose[1024];
        scales[b] = largest(x + b * block, block);
        codes_of(x + b * block, loose, block, scales[b], candidates, thresholds);
        for (int i = 0; i < block / 2; i++) codes[b * block / 2 + i] = (uint8_t)(loose[2 * i] << 4 | loose[2 * i + 1]);
    }
}

void decode4(const uint8_t *codes, const float *scales, long blocks, int block, const float *table, float *out) {
#pragma omp parallel for schedule(static)
    for (long b = 0; b < blocks; b++)
        for (int i = 0; i < block / 2; i++) {
            uint8_t pair = codes[b * block / 2 + i];
            out[b * block + 2 * i] = table[pair >> 4] * scales[b];
            out[b * block + 2 * i + 1] = table[pair & 15] * scales[b];
        }
}
