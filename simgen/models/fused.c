/* Loops of a frozen force field between its matrix products: see frozen.py for the equations and
 * compiled.py for who calls this. Compiled once for float and once for double (REAL).
 *
 * Atoms are sorted by element; edges of an atom are adjacent, and first[i] is the first of atom i.
 * No sum runs over atoms of different molecules, so that a molecule is the same in any batch.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A vector register; rows of this many numbers are what the inner loops work on. */
typedef REAL vec __attribute__((vector_size(32)));
typedef REAL loose __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
enum { LANES = 32 / sizeof(REAL) };
enum { MAX_HARMONICS = 16 };

static inline vec load(const REAL *p) { return *(const loose *)p; }
static inline void store(REAL *p, vec v) { *(loose *)p = v; }
static inline vec all(REAL x) { return x - (vec){0}; }

/* Integers as wide as the numbers; comparisons of vectors give -1 and 0. */
typedef __typeof__(_Generic((REAL)0, float: (int32_t)0, double: (int64_t)0)) integer;
typedef integer bits __attribute__((vector_size(32)));

static inline vec larger(vec a, vec b)
{
    const bits first = a > b;
    return (vec)(((bits)a & first) | ((bits)b & ~first));
}

static inline REAL total(vec v)
{
    typedef REAL half __attribute__((vector_size(16), may_alias));
    const half sum = ((const half *)&v)[0] + ((const half *)&v)[1];
    return sizeof(REAL) == 4 ? (sum[0] + sum[1]) + (sum[2] + sum[3]) : sum[0] + sum[1];
}

/* What the products below work on: the widest registers there are, and as many rows as leave their
 * sums in them. */
#ifdef __AVX512F__
enum { WIDE = 64, ROWS = 8 };
#else
enum { WIDE = 32, ROWS = 4 };
#endif
typedef REAL wide __attribute__((vector_size(WIDE)));
typedef REAL loose_wide __attribute__((vector_size(WIDE), aligned(sizeof(REAL)), may_alias));
enum { WIDE_LANES = WIDE / sizeof(REAL), PANEL = 3 * WIDE_LANES };

static inline wide load_wide(const REAL *p) { return *(const loose_wide *)p; }
static inline void store_wide(REAL *p, wide v) { *(loose_wide *)p = v; }

int64_t panel_width(void) { return PANEL; }

/* Products of up to ROWS rows and the first columns of a panel; rows that are missing are computed
 * like the others. As many registers as the columns need, a constant for the compiler. */
