/* What a real Thanos Receive answers (tests/golden/hashring.json: 1,920 cases over 18 files): every series goes to the same nodes in the same order; the
 * files that Thanos takes although they are wrong are refused, in words.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <jansson.h>
#include "cluster/ring.h"

static const char golden[] = "tests/golden/hashring.json";

/* What must stand in the refusal of a group that varve does not take. */
static const struct {
	const char *group, *words;
} refused[] = {
	{"too few endpoints", "2 endpoints, fewer than the replication factor of 3"},
	{"zones with hashmod", "hashmod knows no zones"},
	{"duplicate endpoint, hashmod", "\"a:1\" stands there twice"},
	{"duplicate endpoint, ketama", "\"a:1\" stands there twice"},
	{"unknown algorithm", "algorithm"},
};

static struct span text_of(json_t *v)
{
	return span_of(json_string_value(v), json_string_length(v));
}

static unsigned run_case(struct ring_set *set, json_t *c, const char *group)
{
	struct err err = {0};
	struct ring *ring;
	struct ring_hash hash;
	uint32_t owners[LIMIT_RING_FACTOR], factor = ring_set_factor(set);
	char want[17], got[17];
	size_t i;
	json_t *label, *replicas = json_object_get(c, "replicas");
	struct span tenant = text_of(json_object_get(c, "tenant"));
	if (ring_for_tenant(set, tenant, &ring, &err) != OK)
		fail_msg("%s", err.msg);
	if (json_object_get(c, "error")) {
		assert_null(ring);
		return 0;
	}
	assert_non_null(ring);
	ring_hash_begin(&hash, tenant);
	json_array_foreach(json_object_get(c, "labels"), i, label)
	{
		ring_hash_add(&hash, text_of(json_array_get(label, 0)), text_of(json_array_get(label, 1)));
	}
	uint64_t h = ring_hash_end(&hash);
	snprintf(want, sizeof want, "%s", json_string_value(json_object_get(c, "hash")));
	snprintf(got, sizeof got, "%016" PRIx64, h);
	assert_string_equal(got, want);
	ring_owners(ring, h, owners);
	assert_int_equal(json_array_size(replicas), factor);
	for (uint32_t k = 0; k < factor; k++) {
		struct span address = ring_set_node(set, owners[k])->address;
		if (!span_eq(address, text_of(json_array_get(replicas, k))))
			fail_msg("%s: hash %s replica %u is %.*s, Thanos says %s", group, got, k, SPAN_ARG(address),
				json_string_value(json_array_get(replicas, k)));
	}
	ring_unref(ring);
	return factor;
}

static void places_as_thanos(void **state)
{
	(void)state;
	json_error_t e;
	json_t *groups = json_load_file(golden, 0, &e), *g, *c;
	if (!groups)
		fail_msg("%s: %s", golden, e.text);
	unsigned n_refused = 0, n_placed = 0;
	size_t i, k;
	json_array_foreach(groups, i, g)
	{
		const char *name = json_string_value(json_object_get(g, "name"));
		struct ring_options opt = {.replication_factor = (uint32_t)json_integer_value(json_object_get(g, "replication_factor"))};
		const char *algorithm = json_string_value(json_object_get(g, "default_algorithm"));
		char *text = json_dumps(json_object_get(g, "hashrings"), JSON_INDENT(1));
		struct ring_set *set = NULL;
		struct err err = {0};
		bool known = ring_algorithm_parse(algorithm, &opt.algorithm);
		errc rc = ring_set_parse("hashrings.json", span_cstr(text), &opt, &set, &err);
		size_t r = 0;
		while (r < sizeof refused / sizeof *refused && strcmp(refused[r].group, name) != 0)
			r++;
		if (r < sizeof refused / sizeof *refused) {
			n_refused++;
			assert_true(!known || rc == ERR_INVALID);
			if (known && !strstr(err.msg, refused[r].words))
				fail_msg("%s: %s", name, err.msg);
		} else {
			if (rc != OK)
				fail_msg("%s: %s", name, err.msg);
			json_array_foreach(json_object_get(g, "cases"), k, c)
			{
				n_placed += run_case(set, c, name);
			}
		}
		ring_set_unref(set);
		free(text);
	}
	json_decref(groups);
	assert_int_equal(n_refused, sizeof refused / sizeof *refused);
	assert_true(n_placed > 3000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(places_as_thanos),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
