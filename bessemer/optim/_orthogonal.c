/* Matrices made orthogonal by polynomials of themselves (_newton_schulz.py says which) with factors rounded to bfloat16 and sums in float32, on the
   vectors of processors that multiply bfloat16 twice as fast as float32.

   A matrix goes through all its steps before the next one, by one thread, and is never float32 between them: each product writes its result as the
   next ones read it. They read panels. A panel is 16 lines side by side; one vector of it holds two neighbouring numbers of each line, since that is
   what the processor multiplies and sums at once. A left factor lies in panels of rows, a right one in panels of columns, a symmetric one's panels
   are both. */
#include <stdint.h>

typedef struct { /* all [rows, columns], a row's numbers side by side and rows so far apart */
    const float *from;
    float *mean; /* 0, or a running mean of what comes from `from`, which is taken in */
    float *to;   /* becomes keep to - rate the result */
    long from_row, mean_row, to_row;
} matrix;

typedef struct {
    long rows, columns, steps;
    const float *series; /* three coefficients for each step */
    float rate, keep;
    float lean, lag; /* the mean goes `lean` of the way to what comes in, and `lag` of the way from the mean to that is what goes on */
} job;

#if defined(__x86_64__) && defined(__linux__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "../core/vectors.h"

#define BLOCK (2 * SIDE) /* results are made BLOCK x BLOCK at a time */
#define ROWS 8           /* whose sums, of BLOCK columns, fill half of the vector registers */
#define TINY 1e-7        /* the least norm that is divided by */
#define ROUND_UP(x, to) (((x) + (to)-1) / (to) * (to))

typedef float block[BLOCK][BLOCK] __attribute__((aligned(64)));

/* Where a matrix of `rows` x `columns` lies in panels of rows and of columns; the same array where it is symmetric. */
typedef struct {
    uint32_t *by_rows, *by_columns;
    long rows, columns;
} panels;

typedef struct {
    panels x, gram, polynomial;
    uint32_t *strip; /* two panels of x's columns, while what they are made of is still read */
    double *squares; /* sums of them over every BLOCK rows */
} room;

static room room_at(uint32_t *at, uint32_t *strip, long height, long width) {
    uint32_t *by_columns = at + height * width / 2, *gram = by_columns + height * width / 2, *polynomial = gram + height * height / 2;
    uint32_t *first_strip = polynomial + height * height / 2;
    room r = {{at, by_columns, height, width}, {gram, gram, height, height}, {polynomial, polynomial, height, height}};
    r.strip = strip, r.squares = (double *)(first_strip + height * SIDE);
    return r;
}

static int tall(const job *what) { return what->rows > what->columns; }

static uint32_t *panel_of_rows(const panels *p, long i, long j) { return p->by_rows + i * p->columns / 2 + j / 2 * SIDE; }

static uint32_t *panel_of_columns(const panels *p, long i, long j) { return p->by_columns + j * p->rows / 2 + i / 2 * SIDE; }

/* A block into two panels of rows whose beginnings are `apart`. */
static inline void spread_rows(block found, uint32_t *to, long apart) {
    for (int half = 0; half < 2; half++, to += apart) {
        __m512i line[SIDE];
        for (int r = 0; r < SIDE; r++) {
            const float *row = found[half * SIDE + r];
            line[r] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(row + SIDE), _mm512_load_ps(row));
        }
        transpose(line);
        for (int k = 0; k < SIDE; k++) _mm512_store_si512(to + k * SIDE, line[k]);
    }
}

/* The same for panels of columns. */
static inline void spread_columns(block found, uint32_t *to, long apart) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, /* a number of the second row, one of the first */
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int half = 0; half < 2; half++, to += apart)
        for (int k = 0; k < SIDE; k++) {
            __m512 first = _mm512_load_ps(found[2 * k] + half * SIDE), second = _mm512_load_ps(found[2 * k + 1] + half * SIDE);
            _mm512_store_si512(to + k * SIDE, _mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
        }
}

/* ROWS x BLOCK results: rows of a panel with two panels of columns `apart`, over `pairs` of the depth. */
static inline __attribute__((always_inline)) void multiply_rows(const uint32_t *left, const uint32_t *right, long apart, long pairs, float *to) {
    __m512 sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
#pragma GCC unroll 2
    for (long k = 0; k < pairs; k++, left += SIDE, right += SIDE) {
        __m512bh first = (__m512bh)_mm512_load_si512(right), second = (__m512bh)_mm512_load_si512(right + apart);
        for (int r = 0; r < ROWS; r++) {
            __m512bh same = (__m512bh)_mm512_set1_epi32(left[r]);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], same, first);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], same, second);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < 2; n++) _mm512_store_ps(to + r * BLOCK + n * SIDE, sums[r][n]);
}