static inline __attribute__((always_inline)) void
multiply_rows(const int n_wides, int64_t n_rows, int64_t n_inner, int64_t n_columns, const REAL *a,
              int64_t a_row, const REAL *panel, REAL *out, int64_t out_row)
{
    const REAL *row[ROWS];
    wide sum[ROWS][3];
    for (int r = 0; r < ROWS; r++) {
        row[r] = a + (r < n_rows ? r : n_rows - 1) * a_row;
        for (int w = 0; w < n_wides; w++) sum[r][w] = (wide){0};
    }
    for (int64_t k = 0; k < n_inner; k++, panel += PANEL) {
        wide b[3];
        for (int w = 0; w < n_wides; w++) b[w] = load_wide(panel + w * WIDE_LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const wide x = row[r][k] - (wide){0};
            for (int w = 0; w < n_wides; w++) sum[r][w] += x * b[w];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        if (r >= n_rows) break;
        if (n_columns < PANEL) memcpy(out + r * out_row, sum[r], n_columns * sizeof(REAL));
        else
            for (int w = 0; w < 3; w++) store_wide(out + r * out_row + w * WIDE_LANES, sum[r][w]);
    }
}

static void multiply(int64_t n_rows, int64_t n_inner, int64_t n_columns, const REAL *a,
                     int64_t a_row, const REAL *panels, REAL *out, int64_t out_row)
{
    for (int64_t c = 0; c < n_columns; c += PANEL)
        for (int64_t i = 0; i < n_rows; i += ROWS) {
            const int64_t n = n_rows - i < ROWS ? n_rows - i : ROWS, left = n_columns - c;
            const REAL *rows = a + i * a_row, *panel = panels + c * n_inner;
            REAL *to = out + i * out_row + c;
            if (left <= WIDE_LANES)
                multiply_rows(1, n, n_inner, left, rows, a_row, panel, to, out_row);
            else if (left <= 2 * WIDE_LANES)
                multiply_rows(2, n, n_inner, left, rows, a_row, panel, to, out_row);
            else multiply_rows(3, n, n_inner, left, rows, a_row, panel, to, out_row);
        }
}

/* Products of n_matrices matrices of n_rows rows, and as many others, (n_inner, n_columns), that come
 * in panels of PANEL columns, zeros in those left over: (n_matrices, n_panels, n_inner, PANEL). The
 * rows of a matrix are a_row numbers apart, matrices a_matrix; the same for the results.
 *
 * A row of the result is the same, bit for bit, whatever other rows there are. */
void matrix_products(int64_t n_matrices, int64_t n_rows, int64_t n_inner, int64_t n_columns,
                     const REAL *a, int64_t a_matrix, int64_t a_row, const REAL *panels, REAL *out,
                     int64_t out_matrix, int64_t out_row)
{
    const int64_t n_panels = (n_columns + PANEL - 1) / PANEL;
    for (int64_t m = 0; m < n_matrices; m++)
        multiply(n_rows, n_inner, n_columns, a + m * a_matrix, a_row,
                 panels + m * n_panels * n_inner * PANEL, out + m * out_matrix, out_row);
}

/* Sort atoms by element (a place among those of the network) and list the neighbours of each, these
 * by element, too.
 *
 * positions: (n_atoms, 3), senders: (n_atoms, n_slots), the atom itself in slots left over; wanted
 * (n_atoms), or NULL: the other atoms come after those of their element, and no edges lead to them.
 * Out: order and sorted elements (n_atoms), counts of the elements, how many of each are wanted,
 * first (n_atoms + 1); of each
 * edge the sender, its distance, the inverse of it or of floor where it is shorter, direction (3),
 * and harmonics: Y_i is the sum of share * x_axis Y_j over the terms (i, axis, j), the share being a
 * slope over the degree (Euler's theorem). Returns the number of edges. */
int64_t find_edges(int64_t n_atoms, int64_t n_slots, int64_t n_elements, const REAL *positions,
                   const int64_t *senders, const int64_t *element, const uint8_t *wanted,
                   double r_max, double floor, int64_t n_harmonics, int64_t n_terms,
                   const int32_t *terms, const REAL *shares, int64_t *place, int64_t *order,
                   int64_t *sorted, int64_t *counts, int64_t *n_wanted, int64_t *first,
                   int32_t *sender, REAL *distance, REAL *inverse, REAL *direction,
                   REAL *harmonics)
{
    memset(counts, 0, n_elements * sizeof *counts);
    memset(n_wanted, 0, n_elements * sizeof *n_wanted);
    for (int64_t i = 0; i < n_atoms; i++) {
        counts[element[i]]++;
        n_wanted[element[i]] += !wanted || wanted[i];
    }
    for (int64_t e = 0, begin = 0; e < n_elements; begin += counts[e++])
        if (counts[e])
            for (int64_t i = 0, n = begin, left = begin + n_wanted[e]; i < n_atoms; i++)
                if (element[i] == e) {
                    const int64_t at = !wanted || wanted[i] ? n++ : left++;
                    place[i] = at;
                    sorted[at] = e;
                    order[at] = i;
                }
    int64_t edge = 0;
    int32_t near[n_slots + 1], next[n_elements];
    REAL length[n_slots + 1];
    for (int64_t row = 0; row < n_atoms; row++) {
        const int64_t i = order[row];
        const REAL *x = positions + 3 * i;
        first[row] = edge;
        if (wanted && !wanted[i]) continue;
        int64_t n_near = 0;
        memset(next, 0, sizeof next);
        for (int64_t s = 0; s < n_slots; s++) {
            const int64_t j = senders[i * n_slots + s];
            const REAL *y = positions + 3 * j;
            const REAL v[3] = {x[0] - y[0], x[1] - y[1], x[2] - y[2]};
            const REAL r = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
            if (j == i || !(r < (REAL)r_max)) continue;
            near[n_near] = (int32_t)j;
            length[n_near++] = r;
            next[element[j]]++;
        }
        for (int64_t e = 0, begin = 0; e < n_elements; e++) {
            const int64_t number = next[e];
            next[e] = (int32_t)begin;
            begin += number;
        }
        for (int64_t k = 0; k < n_near; k++) {
            const int64_t j = near[k], at = edge + next[element[j]]++;
            const REAL *y = positions + 3 * j;
            const REAL over = 1 / (length[k] > (REAL)floor ? length[k] : (REAL)floor);
            REAL *u = direction + 3 * at, *h = harmonics + n_harmonics * at;
            for (int a = 0; a < 3; a++) u[a] = (x[a] - y[a]) * over;
            memset(h, 0, n_harmonics * sizeof *h);
            h[0] = 1;
            for (int64_t t = 0; t < n_terms; t++)
                h[terms[3 * t]] += shares[t] * u[terms[3 * t + 1]] * h[terms[3 * t + 2]];
            sender[at] = (int32_t)place[j];
            distance[at] = length[k];
            inverse[at] = over;
        }
        edge += n_near;
    }
    first[n_atoms] = edge;
    return edge;
}

/* Splines of degree 7 (RadialTable) and their derivatives, both (n_edges, width), the width a
 * multiple of LANES; coefficients (n_intervals + 7, width), pieces (8, 16). */
void splines(int64_t n_edges, const REAL *distance, double smallest, double r_min, double r_max,
             int64_t n_intervals, int64_t width, const REAL *coefficients, const REAL *pieces,
             REAL *phi, REAL *slope)
{
    const REAL scale = (REAL)(n_intervals / (r_max - r_min));
    for (int64_t e = 0; e < n_edges; e++) {
        const REAL r = distance[e] > (REAL)smallest ? distance[e] : (REAL)smallest;
        const REAL at = (r - (REAL)r_min) * scale;
        int64_t interval = (int64_t)at;
        if (interval < 0) interval = 0;
        if (interval > n_intervals - 1) interval = n_intervals - 1;
        const REAL t = at - interval;
        REAL weight[16];
        for (int k = 0; k < 16; k++) weight[k] = pieces[7 * 16 + k];
        for (int p = 6; p >= 0; p--)
            for (int k = 0; k < 16; k++) weight[k] = weight[k] * t + pieces[p * 16 + k];
        const REAL *c = coefficients + interval * width;
        for (int64_t q = 0; q < width; q += LANES) {
            vec value = {0}, derivative = {0};
            for (int k = 0; k < 8; k++) {
                const vec row = load(c + k * width + q);
                value += weight[k] * row;
                derivative += weight[8 + k] * row;
            }
            store(phi + e * width + q, value);
            store(slope + e * width + q, derivative);
        }
    }
}

/* Edges of an atom as the moments have them: those from begin to end; column[j] is the place of the
 * element of atom j among those present. Neighbours of one element are adjacent. */
typedef struct {
    int64_t n_basis, width, begin, end;
    const int32_t *sender;
    const int64_t *column;
    const REAL *harmonics, *phi, *slope;
    REAL *by_distance, *by_harmonics;
} edges;

/* T_lm,zq = sum_j Y_lm phi_q of an atom: out (n_harmonics, n_present * n_basis), rows a stride
 * apart. The number of harmonics is a constant for the compiler. */
static inline __attribute__((always_inline)) void
sum_moments(const int n_harmonics, const edges *g, int64_t n_columns, int64_t stride, REAL *out)
{
    for (int m = 0; m < n_harmonics; m++) memset(out + m * stride, 0, n_columns * sizeof *out);
    for (int64_t e = g->begin, next; e < g->end; e = next) {
        const int64_t z = g->column[g->sender[e]];
        for (next = e + 1; next < g->end && g->column[g->sender[next]] == z; next++) continue;
        for (int64_t q = 0; q < g->n_basis; q += LANES) {
            vec sum[MAX_HARMONICS];
            for (int m = 0; m < n_harmonics; m++) sum[m] = (vec){0};
            for (int64_t j = e; j < next; j++) {
                const REAL *h = g->harmonics + j * n_harmonics;
                const vec f = load(g->phi + j * g->width + q);
                for (int m = 0; m < n_harmonics; m++) sum[m] += h[m] * f;
            }
            const int64_t left = g->n_basis - q;
            for (int m = 0; m < n_harmonics; m++) {
                REAL *to = out + m * stride + z * g->n_basis + q;
                if (left < LANES) memcpy(to, &sum[m], left * sizeof *to);
                else store(to, sum[m]);
            }
        }
    }
}

/* From the gradient with respect to the moments of an atom, rows a stride apart and with LANES
 * numbers after the last, to those with respect to distances and harmonics of its edges, which are
 * added to. */
static inline __attribute__((always_inline)) void
sum_moments_pullback(const int n_harmonics, const edges *g, int64_t stride, const REAL *by_moments)
{
    for (int64_t e = g->begin; e < g->end; e++) {
        const REAL *t = by_moments + g->column[g->sender[e]] * g->n_basis;
        const REAL *h = g->harmonics + e * n_harmonics;
        const REAL *f = g->phi + e * g->width, *d = g->slope + e * g->width;
        vec along = {0}, by_h[MAX_HARMONICS];
        for (int m = 0; m < n_harmonics; m++) by_h[m] = (vec){0};
        for (int64_t q = 0; q < g->n_basis; q += LANES) {
            const vec v = load(f + q);
            vec by_phi = {0};
            for (int m = 0; m < n_harmonics; m++) {
                const vec x = load(t + m * stride + q);
                by_phi += h[m] * x;
                by_h[m] += v * x;
            }
            along += by_phi * load(d + q);
        }
        g->by_distance[e] += total(along);
        for (int m = 0; m < n_harmonics; m++)
            g->by_harmonics[e * n_harmonics + m] += total(by_h[m]);
    }
}

/* M_i,lm = sum_j Y_lm R_l h_j: (n_harmonics, n_atoms, n_channels), from scalars sent h, (n_atoms,
 * n_channels), and radial functions R, (n_degrees * n_channels), that a matrix, in panels, makes of
 * the basis functions phi, (n_edges, width). Workspace: radial functions of the edges of an atom. */
void messages(int64_t n_atoms, int64_t n_channels, int64_t n_degrees, int64_t width,
              const int64_t *first, const int32_t *sender, const REAL *harmonics, const REAL *phi,
              const REAL *mixing, const REAL *sent, REAL *radial, REAL *out)
{
    const int64_t n_harmonics = n_degrees * n_degrees, n_radial = n_degrees * n_channels;
    memset(out, 0, n_harmonics * n_atoms * n_channels * sizeof *out);
    for (int64_t i = 0; i < n_atoms; i++) {
        multiply(first[i + 1] - first[i], width, n_radial, phi + first[i] * width, width, mixing,
                 radial, n_radial);
        for (int64_t e = first[i]; e < first[i + 1]; e++) {
            const REAL *s = sent + sender[e] * n_channels, *h = harmonics + e * n_harmonics;
            for (int64_t l = 0, m = 0; l < n_degrees; l++) {
                const REAL *r = radial + (e - first[i]) * n_radial + l * n_channels;
                for (; m < (l + 1) * (l + 1); m++) {
                    REAL *o = out + (m * n_atoms + i) * n_channels;
                    for (int64_t c = 0; c < n_channels; c++) o[c] += h[m] * r[c] * s[c];
                }
            }
        }
    }
}

/* From the gradient with respect to the messages to those with respect to distances, what is sent,
 * and harmonics, all of which are added to; slope: derivatives of phi, mixing_back: the transposed
 * matrix. Workspace: for the edges of an atom, radial functions, the gradient with respect to them,
 * and that with respect to phi. */
void messages_pullback(int64_t n_atoms, int64_t n_channels, int64_t n_degrees, int64_t width,
                       const int64_t *first, const int32_t *sender, const REAL *harmonics,
                       const REAL *phi, const REAL *slope, const REAL *mixing,
                       const REAL *mixing_back, const REAL *sent, const REAL *by_messages,
                       REAL *radial, REAL *by_radial, REAL *by_phi, REAL *by_distance,
                       REAL *by_sent, REAL *by_harmonics)
{
    const int64_t n_harmonics = n_degrees * n_degrees, n_radial = n_degrees * n_channels;
    const int64_t n_whole = n_channels / LANES * LANES;
    for (int64_t i = 0; i < n_atoms; i++) {
        const int64_t n_edges = first[i + 1] - first[i];
        multiply(n_edges, width, n_radial, phi + first[i] * width, width, mixing, radial, n_radial);
        for (int64_t e = first[i]; e < first[i + 1]; e++) {
            const REAL *s = sent + sender[e] * n_channels, *h = harmonics + e * n_harmonics;
            REAL *by_s = by_sent + sender[e] * n_channels, *by_h = by_harmonics + e * n_harmonics;
            for (int64_t l = 0; l < n_degrees; l++) {
                const int64_t row = (e - first[i]) * n_radial + l * n_channels;
                const REAL *r = radial + row;
                REAL *by_r = by_radial + row;
                const int64_t begin = l * l, end = (l + 1) * (l + 1);
                vec sums[7] = {{0}};
                for (int64_t c = 0; c < n_whole; c += LANES) {
                    const vec rc = load(r + c), sc = load(s + c), both = rc * sc;
                    vec turned = {0};
                    for (int64_t m = begin; m < end; m++) {
                        const vec g = load(by_messages + (m * n_atoms + i) * n_channels + c);
                        turned += h[m] * g;
                        sums[m - begin] += both * g;
                    }
                    store(by_r + c, turned * sc);
                    store(by_s + c, load(by_s + c) + turned * rc);
                }
                for (int64_t m = begin; m < end; m++) by_h[m] += total(sums[m - begin]);
                for (int64_t c = n_whole; c < n_channels; c++) {
                    REAL turned = 0;
                    for (int64_t m = begin; m < end; m++) {
                        const REAL g = by_messages[(m * n_atoms + i) * n_channels + c];
                        turned += h[m] * g;
                        by_h[m] += r[c] * s[c] * g;
                    }
                    by_r[c] = turned * s[c];
                    by_s[c] += turned * r[c];
                }
            }
        }
        multiply(n_edges, n_radial, width, by_radial, n_radial, mixing_back, by_phi, width);
        for (int64_t e = 0; e < n_edges; e++) {
            const REAL *by = by_phi + e * width, *d = slope + (first[i] + e) * width;
            vec along = {0};
            for (int64_t q = 0; q < width; q += LANES) along += load(by + q) * load(d + q);
            by_distance[first[i] + e] += total(along);
        }
    }
}

/* Gradient with respect to the positions, (n_atoms, 3), in the order of the batch; see
 * _Geometry.pullback. */
void geometry_pullback(int64_t n_atoms, int64_t n_harmonics, int64_t n_terms, const int32_t *terms,
                       const REAL *slopes, double smallest, double floor, const int64_t *order,
                       const int64_t *first, const int32_t *sender, const REAL *distance,
                       const REAL *inverse, const REAL *direction, const REAL *harmonics,
                       const REAL *by_distance, const REAL *by_harmonics, REAL *gradient)
{
    memset(gradient, 0, 3 * n_atoms * sizeof *gradient);
    for (int64_t i = 0; i < n_atoms; i++) {
        REAL *to = gradient + 3 * order[i];
        for (int64_t e = first[i]; e < first[i + 1]; e++) {
            const REAL *u = direction + 3 * e, *h = harmonics + n_harmonics * e;
            const REAL *by_h = by_harmonics + n_harmonics * e;
            REAL by_u[3] = {0}, along = 0;
            for (int64_t t = 0; t < n_terms; t++)
                by_u[terms[3 * t + 1]] += slopes[t] * h[terms[3 * t + 2]] * by_h[terms[3 * t]];
            if (distance[e] >= (REAL)floor)
                along = (by_u[0] * u[0] + by_u[1] * u[1] + by_u[2] * u[2]) * inverse[e];
            const REAL radial = (distance[e] >= (REAL)smallest ? by_distance[e] : 0) - along;
            REAL *from = gradient + 3 * order[sender[e]];
            for (int a = 0; a < 3; a++) {
                const REAL g = by_u[a] * inverse[e] + u[a] * radial;
                to[a] += g;
                from[a] -= g;
            }
        }
    }
}

/* Polynomials are lists of integers: for each of them a number of groups; for each group its
 * variable a, a number of terms, and the two other variables of each term. A group with its
 * coefficients, in a list of their own, stands for x_a sum_jk c_jk x_j x_k in a value, for
 * d / d x_a = sum_jk c_jk x_j x_k in a gradient. The last variable is the constant 1. */

enum { WIDES = 6, BLOCK = WIDES * WIDE_LANES };

static inline void sum_of_products(const wide (*x)[WIDES], const int32_t **terms,
                                   const double **values, wide sum[WIDES])
{
    const int32_t *t = *terms;
    const double *v = *values;
    const int32_t n = *t++;
    wide s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
    for (int32_t k = 0; k < n; k++, t += 2) {
        const wide c = (REAL)*v++ - (wide){0};
        const wide *a = x[t[0]], *b = x[t[1]];
        s0 += c * a[0] * b[0];
        s1 += c * a[1] * b[1];
        s2 += c * a[2] * b[2];
        s3 += c * a[3] * b[3];
        s4 += c * a[4] * b[4];
        s5 += c * a[5] * b[5];
    }
    sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3, sum[4] = s4, sum[5] = s5;
    *terms = t;
    *values = v;
}

static inline void fetch(int64_t n_variables, int64_t stride, int64_t n, const REAL *from,
                         wide (*x)[WIDES])
{
    for (int64_t a = 0; a < n_variables; a++) {
        if (n < BLOCK) memset(x[a], 0, sizeof x[a]);
        memcpy(x[a], from + a * stride, n * sizeof(REAL));
    }
}

/* sum_r weights_r P_r(x) of n_atoms of one element: x (n_variables, n_atoms, n_channels) with a
 * stride between variables, weights (n_polynomials, n_channels), out (n_atoms, n_channels). */
void products(int64_t n_atoms, int64_t n_channels, int64_t n_variables, int64_t n_polynomials,
              const int32_t *terms, const double *values, int64_t stride, const REAL *columns,
              const REAL *weights, REAL *out)
{
    wide x[MAX_HARMONICS + 1][WIDES];
    for (int k = 0; k < WIDES; k++) x[n_variables][k] = (REAL)1 - (wide){0};
    for (int64_t i = 0; i < n_atoms; i++)
        for (int64_t c = 0; c < n_channels; c += BLOCK) {
            const int64_t n = n_channels - c < BLOCK ? n_channels - c : BLOCK;
            const int32_t *t = terms;
            const double *v = values;
            wide result[WIDES] = {{0}};
            fetch(n_variables, stride, n, columns + i * n_channels + c, x);
            for (int64_t r = 0; r < n_polynomials; r++) {
                wide value[WIDES] = {{0}}, part[WIDES], w[WIDES] = {{0}};
                for (int32_t groups = *t++; groups > 0; groups--) {
                    const wide *a = x[*t++];
                    sum_of_products(x, &t, &v, part);
                    for (int k = 0; k < WIDES; k++) value[k] += a[k] * part[k];
                }
                memcpy(w, weights + r * n_channels + c, n * sizeof(REAL));
                for (int k = 0; k < WIDES; k++) result[k] += w[k] * value[k];
            }
            memcpy(out + i * n_channels + c, result, n * sizeof(REAL));
        }
}

/* Gradient of the sum over atoms of by_out times products, like x. */
void products_pullback(int64_t n_atoms, int64_t n_channels, int64_t n_variables,
                       int64_t n_polynomials, const int32_t *terms, const double *values,
                       int64_t stride, const REAL *columns, const REAL *weights,
                       const REAL *by_out, int64_t out_stride, REAL *by_columns)
{
    wide x[MAX_HARMONICS + 1][WIDES], by_x[MAX_HARMONICS][WIDES];
    for (int k = 0; k < WIDES; k++) x[n_variables][k] = (REAL)1 - (wide){0};
    for (int64_t i = 0; i < n_atoms; i++)
        for (int64_t c = 0; c < n_channels; c += BLOCK) {
            const int64_t n = n_channels - c < BLOCK ? n_channels - c : BLOCK;
            const int32_t *t = terms;
            const double *v = values;
            wide by[WIDES] = {{0}};
            fetch(n_variables, stride, n, columns + i * n_channels + c, x);
            memcpy(by, by_out + i * n_channels + c, n * sizeof(REAL));
            memset(by_x, 0, n_variables * sizeof *by_x);
            for (int64_t r = 0; r < n_polynomials; r++) {
                wide part[WIDES], w[WIDES] = {{0}};
                memcpy(w, weights + r * n_channels + c, n * sizeof(REAL));
                for (int k = 0; k < WIDES; k++) w[k] *= by[k];
                for (int32_t groups = *t++; groups > 0; groups--) {
                    wide *g = by_x[*t++];
                    sum_of_products(x, &t, &v, part);
                    for (int k = 0; k < WIDES; k++) g[k] += w[k] * part[k];
                }
            }
            for (int64_t a = 0; a < n_variables; a++)
                memcpy(by_columns + a * out_stride + i * n_channels + c, by_x[a], n * sizeof(REAL));
        }
}

/* What the first layer needs to know of an element: panels of the maps, (n_present * n_basis,
 * n_channels), of each harmonic, of their transposes, and weights as products() has them. */
typedef struct {
    const REAL *maps, *maps_back, *weights;
} element_data;

enum { TILE = 32 };

int64_t first_layer_workspace(int64_t n_harmonics, int64_t n_columns, int64_t n_channels)
{
    return n_harmonics * TILE * (n_columns + LANES + n_channels);
}

/* Atomic basis, (n_harmonics, n_atoms, n_channels), and its products, (n_atoms, n_channels), of
 * atoms that are sorted by element, some at a time, so that what is between stays in the cache.
 *
 * n_of_present: atoms of each element that is present, of which the first n_wanted are evaluated;
 * data: of each of these elements; phi: radial basis functions (n_edges, width). */
void first_layer(int64_t n_atoms, int64_t n_harmonics, int64_t n_present, int64_t n_basis,
                 int64_t width, int64_t n_channels, int64_t n_polynomials,
                 const int64_t *n_of_present, const int64_t *n_wanted, const element_data *data,
                 const int32_t *terms, const double *values, const int64_t *first,
                 const int32_t *sender, const int64_t *column, const REAL *harmonics,
                 const REAL *phi, REAL *workspace, REAL *basis, REAL *out)
{
    const int64_t n_columns = n_present * n_basis, stride = n_columns + LANES;
    const int64_t n_panels = (n_channels + PANEL - 1) / PANEL;
    edges g = {n_basis, width, .sender = sender, .column = column, .harmonics = harmonics,
               .phi = phi};
    for (int64_t z = 0, begin = 0; z < n_present; begin += n_of_present[z++])
        for (int64_t done = 0; done < n_wanted[z]; done += TILE) {
            const int64_t left = n_wanted[z] - done, n = left < TILE ? left : TILE;
            const int64_t i = begin + done;
            for (int64_t row = 0; row < n; row++) {
                REAL *moments = workspace + row * stride;
                g.begin = first[i + row], g.end = first[i + row + 1];
                switch (n_harmonics) {
                case 1: sum_moments(1, &g, n_columns, TILE * stride, moments); break;
                case 4: sum_moments(4, &g, n_columns, TILE * stride, moments); break;
                case 9: sum_moments(9, &g, n_columns, TILE * stride, moments); break;
                default: sum_moments(16, &g, n_columns, TILE * stride, moments);
                }
            }
            for (int64_t m = 0; m < n_harmonics; m++)
                multiply(n, n_columns, n_channels, workspace + m * TILE * stride, stride,
                         data[z].maps + m * n_panels * n_columns * PANEL,
                         basis + (m * n_atoms + i) * n_channels, n_channels);
            products(n, n_channels, n_harmonics, n_polynomials, terms, values,
                     n_atoms * n_channels, basis + i * n_channels, data[z].weights,
                     out + i * n_channels);
        }
}

/* From the gradient with respect to what first_layer() returns, with the basis that it left, to those
 * with respect to distances and harmonics, which are added to; slope: derivatives of phi. */
void first_layer_pullback(int64_t n_atoms, int64_t n_harmonics, int64_t n_present, int64_t n_basis,
                          int64_t width, int64_t n_channels, int64_t n_polynomials,
                          const int64_t *n_of_present, const int64_t *n_wanted,
                          const element_data *data, const int32_t *terms, const double *values,
                          const int64_t *first, const int32_t *sender, const int64_t *column,
                          const REAL *harmonics, const REAL *phi, const REAL *slope,
                          REAL *workspace, const REAL *basis, const REAL *by_out,
                          REAL *by_distance, REAL *by_harmonics)
{
    const int64_t n_columns = n_present * n_basis, stride = n_columns + LANES;
    const int64_t n_panels = (n_columns + PANEL - 1) / PANEL;
    REAL *by_moments = workspace, *by_basis = workspace + n_harmonics * TILE * stride;
    memset(by_moments, 0, n_harmonics * TILE * stride * sizeof *by_moments);
    edges g = {n_basis, width, .sender = sender, .column = column, .harmonics = harmonics,
               .phi = phi, .slope = slope, .by_distance = by_distance,
               .by_harmonics = by_harmonics};
    for (int64_t z = 0, begin = 0; z < n_present; begin += n_of_present[z++])
        for (int64_t done = 0; done < n_wanted[z]; done += TILE) {
            const int64_t left = n_wanted[z] - done, n = left < TILE ? left : TILE;
            const int64_t i = begin + done;
            products_pullback(n, n_channels, n_harmonics, n_polynomials, terms, values,
                              n_atoms * n_channels, basis + i * n_channels, data[z].weights,
                              by_out + i * n_channels, TILE * n_channels, by_basis);
            for (int64_t m = 0; m < n_harmonics; m++)
                multiply(n, n_channels, n_columns, by_basis + m * TILE * n_channels, n_channels,
                         data[z].maps_back + m * n_panels * n_channels * PANEL,
                         by_moments + m * TILE * stride, stride);
            for (int64_t row = 0; row < n; row++) {
                const REAL *by = by_moments + row * stride;
                g.begin = first[i + row], g.end = first[i + row + 1];
                switch (n_harmonics) {
                case 1: sum_moments_pullback(1, &g, TILE * stride, by); break;
                case 4: sum_moments_pullback(4, &g, TILE * stride, by); break;
                case 9: sum_moments_pullback(9, &g, TILE * stride, by); break;
                default: sum_moments_pullback(16, &g, TILE * stride, by);
                }
            }
        }
}

/* 2^x of numbers whose result is neither denormal nor infinite: Taylor's series of e^(x ln 2) about
 * the nearest integer, whose bits become the exponent. */
static inline vec power_of_2(vec x)
{
    enum { SINGLE = sizeof(REAL) == 4, TERMS = SINGLE ? 8 : 14, MANTISSA = SINGLE ? 23 : 52 };
    const REAL shift = SINGLE ? 0x1.8p23 : 0x1.8p52;
    const integer one = (integer)(SINGLE ? 127 : 1023) << MANTISSA;
    const vec shifted = x + shift, y = (x - (shifted - shift)) * (REAL)0.693147180559945309417;
    vec sum = all(1);
    for (int n = TERMS - 1; n > 0; n--) sum = all(1) + sum * y * (REAL)(1.0 / n);
    return sum * (vec)(((bits)shifted << MANTISSA) + one);
}

/* Whether any comparison of a vector was true. */
static inline int any(bits mask)
{
    typedef int64_t words __attribute__((vector_size(32)));
    const words w = (words)mask;
    return (w[0] | w[1] | w[2] | w[3]) != 0;
}

enum { GROUPS = 8 };

/* log2 of the sum over references j of 2^w_ij, and the mean of the references weighted by it, of up
 * to TILE atoms.
 *
 * exponents w (n_atoms, n_references), the latter a multiple of LANES; references: rows of a
 * multiple of PANEL numbers, width. Groups of LANES successive references all of which have a w more
 * than margin below the largest of the atom are left out: where like references are adjacent, those
 * are most. They go in so many groups at a time that stay in the cache. Out: log2_sum (n_atoms),
 * mean (n_atoms, width), or NULL where none is wanted. */
static void sum_terms(int64_t n_atoms, int64_t n_references, int64_t width, REAL margin,
                      const REAL *exponents, const REAL *references, REAL *log2_sum, REAL *mean)
{
    REAL top[TILE], sums[TILE];
    if (mean) memset(mean, 0, n_atoms * width * sizeof *mean);
    for (int64_t i = 0; i < n_atoms; i++) {
        const REAL *u = exponents + i * n_references;
        vec m0 = all(-INFINITY), m1 = m0;
        int64_t j = 0;
        for (; j + 2 * LANES <= n_references; j += 2 * LANES) {
            m0 = larger(load(u + j), m0);
            m1 = larger(load(u + j + LANES), m1);
        }
        if (j < n_references) m0 = larger(load(u + j), m0);
        const vec largest = larger(m0, m1);
        top[i] = -INFINITY;
        for (int k = 0; k < LANES; k++) top[i] = largest[k] > top[i] ? largest[k] : top[i];
        sums[i] = 0;
    }
    for (int64_t begin = 0; begin < n_references; begin += GROUPS * LANES) {
        const int64_t left = n_references - begin;
        const int64_t end = begin + (left < GROUPS * LANES ? left : GROUPS * LANES);
        for (int64_t i = 0; i < n_atoms; i++) {
            const REAL *u = exponents + i * n_references;
            const vec limit = all(top[i] - margin);
            const REAL *row[GROUPS];
            REAL weight[GROUPS * LANES];
            int64_t n = 0;
            vec sum = {0};
            for (int64_t j = begin; j < end; j += LANES) {
                const vec w = load(u + j);
                if (!any(w > limit)) continue;
                /* Even what is far stays above the denormal numbers, which are slow. */
                const vec term = power_of_2(larger(w - top[i], all(-100)));
                store(weight + n * LANES, term);
                sum += term;
                row[n++] = references + j * width;
            }
            sums[i] += total(sum);
            for (int64_t q = 0; mean && n && q < width; q += PANEL) {
                REAL *m = mean + i * width + q;
                wide even[3] = {{0}}, odd[3] = {{0}}; /* sums of their own do not wait */
                for (int64_t group = 0; group < n; group++)
                    for (int k = 0; k < LANES; k += 2) {
                        const REAL *b = row[group] + k * width + q, *c = b + width;
                        const wide w = weight[group * LANES + k] - (wide){0};
                        const wide v = weight[group * LANES + k + 1] - (wide){0};
                        for (int part = 0; part < 3; part++) {
                            even[part] += w * load_wide(b + part * WIDE_LANES);
                            odd[part] += v * load_wide(c + part * WIDE_LANES);
                        }
                    }
                for (int part = 0; part < 3; part++) {
                    REAL *to = m + part * WIDE_LANES;
                    store_wide(to, load_wide(to) + even[part] + odd[part]);
                }
            }
        }
    }
    for (int64_t i = 0; i < n_atoms; i++) {
        const REAL over = 1 / sums[i];
        for (int64_t q = 0; mean && q < width; q++) mean[i * width + q] *= over;
        log2_sum[i] = top[i] + log2(sums[i]);
    }
}

int64_t kernel_workspace(int64_t n_features, int64_t n_columns, int64_t width)
{
    return TILE * (n_features + 1 + n_columns + width);
}

/* log sum_j exp(-p_i |a_i - b_j|^2 / 2) and its derivatives: see kernel.py.
 *
 * features a (n_atoms, n_features), precision p (n_atoms); panels: b_j as columns, and under them
 * -|b_j|^2 / 2, n_columns of them, a multiple of PANEL; references: the same as rows, padded to a
 * width that is a multiple of PANEL. Columns that are no reference end with a large negative number.
 * Workspace: kernel_workspace() numbers. Out: log_k (n_atoms), gradient (n_atoms, n_features), or
 * NULL where none is wanted. */
void log_kernel(int64_t n_atoms, int64_t n_features, int64_t n_columns, int64_t width, double margin,
                const REAL *features, const REAL *precision, const REAL *panels,
                const REAL *references, REAL *workspace, REAL *log_k, REAL *gradient)
{
    const REAL log2_e = (REAL)1.44269504088896340736;
    const int64_t n_inner = n_features + 1;
    REAL *rows = workspace, *exponents = rows + TILE * n_inner;
    REAL *mean = exponents + TILE * n_columns;
    for (int64_t begin = 0; begin < n_atoms; begin += TILE) {
        const int64_t n = n_atoms - begin < TILE ? n_atoms - begin : TILE;
        const REAL *a = features + begin * n_features, *p = precision + begin;
        REAL log2_sum[TILE];
        /* Exponents to the base of 2, which is the faster power. */
        for (int64_t i = 0; i < n; i++) {
            for (int64_t q = 0; q < n_features; q++)
                rows[i * n_inner + q] = log2_e * p[i] * a[i * n_features + q];
            rows[i * n_inner + n_features] = log2_e * p[i];
        }
        multiply(n, n_inner, n_columns, rows, n_inner, panels, exponents, n_columns);
        sum_terms(n, n_columns, width, (REAL)margin, exponents, references, log2_sum,
                  gradient ? mean : NULL);
        for (int64_t i = 0; i < n; i++) {
            const REAL *x = a + i * n_features, *m = mean + i * width;
            REAL square = 0, *g = gradient + (begin + i) * n_features;
            for (int64_t q = 0; q < n_features; q++) square += x[q] * x[q];
            log_k[begin + i] = log2_sum[i] / log2_e - (REAL)0.5 * p[i] * square;
            for (int64_t q = 0; gradient && q < n_features; q++) g[q] = p[i] * (m[q] - x[q]);
        }
    }
}

/* The difference of two positions; returns its length, or smallest where it is shorter. */
static inline REAL between(const REAL *x, const REAL *y, double smallest, REAL *d)
{
    REAL square = 0;
    for (int k = 0; k < 3; k++) {
        d[k] = x[k] - y[k];
        square += d[k] * d[k];
    }
    const REAL least = smallest * smallest;
    return sqrt(square > least ? square : least);
}

/* Which atoms move, or are closer than reach to one that does: see SimilarityKernel.score.
 *
 * positions: (n_atoms, 3), senders: (n_atoms, n_slots), the atom itself in slots left over, still
 * (n_atoms). Out: near (n_atoms). */
void near_moving(int64_t n_atoms, int64_t n_slots, const REAL *positions, const int64_t *senders,
                 const uint8_t *still, double reach, uint8_t *near)
{
    REAL d[3];
    for (int64_t i = 0; i < n_atoms; i++) {
        near[i] = !still[i];
        for (int64_t s = 0; s < n_slots && !near[i]; s++) {
            const int64_t j = senders[i * n_slots + s];
            near[i] = !still[j] && between(positions + 3 * i, positions + 3 * j, 0, d) < reach;
        }
    }
}

/* e^-40 is less than what double precision resolves. */
enum { NOTHING = 40 };

/* Score of E = strength * sum over pairs of exp(-decay * r): see density.py, Repulsion.
 *
 * positions: (n_atoms, 3), senders: (n_atoms, n_slots), the atom itself in slots left over.
 * Out: score (n_atoms, 3). */
void repulsion(int64_t n_atoms, int64_t n_slots, const REAL *positions, const int64_t *senders,
               double strength, double decay, double smallest, REAL *score)
{
    memset(score, 0, 3 * n_atoms * sizeof *score);
    for (int64_t i = 0; i < n_atoms; i++)
        for (int64_t s = 0; s < n_slots; s++) {
            const int64_t j = senders[i * n_slots + s];
            if (j <= i) continue; /* each pair comes twice */
            REAL d[3];
            const REAL r = between(positions + 3 * i, positions + 3 * j, smallest, d);
            if (decay * r > NOTHING) continue;
            const REAL force = strength * decay * exp(-decay * r) / r;
            for (int k = 0; k < 3; k++) {
                score[3 * i + k] += force * d[k];
                score[3 * j + k] -= force * d[k];
            }
        }
}

/* Draw each fragment to the nearest atom of another one: see cohesion.py.
 *
 * positions and senders as above; radius (n_atoms); shut (n_atoms), or NULL: atoms to and from which
 * no gap is measured. Atoms closer than reach times the sum of their radii hang together.
 * Workspace: parent, shares (n_atoms), gap (n_atoms). Out: score (n_atoms, 3). */
void cohesion(int64_t n_atoms, int64_t n_slots, const REAL *positions, const int64_t *senders,
              const REAL *radius, const uint8_t *shut, double reach, double smallest,
              int64_t *parent, int64_t *shares, REAL *gap, REAL *score)
{
    memset(score, 0, 3 * n_atoms * sizeof *score);
    REAL d[3];
    for (int64_t i = 0; i < n_atoms; i++) {
        parent[i] = i;
        shares[i] = 0;
        gap[i] = INFINITY;
    }
    for (int64_t i = 0; i < n_atoms; i++)
        for (int64_t s = 0; s < n_slots; s++) {
            const int64_t j = senders[i * n_slots + s];
            if (j <= i) continue;
            const REAL limit = (REAL)reach * (radius[j] + radius[i]);
            if (!(between(positions + 3 * i, positions + 3 * j, smallest, d) < limit)) continue;
            int64_t a = i, b = j;
            while (parent[a] != a) a = parent[a];
            while (parent[b] != b) b = parent[b];
            /* A fragment is known by the first of its atoms. */
            if (a < b) parent[b] = a;
            else parent[a] = b;
        }
    for (int64_t i = 0; i < n_atoms; i++) parent[i] = parent[parent[i]];
    /* Gaps, then how many pairs of atoms share each of them, then the pull. */
    for (int pass = 0; pass < 3; pass++)
        for (int64_t i = 0; i < n_atoms; i++)
            for (int64_t s = 0; s < n_slots; s++) {
                const int64_t j = senders[i * n_slots + s], fragment = parent[i];
                if (parent[j] == fragment || (shut && (shut[i] || shut[j]))) continue;
                const REAL r = between(positions + 3 * i, positions + 3 * j, smallest, d);
                if (pass == 0) {
                    gap[fragment] = r < gap[fragment] ? r : gap[fragment];
                } else if (r == gap[fragment]) {
                    if (pass == 1) shares[fragment]++;
                    for (int k = 0; pass == 2 && k < 3; k++) {
                        const REAL pull = d[k] / (shares[fragment] * r);
                        score[3 * j + k] += pull;
                        score[3 * i + k] -= pull;
                    }
                }
            }
}
