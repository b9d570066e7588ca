/* Updates that read and write each number once. First block-quantised states: encode, decode, and AdamW on them, with the same results, bit by
   bit, as _blocks.py's torch operations. Then elementwise rules over lists of tensors, and what APOLLO and Fira ask of whole matrices.

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
        place = place < CELLS ? place : CELLS - 1; /* of what is no number; any other is at most 1 */
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

/* Elementwise rules: lists of tensors, cut into spans that threads share out. */
#define SPAN 16384

#define EVERY_SPAN                                            \
    _Pragma("omp parallel") for (long t = 0; t < tensors; t++) \
        _Pragma("omp for schedule(static) nowait") for (long s = 0; s < counts[t]; s += SPAN)
#define LENGTH (counts[t] - s < SPAN ? counts[t] - s : SPAN)

static inline float squares_of(const float *restrict x, long count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; i++) sum += x[i] * x[i];
    return sum;
}

/* sums[t], which begin as 0: of tensor t's squares; infinite or no number where no float32 holds a part of it. */
void squares(long tensors, const long *counts, float *const *g, double *sums) {
    EVERY_SPAN {
        const double part = squares_of(g[t] + s, LENGTH);
#pragma omp atomic
        sums[t] += part;
    }
}

/* numbers: 1 - b1, 1 - b2, 1 - rate times decay, rate. */
void lion(long tensors, const long *counts, float *const *p, float *const *g, float *const *m, const float *numbers) {
    const float lean = numbers[0], keep = numbers[1], shrink = numbers[2], rate = numbers[3];
    EVERY_SPAN {
        const long count = LENGTH;
        float *restrict to = p[t] + s;
        const float *restrict by = g[t] + s;
        float *restrict mean = m[t] + s;
        for (long i = 0; i < count; i++) {
            float change = by[i] - mean[i], way = __builtin_fmaf(lean, change, mean[i]);
            to[i] = to[i] * shrink - (way > 0 ? rate : way < 0 ? -rate : 0.0f);
            mean[i] = __builtin_fmaf(keep, change, mean[i]);
        }
    }
}

/* numbers: b2, 1 - b2, 1 - b2^t, epsilon, decay, share, factor of the update in y, rate. */
void schedule_free(long tensors, const long *counts, float *const *y, float *const *g, float *const *z, float *const *v, const float *numbers) {
    const float keep = numbers[0], gain = numbers[1], whole = numbers[2], eps = numbers[3], decay = numbers[4], share = numbers[5],
                ahead = numbers[6], rate = numbers[7];
    EVERY_SPAN {
        const long count = LENGTH;
        float *restrict near = y[t] + s;
        const float *restrict by = g[t] + s;
        float *restrict base = z[t] + s;
        float *restrict square = v[t] + s;
        for (long i = 0; i < count; i++) {
            square[i] = square[i] * keep + gain * (by[i] * by[i]);
            float update = by[i] / (__builtin_sqrtf(square[i] / whole) + eps) + decay * near[i];
            near[i] = near[i] + share * (base[i] - near[i]) + ahead * update;
            base[i] = base[i] - rate * update;
        }
    }
}

/* LAMB's direction: numbers[3..6] are what the mean and the root are divided by, epsilon and decay. */
static inline float lamb_direction(float m, float v, float p, const float *numbers) {
    return m / (numbers[3] * (__builtin_sqrtf(v) / numbers[4] + numbers[5])) + numbers[6] * p;
}

/* Each p goes rate |p| / |u| along its direction u. numbers: 1 - b1, b2, 1 - b2, those of the direction, rate, the most that |p| is taken for.
   sums: room for two numbers for every span of every matrix, which are added up in order, so that threads don't change the result. */
