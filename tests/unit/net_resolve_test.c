/* Names of the sender's hosts: peers that move, a name service that hangs, and more hosts than are remembered. */
#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "tests/support/raw.h"
#include "tests/support/sender_lab.h"

/* A name service of our own, for names that end in .test: moving.test has an address, the others have none. */

static _Atomic(const char *) moving_address = "127.0.0.1";
static atomic_bool names_hang;
static atomic_int names_asked, names_at_once;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
	static atomic_int inside;
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (!node || !strstr(node, ".test"))
		return real(node, service, hints, out);
	names_asked++;
	int n = ++inside;
	for (int most = names_at_once; n > most && !atomic_compare_exchange_weak(&names_at_once, &most, n);)
		;
	do {
		usleep(200);
	} while (names_hang);
	inside--;
	return strcmp(node, "moving.test") == 0 ? real(moving_address, service, hints, out) : EAI_NONAME;
}

/* A peer that comes back under another address is found; a name service that hangs costs nobody a peer whose address is known. */
static void names_are_asked_anew(void **state)
{
	(void)state;
	struct peer a = {.how = SAYS}, b = {.how = SAYS, .ip = "127.0.0.2"};
	char url[96];
	moving_address = "127.0.0.1";
	peer_start(&a);
	peer_start_at(&b, a.port);
	struct http_sender *s = sender_of(4);
	snprintf(url, sizeof url, "http://moving.test:%u/", a.port);
	names_asked = 0;
	for (int i = 0; i < 50; i++)
		assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, OK);
	assert_int_equal(names_asked, 1);
	assert_int_equal(a.accepted, 1);
	assert_int_equal(b.accepted, 0);
	/* however many calls fail, the name service is not asked for each of them */
	peer_stop(&a);
	int64_t begin = raw_now_ms();
	for (int i = 0; i < 200; i++)
		assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, ERR_NET);
	assert_true(names_asked <= 2 + (raw_now_ms() - begin) / 1000);
	/* it moves */
	names_asked = 0;
	moving_address = "127.0.0.2";
	begin = raw_now_ms();
	while (ask(s, "POST", url, SPAN("x"), 500, 10).rc != OK) {
		if (raw_now_ms() - begin > 10000)
			fail_msg("not found after 10 s");
		usleep(10000);
	}
	assert_true(names_asked <= 2 + (raw_now_ms() - begin) / 1000);
	assert_int_equal(b.accepted, 1);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, OK);
	/* it restarts while the name service hangs */
	names_hang = true;
	uint16_t port = b.port;
	peer_stop(&b);
	assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, ERR_NET);
	usleep(1100000);
	assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, ERR_NET);
	b = (struct peer){.how = SAYS, .ip = "127.0.0.2"};
	peer_start_at(&b, port);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ask(s, "POST", url, SPAN("x"), WAIT_MS, 10).rc, OK);
	/* a name never heard of waits, and ends in time, with any number of calls */
	static struct outcome o[100];
	int asked = names_asked;
	begin = io_mono_ns();
	for (int i = 0; i < 100; i++)
		send_to(s, &o[i], "POST", "http://hanging.test/", SPAN("x"), 200, 10);
	for (int i = 0; i < 100; i++) {
		await(&o[i]);
		assert_int_equal(o[i].rc, ERR_TIMEOUT);
		assert_non_null(strstr(o[i].msg, "no address by its deadline"));
	}
	assert_true(io_mono_ns() - begin < 1500 * (int64_t)MS);
	assert_true(names_asked <= asked + 2);
	names_hang = false;
	http_sender_close(s);
	peer_stop(&b);
}

/* More hosts than a sender remembers. */
static void hosts_come_and_go(void **state)
{
	(void)state;
	struct peer p = {.how = SAYS};
	static struct outcome o[LIMIT_HTTP_HOSTS * 3];
	char url[96];
	peer_start(&p);
	struct http_sender *s = sender_of(2);
	for (int i = 0; i < LIMIT_HTTP_HOSTS * 3; i++) {
		snprintf(url, sizeof url, "http://h%d.test/", i);
		send_to(s, &o[i], "GET", url, (struct span){0}, 0, 10);
		if (i % 100 == 0)
			assert_int_equal(ask(s, "GET", p.url, (struct span){0}, 0, 10).rc, OK);
	}
	for (int i = 0; i < LIMIT_HTTP_HOSTS * 3; i++) {
		await(&o[i]);
		assert_int_equal(o[i].rc, ERR_NET);
	}
	assert_int_equal(p.accepted, 1);
	assert_in_range(names_at_once, 1, LIMIT_HTTP_RESOLVERS);
	http_sender_close(s);
	peer_stop(&p);
}

static void closing_does_not_wait_for_names(void **state)
{
	(void)state;
	static struct outcome o[50];
	char url[96];
	for (int round = 0; round < 3; round++) {
		struct http_sender *s = sender_of(4);
		names_hang = true;
		for (int i = 0; i < 50; i++) {
			snprintf(url, sizeof url, "http://h%d.test/", i % 7);
			send_to(s, &o[i], "GET", url, (struct span){0}, 0, 10);
		}
		usleep((useconds_t)round * 20000);
		int64_t begin = raw_now_ms();
		http_sender_close(s);
		assert_true(raw_now_ms() - begin < 1000);
		for (int i = 0; i < 50; i++) {
			assert_int_equal(o[i].count, 1);
			assert_int_equal(o[i].rc, ERR_CANCELED);
		}
		names_hang = false;
	}
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_are_asked_anew),
		cmocka_unit_test(hosts_come_and_go),
		cmocka_unit_test(closing_does_not_wait_for_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
