/* What peers say to each other: golden bytes of docs/format/peer.md; whatever is encoded decodes to the same; not a byte of it can be other, cut off or added without
 * being noticed; a part of a request is what was asked for; no failing allocation does harm.
 *
 * VARVE_SEED repeats a run.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "cluster/wire.h"
#include "tests/support/fail_alloc.h"

static uint64_t seed, state;

static uint32_t below(uint32_t n)
{
	state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = state;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)((x ^ x >> 31) % n);
}

static void hex(const struct buf *b, char *out)
{
	for (size_t i = 0; i < b->n; i++)
		sprintf(out + 2 * i, "%02x", b->p[i]);
}

/* ---- golden ---- */

/* Series "a" of one sample, and a metadata field of family "a". */
static const char body_1[] = "\x0a\x12"
			     "\x0a\x0d\x0a\x08__name__\x12\x01"
			     "a"
			     "\x12\x01\x08"
			     "\x1a\x05\x08\x01\x12\x01"
			     "a";

static struct peer_request golden_request(struct peer_section *s)
{
	*s = (struct peer_section){
		.tenant = SPAN("team-a"), .version = RW_1, .n_series = 1, .n_metadata = 1, .body = span_of(body_1, sizeof body_1 - 1)};
	return (struct peer_request){.epoch = UINT64_C(0x1122334455667788),
		.id = "0123456789abcde",
		.left_ms = 5000,
		.now_ms = 1700000000000,
		.min_t = INT64_MIN,
		.max_t = 1700000600000,
		.sections = s,
		.n_sections = 1};
}

static void golden_bytes_of_a_request(void **st)
{
	(void)st;
	struct peer_section s;
	struct peer_request r = golden_request(&s);
	struct buf out;
	char text[1024];
	buf_init(&out, MIB);
	assert_int_equal(peer_request_encode(&r, false, &out, NULL), OK);
	hex(&out, text);
	assert_string_equal(text, "76727650"
				  "0100"
				  "0000"
				  "8877665544332211"
				  "30313233343536373839616263646500"
				  "88130000"
				  "01000000"
				  "0068e5cf8b010000"
				  "0000000000000080"
				  "c08feecf8b010000"
				  "2f000000"
				  "2f000000"
				  "619e4669"
				  "01"
				  "06"
				  "01000000"
				  "01000000"
				  "1b000000"
				  "7465616d2d61"
				  "0a120a0d0a085f5f6e616d655f5f1201611201081a05080112"
				  "0161");
	buf_free(&out);
}

static void golden_bytes_of_an_answer(void **st)
{
	(void)st;
	struct peer_verdict v[] = {
		{.item = 1, .kind = PEER_REFUSED, .id = ERRID_TOO_OLD, .t = 1700000000000, .samples = 3},
		{.item = 2, .kind = PEER_STORED, .samples = 1, .exemplars = 2},
		{.item = 7, .kind = PEER_AGAIN, .id = ERRID_DISK_FULL, .hists = 5},
		{.item = 8, .kind = PEER_REFUSED, .id = ERRID_TOO_OLD, .t = -1},
	};
	struct peer_answer a = {.epoch = 5, .id = "0123456789abcde", .samples = 10, .hists = 11, .exemplars = 12, .verdicts = v, .n_verdicts = 4};
	struct buf out;
	char text[1024];
	buf_init(&out, MIB);
	assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
	hex(&out, text);
	assert_string_equal(text, "76727641"
				  "0100"
				  "0000"
				  "0500000000000000"
				  "30313233343536373839616263646500"
				  "0a00000000000000"
				  "0b00000000000000"
				  "0c00000000000000"
				  "0200"
				  "0000"
				  "04000000"
				  "dcf510c7"
				  "11"
				  "6572722d76617276652d746f6f2d6f6c64"
				  "13"
				  "6572722d76617276652d6469736b2d66756c6c"
				  "01000000"
				  "01"
				  "01"
				  "0000"
				  "0068e5cf8b010000"
				  "03000000"
				  "00000000"
				  "00000000"
				  "02000000"
				  "00"
				  "00"
				  "0000"
				  "0000000000000000"
				  "01000000"
				  "00000000"
				  "02000000"
				  "07000000"
				  "02"
				  "02"
				  "0000"
				  "0000000000000000"
				  "00000000"
				  "05000000"
				  "00000000"
				  "08000000"
				  "01"
				  "01"
				  "0000"
				  "ffffffffffffffff"
				  "00000000"
				  "00000000"
				  "00000000");
	buf_free(&out);
}