void lamb(long tensors, const long *counts, float *const *p, float *const *g, float *const *m, float *const *v, const float *numbers, double *sums) {
    const float lean = numbers[0], keep = numbers[1], gain = numbers[2], rate = numbers[7], most = numbers[8];
#pragma omp parallel
    {
        long before = 0;
        for (long t = 0; t < tensors; before += (counts[t++] + SPAN - 1) / SPAN)
#pragma omp for schedule(static) nowait
            for (long s = 0; s < counts[t]; s += SPAN) {
                const long count = LENGTH;
                const float *restrict weight = p[t] + s, *restrict by = g[t] + s;
                float *restrict mean = m[t] + s, *restrict square = v[t] + s;
                float size = 0, length = 0;
#pragma omp simd reduction(+ : size, length)
                for (long i = 0; i < count; i++) {
                    mean[i] = __builtin_fmaf(lean, by[i] - mean[i], mean[i]);
                    square[i] = square[i] * keep + gain * (by[i] * by[i]);
                    float way = lamb_direction(mean[i], square[i], weight[i], numbers);
                    size += weight[i] * weight[i];
                    length += way * way;
                }
                sums[2 * (before + s / SPAN)] = size, sums[2 * (before + s / SPAN) + 1] = length;
            }
#pragma omp barrier
        before = 0;
        for (long t = 0; t < tensors; t++) {
            const long spans = (counts[t] + SPAN - 1) / SPAN;
            double size = 0, length = 0;
            for (long n = before; n < before + spans; n++) size += sums[2 * n], length += sums[2 * n + 1];
            before += spans;
            size = __builtin_sqrt(size), length = __builtin_sqrt(length);
            if (most > 0 && size > most) size = most;
            const float step = size > 0 && length > 0 ? rate * (float)(size / length) : rate;
#pragma omp for schedule(static) nowait
            for (long s = 0; s < counts[t]; s += SPAN) {
                const long count = LENGTH;
                float *restrict weight = p[t] + s;
                const float *restrict mean = m[t] + s, *restrict square = v[t] + s;
                for (long i = 0; i < count; i++) weight[i] -= step * lamb_direction(mean[i], square[i], weight[i], numbers);
            }
        }
    }
}

/* o = m / (sqrt(v) + epsilon) after both took g in; o may be g. numbers: 1 - b1, b2, 1 - b2, epsilon. */
static inline void directions_of(float *o, const float *g, float *restrict m, float *restrict v, long count, const float *numbers, float size) {
    const float lean = numbers[0], keep = numbers[1], gain = numbers[2], eps = numbers[3];
#pragma GCC ivdep
    for (long i = 0; i < count; i++) {
        float slope = g[i];
        m[i] = __builtin_fmaf(lean, slope - m[i], m[i]);
        v[i] = v[i] * keep + gain * (slope * slope);
        o[i] = size * (m[i] / (__builtin_sqrtf(v[i]) + eps));
    }
}

void directions(long tensors, const long *counts, float *const *o, float *const *g, float *const *m, float *const *v, const float *numbers) {
    EVERY_SPAN directions_of(o[t] + s, g[t] + s, m[t] + s, v[t] + s, LENGTH, numbers, 1.0f);
}

/* The same as a step of a chain: on gradients, which become directions times numbers[4], and both moments. */
void direct(long rows, long columns, float *const *on, const long *strides, const float *numbers) {
    for (long r = 0; r < rows; r++) {
        float *g = on[0] + r * strides[0];
        directions_of(g, g, on[1] + r * strides[1], on[2] + r * strides[2], columns, numbers, numbers[4]);
    }
}

static inline float norm_of(const float *restrict x, long count) {
    return __builtin_sqrtf(squares_of(x, count));
}

/* And on[3]: each channel's norm of the directions over the gradient's; channels are rows if numbers[5], else columns. */
void scale(long rows, long columns, float *const *on, const long *strides, const float *numbers) {
    if (numbers[5]) {
        for (long r = 0; r < rows; r++) {
            float *g = on[0] + r * strides[0], inside = norm_of(g, columns);
            directions_of(g, g, on[1] + r * strides[1], on[2] + r * strides[2], columns, numbers, numbers[4]);
            on[3][r * strides[3]] = norm_of(g, columns) / (inside + 1e-8f);
        }
        return;
    }
    for (long from = 0; from < columns; from += MOST) {
        const long count = columns - from < MOST ? columns - from : MOST;
        float inside[MOST] = {0}, after[MOST] = {0};
        for (long r = 0; r < rows; r++) {
            float *restrict g = on[0] + r * strides[0] + from;
            for (long i = 0; i < count; i++) inside[i] = __builtin_fmaf(g[i], g[i], inside[i]);
            directions_of(g, g, on[1] + r * strides[1] + from, on[2] + r * strides[2] + from, count, numbers, numbers[4]);
            for (long i = 0; i < count; i++) after[i] = __builtin_fmaf(g[i], g[i], after[i]);
        }
        for (long i = 0; i < count; i++) on[3][from + i] = __builtin_sqrtf(after[i]) / (__builtin_sqrtf(inside[i]) + 1e-8f);
    }
}

/* Whole matrices, [rows, columns] each and without gaps, a thread a matrix. Sums run over a row in float32, over rows in double precision. */
typedef struct {
    float *weight;
    const float *gradient, *factors;
    float *norms;
    long rows, columns;
    int tall; /* channels are rows; otherwise columns */
} matrix;

