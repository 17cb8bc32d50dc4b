/* A ring file is taken whole or refused whole: every wrong one for the reason that it has, with the line; every beginning of a good one; one allocation
 * after another failing. And what Thanos' documentation and its users write is taken as it stands.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "cluster/cluster_int.h"
#include "tests/support/fail_alloc.h"

static const struct ring_options one = {.replication_factor = 1}, three = {.replication_factor = 3};

static errc parse(const char *text, const struct ring_options *opt, struct ring_set **out, struct err *err)
{
	*out = NULL;
	return ring_set_parse("r.json", span_cstr(text), opt, out, err);
}

#define ENDPOINTS "\"endpoints\": [\"a:1\", \"b:1\", \"c:1\"]"
#define ZONES "\"endpoints\": [{\"address\": \"a:1\", \"az\": \"x\"}, {\"address\": \"b:1\", \"az\": \"y\"}, {\"address\": \"c:1\", \"az\": \"x\"}]"

static const struct {
	const char *text, *words;
} wrong[] = {
	/* no file */
	{"", "r.json:1: the hashring file is empty"},
	{" \n\t\n ", "r.json:1: the hashring file is empty"},
	{"[]", "r.json:1: the hashring file has no rings"},
	{"null", "must be a list of rings, not null"},
	{"{}", "must be a list of rings, not an object"},
	{"[{" ENDPOINTS "}", "r.json:1: the text ends where ',' or ']' must stand"},
	{"[{" ENDPOINTS "}]]", "r.json:1: ']' where the end of the text must stand"},
	{"[\n{" ENDPOINTS "},\n]", "r.json:3: ']' where a value must stand"},
	{"[{" ENDPOINTS ",}]", "a member's name in quotes must stand"},
	{"[{'endpoints': []}]", "''' where a member's name in quotes must stand"},
	{"[{" ENDPOINTS "}] // rings", "'/' where the end of the text must stand"},
	{"[{" ENDPOINTS ",\n \"hashring\": \"a\nb\"}]", "r.json:2: a string that its line does not end"},
	{"[{" ENDPOINTS ", \"hashring\": \"\xff\"}]", "not UTF-8"},
	{"[{" ENDPOINTS ", \"hashring\": \"\\ud800\"}]", "an escape in a string that is none"},
	{"[{" ENDPOINTS ", \"hashring\": \"\\x\"}]", "an escape in a string that is none"},
	{"[{" ENDPOINTS ", \"hashring\": \"a", "the text ends inside a string"},
	{"\xef\xbb\xbf[]", "byte 0xef where a value must stand"},
	{"[{" ENDPOINTS ", \"hashring\": 01}]", "a number that is none"},
	{"[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]", "nested deeper than 16 levels"},
	/* keys */
	{"[{" ENDPOINTS ",\n\"tennants\": []}]", "r.json:2: ring 1: a ring has no key \"tennants\", did you mean \"tenants\"?"},
	{"[{" ENDPOINTS ", \"Endpoints\": []}]", "a ring has no key \"Endpoints\""},
	{"[{\"endpoints\": [{\"address\": \"a:1\", \"zone\": \"x\"}]}]", "an endpoint has no key \"zone\""},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 1, \"size\": 2}}]", "shuffle_sharding_config has no key \"size\""},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 1, \"overrides\": [{\"tenant\": \"a\"}]}}]",
		"an override has no key \"tenant\""},
	{"[{" ENDPOINTS ",\n" ENDPOINTS "}]", "r.json:2: \"endpoints\" stands there twice, first on line 1"},
	{"[" ENDPOINTS "]", "r.json:1: ':' where ',' or ']' must stand"},
	{"[[]]", "ring 1: a ring must be an object, not a list"},
	{"[{\"hashring\": \"first\", " ENDPOINTS "},\n{\"hashring\": \"second\"}]", "r.json:2: ring \"second\": no endpoints"},
	{"[{" ENDPOINTS ", \"hashring\": 1}]", "hashring must be a string, not a number"},
	/* algorithm */
	{"[{" ENDPOINTS ", \"algorithm\": \"crc\"}]", "algorithm must be \"ketama\" or \"hashmod\", not \"crc\""},
	{"[{" ZONES ", \"algorithm\": \"hashmod\"}]", "hashmod knows no zones"},
	{"[{" ENDPOINTS ", \"algorithm\": \"hashmod\", \"shuffle_sharding_config\": {\"shard_size\": 2}}]",
		"shuffle sharding needs \"algorithm\": \"ketama\""},
	/* endpoints */
	{"[{}]", "no endpoints"},
	{"[{\"endpoints\": []}]", "no endpoints"},
	{"[{\"endpoints\": null}]", "no endpoints"},
	{"[{\"endpoints\": \"a:1\"}]", "endpoints must be a list, not a string"},
	{"[{\"endpoints\": [\"a:1\",\n\"b:1\",\n\"a:1\"]}]", "r.json:3: ring 1: the endpoint \"a:1\" stands there twice, first on line 1"},
	{"[{\"endpoints\": [\"a:1\", {\"address\": \"a:1\"}]}]", "\"a:1\" stands there twice"},
	{"[{\"endpoints\": [\"\"]}]", "an endpoint without an address"},
	{"[{\"endpoints\": [{\"az\": \"x\"}]}]", "an endpoint without an address"},
	{"[{\"endpoints\": [7]}]", "an endpoint must be \"host:port\" or an object with an address, not a number"},
	{"[{\"endpoints\": [\"a\"]}]", "the endpoint \"a\" has no port"},
	{"[{\"endpoints\": [\"a:\"]}]", "a port that is not between 1 and 65535"},
	{"[{\"endpoints\": [\"a:0\"]}]", "a port that is not between 1 and 65535"},
	{"[{\"endpoints\": [\"a:65536\"]}]", "a port that is not between 1 and 65535"},
	{"[{\"endpoints\": [\"a:-1\"]}]", "a port that is not between 1 and 65535"},
	{"[{\"endpoints\": [\":1\"]}]", "has no host"},
	{"[{\"endpoints\": [\"::1:9090\"]}]", "an IPv6 address stands in brackets"},
	{"[{\"endpoints\": [\"http://a:1\"]}]", "must be host:port and nothing else"},
	{"[{\"endpoints\": [\"a b:1\"]}]", "must be host:port and nothing else"},
	{"[{\"endpoints\": [\"a\\n:1\"]}]", "the endpoint \"a :1\" must be host:port and nothing else"},
	/* tenants */
	{"[{" ENDPOINTS ", \"tenants\": \"a\"}]", "tenants must be a list, not a string"},
	{"[{" ENDPOINTS ", \"tenants\": [1]}]", "a tenant must be a string, not a number"},
	{"[{" ENDPOINTS ", \"tenant_matcher_type\": \"regex\"}]", "tenant_matcher_type must be \"exact\" or \"glob\", not \"regex\""},
	{"[{" ENDPOINTS ", \"tenant_matcher_type\": \"glob\", \"tenants\": [\"a\",\n\"b[\"]}]", "r.json:2: ring 1: the pattern \"b[\" is malformed"},
	{"[{" ENDPOINTS ", \"tenant_matcher_type\": \"glob\", \"tenants\": [\"a*[]\"]}]", "the pattern \"a*[]\" is malformed"},
	/* shuffle sharding */
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 4}}]", "a shard_size of 4 is more than the ring's 3 endpoints"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": -1}}]", "shard_size must be between 0 and 4294967295, not -1"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2.0}}]", "shard_size must be a whole number, not 2.0"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": \"2\"}}]", "shard_size must be a whole number, not a string"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2, \"zone_awareness_disabled\": 1}}]",
		"must be true or false, not a number"},
	{"[{" ZONES ", \"shuffle_sharding_config\": {\"shard_size\": 3}}]", "takes 2 endpoints of each of 2 zones, and zone \"y\" has 1"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2, \"overrides\": {}}}]", "overrides must be a list, not an object"},
	{"[{" ENDPOINTS
	 ", \"shuffle_sharding_config\": {\"shard_size\": 2,\n\"overrides\": [{\"tenants\": [\"a\"], \"tenant_matcher_type\": \"exact\"}]}}]",
		"r.json:2: ring 1: an override needs a shard_size above 0"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2, \"overrides\": [{\"shard_size\": 9}]}}]",
		"a shard_size of 9 is more than the ring's 3 endpoints"},
	{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2, \"overrides\": [{\"shard_size\": 1, \"tenants\": [\"[\"], "
	 "\"tenant_matcher_type\": \"glob\"}]}}]",
		"the pattern \"[\" is malformed"},
	/* external labels */
	{"[{" ENDPOINTS ", \"external_labels\": []}]", "external_labels must be an object, not a list"},
	{"[{" ENDPOINTS ", \"external_labels\": {\"a\": 1}}]", "the external label \"a\" must be a string, not a number"},
	{"[{" ENDPOINTS ", \"external_labels\": {\"\": \"1\"}}]", "an external label without a name"},
};

