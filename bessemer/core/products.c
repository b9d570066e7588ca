/* Products of float32 matrices on units of x86 processors whose factors are bfloat16: tiles (AMX) or, where there are none, vectors (AVX512-BF16).
   On tiles each number is split into one, two or three bfloat16 parts, and the products of the parts are summed in float32. Three parts are the
   whole number; two miss it by 2^-17. Vectors multiply whole numbers half as fast as parts, so there two parts or three are no parts: the number.
   What is not finite comes out as not finite. The result does not depend on how many threads there are.

   A tile holds 16 rows of 64 bytes. For the left factor that is 16 rows and 32 of the depth; for the right one 16 columns, lying across, and
   pairs of the depth going down. Both are packed before the products, one factor of a single product in pieces that stay in the second-level
   cache; the inner kernel keeps 32 x 32 results in four tiles. */
#include <stdint.h>

typedef struct {
    const float *a, *b, *plus; /* plus: 0, or added beta times; may be out */
    float *out;
    long rows, columns, depth;
    long a_row, a_depth, b_depth, b_column, out_row, plus_row; /* strides; of each factor's two one is 1 */
    float alpha, beta;
    int symmetric; /* the result is known to be: only blocks from the diagonal on are computed, the others mirrored */
    int parts;
} product;

#define SCRATCH 4 /* matrices that a thread keeps for the steps of a chain: their addresses are their numbers, from 1 on */

#define MATRICES 4
#define NUMBERS 8

typedef struct { /* a product or, where there is an `each`, that function on matrices whose rows have these strides */
    product product;
    void (*each)(long rows, long columns, float *const *on, const long *strides, const float *numbers);
    long rows, columns;
    float *on[MATRICES];
    long strides[MATRICES];
    float numbers[NUMBERS];
} step;

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include <cpuid.h>
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

#define DEEP 32
#define TILE 512              /* bfloat16 numbers in a tile */
#define BLOCK (2 * SIDE)      /* results of one kernel: BLOCK x BLOCK */
#define CHUNK 512             /* of the depth, where threads work together */
#define WHOLE 0               /* parts of numbers that are not split: they fill two tiles, one with those of the depth's even places, one with the odd */
#define TILES(parts) ((parts) == WHOLE ? 2 : (parts))
#define ROOM(parts) (TILES(parts) * TILE)
#define ROUND_UP(x, to) (((x) + (to)-1) / (to) * (to))

static int on_tiles;
static long kept = 3 << 19; /* bytes of packed right factor that should stay in the second-level cache */

/* Finds out what there is, and asks the kernel for the tile registers: 2 where there are tiles, 1 where vectors are to be used, 0 for neither. Vectors
   are where they multiply bfloat16 faster than float32, which on Intel's processors they do not, and wherever they can if tiles are not wanted. */
int ready(int tiles) {
    unsigned a, b, c, d, more, unused, low, high, vendor;
    if (!__get_cpuid(0, &a, &vendor, &c, &d)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 16 & 1) || !(b >> 17 & 1) || !(b >> 30 & 1) || !(b >> 31 & 1)) return 0;
    if (!__get_cpuid_count(7, 1, &more, &unused, &unused, &unused) || !(more >> 5 & 1)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0xe6) != 0xe6) return 0;
    long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (cache > 0) kept = cache / 4 * 3;
    on_tiles = tiles && (d >> 22 & 1) && (d >> 24 & 1) && (low >> 17 & 3) == 3 && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    if (tiles && !on_tiles && vendor != 0x68747541 /* Auth, of AuthenticAMD */) return 0;
    return 1 + on_tiles;
}

static inline __m512 nearest(__m512 x) { /* bfloat16 number */
    __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000)));
}

