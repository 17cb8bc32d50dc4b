/* How one varve knows that it is another: a signature is good for its own bytes and its own minute only, the secret changes without a request refused, and who shows nothing is taken from private addresses alone. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "cluster/cluster_trust_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/tmp.h"

#define GOLDEN_GET "v1 1790000000000 0011223344556677 8d3d75338e660dc05554262ba2094ccd06cd1f1f471f7932f8a423274164afdd"
#define GOLDEN_POST "v1 1790000000000 0011223344556677 103c94da5a17f58997d83a7d97d348c65a09d6d5c078b825ce46dd3ad5381596"
enum { MINUTE = 60000 };
static const char first_secret[] = "a secret of sixteen bytes or more\n", second_secret[] = "another-one-for-the-week-that-comes";

/* ---- clocks ---- */

static struct io_ops ops;
static int64_t wall_ms = 1790000000000, mono_ms = 5000000;

static int64_t wall(void)
{
	return wall_ms;
}
static int64_t mono(void)
{
	return mono_ms * 1000000;
}
static void pass(int64_t ms)
{
	wall_ms += ms;
	mono_ms += ms;
}

/* ---- fixtures ---- */

static const char *file_with(const char *text)
{
	static char paths[600][160];
	static size_t n;
	char *path = paths[n++];
	assert_true(n <= 600);
	snprintf(path, sizeof paths[0], "%s/secret", tmp_dir());
	assert_int_equal(io_write_file(path, span_cstr(text), NULL), OK);
	return path;
}

static void write_to(const char *path, const char *text)
{
	assert_int_equal(io_write_file(path, span_cstr(text), NULL), OK);
}

static struct trust *trust_of(const char *path)
{
	struct trust *t;
	const struct trust_config cfg = {.secret_file = path};
	assert_int_equal(trust_open(&cfg, &t, NULL), OK);
	return t;
}

static struct trust_words words(void)
{
	return (struct trust_words){
		SPAN("POST"), SPAN("/-/peer/write?x=1"), SPAN("team-a"), SPAN("application/x-varve-peer"), SPAN("the body\0of it")};
}

static errc check(struct trust *t, struct trust_words w, const char *header, const char **id)
{
	struct err err = {0};
	const struct trust_claim c = {.words = w, .header = header ? span_cstr(header) : (struct span){0}, .address = SPAN("192.0.2.7:5000")};
	errc rc = trust_check(t, &c, &err);
	if (id)
		*id = err.id;
	return rc;
}

static void refused(struct trust *t, struct trust_words w, const char *header, enum errid id)
{
	const char *said = NULL;
	assert_int_equal(check(t, w, header, &said), ERR_DENIED);
	assert_string_equal(said, errid_text(id));
}

/* ---- signatures ---- */

/* Made by another implementation (Python's hmac) from what docs/format/peer.md says. */
static void a_signature_is_what_the_page_says(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with("0123456789abcdef\n"));
	int64_t was_ms = wall_ms;
	wall_ms = 1790000000000;
	const struct trust_words w = {SPAN("GET"), SPAN("/-/ring?hashrings=0"), SPAN(""), SPAN(""), SPAN("")};
	assert_int_equal(check(t, w, GOLDEN_GET, NULL), OK);
	assert_int_equal(check(t, words(), GOLDEN_POST, NULL), OK);
	wall_ms = was_ms;
	trust_close(t);
}

static void every_bit_of_the_words_counts(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with(first_secret));
	char header[TRUST_HEADER_BYTES];
	struct trust_words w = words();
	trust_sign(t, &w, header);
	assert_int_equal(check(t, w, header, NULL), OK);
	struct span *fields[] = {&w.method, &w.target, &w.tenant, &w.content_type, &w.body};
	for (size_t f = 0; f < 5; f++) {
		struct span was = *fields[f];
		char *copy = malloc(was.n + 1);
		for (size_t bit = 0; bit < 8 * was.n; bit++) {
			memcpy(copy, was.p, was.n);
			copy[bit / 8] = (char)(copy[bit / 8] ^ 1 << bit % 8);
			*fields[f] = span_of(copy, was.n);
			refused(t, w, header, ERRID_PEER_FORGED);
		}
		/* a byte less, and one of the next field's */
		*fields[f] = span_of(was.p, was.n - 1);
		refused(t, w, header, ERRID_PEER_FORGED);
		*fields[f] = (struct span){0};
		refused(t, w, header, ERRID_PEER_FORGED);
		*fields[f] = was;
		free(copy);
	}
	assert_int_equal(check(t, w, header, NULL), OK);
	trust_close(t);
}

