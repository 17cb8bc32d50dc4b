/* A ring found by --peers, over real connections: the first one when enough are ready, growth, leaving, a crash that changes nothing, and a restart that begins with the ring that was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/finder.h"
#include "tests/support/node_lab.h"
#include "tests/support/tmp.h"

enum { WAIT_MS = 15000, NODES = 4 };

static struct fake nodes[NODES];
static char file[200];

struct node {
	struct trust *trust;
	struct link *link;
	struct roster *roster;
	struct ring_file *rings;
	struct finder *finder;
};

static void changed(void *arg, struct ring_set *was, struct ring_set *now)
{
	(void)was;
	roster_rings(((struct node *)arg)->roster, now);
}

static void node_open(struct node *n, const char *names, uint32_t factor)
{
	const char *lists[] = {names};
	assert_int_equal(trust_open(&(struct trust_config){0}, &n->trust, NULL), OK);
	assert_int_equal(link_open(&(struct link_config){.trust = n->trust}, &n->link, NULL), OK);
	const struct roster_config roster = {.link = n->link, .remember_ms = 3600000, .ask_ms = 30};
	assert_int_equal(roster_open(&roster, &n->roster, NULL), OK);
	const struct ring_file_config rings = {.options = {.replication_factor = factor}, .on_change = changed, .arg = n};
	assert_int_equal(ring_file_open(&rings, &n->rings, NULL), OK);
	const struct finder_config cfg = {.names = lists,
		.n_names = 1,
		.factor = factor,
		.gone_after_ms = 3600000,
		.file = file,
		.roster = n->roster,
		.rings = n->rings,
		.look_ms = 50,
		.think_ms = 50};
	assert_int_equal(finder_open(&cfg, &n->finder, NULL), OK);
}

static void node_close(struct node *n)
{
	finder_close(n->finder);
	ring_file_close(n->rings);
	roster_close(n->roster);
	link_close(n->link);
	trust_close(n->trust);
}

/* The ring in force as a set of bits; 0: none. */
static unsigned ring(struct node *n)
{
	unsigned bits = 0;
	uint32_t at;
	struct ring_set *s = ring_file_current(n->rings);
	for (unsigned i = 0; s && i < NODES; i++)
		bits |= (unsigned)ring_set_find(s, span_cstr(nodes[i].address), &at) << i;
	ring_set_unref(s);
	return bits;
}

static bool becomes(struct node *n, unsigned want)
{
	int64_t until_ms = io_mono_ms() + WAIT_MS;
	while (ring(n) != want && io_mono_ms() < until_ms)
		io_sleep_ms(5);
	return ring(n) == want;
}

static bool stays(struct node *n, unsigned want)
{
	for (int i = 0; i < 100; i++, io_sleep_ms(5))
		if (ring(n) != want)
			return false;
	return true;
}

static void a_ring_is_found(void **st)
{
	(void)st;
	char list[400] = "";
	struct node n = {0};
	snprintf(file, sizeof file, "%s/peers.json", tmp_dir());
	for (int i = 0; i < NODES; i++) {
		fake_start(&nodes[i]);
		fake_says(&nodes[i], i < 2 ? "active" : "joining", "", "");
		snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? "," : "", nodes[i].address);
	}
	node_open(&n, list, 3);
	assert_true(stays(&n, 0));
	struct buf b;
	buf_init(&b, MIB);
	finder_json(n.finder, &b);
	assert_non_null(memmem(b.p, b.n, "3 members that are ready", 24));
	buf_free(&b);
	fake_says(&nodes[2], "active", "", "");
	assert_true(becomes(&n, 7));
	fake_says(&nodes[3], "active", "", "");
	assert_true(becomes(&n, 15));
	fake_stop(&nodes[1]); /* a crash */
	assert_true(stays(&n, 15));
	fake_says(&nodes[0], "draining", "", "");
	assert_true(becomes(&n, 14));
	/* this node starts again while one is down: it begins with the ring that the others go by */
	node_close(&n);
	n = (struct node){0};
	node_open(&n, list, 3);
	assert_int_equal(ring(&n), 14);
	assert_true(stays(&n, 14));
	fake_start(&nodes[1]);
	fake_says(&nodes[1], "joining", "", "");
	assert_true(stays(&n, 14));
	fake_says(&nodes[0], "active", "", "");
	assert_true(becomes(&n, 15));
	node_close(&n);
	for (int i = 0; i < NODES; i++)
		fake_stop(&nodes[i]);
}

static void what_can_not_be_looked_up_changes_nothing(void **st)
{
	(void)st;
	char list[400];
	struct node n = {0};
	snprintf(file, sizeof file, "%s/peers.json", tmp_dir());
	fake_start(&nodes[0]);
	fake_says(&nodes[0], "active", "", "");
	snprintf(list, sizeof list, "%s,dns+no.such.name.invalid:1", nodes[0].address);
	node_open(&n, list, 1);
	assert_true(becomes(&n, 1));
	assert_true(stays(&n, 1));
	node_close(&n);
	fake_stop(&nodes[0]);
	struct finder *f;
	const char *bad[] = {"a"};
	assert_int_equal(finder_open(&(struct finder_config){.names = bad, .n_names = 1}, &f, NULL), ERR_INVALID);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_ring_is_found), cmocka_unit_test(what_can_not_be_looked_up_changes_nothing)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