/* Two vectors of numbers, one behind the other or (between) number by number, to one row of a tile for each part. */
static inline __attribute__((always_inline)) void split(__m512 x, __m512 y, int between, int parts, __m512i *to, long apart) {
    if (parts == WHOLE) {
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        _mm512_store_ps(to, between ? x : _mm512_permutex2var_ps(x, even, y));
        _mm512_store_ps(to + apart, between ? y : _mm512_permutex2var_ps(x, _mm512_or_si512(even, _mm512_set1_epi32(1)), y));
        return;
    }
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, /* a number of y, one of x, ... */
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int part = 0; part < parts; part++, to += apart) {
        int last = part + 1 == parts;
        __m512 first = last ? x : nearest(x), second = last ? y : nearest(y);
        __m512i row = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_store_si512(to, between ? _mm512_permutexvar_epi16(turns, row) : row);
        x = _mm512_sub_ps(x, first);
        y = _mm512_sub_ps(y, second);
    }
}

/* Two neighbouring rows of tiles, BLOCK lines in all.

   Where a line's numbers lie as a tile has them they are read in order, line by line, which is what the processor fetches ahead;
   `lying` is the other way round, 16 lines side by side for each step of the depth, and transposed tile by tile. */
static inline __attribute__((always_inline)) void pack(const float *from, long side, long lines, long depth, int parts, uint16_t *to) {
    long tiles = ROUND_UP(depth, DEEP) / DEEP;
    for (long r = 0; r < BLOCK; r++) {
        uint16_t *row = to + r / SIDE * tiles * ROOM(parts) + r % SIDE * DEEP;
        for (long k = 0; k < depth; k += DEEP, row += ROOM(parts)) {
            __m512 x = _mm512_setzero_ps(), y = x;
            if (r < lines) {
                x = _mm512_maskz_loadu_ps(first_of(depth - k), from + r * side + k);
                y = _mm512_maskz_loadu_ps(first_of(depth - k - SIDE), from + r * side + k + SIDE);
            }
            split(x, y, 0, parts, (__m512i *)row, TILE * 2 / 64);
        }
    }
}

static inline __attribute__((always_inline)) void pack_transposed(const float *from, long side, long deep, long lines, long depth, int lying, int parts,
                                                                  uint16_t *to) {
    long tiles = ROUND_UP(depth, DEEP) / DEEP;
    for (int half = 0; half < 2; half++)
        for (long k = 0; k < tiles; k++, to += ROOM(parts)) {
            const float *here = from + half * SIDE * side + k * DEEP * deep;
            long left = lines - half * SIDE, below = depth - k * DEEP;
            for (int i = 0; i < SIDE; i++) {
                __m512 x = _mm512_setzero_ps(), y = x;
                if (lying) {
                    if (2 * i < below) x = _mm512_maskz_loadu_ps(first_of(left), here + 2 * i * deep);
                    if (2 * i + 1 < below) y = _mm512_maskz_loadu_ps(first_of(left), here + (2 * i + 1) * deep);
                } else if (i < left) {
                    x = _mm512_maskz_loadu_ps(first_of(below), here + i * side);
                    y = _mm512_maskz_loadu_ps(first_of(below - SIDE), here + i * side + SIDE);
                }
                split(x, y, lying, parts, (__m512i *)to + i, TILE * 2 / 64);
            }
            for (int part = 0; part < TILES(parts); part++) transpose((__m512i *)(to + part * TILE));
        }
}

/* The right factor's columns from one on, where its rows are the lines of memory: read row by row. */
static inline __attribute__((always_inline)) void pack_across(const float *from, long deep, long columns, long depth, int parts, uint16_t *to) {
    long tiles = ROUND_UP(depth, DEEP) / DEEP;
    for (long d = 0; d < tiles * DEEP; d += 2)
        for (long c = 0; c < ROUND_UP(columns, BLOCK); c += SIDE) {
            __m512 x = _mm512_setzero_ps(), y = x;
            if (d < depth) x = _mm512_maskz_loadu_ps(first_of(columns - c), from + d * deep + c);
            if (d + 1 < depth) y = _mm512_maskz_loadu_ps(first_of(columns - c), from + (d + 1) * deep + c);
            split(x, y, 1, parts, (__m512i *)(to + (c / SIDE * tiles + d / DEEP) * ROOM(parts) + d % DEEP / 2 * DEEP), TILE * 2 / 64);
        }
}