static void bytes_do_not_wander_between_fields(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with(first_secret));
	char header[TRUST_HEADER_BYTES];
	const struct trust_words w = {SPAN("GET"), SPAN("/ab"), SPAN("c"), SPAN(""), SPAN("")};
	trust_sign(t, &w, header);
	refused(t, (struct trust_words){SPAN("GET"), SPAN("/a"), SPAN("bc"), SPAN(""), SPAN("")}, header, ERRID_PEER_FORGED);
	refused(t, (struct trust_words){SPAN("GET"), SPAN("/ab"), SPAN(""), SPAN("c"), SPAN("")}, header, ERRID_PEER_FORGED);
	refused(t, (struct trust_words){SPAN("GET"), SPAN("/abc"), SPAN(""), SPAN(""), SPAN("")}, header, ERRID_PEER_FORGED);
	trust_close(t);
}

static void every_bit_of_the_header_counts(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with(first_secret));
	char header[TRUST_HEADER_BYTES], bad[TRUST_HEADER_BYTES + 1];
	const struct trust_words w = words();
	trust_sign(t, &w, header);
	size_t n = strlen(header);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		memcpy(bad, header, n + 1);
		bad[bit / 8] = (char)(bad[bit / 8] ^ 1 << bit % 8);
		refused(t, w, bad, ERRID_PEER_FORGED);
	}
	for (size_t len = 0; len < n; len++) {
		memcpy(bad, header, len);
		bad[len] = 0;
		refused(t, w, bad, ERRID_PEER_FORGED);
	}
	snprintf(bad, sizeof bad, "%s ", header);
	refused(t, w, bad, ERRID_PEER_FORGED);
	snprintf(bad, sizeof bad, " %s", header);
	refused(t, w, bad, ERRID_PEER_FORGED);
	trust_close(t);
}

static void a_request_is_good_for_a_minute(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with(first_secret));
	char header[TRUST_HEADER_BYTES];
	const struct trust_words w = words();
	trust_sign(t, &w, header);
	int64_t signed_ms = wall_ms;
	for (int64_t off = -MINUTE - 3; off <= MINUTE + 3; off = off == -MINUTE + 3 ? 0 : off == 0 ? MINUTE - 3 : off + 1) {
		wall_ms = signed_ms + off;
		if (off < -MINUTE || off > MINUTE)
			refused(t, w, header, ERRID_PEER_FORGED);
		else
			assert_int_equal(check(t, w, header, NULL), OK);
	}
	wall_ms = signed_ms;
	trust_close(t);
}

/* ---- the secret changes ---- */

/* Two nodes whose files change up to five minutes apart, in either order, hear each other all the time; who has only the old secret is out ten minutes later. */
static void a_secret_changes_on_one_node_after_the_other(void **st)
{
	(void)st;
	const struct trust_words w = words();
	for (int64_t apart_s = 0; apart_s <= 290; apart_s += 29) {
		const char *paths[] = {file_with(first_secret), file_with(first_secret), file_with(first_secret)};
		struct trust *node[] = {trust_of(paths[0]), trust_of(paths[1]), trust_of(paths[2])};
		char header[TRUST_HEADER_BYTES];
		for (int64_t s = 0; s < 20 * 60; s++) {
			if (s == 10)
				write_to(paths[0], second_secret);
			if (s == 10 + apart_s)
				write_to(paths[1], second_secret);
			for (int i = 0; i < 3; i++)
				trust_tick(node[i]);
			for (int from = 0; from < 2; from++) {
				trust_sign(node[from], &w, header);
				assert_int_equal(check(node[!from], w, header, NULL), OK);
			}
			trust_sign(node[2], &w, header);
			bool good = check(node[0], w, header, NULL) == OK;
			if (s < 10 + 600)
				assert_true(good);
			else if (s > 10 + 603)
				assert_false(good);
			pass(1000);
		}
		for (int i = 0; i < 3; i++)
			trust_close(node[i]);
	}
}

static void a_secret_that_is_half_written_is_not_taken(void **st)
{
	(void)st;
	const char *path = file_with(first_secret);
	struct trust *t = trust_of(path), *other = trust_of(file_with(second_secret));
	const struct trust_words w = words();
	char header[TRUST_HEADER_BYTES], part[sizeof second_secret];
	trust_sign(t, &w, header);
	for (size_t n = 0; n < sizeof second_secret - 1; n++) { /* each state is seen once */
		memcpy(part, second_secret, n);
		part[n] = 0;
		write_to(path, part);
		trust_tick(t);
		trust_sign(t, &w, header);
		refused(other, w, header, ERRID_PEER_FORGED);
	}
	write_to(path, "short");
	for (int i = 0; i < 3; i++)
		trust_tick(t);
	assert_int_equal(io_unlink(path, NULL), OK);
	for (int i = 0; i < 3; i++)
		trust_tick(t);
	struct trust *same = trust_of(file_with(first_secret));
	trust_sign(t, &w, header);
	assert_int_equal(check(same, w, header, NULL), OK);
	write_to(path, second_secret);
	for (int i = 0; i < 2; i++)
		trust_tick(t);
	trust_sign(other, &w, header);
	assert_int_equal(check(t, w, header, NULL), OK);
	trust_close(same);
	trust_close(other);
	trust_close(t);
}

