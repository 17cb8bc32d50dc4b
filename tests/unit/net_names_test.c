/* What name services say: SRV records out of answers as they travel, and out of broken ones without harm; the addresses of a name that every machine knows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "net/net_int.h"

/* ---- an answer, put together ---- */

static uint8_t message[4096];
static size_t n;

static void u16(unsigned x)
{
	message[n++] = (uint8_t)(x >> 8);
	message[n++] = (uint8_t)x;
}

static void name(const char *s)
{
	while (*s) {
		size_t len = strcspn(s, ".");
		message[n++] = (uint8_t)len;
		memcpy(message + n, s, len);
		n += len;
		s += len + (s[len] == '.');
	}
	message[n++] = 0;
}

static void begin(unsigned answers)
{
	n = 0;
	u16(0x1234);
	u16(0x8180);
	u16(1);
	u16(answers);
	u16(0);
	u16(0);
	name("_http._tcp.varve");
	u16(33);
	u16(1);
}

static void record(unsigned type, unsigned port, const char *target, bool compressed)
{
	u16(0xc00c); /* the question's name */
	u16(type);
	u16(1);
	u16(0);
	u16(30);
	size_t length_at = n;
	u16(0);
	if (type == 33) {
		u16(10);
		u16(5);
		u16(port);
	}
	if (compressed) { /* "x" in front of what the question ends with: ".varve" stands at 12 + 6 + 5 */
		message[n++] = 1;
		message[n++] = (uint8_t)*target;
		u16(0xc000 + 12 + 6 + 5);
	} else {
		name(target);
	}
	message[length_at] = (uint8_t)((n - length_at - 2) >> 8);
	message[length_at + 1] = (uint8_t)(n - length_at - 2);
}

static struct net_found found(struct arena *a, size_t len, errc *rc)
{
	struct net_found f;
	*rc = net_srv_read("_http._tcp.varve", message, len, a, &f, NULL);
	return f;
}

static void srv_records_are_read(void **st)
{
	(void)st;
	struct arena a;
	errc rc;
	arena_init(&a, MIB);
	begin(5);
	record(5, 0, "alias.varve", false);
	record(33, 19291, "varve-0.varve.monitoring.svc.cluster.local", false);
	record(33, 65535, "b", true);
	record(33, 1, "", false); /* no such service here */
	record(33, 19291, "10-0-0-7.varve.default.svc", false);
	struct net_found f = found(&a, n, &rc);
	assert_int_equal(rc, OK);
	assert_int_equal(f.n, 3);
	assert_true(span_is(f.v[0], "varve-0.varve.monitoring.svc.cluster.local:19291"));
	assert_true(span_is(f.v[1], "b.varve:65535"));
	assert_true(span_is(f.v[2], "10-0-0-7.varve.default.svc:19291"));
	/* cut off anywhere it is refused */
	size_t whole = n;
	for (size_t len = 0; len < whole; len++) {
		uint8_t *copy = malloc(len + 1);
		memcpy(copy, message, len);
		assert_int_equal(net_srv_read("x", copy, len, &a, &f, NULL), ERR_NET);
		free(copy);
	}
	/* each bit another way: refused or read, and never more than there is room for */
	for (size_t bit = 0; bit < 8 * whole; bit++) {
		message[bit / 8] ^= (uint8_t)(1 << bit % 8);
		f = found(&a, whole, &rc);
		assert_true(rc == ERR_NET || (rc == OK && f.n <= 5) || rc == ERR_NOMEM);
		message[bit / 8] ^= (uint8_t)(1 << bit % 8);
		arena_reset(&a);
	}
	begin(0);
	f = found(&a, n, &rc);
	assert_true(rc == OK && f.n == 0);
	arena_free(&a);
}

static void localhost_is_known(void **st)
{
	(void)st;
	struct arena a;
	struct net_found f;
	struct err err = {0};
	arena_init(&a, MIB);
	assert_int_equal(net_find_addresses("localhost", 19291, &a, &f, &err), OK);
	bool four = false;
	for (size_t i = 0; i < f.n; i++)
		four |= span_is(f.v[i], "127.0.0.1:19291");
	assert_true(four);
	assert_int_equal(net_find_addresses("::1", 7, &a, &f, &err), OK);
	assert_true(f.n == 1 && span_is(f.v[0], "[::1]:7"));
	assert_int_equal(net_find_addresses("no.such.name.invalid", 1, &a, &f, &err), ERR_NET);
	arena_free(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(srv_records_are_read), cmocka_unit_test(localhost_is_known)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