/* Lines of the left factor, or columns of the right one (across); the number of parts is a constant in each copy. */
#define PACK(parts)                                                                                        \
    if (across && deep != 1) pack_across(from, deep, lines, depth, parts, to);                             \
    else                                                                                                   \
        for (long n = 0; n < lines; n += BLOCK, to += 2 * ROUND_UP(depth, DEEP) / DEEP * ROOM(parts)) {   \
            if (!across && deep == 1) pack(from + n * side, side, lines - n, depth, parts, to);            \
            else pack_transposed(from + n * side, side, deep, lines - n, depth, deep != 1, parts, to);     \
        }

static void pack_lines(const float *from, long side, long deep, long lines, long depth, int across, int parts, uint16_t *to) {
    if (parts == WHOLE) { PACK(WHOLE) } else if (parts == 1) { PACK(1) } else if (parts == 2) { PACK(2) } else { PACK(3) }
}

/* Macros, since the number of a tile must be a constant. The compiler doesn't know that loads of tiles read memory: see the barrier. */
#define LEFT(part) _tile_loadd(4, a + (part)*TILE, 64); _tile_loadd(5, a + more + (part)*TILE, 64)
#define RIGHT(part) _tile_loadd(6, b + (part)*TILE, 64); _tile_loadd(7, b + more + (part)*TILE, 64)
#define ADD _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7)

#define OVER_RESULTS(do)                                                                                                                    \
    do(0, to, 4 * side);                                                                                                                    \
    do(1, to + SIDE, 4 * side);                                                                                                             \
    do(2, to + SIDE * side, 4 * side);                                                                                                      \
    do(3, to + SIDE * side + SIDE, 4 * side)

static inline void ask_for(const float *ahead, long stride, long rows, long k) {
    for (long r = 0; r < rows; r++) {
        _mm_prefetch((const char *)(ahead + r * stride + k * DEEP), _MM_HINT_T1);
        _mm_prefetch((const char *)(ahead + r * stride + k * DEEP + SIDE), _MM_HINT_T1);
    }
}

