/* The numbers and patterns that placement hangs on, held against Go's own answers (tests/golden/ring/go_numbers.txt). */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "cluster/cluster_int.h"

struct answers {
	struct arena arena;
	struct span text;
};

static int read_answers(void **state)
{
	static struct answers a;
	struct err err = {0};
	arena_init(&a.arena, 4 * MIB);
	if (io_read_file("tests/golden/ring/go_numbers.txt", MIB, &a.arena, &a.text, &err) != OK) {
		fprintf(stderr, "%s\n", err.msg);
		return -1;
	}
	*state = &a;
	return 0;
}

static int free_answers(void **state)
{
	arena_free(&((struct answers *)*state)->arena);
	return 0;
}

/* The next line that begins with word: fields of it, split at single blanks. */
static bool next_line(struct span *rest, const char *word, struct span fields[5])
{
	while (rest->n > 0) {
		const char *end = memchr(rest->p, '\n', rest->n);
		struct span line = span_of(rest->p, (size_t)(end - rest->p));
		*rest = span_of(end + 1, rest->n - line.n - 1);
		for (int i = 0; i < 5; i++) {
			const char *blank = memchr(line.p, ' ', line.n);
			fields[i] = span_of(line.p, blank ? (size_t)(blank - line.p) : line.n);
			line = blank ? span_of(blank + 1, line.n - fields[i].n - 1) : span_of(line.p + line.n, 0);
		}
		if (span_is(fields[0], word))
			return true;
	}
	return false;
}

static void draws_as_go(void **state)
{
	struct span rest = ((struct answers *)*state)->text, f[5], last = SPAN("");
	struct go_random r;
	int64_t drawn = 0;
	unsigned n = 0;
	while (next_line(&rest, "random", f)) {
		int64_t seed = strtoll(f[1].p, NULL, 10), i = strtoll(f[2].p, NULL, 10);
		if (!span_eq(last, f[1])) {
			go_random_seed(&r, seed);
			drawn = 0;
			last = f[1];
		}
		uint64_t x = 0;
		for (; drawn <= i; drawn++)
			x = go_random_u64(&r);
		assert_true(x == strtoull(f[3].p, NULL, 10));
		n++;
	}
	assert_int_equal(n, 13 * 8);
}

static void seeds_as_go(void **state)
{
	struct span rest = ((struct answers *)*state)->text, f[5];
	unsigned n = 0;
	while (next_line(&rest, "md5", f)) {
		char text[300], hex[33];
		uint8_t sum[16];
		memset(text, 'x', sizeof text);
		if (n > 4)
			memcpy(text, "0123", 4);
		struct span s = span_of(text, n);
		md5(s, sum);
		for (int i = 0; i < 16; i++)
			snprintf(hex + 2 * i, 3, "%02x", sum[i]);
		assert_true(span_is(f[2], hex));
		if (n <= LIMIT_RING_NAME_BYTES)
			assert_true(ring_shard_seed(s, SPAN("")) == strtoll(f[3].p, NULL, 10));
		n++;
	}
	assert_int_equal(n, 300);
	/* printf 'ci\0zone-1' | md5sum */
	assert_int_equal((uint64_t)ring_shard_seed(SPAN("ci"), SPAN("zone-1")) >> 32, 0xebea5511);
}

static struct span unhex(struct span s, char *out)
{
	for (size_t i = 0; i < s.n / 2; i++)
		sscanf(s.p + 2 * i, "%2hhx", (unsigned char *)&out[i]);
	return span_of(out, s.n / 2);
}

static void matches_as_go(void **state)
{
	struct span rest = ((struct answers *)*state)->text, f[5];
	unsigned n = 0, matched = 0;
	while (next_line(&rest, "match", f)) {
		char pattern[64], name[64];
		struct span p = unhex(f[1], pattern), s = unhex(f[2], name);
		bool good = !span_is(f[3], "bad"), want = span_is(f[3], "true");
		if (ring_glob_valid(p) != good || (good && ring_glob_matches(p, s) != want))
			fail_msg("\"%.*s\" against \"%.*s\": Go says %.*s", SPAN_ARG(p), SPAN_ARG(s), SPAN_ARG(f[3]));
		matched += want;
		n++;
	}
	assert_int_equal(n, 3000);
	assert_true(matched > 250);
}

/* Stars that all match everything cost the product of the lengths, not a power. */
static void stars_cost_little(void **state)
{
	(void)state;
	char pattern[LIMIT_RING_NAME_BYTES], name[LIMIT_RING_NAME_BYTES];
	for (size_t i = 0; i < sizeof pattern; i++)
		pattern[i] = i % 2 ? 'a' : '*';
	memset(name, 'a', sizeof name);
	name[sizeof name - 1] = 'b';
	for (int i = 0; i < 1000; i++)
		assert_false(ring_glob_matches(span_of(pattern, sizeof pattern), span_of(name, sizeof name)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(draws_as_go),
		cmocka_unit_test(seeds_as_go),
		cmocka_unit_test(matches_as_go),
		cmocka_unit_test(stars_cost_little),
	};
	return cmocka_run_group_tests(tests, read_answers, free_answers);
}