/* ---- random ones ---- */

enum { SECTIONS_MAX = 6, ITEMS_MAX = 200, TEXT_MAX = 64 * 1024 };

struct made {
	struct peer_section sections[SECTIONS_MAX];
	struct peer_request r;
	char names[SECTIONS_MAX][200];
	struct buf bodies[SECTIONS_MAX];
	struct span items[SECTIONS_MAX * ITEMS_MAX]; /* of all sections, into the bodies */
};

static void put_field(struct buf *b, uint32_t number)
{
	char text[400];
	uint32_t n = below(4) == 0 ? below(sizeof text) : below(30);
	for (uint32_t i = 0; i < n; i++)
		text[i] = (char)("abcd"[below(4)]);
	buf_uvarint(b, number << 3 | 2);
	buf_str(b, span_of(text, n));
}

static void make(struct made *m)
{
	memset(m, 0, sizeof *m);
	m->r = (struct peer_request){.epoch = below(UINT32_MAX),
		.hint = below(2),
		.left_ms = below(5000),
		.now_ms = below(UINT32_MAX),
		.min_t = -(int64_t)below(100),
		.max_t = INT64_MAX - below(100),
		.sections = m->sections,
		.n_sections = below(SECTIONS_MAX + 1)};
	for (int i = 0; i < PEER_ID_BYTES; i++)
		m->r.id[i] = (uint8_t)below(256);
	for (uint32_t i = 0; i < m->r.n_sections; i++) {
		struct peer_section *s = &m->sections[i];
		size_t at[ITEMS_MAX + 1];
		uint32_t n = 1 + below(128);
		memset(m->names[i], 'a' + (int)below(26), n);
		buf_init(&m->bodies[i], MIB);
		s->tenant = span_of(m->names[i], n);
		s->version = below(2) ? RW_1 : RW_2;
		s->n_series = below(ITEMS_MAX / 2);
		s->n_metadata = s->version == RW_1 && below(2) ? below(ITEMS_MAX / 2) : 0;
		s->first = m->r.n_items;
		for (uint32_t k = 0; s->version == RW_2 && k < 10; k++)
			put_field(&m->bodies[i], 4);
		uint32_t n_items = s->n_series + s->n_metadata;
		for (uint32_t k = 0; k < n_items; k++) {
			at[k] = m->bodies[i].n;
			put_field(&m->bodies[i], s->version == RW_2 ? 5 : k < s->n_series ? 1 : 3);
		}
		at[n_items] = m->bodies[i].n;
		for (uint32_t k = 0; k < n_items; k++)
			m->items[m->r.n_items++] = span_of(m->bodies[i].p + at[k], at[k + 1] - at[k]);
		s->body = span_of(m->bodies[i].p, m->bodies[i].n);
	}
}

static void unmake(struct made *m)
{
	for (uint32_t i = 0; i < m->r.n_sections; i++)
		buf_free(&m->bodies[i]);
}