static void wrong_files_are_refused_for_their_reason(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct ring_set *set;
		struct err err = {0};
		errc rc = parse(wrong[i].text, &one, &set, &err);
		if (rc != ERR_INVALID && rc != ERR_LIMIT)
			fail_msg("taken: %s", wrong[i].text);
		assert_null(set);
		if (!strstr(err.msg, wrong[i].words))
			fail_msg("%s\nsaid: %s\nmust say: %s", wrong[i].text, err.msg, wrong[i].words);
		assert_int_equal(strncmp(err.msg, "r.json:", 7), 0);
	}
}

static void the_factor_is_judged(void **state)
{
	(void)state;
	static const char *const files[][2] = {
		{"[{\"endpoints\": [\"a:1\", \"b:1\"]}]", "2 endpoints, fewer than the replication factor of 3"},
		{"[{\"endpoints\": [\"a:1\", \"b:1\"], \"algorithm\": \"hashmod\"}]", "2 endpoints, fewer than the replication factor of 3"},
		{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2}}]",
			"a shard_size of 2 gives a tenant 2 endpoints, fewer than the replication factor of 3"},
		{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 3, \"overrides\": [{\"shard_size\": 1}]}}]",
			"a shard_size of 1 gives a tenant 1 endpoints"},
	};
	struct ring_set *set;
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		struct err err = {0};
		assert_int_equal(parse(files[i][0], &three, &set, &err), ERR_INVALID);
		if (!strstr(err.msg, files[i][1]))
			fail_msg("%s: %s", files[i][0], err.msg);
		assert_int_equal(parse(files[i][0], &one, &set, NULL), OK);
		ring_set_unref(set);
	}
	const struct ring_options none = {.replication_factor = 0}, many = {.replication_factor = LIMIT_RING_FACTOR + 1};
	assert_int_equal(parse("[{" ENDPOINTS "}]", &none, &set, NULL), ERR_INVALID);
	assert_int_equal(parse("[{" ENDPOINTS "}]", &many, &set, NULL), ERR_INVALID);
}