static void bad_secrets_are_refused_at_the_start(void **st)
{
	(void)st;
	struct trust *t;
	struct err err = {0};
	char *huge = malloc(5000);
	memset(huge, 'x', 4999);
	huge[4999] = 0;
	const char *const texts[] = {"", "\n\n\n", "fifteen bytes..", "fifteen bytes..\n  \t\n                  ", huge};
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		assert_int_equal(trust_open(&(struct trust_config){.secret_file = file_with(texts[i])}, &t, &err), ERR_INVALID);
	assert_int_equal(trust_open(&(struct trust_config){.secret_file = "/nowhere/secret"}, &t, &err), ERR_INVALID);
	/* longer than SHA-256's block, and white space at the end is not part of it */
	char text[220], header[TRUST_HEADER_BYTES];
	const struct trust_words w = words();
	for (size_t n = 16; n < 200; n++) {
		memset(text, 'k', n);
		strcpy(text + n, n % 2 ? "\r\n" : " ");
		struct trust *a = trust_of(file_with(text));
		text[n] = 0;
		struct trust *b = trust_of(file_with(text));
		trust_sign(a, &w, header);
		assert_int_equal(check(b, w, header, NULL), OK);
		trust_close(a);
		trust_close(b);
	}
	free(huge);
}

/* ---- who is taken for a peer ---- */

static void private_addresses(void **st)
{
	(void)st;
	static const struct {
		const char *address;
		bool near;
	} cases[] = {
		{"127.0.0.1:80", true},
		{"127.255.255.255:80", true},
		{"126.255.255.255:80", false},
		{"128.0.0.0:80", false},
		{"10.0.0.0:1", true},
		{"10.255.255.255:1", true},
		{"9.255.255.255:1", false},
		{"11.0.0.0:1", false},
		{"172.16.0.0:1", true},
		{"172.31.255.255:1", true},
		{"172.15.255.255:1", false},
		{"172.32.0.0:1", false},
		{"192.168.0.0:1", true},
		{"192.168.255.255:1", true},
		{"192.167.255.255:1", false},
		{"192.169.0.0:1", false},
		{"100.64.0.0:1", true},
		{"100.127.255.255:1", true},
		{"100.63.255.255:1", false},
		{"100.128.0.0:1", false},
		{"169.254.1.1:1", false},
		{"0.0.0.0:1", false},
		{"8.8.8.8:1", false},
		{"[::1]:80", true},
		{"[::2]:80", false},
		{"[::]:80", false},
		{"[fc00::1]:1", true},
		{"[fdff::1]:1", true},
		{"[fbff::1]:1", false},
		{"[fe00::1]:1", false},
		{"[fe80::1]:1", false},
		{"[2001:db8::1]:1", false},
		{"[::ffff:10.0.0.1]:1", true},
		{"[::ffff:8.8.8.8]:1", false},
		{"::1", true},
		{"fd00::7", true},
		{"10.0.0.1", true},
		{"", false},
		{"?", false},
		{"[", false},
		{"[]", false},
		{"localhost:80", false},
		{"10.0.0.1.evil:1", false},
		{"010.0.0.1:1", false},
		{"127.0.0.1111111111111111111111111111111111111111111111111:1", false},
	};
	struct trust *t;
	assert_int_equal(trust_open(&(struct trust_config){0}, &t, NULL), OK);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct err err = {0};
		const struct trust_claim c = {.words = words(), .address = span_cstr(cases[i].address)};
		if (trust_address_private(span_cstr(cases[i].address)) != cases[i].near)
			fail_msg("%s", cases[i].address);
		assert_int_equal(trust_check(t, &c, &err), cases[i].near ? OK : ERR_DENIED);
		if (!cases[i].near)
			assert_string_equal(err.id, errid_text(ERRID_PEER_UNKNOWN));
	}
	char header[TRUST_HEADER_BYTES];
	const struct trust_words w = words();
	trust_sign(t, &w, header);
	assert_string_equal(header, "");
	trust_close(t);
}

