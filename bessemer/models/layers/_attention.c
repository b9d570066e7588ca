/* Causal attention in float32 on a processor, forward and backward, a head at a time.

   Scores of 32 queries at once with all keys they may see are formed, used and forgotten while they lie in the second-level cache; later
   keys are never touched. All seven products go through one tile of 8 rows by 32 columns, which is sixteen accumulators of 16
   numbers. Keys and values are first copied into the order the products read them in. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4), may_alias));

#define BLOCK 32 /* queries taken together; lengths are multiples of it */
#define ROWS 8   /* of a tile */
#define WIDE 32  /* columns of a tile; head sizes are multiples of it */

static inline vec all(float x) { return x - (vec){}; }

/* c[8, 32] = or += sum over k of a(row, k) b[k, column]; a's element is at row * down + k * across. */
static inline void tile(int depth, const float *a, long down, long across, const float *b, long b_row, float *c, long c_row, int add) {
    vec sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = add ? *(const vec *)(c + r * c_row + 16 * v) : (vec){};
    for (int k = 0; k < depth; k++) {
        vec left = *(const vec *)(b + k * b_row), right = *(const vec *)(b + k * b_row + 16);
        for (int r = 0; r < ROWS; r++) {
            vec each = all(a[r * down + k * across]);
            sum[r][0] += each * left;
            sum[r][1] += each * right;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) *(vec *)(c + r * c_row + 16 * v) = sum[r][v];
}

/* c[rows, columns] = or += a b; rows are a multiple of 8, columns of 32. */
static void product(int rows, int columns, int depth, const float *a, long down, long across, const float *b, long b_row, float *c, long c_row,
                    int add) {
    for (int column = 0; column < columns; column += WIDE)
        for (int row = 0; row < rows; row += ROWS)
            tile(depth, a + row * down, down, across, b + column, b_row, c + row * c_row + column, c_row, add);
}

/* e^x for x <= 0, to two units in the last place; 0 below -87. */
static inline vec exponential(vec x) {
    ivec low = x < all(-87.0f);
    x = (vec)(((ivec)x & ~low) | ((ivec)all(-87.0f) & low));
    vec turns = x * 1.44269504088896341f + 12582912.0f; /* rounds to a whole number in the low bits */
    ivec power = (ivec)turns;
    turns -= 12582912.0f;
    vec rest = x - turns * 0.693145751953125f - turns * 1.42860682030941723e-6f;
    vec value = all(1.9875691500e-4f);
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * rest * rest + rest + 1.0f;
    value = (vec)((ivec)value + (power << 23));
    return (vec)((ivec)value & ~low);
}

static inline float total(vec x) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
}