/* Names of any length are refused or taken, and never cut off. */
static void limits_are_named(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, 64 * MIB);
	static const struct {
		const char *before, *each, *behind;
		uint32_t most;
	} lists[] = {
		{"[{\"endpoints\": [", "\"n%u:1\"", "]}]", LIMIT_RING_ENDPOINTS},
		{"[", "{\"endpoints\": [\"n%u:1\"], \"algorithm\": \"hashmod\"}", "]", LIMIT_RINGS},
		{"[{\"endpoints\": [\"a:1\"], \"algorithm\": \"hashmod\", \"tenants\": [", "\"t%u\"", "]}]", LIMIT_RING_TENANTS},
		{"[{\"endpoints\": [\"a:1\"], \"algorithm\": \"hashmod\", \"tenant_matcher_type\": \"glob\", \"tenants\": [", "\"t%u*\"", "]}]",
			LIMIT_RING_PATTERNS},
		{"[{\"endpoints\": [\"a:1\"], \"algorithm\": \"hashmod\", \"external_labels\": {", "\"l%u\": \"v\"", "}}]", LIMIT_RING_JSON_MEMBERS},
	};
	for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
		for (uint32_t more = 0; more < 2; more++) {
			struct ring_set *set = NULL;
			struct err err = {0};
			buf_clear(&b);
			buf_printf(&b, "%s", lists[i].before);
			for (uint32_t k = 0; k < lists[i].most + more; k++) {
				char each[80];
				const char *u = strchr(lists[i].each, '%');
				snprintf(each, sizeof each, "%.*s%u%s", (int)(u - lists[i].each), lists[i].each, k, u + 2);
				buf_printf(&b, "%s%s", k ? "," : "", each);
			}
			buf_printf(&b, "%s", lists[i].behind);
			errc rc = ring_set_parse("r.json", span_of(b.p, b.n), &one, &set, &err);
			if (rc != (more ? ERR_LIMIT : OK))
				fail_msg("%s %u: %s", lists[i].before, lists[i].most + more, err.msg);
			ring_set_unref(set);
		}
	static const struct {
		const char *before, *behind;
		uint32_t most;
	} names[] = {
		{"[{\"endpoints\": [\"", ":1\"]}]", LIMIT_RING_ADDRESS_BYTES - 2},
		{"[{\"endpoints\": [{\"address\": \"", ":1\"}]}]", LIMIT_RING_ADDRESS_BYTES - 2},
		{"[{\"endpoints\": [{\"address\": \"a:1\", \"az\": \"", "\"}]}]", LIMIT_RING_NAME_BYTES},
		{"[{\"endpoints\": [\"a:1\"], \"hashring\": \"", "\"}]", LIMIT_RING_NAME_BYTES},
		{"[{\"endpoints\": [\"a:1\"], \"tenants\": [\"", "\"]}]", LIMIT_RING_NAME_BYTES},
	};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		for (uint32_t more = 0; more < 2; more++) {
			struct ring_set *set = NULL;
			buf_clear(&b);
			buf_printf(&b, "%s", names[i].before);
			for (uint32_t k = 0; k < names[i].most + more; k++)
				buf_u8(&b, 'n');
			buf_printf(&b, "%s", names[i].behind);
			assert_int_equal(ring_set_parse("r.json", span_of(b.p, b.n), &one, &set, NULL), more ? ERR_LIMIT : OK);
			ring_set_unref(set);
		}
	buf_free(&b);
}