static void tile_kernel(const uint16_t *a, const uint16_t *b, long tiles, int parts, float *to, long side, int more_of_it, const float *ahead,
                        long stride, long rows) {
    long more = tiles * ROOM(parts);
    __asm__ volatile("" ::: "memory");
    if (more_of_it) {
        OVER_RESULTS(_tile_loadd);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (long k = 0; k < tiles; k++, a += ROOM(parts), b += ROOM(parts)) {
        ask_for(ahead, stride, rows, k);
        if (parts == 1) {
            LEFT(0); RIGHT(0); ADD;
        } else if (parts == 2) {
            LEFT(1); RIGHT(0); ADD;
            LEFT(0); ADD;
            RIGHT(1); ADD;
        } else {
            LEFT(2); RIGHT(0); ADD;
            LEFT(1); ADD;
            RIGHT(1); ADD;
            LEFT(0); ADD;
            RIGHT(2); ADD;
            RIGHT(0); ADD;
        }
    }
    OVER_RESULTS(_tile_stored);
    __asm__ volatile("" ::: "memory");
}

#define ROWS 8 /* whose sums, of two tiles' columns, fill half of the vector registers */
#define SPAN 4 /* tiles of the depth that are summed before they are added to what there is: long sums in float32 lose digits */

/* Without tiles: ROWS rows of the left factor with two tiles' columns of the right one, in one part or whole. Whole numbers of the left factor are
   also taken from where they lie, in rows `apart`; 0 where they are packed. */
static inline __attribute__((always_inline)) void vectors(const float *a, long apart, const uint16_t *b, long more, long tiles, int parts, float *to,
                                                          long side, int more_of_it) {
    __m512 sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (long k = 0; k < tiles; k++, a += apart ? DEEP : ROOM(parts) / 2, b += ROOM(parts))
        for (int pair = 0; pair < SIDE; pair++)
            for (int part = 0; part < TILES(parts); part++) {
                const float *left = a + (apart ? 2 * pair + part : part * TILE / 2 + pair), *right = (const float *)(b + part * TILE) + pair * SIDE;
                __m512 first = _mm512_load_ps(right), second = _mm512_load_ps(right + more / 2);
                for (int r = 0; r < ROWS; r++) {
                    __m512 same = _mm512_set1_ps(left[r * (apart ? apart : SIDE)]);
                    sums[r][0] = parts == WHOLE ? _mm512_fmadd_ps(same, first, sums[r][0]) : _mm512_dpbf16_ps(sums[r][0], (__m512bh)same, (__m512bh)first);
                    sums[r][1] = parts == WHOLE ? _mm512_fmadd_ps(same, second, sums[r][1]) : _mm512_dpbf16_ps(sums[r][1], (__m512bh)same, (__m512bh)second);
                }
            }
    for (int r = 0; r < ROWS; r++, to += side)
        for (int n = 0; n < 2; n++)
            _mm512_storeu_ps(to + n * SIDE, more_of_it ? _mm512_add_ps(_mm512_loadu_ps(to + n * SIDE), sums[r][n]) : sums[r][n]);
}

static void vector_kernel(const uint16_t *a, const float *plain, const uint16_t *b, long tiles, int parts, float *to, long side, int more_of_it,
                          const float *ahead, long stride, long rows) {
    long more = tiles * ROOM(parts);
    for (long k = 0; k < tiles; k += SPAN, a += SPAN * ROOM(parts), b += SPAN * ROOM(parts)) {
        long here = tiles - k < SPAN ? tiles - k : SPAN;
        for (long n = k; n < k + here; n++) ask_for(ahead, stride, rows, n);
        for (int r = 0; r < BLOCK; r += ROWS) {
            const float *packed = (const float *)(a + r / SIDE * more + r % SIDE * DEEP);
            if (parts == 1) vectors(packed, 0, b, more, here, 1, to + r * side, side, k || more_of_it);
            else if (plain) vectors(plain + r * stride + k * DEEP, stride, b, more, here, WHOLE, to + r * side, side, k || more_of_it);
            else vectors(packed, 0, b, more, here, WHOLE, to + r * side, side, k || more_of_it);
        }
    }
}

/* Whether a block of the left factor's rows need not be packed. */
static int as_it_lies(const product *p, int parts, long rows) { return parts == WHOLE && p->a_depth == 1 && rows >= BLOCK && p->depth % DEEP == 0; }

/* BLOCK x BLOCK results, or as much more of them, whose rows are `side` apart. The left factor is packed or `plain`: as it lies, in rows `stride`
   apart. On the way the kernel asks for what comes next: `rows` lines of memory from `ahead` on, a tile's depth at a time. */
static void kernel(const uint16_t *a, const float *plain, const uint16_t *b, long tiles, int parts, float *to, long side, int more_of_it,
                   const float *ahead, long stride, long rows) {
    if (on_tiles) tile_kernel(a, b, tiles, parts, to, side, more_of_it, ahead, stride, rows);
    else vector_kernel(a, plain, b, tiles, parts, to, side, more_of_it, ahead, stride, rows);
}

/* out = alpha found + beta plus for one block, and its mirror image if that is wanted. */
static void finish(const product *p, float *found, long i, long j) {
    long rows = p->rows - i < BLOCK ? p->rows - i : BLOCK, columns = p->columns - j;
    __m512 alpha = _mm512_set1_ps(p->alpha), beta = _mm512_set1_ps(p->beta);
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < BLOCK && c < columns; c += SIDE) {
            __mmask16 some = first_of(columns - c);
            __m512 x = _mm512_mul_ps(alpha, _mm512_load_ps(found + r * BLOCK + c));
            if (p->plus) x = _mm512_fmadd_ps(beta, _mm512_maskz_loadu_ps(some, p->plus + (i + r) * p->plus_row + j + c), x);
            _mm512_store_ps(found + r * BLOCK + c, x);
            _mm512_mask_storeu_ps(p->out + (i + r) * p->out_row + j + c, some, x);
        }
    if (!p->symmetric || i == j) return;
    for (long c = 0; c < BLOCK && c < columns; c += SIDE)
        for (long r = 0; r < rows; r += SIDE) {
            __m512i block[SIDE];
            for (int n = 0; n < SIDE; n++) block[n] = _mm512_load_si512(found + (r + n) * BLOCK + c);
            transpose(block);
            for (int n = 0; n < SIDE && c + n < columns; n++)
                _mm512_mask_storeu_epi32(p->out + (j + c + n) * p->out_row + i + r, first_of(rows - r), block[n]);
        }
}