/* The block at row i and column j of a b. */
static void multiply(const panels *a, const panels *b, long i, long j, block found) {
    long pairs = a->columns / 2, apart = SIDE * pairs;
    const uint32_t *left = panel_of_rows(a, i, 0), *right = panel_of_columns(b, 0, j);
    for (int r = 0; r < BLOCK; r += ROWS) multiply_rows(left + r / SIDE * apart + r % SIDE, right, apart, pairs, found[r]);
}

static void scale(block found, float factor) {
    for (int r = 0; r < BLOCK; r++)
        for (int c = 0; c < BLOCK; c++) found[r][c] *= factor;
}

/* found = size found + times m, for the block at row i and column j. */
static void add(block found, float size, const panels *m, float times, long i, long j) {
    const uint32_t *from = panel_of_columns(m, i, j);
    __m512 one = _mm512_set1_ps(size), other = _mm512_set1_ps(times);
    for (int half = 0; half < 2; half++, from += m->rows / 2 * SIDE)
        for (int k = 0; k < SIDE; k++) {
            __m512i pair = _mm512_load_si512(from + k * SIDE), lower = _mm512_slli_epi32(pair, 16), upper = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff0000));
            float *even = found[2 * k] + half * SIDE, *odd = found[2 * k + 1] + half * SIDE;
            _mm512_store_ps(even, _mm512_fmadd_ps(one, _mm512_load_ps(even), _mm512_mul_ps(other, _mm512_castsi512_ps(lower))));
            _mm512_store_ps(odd, _mm512_fmadd_ps(one, _mm512_load_ps(odd), _mm512_mul_ps(other, _mm512_castsi512_ps(upper))));
        }
}

/* A block of a symmetric matrix and its mirror image. */
static void spread_symmetric(block found, const panels *to, long i, long j) {
    spread_columns(found, panel_of_columns(to, i, j), to->rows / 2 * SIDE);
    if (i != j) spread_rows(found, panel_of_rows(to, i, j), to->columns / 2 * SIDE);
}

/* Where threads of a team wait for each other. */
static void meet(int team) {
    if (team > 1) {
#pragma omp barrier
    }
}

/* SIDE numbers of a row of what is made orthogonal. */
static inline __m512 look(const job *what, const matrix *m, long row, long column) {
    __mmask16 some = first_of(what->columns - column);
    __m512 x = _mm512_maskz_loadu_ps(some, m->from + row * m->from_row + column);
    if (!m->mean) return x;
    float *at = m->mean + row * m->mean_row + column;
    __m512 mean = _mm512_maskz_loadu_ps(some, at);
    mean = _mm512_fmadd_ps(_mm512_set1_ps(what->lean), _mm512_sub_ps(x, mean), mean);
    _mm512_mask_storeu_ps(at, some, mean);
    return _mm512_fmadd_ps(_mm512_set1_ps(what->lag), _mm512_sub_ps(x, mean), mean);
}

/* x as it comes, seen from the side if it is tall, and the squares of every BLOCK rows summed. */
static void fetch(const job *what, const matrix *m, const room *r, int me, int team) {
    block found;
    for (long i = me * BLOCK; i < what->rows; i += team * BLOCK) {
        double sum = 0;
        for (long j = 0; j < what->columns; j += BLOCK) {
            __m512 squares = _mm512_setzero_ps();
            for (int n = 0; n < BLOCK; n++)
                for (int half = 0; half < BLOCK; half += SIDE) {
                    __m512 x = i + n < what->rows ? look(what, m, i + n, j + half) : _mm512_setzero_ps();
                    squares = _mm512_fmadd_ps(x, x, squares);
                    _mm512_store_ps(found[n] + half, x);
                }
            sum += _mm512_reduce_add_ps(squares);
            if (tall(what)) {
                spread_rows(found, panel_of_columns(&r->x, j, i), r->x.rows / 2 * SIDE);
                spread_columns(found, panel_of_rows(&r->x, j, i), r->x.columns / 2 * SIDE);
            } else {
                spread_rows(found, panel_of_rows(&r->x, i, j), r->x.columns / 2 * SIDE);
                spread_columns(found, panel_of_columns(&r->x, i, j), r->x.rows / 2 * SIDE);
            }
        }
        r->squares[i / BLOCK] = sum;
    }
}

/* G = factor x x^T */
static void square_x(const room *r, float factor, int me, int team) {
    const panels turned = {r->x.by_columns, r->x.by_rows, r->x.columns, r->x.rows};
    block found;
    for (long j = me * BLOCK; j < r->gram.columns; j += team * BLOCK)
        for (long i = 0; i <= j; i += BLOCK) {
            multiply(&r->x, &turned, i, j, found);
            scale(found, factor);
            spread_symmetric(found, &r->gram, i, j);
        }
}

/* p = b G + c G G */
static void square_gram(const room *r, float b, float c, int me, int team) {
    block found;
    for (long j = me * BLOCK; j < r->gram.columns; j += team * BLOCK)
        for (long i = 0; i <= j; i += BLOCK) {
            multiply(&r->gram, &r->gram, i, j, found);
            add(found, c, &r->gram, b, i, j);
            spread_symmetric(found, &r->polynomial, i, j);
        }
}