/* The documentation of Thanos, and the talk's file. */
static const char *const taken[] = {
	"[{\"hashring\": \"default\", \"tenants\": [\"ci\", \"telemetry\"], \"endpoints\": [\"127.0.0.1:1337\", \"127.0.0.1:1338\", "
	"\"127.0.0.1:1339\"]}]",
	"[\n    {\n        \"endpoints\": [\n            \"127.0.0.1:10907\",\n            \"127.0.0.1:11907\",\n            \"127.0.0.1:12907\"\n   "
	"     ]\n    }\n]\n",
	"[{\"tenants\": [\"foobar\"], \"endpoints\": [\"127.0.0.1:1234\", \"127.0.0.1:12345\", \"127.0.0.1:1235\"]}]",
	"[{\"tenants\": [\"foo*\"], \"tenant_matcher_type\": \"glob\", \"endpoints\": [\"127.0.0.1:1234\", \"127.0.0.1:12345\", "
	"\"127.0.0.1:1235\"]}]",
	"[{\"endpoints\": [{\"address\": \"127.0.0.1:10907\", \"az\": \"A\"}, {\"address\": \"127.0.0.1:11907\", \"az\": \"B\"}, {\"address\": "
	"\"127.0.0.1:12907\", \"az\": \"C\"}, {\"address\": \"127.0.0.1:13907\", \"az\": \"A\"}, {\"address\": \"127.0.0.1:14907\", \"az\": \"B\"}, "
	"{\"address\": \"127.0.0.1:15907\", \"az\": \"C\"}]}]",
	"[{\"endpoints\": [{\"address\": \"node-1:10901\", \"capnproto_address\": \"node-1:19391\"}, {\"address\": \"node-2:10901\", "
	"\"capnproto_address\": \"node-2:19391\"}, {\"address\": \"node-3:10901\", \"capnproto_address\": \"node-3:19391\"}]}]",
	"[{\"endpoints\": [{\"address\": \"node-1:10901\", \"capnproto_address\": \"node-1:19391\", \"az\": \"foo\"}, {\"address\": "
	"\"node-2:10901\", "
	"\"capnproto_address\": \"node-2:19391\", \"az\": \"bar\"}, {\"address\": \"node-3:10901\", \"capnproto_address\": \"node-3:19391\", \"az\": "
	"\"qux\"}, {\"address\": \"node-4:10901\", \"capnproto_address\": \"node-4:19391\", \"az\": \"foo\"}, {\"address\": \"node-5:10901\", "
	"\"capnproto_address\": \"node-5:19391\", \"az\": \"bar\"}, {\"address\": \"node-6:10901\", \"capnproto_address\": \"node-6:19391\", \"az\": "
	"\"qux\"}], \"algorithm\": \"ketama\", \"shuffle_sharding_config\": {\"shard_size\": 2, \"cache_size\": 100, \"overrides\": "
	"[{\"shard_size\": 3, "
	"\"tenants\": [\"prefix-tenant-*\"], \"tenant_matcher_type\": \"glob\"}]}}]",
	"[{\"hashring\": \"all keys\", \"tenants\": [\"a\", \"b\"], \"tenant_matcher_type\": \"exact\", \"endpoints\": [\"[::1]:19291\", "
	"\"a.b.c:1\", "
	"{\"address\": \"10.0.0.1:65535\", \"az\": \"\", \"capnproto_address\": \"\"}], \"algorithm\": \"ketama\", \"external_labels\": {\"z\": "
	"\"\\u00e4"
	"\\ud83d\\ude00\\n\", \"a\": \"1\"}, \"shuffle_sharding_config\": {\"shard_size\": 3, \"cache_size\": 0, \"zone_awareness_disabled\": true, "
	"\"overrides\": null}}, {\"hashring\": \"default\", \"tenants\": [], \"endpoints\": [\"a.b.c:1\", \"b.b.c:1\", \"c.b.c:1\"], \"algorithm\": "
	"\"\", "
	"\"external_labels\": {}, \"shuffle_sharding_config\": {}}]",
};
enum { N_TAKEN = sizeof taken / sizeof *taken };