/* Whether a block's sums may be collected where they belong. */
static int whole(const product *p, long i, long j) {
    return p->alpha == 1 && !p->symmetric && (!p->plus || (p->plus == p->out && p->beta == 1)) && p->rows - i >= BLOCK && p->columns - j >= BLOCK;
}

typedef struct {
    uint16_t *held;
    size_t size;
} room;

static _Thread_local room own, common, scratch[SCRATCH]; /* packed factors of one thread; those that a team packs together, held by its first */

static uint16_t *room_of(room *kept, size_t size) {
    if (kept->size < size) {
        free(kept->held);
        kept->held = aligned_alloc(64, ROUND_UP(size, 64));
        kept->size = kept->held ? size : 0;
    }
    return kept->held;
}

static int parts_of(const product *p) { return on_tiles || p->parts == 1 ? p->parts : WHOLE; }

/* One of many products, by one thread. */
static int multiply(const product *p) {
    int parts = parts_of(p);
    long tiles = ROUND_UP(p->depth, DEEP) / DEEP, line = 2 * tiles * ROOM(parts);
    long wide = kept / (line * 2) < 1 ? BLOCK : kept / (line * 2) * BLOCK;
    if (wide > p->columns) wide = ROUND_UP(p->columns, BLOCK);
    int once = wide >= p->columns; /* then a panel of the left factor is used up as soon as it is packed */
    long panels = once ? 1 : (p->rows + BLOCK - 1) / BLOCK;
    uint16_t *left = room_of(&own, 2 * line * (panels + wide / BLOCK));
    float found[BLOCK * BLOCK] __attribute__((aligned(64)));
    if (!left) return 0;
    uint16_t *right = left + panels * line;
    for (long from = 0; from < p->columns; from += wide) {
        long to = from + wide < p->columns ? from + wide : p->columns, blocks = (to - from + BLOCK - 1) / BLOCK;
        pack_lines(p->b + from * p->b_column, p->b_column, p->b_depth, to - from, p->depth, 1, parts, right);
        for (long i = 0; i < p->rows; i += BLOCK) {
            uint16_t *a = once ? left : left + i / BLOCK * line;
            long lines = p->rows - i < BLOCK ? p->rows - i : BLOCK, next = p->rows - i - lines, share = BLOCK / blocks;
            const float *plain = as_it_lies(p, parts, lines) ? p->a + i * p->a_row : 0;
            if (from == 0 && !plain) pack_lines(p->a + i * p->a_row, p->a_row, p->a_depth, lines, p->depth, 0, parts, a);
            for (long j = from; j < to; j += BLOCK) {
                if (p->symmetric && j < i) continue;
                long row = (j - from) / BLOCK * share, rows = next - row < share ? next - row : share;
                if (!once || p->a_depth != 1 || rows < 0) rows = 0;
                for (long r = 0; p->plus && r < lines; r++) {
                    _mm_prefetch((const char *)(p->plus + (i + r) * p->plus_row + j), _MM_HINT_T0);
                    _mm_prefetch((const char *)(p->plus + (i + r) * p->plus_row + j + SIDE), _MM_HINT_T0);
                }
                int direct = whole(p, i, j);
                kernel(a, plain, right + (j - from) / BLOCK * line, tiles, parts, direct ? p->out + i * p->out_row + j : found, direct ? p->out_row : BLOCK,
                       direct && p->plus, p->a + (i + BLOCK + row) * p->a_row, p->a_row, rows);
                if (!direct) finish(p, found, i, j);
            }
        }
    }
    return 1;
}