static void assert_same(const struct peer_request *a, const struct peer_request *b)
{
	assert_int_equal(a->epoch, b->epoch);
	assert_memory_equal(a->id, b->id, PEER_ID_BYTES);
	assert_int_equal(a->hint, b->hint);
	assert_int_equal(a->left_ms, b->left_ms);
	assert_int_equal(a->now_ms, b->now_ms);
	assert_int_equal(a->min_t, b->min_t);
	assert_int_equal(a->max_t, b->max_t);
	assert_int_equal(a->n_sections, b->n_sections);
	assert_int_equal(a->n_items, b->n_items);
	for (uint32_t i = 0; i < a->n_sections; i++) {
		const struct peer_section *s = &a->sections[i], *t = &b->sections[i];
		assert_true(span_eq(s->tenant, t->tenant) && span_eq(s->body, t->body));
		assert_true(s->version == t->version && s->n_series == t->n_series && s->n_metadata == t->n_metadata && s->first == t->first);
	}
}

static void what_is_sent_is_what_is_read(void **st)
{
	(void)st;
	static struct made m;
	for (int round = 0; round < 300; round++) {
		struct buf out;
		struct arena arena;
		struct peer_request got;
		struct err err = {0};
		size_t declared;
		bool lz4 = below(2);
		make(&m);
		buf_init(&out, 4 * MIB);
		assert_int_equal(peer_request_encode(&m.r, lz4, &out, &err), OK);
		struct span frame = span_of(out.p, out.n);
		assert_int_equal(peer_request_declared(frame, &declared, &err), OK);
		arena_init(&arena, declared + 16); /* two pieces, each rounded up to 8 */
		assert_int_equal(peer_request_decode(frame, &arena, &got, &err), OK);
		assert_same(&m.r, &got);
		arena_free(&arena);
		buf_free(&out);
		unmake(&m);
	}
}

/* ---- damage ---- */

static void damage(struct span frame, bool (*reads)(struct span))
{
	char *copy = malloc(frame.n + 1);
	memcpy(copy, frame.p, frame.n);
	copy[frame.n] = 0;
	assert_true(reads(span_of(copy, frame.n)));
	assert_false(reads(span_of(copy, frame.n + 1)));
	for (size_t n = 0; n < frame.n; n++) {
		char *cut = malloc(n ? n : 1); /* so that a byte read beyond it is seen */
		memcpy(cut, frame.p, n);
		assert_false(reads(span_of(cut, n)));
		free(cut);
		for (int bit = 0; bit < 8; bit++) {
			copy[n] = (char)(frame.p[n] ^ 1 << bit);
			assert_false(reads(span_of(copy, frame.n)));
		}
		copy[n] = frame.p[n];
	}
	free(copy);
}

static bool reads_request(struct span frame)
{
	struct arena arena;
	struct peer_request r;
	struct err err = {0};
	arena_init(&arena, MIB);
	errc rc = peer_request_decode(frame, &arena, &r, &err);
	assert_true(rc == OK || (rc == err.code && errid_of(err.id) == ERRID_PEER_FRAME));
	arena_free(&arena);
	return rc == OK;
}

static bool reads_answer(struct span bytes)
{
	struct arena arena;
	struct peer_answer a;
	struct err err = {0};
	arena_init(&arena, MIB);
	errc rc = peer_answer_decode(bytes, 100, &arena, &a, &err);
	assert_true(rc == OK || (rc == err.code && errid_of(err.id) == ERRID_PEER_FRAME));
	arena_free(&arena);
	return rc == OK;
}

static struct peer_answer make_answer(struct peer_verdict *v, uint32_t n_items)
{
	static const enum errid ids[] = {ERRID_TOO_OLD, ERRID_DISK_FULL, ERRID_DUPLICATE_TIMESTAMP, ERRID_OVERLOADED};
	struct peer_answer a = {.epoch = below(1000), .samples = below(1000), .hists = below(1000), .exemplars = below(1000), .verdicts = v};
	uint32_t odds = 1 + below(5);
	for (uint32_t i = 0; i < n_items; i++) {
		if (below(odds) > 0)
			continue;
		enum peer_verdict_kind kind = (enum peer_verdict_kind)below(3);
		v[a.n_verdicts++] = (struct peer_verdict){
			i, kind, kind == PEER_STORED ? ERRID_NONE : ids[below(4)], (int64_t)below(1000) - 500, below(9), below(9), below(9)};
	}
	return a;
}