/* Each of: a certificate or none, a right signature, a wrong one or none, near or far, against each way to be configured. */
static void what_is_asked_for_is_what_was_configured(void **st)
{
	(void)st;
	const char *path = file_with(first_secret);
	char right[TRUST_HEADER_BYTES], wrong[TRUST_HEADER_BYTES];
	const struct trust_words w = words();
	struct trust *signer = trust_of(path), *liar = trust_of(file_with(second_secret));
	trust_sign(signer, &w, right);
	trust_sign(liar, &w, wrong);
	for (int secret = 0; secret < 2; secret++)
		for (int certificates = 0; certificates < 2; certificates++) {
			struct trust *t;
			const struct trust_config cfg = {.secret_file = secret ? path : NULL, .certificates = certificates};
			assert_int_equal(trust_open(&cfg, &t, NULL), OK);
			for (int certificate = 0; certificate < 2; certificate++)
				for (int signature = 0; signature < 3; signature++)
					for (int near = 0; near < 2; near++) {
						struct err err = {0};
						const struct trust_claim c = {.words = w,
							.header = signature == 0 ? (struct span){0} : span_cstr(signature == 1 ? right : wrong),
							.certificate = certificate,
							.address = near ? SPAN("10.1.2.3:4") : SPAN("192.0.2.1:4")};
						enum errid want = certificates && !certificate	      ? ERRID_PEER_UNKNOWN
								  : secret && signature == 0	      ? ERRID_PEER_UNKNOWN
								  : secret && signature == 2	      ? ERRID_PEER_FORGED
								  : !secret && !certificates && !near ? ERRID_PEER_UNKNOWN
												      : ERRID_NONE;
						assert_int_equal(trust_check(t, &c, &err), want ? ERR_DENIED : OK);
						if (want)
							assert_string_equal(err.id, errid_text(want));
					}
			trust_close(t);
		}
	trust_close(signer);
	trust_close(liar);
}

static void people_may_give_orders_with_the_secret_itself(void **st)
{
	(void)st;
	struct trust *t = trust_of(file_with(first_secret)), *none;
	struct err err = {0};
	struct trust_claim c = {.words = words(), .address = SPAN("192.0.2.1:4"), .authorization = SPAN("Bearer a secret of sixteen bytes or more")};
	assert_int_equal(trust_check_order(t, &c, &err), OK);
	assert_int_equal(trust_check(t, &c, &err), ERR_DENIED); /* only orders */
	c.authorization = SPAN("bearer a secret of sixteen bytes or more");
	assert_int_equal(trust_check_order(t, &c, &err), OK);
	static const char *const bad[] = {"Bearer ", "Bearer a secret of sixteen bytes or mor", "Bearer a secret of sixteen bytes or more ",
		"Bearer x", "Basic a secret of sixteen bytes or more", "Bearer", ""};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		c.authorization = span_cstr(bad[i]);
		assert_int_equal(trust_check_order(t, &c, &err), ERR_DENIED);
	}
	/* a wrong signature is not saved by a right secret */
	c.authorization = SPAN("Bearer a secret of sixteen bytes or more");
	c.header = SPAN("v1 0 0 0");
	assert_int_equal(trust_check_order(t, &c, &err), ERR_DENIED);
	assert_int_equal(trust_open(&(struct trust_config){0}, &none, NULL), OK);
	c.header = (struct span){0};
	assert_int_equal(trust_check_order(none, &c, &err), ERR_DENIED);
	c.address = SPAN("127.0.0.1:4");
	assert_int_equal(trust_check_order(none, &c, &err), OK);
	trust_close(none);
	trust_close(t);
}

static void no_memory_is_met(void **st)
{
	(void)st;
	const char *path = file_with(first_secret);
	for (uint64_t n = 1;; n++) {
		struct trust *t = NULL;
		const struct trust_config cfg = {.secret_file = path};
		fail_alloc_at(n, false);
		errc rc = trust_open(&cfg, &t, NULL);
		uint64_t hits = fail_alloc_off();
		trust_close(rc == OK ? t : NULL);
		if (hits == 0)
			break;
		assert_int_equal(rc, ERR_NOMEM);
	}
}

int main(void)
{
	ops = io_posix;
	ops.now_ms = wall;
	ops.mono_ns = mono;
	io_ops = &ops;
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_signature_is_what_the_page_says),
		cmocka_unit_test(every_bit_of_the_words_counts),
		cmocka_unit_test(bytes_do_not_wander_between_fields),
		cmocka_unit_test(every_bit_of_the_header_counts),
		cmocka_unit_test(a_request_is_good_for_a_minute),
		cmocka_unit_test(a_secret_changes_on_one_node_after_the_other),
		cmocka_unit_test(a_secret_that_is_half_written_is_not_taken),
		cmocka_unit_test(bad_secrets_are_refused_at_the_start),
		cmocka_unit_test(private_addresses),
		cmocka_unit_test(what_is_asked_for_is_what_was_configured),
		cmocka_unit_test(people_may_give_orders_with_the_secret_itself),
		cmocka_unit_test(no_memory_is_met),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