/* norms: of every channel. */
void channel_norms(const matrix *all, long count) {
#pragma omp parallel for schedule(dynamic)
    for (long n = 0; n < count; n++) {
        const matrix a = all[n];
        for (long i = 0; !a.tall && i < a.columns; i++) a.norms[i] = 0;
        for (long r = 0; r < a.rows; r++) {
            const float *restrict from = a.gradient + r * a.columns;
            if (a.tall) {
                a.norms[r] = norm_of(from, a.columns);
            } else {
                float *restrict to = a.norms;
                for (long i = 0; i < a.columns; i++) to[i] = __builtin_fmaf(from[i], from[i], to[i]);
            }
        }
        for (long i = 0; !a.tall && i < a.columns; i++) a.norms[i] = __builtin_sqrtf(a.norms[i]);
    }
}

/* weight = shrink (weight - size factor gradient); by: 0 one factor for all, 1 one a channel. */
void scaled(const matrix *all, long count, int by, float size, float shrink) {
#pragma omp parallel for schedule(dynamic)
    for (long n = 0; n < count; n++) {
        const matrix a = all[n];
        const float *restrict factors = a.factors;
        for (long r = 0; r < a.rows; r++) {
            float *restrict to = a.weight + r * a.columns;
            const float *restrict from = a.gradient + r * a.columns;
            if (by && !a.tall) {
                for (long i = 0; i < a.columns; i++) to[i] = shrink * __builtin_fmaf(-size * factors[i], from[i], to[i]);
            } else {
                float factor = -size * factors[by ? r : 0];
                for (long i = 0; i < a.columns; i++) to[i] = shrink * __builtin_fmaf(factor, from[i], to[i]);
            }
        }
    }
}

/* A matrix of APOLLO at rank 1: its gradient is projected on one vector, `basis`, to `low`, a number for each channel. */
typedef struct {
    float *weight;
    const float *gradient, *basis;
    float *low, *first, *second, *norm; /* norm: of the last update, which limits this one's, 0 for none */
    long rows, columns;
    float size; /* of the update, and its gradient's norm, which is found here */
    float whole;
    int tall;
} slim;

static void project(slim *a) {
    const long columns = a->columns;
    double whole = 0;
    for (long i = 0; !a->tall && i < columns; i++) a->low[i] = 0;
    for (long r = 0; r < a->rows; r++) {
        const float *restrict from = a->gradient + r * columns;
        float square = 0;
        if (a->tall) {
            const float *restrict basis = a->basis;
            float sum = 0;
#pragma omp simd reduction(+ : sum, square)
            for (long i = 0; i < columns; i++) {
                square += from[i] * from[i];
                sum += from[i] * basis[i];
            }
            a->low[r] = sum;
        } else {
            const float factor = a->basis[r];
            float *restrict to = a->low;
#pragma omp simd reduction(+ : square)
            for (long i = 0; i < columns; i++) {
                square += from[i] * from[i];
                to[i] = __builtin_fmaf(factor, from[i], to[i]);
            }
        }
        whole += square;
    }
    a->whole = (float)__builtin_sqrt(whole);
}

/* numbers: those of directions_of, shrink, and by how much the update's norm may grow. */
static void move_slim(const slim *a, const float *numbers) {
    const long channels = a->tall ? a->rows : a->columns, count = a->rows * a->columns;
    const float inside = norm_of(a->low, channels), shrink = numbers[4], limit = numbers[5];
    directions_of(a->low, a->low, a->first, a->second, channels, numbers, 1.0f);
    const float factor = norm_of(a->low, channels) / (inside + 1e-8f), norm = factor * a->whole;
    const float grown = norm / (*a->norm + 1e-8f), divisor = !(*a->norm > 0) || grown < limit ? 1 : grown / limit;
    if (norm > 0) *a->norm = norm / divisor;
    const float by = -a->size * (factor / divisor);
    float *restrict to = a->weight;
    const float *restrict from = a->gradient;
    for (long i = 0; i < count; i++) to[i] = shrink * __builtin_fmaf(by, from[i], to[i]);
}

/* APOLLO at rank 1 on the matrices of several weights, whose ends are given, a thread a weight, which stays in the cache from the projection to the
   update. A weight whose gradient's square is no float32 is marked as bad and left alone. */
void slim_steps(slim *all, const long *ends, long weights, const float *numbers, uint8_t *bad) {
#pragma omp parallel for schedule(dynamic)
    for (long n = 0; n < weights; n++) {
        slim *begin = all + (n ? ends[n - 1] : 0), *end = all + ends[n];
        for (slim *a = begin; a < end; a++) {
            project(a);
            if (!(a->whole < 0x1p64f)) bad[n] = 1;
        }
        for (slim *a = begin; a < end && !bad[n]; a++) move_slim(a, numbers);
    }
}