/* Every byte of it, every bit: the checksum covers the header, too. Longer, shorter: noticed as well. */
static void no_damage_goes_unnoticed(void **st)
{
	(void)st;
	struct peer_section s;
	struct peer_request r = golden_request(&s);
	struct peer_verdict v[100];
	struct buf out;
	buf_init(&out, MIB);
	assert_int_equal(peer_request_encode(&r, false, &out, NULL), OK);
	damage(span_of(out.p, out.n), reads_request);
	static char many[2000];
	struct buf body;
	buf_init(&body, MIB);
	for (int i = 0; i < 50; i++) {
		buf_u8(&body, 0x0a);
		buf_str(&body, span_of(many, 30));
	}
	s = (struct peer_section){.tenant = SPAN("t"), .version = RW_1, .n_series = 50, .body = span_of(body.p, body.n)};
	buf_clear(&out);
	assert_int_equal(peer_request_encode(&r, true, &out, NULL), OK);
	assert_true(out.n < body.n);
	damage(span_of(out.p, out.n), reads_request);
	for (int k = 0; k < 3; k++) {
		struct peer_answer a = make_answer(v, 100);
		buf_clear(&out);
		assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
		damage(span_of(out.p, out.n), reads_answer);
	}
	buf_free(&body);
	buf_free(&out);
}

static void seal(struct buf *b, size_t at)
{
	put_le32(b->p + at, crc32c(crc32c(0, b->p, at), b->p + at + 4, b->n - at - 4));
}

/* What a checksum can't help against: who computes it lies. */
static void lies_are_refused(void **st)
{
	(void)st;
	static const struct {
		size_t at;
		uint32_t bytes, value;
	} lies[] = {
		{4, 2, 2},	     /* another version */
		{6, 2, 4},	     /* an unknown flag */
		{6, 2, 1},	     /* LZ4, which it is not */
		{36, 4, 0},	     /* no section, and bytes that follow */
		{36, 4, 2},	     /* one more than there is */
		{36, 4, UINT32_MAX}, /* */
		{64, 4, UINT32_MAX}, /* raw */
		{64, 4, 0},	     /* */
		{68, 4, 46},	     /* stored */
		{76, 1, 0},	     /* remote write 0 */
		{76, 1, 3},	     /* remote write 3 */
		{77, 1, 0},	     /* a tenant without a name */
		{77, 1, 255},	     /* a name that goes beyond the end */
		{78, 4, 26},	     /* more series than bytes */
		{78, 4, UINT32_MAX}, /* */
		{82, 4, UINT32_MAX}, /* metadata */
		{86, 4, 26},	     /* a body that ends early */
		{86, 4, 28},	     /* one that goes beyond the end */
		{90, 1, '.'},	     /* no tenant begins so */
		{90, 1, '/'},	     /* */
	};
	struct peer_section s;
	struct peer_request r = golden_request(&s);
	for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
		struct buf out;
		buf_init(&out, MIB);
		assert_int_equal(peer_request_encode(&r, false, &out, NULL), OK);
		for (uint32_t k = 0; k < lies[i].bytes; k++)
			out.p[lies[i].at + k] = (uint8_t)(lies[i].value >> 8 * k);
		seal(&out, 72);
		if (reads_request(span_of(out.p, out.n)))
			fail_msg("lie %zu was believed", i);
		buf_free(&out);
	}
	/* 2.0 has no metadata of its own */
	s.version = RW_2;
	struct buf out;
	buf_init(&out, MIB);
	assert_int_equal(peer_request_encode(&r, false, &out, NULL), OK);
	assert_false(reads_request(span_of(out.p, out.n)));
	/* a quarter of a gigabyte out of a few bytes */
	s.version = RW_1;
	buf_clear(&out);
	assert_int_equal(peer_request_encode(&r, false, &out, NULL), OK);
	out.p[6] = 1;
	put_le32(out.p + 64, LIMIT_PEER_REQUEST_BYTES);
	seal(&out, 72);
	size_t declared;
	assert_int_equal(peer_request_declared(span_of(out.p, out.n), &declared, NULL), ERR_INVALID);
	buf_free(&out);
}