/* x = factor (a x + p x) */
static void advance(const room *r, float factor, float a, int me, int team) {
    long apart = r->x.rows / 2 * SIDE;
    block found;
    for (long j = me * BLOCK; j < r->x.columns; j += team * BLOCK) {
        for (long i = 0; i < r->x.rows; i += BLOCK) {
            multiply(&r->polynomial, &r->x, i, j, found);
            add(found, factor, &r->x, factor * a, i, j);
            spread_rows(found, panel_of_rows(&r->x, i, j), r->x.columns / 2 * SIDE);
            spread_columns(found, r->strip + i / 2 * SIDE, apart);
        }
        memcpy(panel_of_columns(&r->x, 0, j), r->strip, 2 * apart * sizeof *r->strip);
    }
}

static void turn(block found) {
    block turned;
    for (int a = 0; a < BLOCK; a += SIDE)
        for (int b = 0; b < BLOCK; b += SIDE) {
            __m512i corner[SIDE];
            for (int n = 0; n < SIDE; n++) corner[n] = _mm512_load_si512(found[a + n] + b);
            transpose(corner);
            for (int n = 0; n < SIDE; n++) _mm512_store_si512(turned[b + n] + a, corner[n]);
        }
    memcpy(found, turned, sizeof turned);
}

/* to = keep to - rate (a x + p x) */
static void deliver(const job *what, const matrix *m, float rate, float a, const room *r, int me, int team) {
    __m512 size = _mm512_set1_ps(-rate), kept = _mm512_set1_ps(what->keep);
    block found;
    for (long j = me * BLOCK; j < r->x.columns; j += team * BLOCK)
        for (long i = 0; i < r->x.rows; i += BLOCK) {
            long row = tall(what) ? j : i, column = tall(what) ? i : j, rows = what->rows - row < BLOCK ? what->rows - row : BLOCK;
            float *to = m->to + row * m->to_row + column;
            for (long n = 0; n < rows; n++) {
                _mm_prefetch((const char *)(to + n * m->to_row), _MM_HINT_T1);
                _mm_prefetch((const char *)(to + n * m->to_row + SIDE), _MM_HINT_T1);
            }
            multiply(&r->polynomial, &r->x, i, j, found);
            add(found, 1, &r->x, a, i, j);
            if (tall(what)) turn(found);
            for (long n = 0; n < rows; n++, to += m->to_row)
                for (long half = 0; half < BLOCK; half += SIDE) {
                    __mmask16 some = first_of(what->columns - column - half);
                    __m512 before = _mm512_mul_ps(kept, _mm512_maskz_loadu_ps(some, to + half));
                    _mm512_mask_storeu_ps(to + half, some, _mm512_fmadd_ps(size, _mm512_load_ps(found[n] + half), before));
                }
        }
}

static void orthogonalise(const job *what, const matrix *m, const room *r, int me, int team) {
    double sum = 0;
    fetch(what, m, r, me, team);
    meet(team);
    for (long n = 0; n < (what->rows + BLOCK - 1) / BLOCK; n++) sum += r->squares[n];
    float factor = 1 / fmax(sqrt(sum), TINY);
    const float *abc = what->series;
    for (long step = 1; step <= what->steps; step++, abc += 3, factor = 1) {
        square_x(r, factor * factor, me, team);
        meet(team);
        square_gram(r, abc[1], abc[2], me, team);
        meet(team);
        if (step == what->steps) deliver(what, m, what->rate * factor, abc[0], r, me, team);
        else advance(r, factor, abc[0], me, team);
        meet(team);
    }
}

/* All matrices; 0 if no memory is left. As many as there are threads are done by one each, what then remains by all threads together. */
int orthogonalise_all(const job *what, const matrix *all, long count) {
    long threads = omp_get_max_threads(), alone = count / threads * threads;
    long height = ROUND_UP(tall(what) ? what->columns : what->rows, BLOCK), width = ROUND_UP(tall(what) ? what->rows : what->columns, BLOCK);
    long x = height * width / 2, square = height * height / 2, strip = height * SIDE, squares = ROUND_UP(2 * width / BLOCK, SIDE);
    long each = 2 * x + 2 * square + strip + squares;
    uint32_t *held = aligned_alloc(64, threads * each * sizeof *held);
    if (!held) return 0;
#pragma omp parallel
    {
        int me = omp_get_thread_num(), team = omp_get_num_threads();
        uint32_t *own = held + me * each;
        room r = room_at(own, own + 2 * (x + square), height, width);
#pragma omp for schedule(dynamic)
        for (long n = 0; n < alone; n++) orthogonalise(what, all + n, &r, 0, 1);
        r = room_at(held, own + 2 * (x + square), height, width); /* of which each thread has its strip */
        for (long n = alone; n < count; n++) orthogonalise(what, all + n, &r, me, team);
    }
    free(held);
    return 1;
}

#else

int orthogonalise_all(const job *what, const matrix *all, long count) { return 0; }

#endif
