/* keyed_sort against qsort, over sizes, widths and shapes of keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/sort.h"

static uint64_t next(uint64_t *r)
{
	*r += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = *r;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static int by_key_and_id(const void *a, const void *b)
{
	const struct keyed *x = a, *y = b;
	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return (x->id > y->id) - (x->id < y->id);
}

static void sorts_as_qsort(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 1, 2, 23, 24, 25, 26, 100, 255, 256, 257, 1000, 40000};
	uint64_t r = 7;
	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
		for (int shape = 0; shape < 10; shape++) {
			size_t n = sizes[s];
			struct keyed *v = calloc(n + 1, sizeof *v), *want = calloc(n + 1, sizeof *want);
			for (size_t i = 0; i < n; i++) {
				uint64_t x = next(&r);
				uint64_t key = shape == 0   ? x
					       : shape == 1 ? x >> 61
					       : shape == 2 ? 0
					       : shape == 3 ? i
					       : shape == 4 ? n - i
					       : shape == 5 ? (x & 3) << 62 | (x >> 8 & 3)
					       : shape == 6 ? UINT64_MAX - (x & 1)
					       : shape == 7 ? UINT64_C(0x4142434445464748) + (x & 0xff00ff)
					       : shape == 8 ? (x & 0x8000000000000001)
							    : x % (n / 4 + 1) * 0x0101010101;
				v[i] = want[i] = (struct keyed){key, (uint32_t)i, (uint32_t)x};
			}
			keyed_sort(v, n);
			for (size_t i = 1; i < n; i++)
				assert_true(v[i - 1].key <= v[i].key);
			/* No item was lost, each kept its own. */
			qsort(v, n, sizeof *v, by_key_and_id);
			qsort(want, n, sizeof *want, by_key_and_id);
			assert_memory_equal(v, want, n * sizeof *v);
			free(v);
			free(want);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(sorts_as_qsort)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