static void answers_are_read_as_they_were_given(void **st)
{
	(void)st;
	struct peer_verdict v[500];
	for (int round = 0; round < 300; round++) {
		uint32_t n_items = below(500);
		struct peer_answer a = make_answer(v, n_items), got;
		struct buf out;
		struct arena arena;
		arena_init(&arena, MIB);
		buf_init(&out, MIB);
		assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
		assert_true(out.n <= peer_answer_max(n_items));
		assert_int_equal(peer_answer_decode(span_of(out.p, out.n), n_items, &arena, &got, NULL), OK);
		assert_true(got.epoch == a.epoch && got.samples == a.samples && got.hists == a.hists && got.exemplars == a.exemplars);
		assert_int_equal(got.n_verdicts, a.n_verdicts);
		for (uint32_t i = 0; i < a.n_verdicts; i++)
			assert_true(got.verdicts[i].item == v[i].item && got.verdicts[i].kind == v[i].kind && got.verdicts[i].id == v[i].id &&
				    got.verdicts[i].t == v[i].t && got.verdicts[i].samples == v[i].samples && got.verdicts[i].hists == v[i].hists &&
				    got.verdicts[i].exemplars == v[i].exemplars);
		/* a verdict of a series that nobody asked for */
		if (a.n_verdicts > 0)
			assert_int_equal(peer_answer_decode(span_of(out.p, out.n), v[a.n_verdicts - 1].item, &arena, &got, NULL), ERR_INVALID);
		arena_free(&arena);
		buf_free(&out);
	}
}

/* An older build meets an id that it has no word for: still refused, and still for good. */
static void unknown_ids_stay_refusals(void **st)
{
	(void)st;
	struct peer_verdict v = {.item = 0, .kind = PEER_REFUSED, .id = ERRID_TOO_OLD};
	struct peer_answer a = {.verdicts = &v, .n_verdicts = 1}, got;
	struct buf out;
	struct arena arena;
	arena_init(&arena, MIB);
	buf_init(&out, MIB);
	assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
	out.p[PEER_ANSWER_BYTES + 1 + 10] = 'q';
	seal(&out, 64);
	assert_int_equal(peer_answer_decode(span_of(out.p, out.n), 1, &arena, &got, NULL), OK);
	assert_int_equal(got.verdicts[0].kind, PEER_REFUSED);
	assert_int_equal(got.verdicts[0].id, ERRID_INTERNAL);
	arena_free(&arena);
	buf_free(&out);
}

/* ---- a part of it ---- */

static bool wanted(void *arg, uint32_t item)
{
	const uint8_t *keep = arg;
	return keep[item];
}