static void configure(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape __attribute__((aligned(64))) = {.palette = 1};
    if (!on_tiles) return;
    for (int n = 0; n < 8; n++) shape.bytes[n] = 64, shape.rows[n] = 16;
    _tile_loadconfig(&shape);
}

/* The left factor's lines where the depth's steps are the lines of memory: read as they lie, then transposed tile by tile. */
static void pack_lying(const float *from, long deep, long lines, long depth, int parts, uint16_t *to) {
    pack_lines(from, 1, deep, lines, depth, 1, parts, to);
    for (long n = 0; n < ROUND_UP(lines, BLOCK) / SIDE * (ROUND_UP(depth, DEEP) / DEEP) * TILES(parts); n++) transpose((__m512i *)(to + n * TILE));
}

/* A thread's rows of a piece: columns `from` to `to`, whose right factor is packed. */
static void multiply_piece(const product *p, int parts, long begin, long end, long from, long to, uint16_t *left, const uint16_t *right) {
    long tiles = ROUND_UP(p->depth, DEEP) / DEEP, line = 2 * tiles * ROOM(parts), blocks = (to - from + BLOCK - 1) / BLOCK;
    float found[BLOCK * BLOCK] __attribute__((aligned(64)));
    int lying = p->a_depth != 1;
    if (lying) pack_lying(p->a + begin, p->a_depth, end - begin, p->depth, parts, left);
    for (long i = begin; i < end; i += BLOCK) {
        uint16_t *a = lying ? left + (i - begin) / BLOCK * line : left;
        long next = i + BLOCK < end ? end - i - BLOCK : 0, share = (BLOCK + blocks - 1) / blocks;
        const float *plain = as_it_lies(p, parts, end - i) ? p->a + i * p->a_row : 0;
        if (!lying && !plain) pack_lines(p->a + i * p->a_row, p->a_row, 1, end - i < BLOCK ? end - i : BLOCK, p->depth, 0, parts, a);
        for (long j = from; j < to; j += BLOCK) {
            if (p->symmetric && j + BLOCK <= i) continue;
            long row = (j - from) / BLOCK * share, rows = next - row < share ? next - row : share;
            int direct = whole(p, i, j);
            if (lying || rows < 0 || row >= BLOCK) rows = 0;
            kernel(a, plain, right + (j - from) / BLOCK * line, tiles, parts, direct ? p->out + i * p->out_row + j : found, direct ? p->out_row : BLOCK,
                   direct && p->plus, p->a + (i + BLOCK + row) * p->a_row, p->a_row, rows);
            if (!direct) finish(p, found, i, j);
        }
    }
}

