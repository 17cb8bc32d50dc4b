/* Which message a write request carries: a table of header pairs. */
#include <setjmp.h>
#include <stddef.h>
#include <stdarg.h>
#include <cmocka.h>
#include "proto/proto.h"

static void table(void **state)
{
	(void)state;
#define PB "application/x-protobuf"
#define V1 "prometheus.WriteRequest"
#define V2 "io.prometheus.write.v2.Request"
	static const struct {
		const char *type, *encoding;
		enum rw_version want;
		enum errid id;
	} cases[] = {
		{"", "", RW_1, 0},
		{"  ", " ", RW_1, 0},
		{PB, "snappy", RW_1, 0},
		{PB, "", RW_1, 0},
		{PB, "Snappy", RW_1, 0},
		{PB, " snappy ", RW_1, 0},
		{"Application/X-Protobuf", "snappy", RW_1, 0},
		{PB ";", "snappy", RW_1, 0},
		{PB ";;", "snappy", RW_1, 0},
		{PB ";charset=utf-8", "snappy", RW_1, 0},
		{PB ";proto=" V1, "snappy", RW_1, 0},
		{PB "; proto=" V1, "snappy", RW_1, 0},
		{PB ";proto=" V2, "snappy", RW_2, 0},
		{PB "; proto=" V2, "snappy", RW_2, 0}, /* the space that makes others lose data */
		{PB " ;\tproto = " V2 " ", "snappy", RW_2, 0},
		{PB ";PROTO=" V2, "snappy", RW_2, 0},
		{PB ";proto=\"" V2 "\"", "snappy", RW_2, 0},
		{PB ";version=2;proto=" V2, "snappy", RW_2, 0},
		{PB ";proto=" V2 ";proto=" V2, "snappy", RW_2, 0},
		{PB ";proto=" V1 ";proto=" V2, "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB ";proto=", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB ";proto", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB ";proto=\"", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB ";proto=IO.prometheus.write.v2.request", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB ";proto=io.prometheus.write.v3.Request", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{"application/json", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{"application/json", "gzip", RW_NONE, ERRID_CONTENT_TYPE},
		{"image/png", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{"application/x-protobufs", "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{";proto=" V1, "snappy", RW_NONE, ERRID_CONTENT_TYPE},
		{PB, "gzip", RW_NONE, ERRID_CONTENT_ENCODING},
		{PB, "deflate", RW_NONE, ERRID_CONTENT_ENCODING},
		{PB, "identity", RW_NONE, ERRID_CONTENT_ENCODING},
		{PB, "snappy, snappy", RW_NONE, ERRID_CONTENT_ENCODING},
		{"", "gzip", RW_NONE, ERRID_CONTENT_ENCODING},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		enum rw_version v = RW_2;
		struct err err = {0};
		errc rc = rw_negotiate(span_cstr(cases[i].type), span_cstr(cases[i].encoding), &v, &err);
		if (v != cases[i].want || (rc == OK) != (cases[i].want != RW_NONE))
			fail_msg("\"%s\" \"%s\": %d", cases[i].type, cases[i].encoding, (int)v);
		if (rc) {
			assert_int_equal(rc, ERR_UNSUPPORTED);
			assert_string_equal(err.id, errid_text(cases[i].id));
			assert_int_equal(errid_status(cases[i].id), 415);
		}
	}
	enum rw_version v;
	assert_int_equal(rw_negotiate((struct span){NULL, 0}, (struct span){NULL, 0}, &v, NULL), OK); /* absent */
	assert_int_equal(v, RW_1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(table)};
	return cmocka_run_group_tests_name("negotiation", tests, NULL, NULL);
}