static void a_part_is_what_was_asked_for(void **st)
{
	(void)st;
	static struct made m;
	static uint8_t keep[SECTIONS_MAX * ITEMS_MAX];
	for (int round = 0; round < 200; round++) {
		struct buf frame, part;
		struct arena arena;
		struct peer_request got = {0};
		struct err err = {0};
		uint32_t n_kept, n = 0, k = 0, odds = 1 + below(100);
		make(&m);
		buf_init(&frame, 4 * MIB);
		buf_init(&part, 4 * MIB);
		arena_init(&arena, 8 * MIB);
		for (uint32_t i = 0; i < m.r.n_items; i++)
			n += keep[i] = below(odds) == 0;
		assert_int_equal(peer_request_encode(&m.r, below(2), &frame, &err), OK);
		assert_int_equal(peer_request_pick(span_of(frame.p, frame.n), below(2), wanted, keep, &n_kept, &part, &err), OK);
		assert_int_equal(n_kept, n);
		assert_int_equal(part.n > 0, n > 0);
		if (n > 0) {
			assert_int_equal(peer_request_decode(span_of(part.p, part.n), &arena, &got, &err), OK);
			assert_true(got.hint && got.left_ms == 0 && got.n_items == n && got.now_ms == m.r.now_ms && got.epoch == m.r.epoch);
			assert_memory_equal(got.id, m.r.id, PEER_ID_BYTES);
		}
		for (uint32_t i = 0; i < m.r.n_sections; i++) {
			const struct peer_section *s = &m.sections[i];
			struct buf body;
			uint32_t series = 0, metadata = 0, n_items = s->n_series + s->n_metadata;
			buf_init(&body, MIB);
			if (s->version == RW_2) /* all symbols */
				buf_span(&body, span_of(s->body.p, n_items ? (size_t)(m.items[s->first].p - s->body.p) : s->body.n));
			for (uint32_t j = 0; j < n_items; j++)
				if (keep[s->first + j]) {
					*(j < s->n_series ? &series : &metadata) += 1;
					buf_span(&body, m.items[s->first + j]);
				}
			if (series + metadata > 0) {
				const struct peer_section *t = &got.sections[k++];
				assert_true(t->version == s->version && span_eq(t->tenant, s->tenant) && t->n_series == series &&
					    t->n_metadata == metadata);
				assert_true(span_eq(t->body, span_of(body.p, body.n)));
			}
			buf_free(&body);
		}
		assert_int_equal(k, got.n_sections);
		arena_free(&arena);
		buf_free(&frame);
		buf_free(&part);
		unmake(&m);
	}
}

/* ---- memory ---- */

static void every_failing_allocation_is_met(void **st)
{
	(void)st;
	static struct made m;
	static uint8_t keep[SECTIONS_MAX * ITEMS_MAX];
	struct buf frame;
	memset(keep, 1, sizeof keep);
	do {
		make(&m);
	} while (m.r.n_items < 100);
	buf_init(&frame, 4 * MIB);
	assert_int_equal(peer_request_encode(&m.r, true, &frame, NULL), OK);
	for (uint64_t n = 1;; n++) {
		struct buf out, part;
		struct arena arena;
		struct peer_request got;
		uint32_t n_kept;
		buf_init(&out, 4 * MIB);
		buf_init(&part, 4 * MIB);
		arena_init(&arena, 8 * MIB);
		fail_alloc_at(n, false);
		errc a = peer_request_encode(&m.r, true, &out, NULL);
		errc b = peer_request_decode(span_of(frame.p, frame.n), &arena, &got, NULL);
		errc c = peer_request_pick(span_of(frame.p, frame.n), true, wanted, keep, &n_kept, &part, NULL);
		uint64_t hits = fail_alloc_off();
		assert_true((a == OK || a == ERR_NOMEM) && (b == OK || b == ERR_NOMEM) && (c == OK || c == ERR_NOMEM));
		/* without room for the compressed copy it goes as it is, and that is still the same request */
		if (a == OK) {
			struct peer_request again;
			assert_int_equal(peer_request_decode(span_of(out.p, out.n), &arena, &again, NULL), OK);
			assert_same(&m.r, &again);
		}
		arena_free(&arena);
		buf_free(&out);
		buf_free(&part);
		if (hits == 0) {
			assert_true(n > 5);
			break;
		}
	}
	buf_free(&frame);
	unmake(&m);
}

int main(void)
{
	const char *s = getenv("VARVE_SEED");
	seed = state = s ? strtoull(s, NULL, 10) : io_random_u64();
	printf("seed %" PRIu64 "\n", seed);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_bytes_of_a_request),
		cmocka_unit_test(golden_bytes_of_an_answer),
		cmocka_unit_test(what_is_sent_is_what_is_read),
		cmocka_unit_test(no_damage_goes_unnoticed),
		cmocka_unit_test(lies_are_refused),
		cmocka_unit_test(answers_are_read_as_they_were_given),
		cmocka_unit_test(unknown_ids_stay_refusals),
		cmocka_unit_test(a_part_is_what_was_asked_for),
		cmocka_unit_test(every_failing_allocation_is_met),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