/* One product by all threads of a team: the right factor is packed together, in pieces that stay in the second-level cache. */
static void multiply_together(const product *all, int parts, long wide, uint16_t *right, int *good) {
    long team = omp_get_num_threads(), me = omp_get_thread_num(), step = ROUND_UP((all->rows + team - 1) / team, BLOCK);
    long begin = me * step, end = begin + step < all->rows ? begin + step : all->rows, most = all->depth < CHUNK ? all->depth : CHUNK;
    long line = 2 * ROUND_UP(most, DEEP) / DEEP * ROOM(parts);
    uint16_t *left = room_of(&own, 2 * line * (all->a_depth == 1 ? 1 : step / BLOCK));
    if (!left) *good = 0;
    for (long from = 0; from < all->columns; from += wide)
        for (long k = 0; k < all->depth; k += CHUNK) {
            product p = *all;
            long to = from + wide < p.columns ? from + wide : p.columns, blocks = (to - from + BLOCK - 1) / BLOCK;
            p.a += k * p.a_depth, p.b += k * p.b_depth;
            p.depth = p.depth - k < CHUNK ? p.depth - k : CHUNK;
            if (k) p.plus = p.out, p.plus_row = p.out_row, p.beta = 1;
            long first = from + me * blocks / team * BLOCK, last = from + (me + 1) * blocks / team * BLOCK;
            pack_lines(p.b + first * p.b_column, p.b_column, p.b_depth, (last < to ? last : to) - first, p.depth, 1, parts,
                       right + (first - from) / BLOCK * 2 * ROUND_UP(p.depth, DEEP) / DEEP * ROOM(parts));
#pragma omp barrier
            if (left && begin < end) multiply_piece(&p, parts, begin, end, from, to, left, right);
#pragma omp barrier
        }
}

/* A scratch matrix's memory, of `count` numbers if it is about to be filled; any other address as it is. */
static float *found_at(const float *where, long count) {
    uintptr_t number = (uintptr_t)where;
    return number - 1 < SCRATCH ? (float *)room_of(scratch + number - 1, 4 * count) : (float *)where;
}

/* Steps one after the other, by one thread, in whose caches they find what the ones before made. */
static int chain(const step *steps, long count) {
    for (long n = 0; n < count; n++) {
        const step *s = steps + n;
        if (s->each) {
            float *on[MATRICES];
            for (int i = 0; i < MATRICES; i++) on[i] = found_at(s->on[i], 0);
            s->each(s->rows, s->columns, on, s->strides, s->numbers);
            continue;
        }
        product p = s->product;
        p.a = found_at(p.a, 0), p.b = found_at(p.b, 0), p.out = found_at(p.out, p.rows * p.columns);
        if (!p.out || !multiply(&p)) return 0;
    }
    return 1;
}

/* All chains; 0 if memory ran out. As many as there are threads or more are done by one thread each, single products that are fewer by all threads. */
int run(const step *steps, const long *ends, long chains) {
    int good = 1;
    if (chains < ends[chains - 1] || (chains > 1 && chains >= omp_get_max_threads())) {
#pragma omp parallel reduction(& : good)
        {
            configure();
#pragma omp for schedule(dynamic)
            for (long n = 0; n < chains; n++) good &= chain(steps + (n ? ends[n - 1] : 0), ends[n] - (n ? ends[n - 1] : 0));
            if (on_tiles) _tile_release();
        }
        return good;
    }
    for (long n = 0; n < chains; n++) {
        const product *p = &steps[n].product;
        int parts = parts_of(p);
        long line = 2 * ROUND_UP(p->depth < CHUNK ? p->depth : CHUNK, DEEP) / DEEP * ROOM(parts), wide = kept / (line * 2) * BLOCK;
        if (wide > p->columns) wide = ROUND_UP(p->columns, BLOCK);
        uint16_t *right = room_of(&common, 2 * line * wide / BLOCK);
        if (!right) return 0;
#pragma omp parallel reduction(& : good)
        {
            configure();
            multiply_together(p, parts, wide, right, &good);
            if (on_tiles) _tile_release();
        }
    }
    return good;
}

#else

int ready(int tiles) { return 0; }

int run(const step *steps, const long *ends, long chains) { return 0; }

#endif