static inline float highest(vec x) {
    float most = x[0];
    for (int i = 1; i < 16; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static void copy(const float *from, long row, int length, int size, float *to) {
    for (int i = 0; i < length; i++) memcpy(to + (long)i * size, from + i * row, size * sizeof(float));
}

static void transpose(const float *from, long row, int length, int size, float *to) {
    for (int start = 0; start < length; start += 16)
        for (int d = 0; d < size; d++)
            for (int i = start; i < start + 16; i++) to[(long)d * length + i] = from[i * row + d];
}

/* Scores of one query over `seen` keys, scaled; what it may not see becomes -inf. */
static inline void hide(float *scores, int query, int seen, const uint8_t *allowed, float scale) {
    for (int key = 0; key < seen; key += 16) {
        vec *here = (vec *)(scores + key);
        *here *= scale;
    }
    for (int key = query + 1; key < seen; key++) scores[key] = -__builtin_inff();
    if (allowed)
        for (int key = 0; key <= query; key++)
            if (!allowed[key]) scores[key] = -__builtin_inff();
}

typedef struct {
    const float *data;
    long row, head, step; /* elements from one batch row, head, column to the next */
} view;

static const float *at(const view *v, int row, int head) { return v->data + row * v->row + head * v->head; }

/* out and log_total are dense: [rows, length, heads, size] and [rows, heads, length]. allowed: bytes [rows, length, length], allowed_row apart, or null.
   group: query heads to a key head. */
void attention_forward(const view *q, const view *k, const view *v, const uint8_t *allowed, long allowed_row, float *out, float *log_total, int rows, int heads, int group,
                       int length, int size, float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int each = 0; each < rows * heads; each++) {
        int row = each / heads, head = each % heads;
        long area = (long)length * size;
        float *space = aligned_alloc(64, ((3 * area + (long)BLOCK * length + BLOCK * size) * sizeof(float) + 63) / 64 * 64);
        float *keys = space, *values = keys + area, *queries = values + area, *scores = queries + area, *mixed = scores + (long)BLOCK * length;
        transpose(at(k, row, head / group), k->step, length, size, keys);
        copy(at(v, row, head / group), v->step, length, size, values);
        copy(at(q, row, head), q->step, length, size, queries);
        for (int start = 0; start < length; start += BLOCK) {
            int seen = start + BLOCK;
            product(BLOCK, seen, size, queries + (long)start * size, size, 1, keys, length, scores, length, 0);
            float inverse[BLOCK];
            for (int i = 0; i < BLOCK; i++) {
                float *mine = scores + (long)i * length;
                hide(mine, start + i, seen, allowed ? allowed + row * allowed_row + (long)(start + i) * length : 0, scale);
                vec top = all(-__builtin_inff()), sum = {};
                for (int key = 0; key < seen; key += 16) {
                    vec x = *(vec *)(mine + key);
                    ivec more = x > top;
                    top = (vec)(((ivec)x & more) | ((ivec)top & ~more));
                }
                float most = highest(top);
                for (int key = 0; key < seen; key += 16) {
                    vec share = exponential(*(vec *)(mine + key) - most);
                    *(vec *)(mine + key) = share;
                    sum += share;
                }
                float whole = total(sum);
                inverse[i] = 1.0f / whole;
                log_total[((long)row * heads + head) * length + start + i] = most + __builtin_logf(whole);
            }
            product(BLOCK, size, seen, scores, length, 1, values, size, mixed, size, 0);
            for (int i = 0; i < BLOCK; i++)
                for (int d = 0; d < size; d += 16)
                    *(vec *)(out + (((long)row * length + start + i) * heads + head) * size + d) = *(vec *)(mixed + i * size + d) * inverse[i];
        }
        free(space);
    }
}

/* grad, out: views like q. d_q is dense [rows, length, heads, size], d_k and d_v [rows, length, heads / group, size]. */
void attention_backward(const view *q, const view *k, const view *v, const view *grad, const view *out, const float *log_total, const uint8_t *allowed, long allowed_row,
                        float *d_q, float *d_k, float *d_v, int rows, int heads, int group, int length, int size, float scale, int threads) {
    int key_heads = heads / group;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int each = 0; each < rows * key_heads; each++) {
        int row = each / key_heads, key_head = each % key_heads;
        long area = (long)length * size, block = (long)BLOCK * length;
        float *space = aligned_alloc(64, ((8 * area + 2 * block + BLOCK * size) * sizeof(float) + 63) / 64 * 64);
        float *keys = space, *keys_t = keys + area, *values_t = keys_t + area, *queries = values_t + area, *grads = queries + area;
        float *to_keys = grads + area, *to_values = to_keys + area, *shares = to_values + area, *pulls = shares + block, *to_queries = pulls + block;
        copy(at(k, row, key_head), k->step, length, size, keys);
        transpose(at(k, row, key_head), k->step, length, size, keys_t);
        transpose(at(v, row, key_head), v->step, length, size, values_t);
        memset(to_keys, 0, 2 * area * sizeof(float));
        for (int head = key_head * group; head < (key_head + 1) * group; head++) {
            copy(at(q, row, head), q->step, length, size, queries);
            copy(at(grad, row, head), grad->step, length, size, grads);
            const float *mixed = at(out, row, head);
            for (int start = 0; start < length; start += BLOCK) {
                int seen = start + BLOCK;
                const float *mine = queries + (long)start * size, *pulled = grads + (long)start * size;
                product(BLOCK, seen, size, mine, size, 1, keys_t, length, shares, length, 0);
                product(BLOCK, seen, size, pulled, size, 1, values_t, length, pulls, length, 0);
                for (int i = 0; i < BLOCK; i++) {
                    float *share = shares + (long)i * length, *pull = pulls + (long)i * length;
                    vec sum = {};
                    for (int d = 0; d < size; d += 16) sum += *(const vec *)(pulled + i * size + d) * *(const vec *)(mixed + (start + i) * out->step + d);
                    float along = total(sum), log_sum = log_total[((long)row * heads + head) * length + start + i];
                    hide(share, start + i, seen, allowed ? allowed + row * allowed_row + (long)(start + i) * length : 0, scale);
                    for (int key = 0; key < seen; key += 16) {
                        vec s = exponential(*(vec *)(share + key) - log_sum);
                        *(vec *)(share + key) = s;
                        *(vec *)(pull + key) = s * (*(vec *)(pull + key) - along) * scale;
                    }
                }
                product(BLOCK, size, seen, pulls, length, 1, keys, size, to_queries, size, 0);
                product(seen, size, BLOCK, pulls, 1, length, mine, size, to_keys, size, 1);
                product(seen, size, BLOCK, shares, 1, length, pulled, size, to_values, size, 1);
                for (int i = 0; i < BLOCK; i++)
                    memcpy(d_q + (((long)row * length + start + i) * heads + head) * size, to_queries + i * size, size * sizeof(float));
            }
        }
        for (int i = 0; i < length; i++) {
            long place = (((long)row * length + i) * key_heads + key_head) * size;
            memcpy(d_k + place, to_keys + (long)i * size, size * sizeof(float));
            memcpy(d_v + place, to_values + (long)i * size, size * sizeof(float));
        }
        free(space);
    }
}