static void what_thanos_documents_is_taken(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TAKEN; i++) {
		struct ring_set *set;
		struct err err = {0};
		if (parse(taken[i], &three, &set, &err) != OK)
			fail_msg("%s", err.msg);
		ring_set_unref(set);
	}
}

/* Whatever part of a file a reader meets while it is written from the beginning, it is no file. */
static void no_beginning_is_a_file(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TAKEN; i++)
		for (size_t n = 0; n < strlen(taken[i]) - 1; n++) {
			struct ring_set *set = NULL;
			struct err err = {0};
			char *part = malloc(n ? n : 1); /* exactly, for sanitizers */
			memcpy(part, taken[i], n);
			assert_int_equal(ring_set_parse("r.json", span_of(part, n), &three, &set, &err), ERR_INVALID);
			assert_null(set);
			free(part);
		}
}

static void memory_may_fail(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_TAKEN; i++)
		for (uint64_t n = 1;; n++) {
			struct ring_set *set;
			struct ring *ring = NULL;
			struct err err = {0};
			fail_alloc_at(n, false);
			errc rc = parse(taken[i], &three, &set, &err);
			if (rc == OK)
				rc = ring_for_tenant(set, SPAN("a"), &ring, &err);
			uint64_t hits = fail_alloc_off();
			assert_int_equal(rc, hits ? ERR_NOMEM : OK);
			ring_unref(ring);
			ring_set_unref(set);
			if (hits == 0)
				break;
		}
}

static void oddities_are_remarked(void **state)
{
	(void)state;
	static const char *const odd[][2] = {
		{"[{" ENDPOINTS ", \"tenants\": [\"a*\"]}]",
			"\"a*\" is no name that a tenant can have; a pattern needs \"tenant_matcher_type\": \"glob\"\n"},
		{"[{" ENDPOINTS "},\n{" ENDPOINTS "}]", "r.json:2: ring 2: is never used: the ring on line 1 has no tenants, so it takes all\n"},
		{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"shard_size\": 2, \"overrides\": [{\"shard_size\": 1, \"tenants\": [\"a\"]}]}}]",
			"an override without tenant_matcher_type is never applied"},
		{"[{" ENDPOINTS ", \"shuffle_sharding_config\": {\"cache_size\": 2}}]", "shards nothing\n"},
		{"[{" ENDPOINTS ", \"tenants\": [\"a\\nb\"]}]", "\"a b\" is no name"},
	};
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
		struct ring_set *set;
		struct err err = {0};
		if (parse(odd[i][0], &one, &set, &err) != OK)
			fail_msg("%s", err.msg);
		struct span said = ring_set_remarks(set);
		if (!said.n || !memmem(said.p, said.n, odd[i][1], strlen(odd[i][1])))
			fail_msg("%s\nsaid: %.*s", odd[i][0], SPAN_ARG(said));
		ring_set_unref(set);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrong_files_are_refused_for_their_reason),
		cmocka_unit_test(the_factor_is_judged),
		cmocka_unit_test(limits_are_named),
		cmocka_unit_test(what_thanos_documents_is_taken),
		cmocka_unit_test(no_beginning_is_a_file),
		cmocka_unit_test(memory_may_fail),
		cmocka_unit_test(oddities_are_remarked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
