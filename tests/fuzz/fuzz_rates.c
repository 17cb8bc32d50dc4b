/* fuzz: needs ingest */
/* What a node tells of its rates, and what it is answered: two nodes' tellings, one behind the other (the first byte says where the second begins). What the board takes it answers with as
 * many tenants; an answer does nothing worse than nothing.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "ingest/ingest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t lines(struct span s)
{
	size_t n = 0;
	for (size_t i = 0; i < s.n; i++)
		n += s.p[i] == '\n';
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ingest in = {.gate_id = 0};
	struct err err = {0};
	if (size < 1)
		return 0;
	size_t first = data[0] < size - 1 ? data[0] : size - 1;
	struct span said[2] = {span_of(data + 1, first), span_of(data + 1 + first, size - 1 - first)};
	if (ingest_limits_open(NULL, &in.limits, &err) != OK || ingest_fleet_open(&in.fleet, &err) != OK)
		abort();
	for (int i = 0; i < 2; i++) {
		struct buf out;
		buf_init(&out, LIMIT_RATES_BYTES);
		err = (struct err){0};
		errc rc = ingest_rates_board(&in, said[i], &out, &err);
		if (rc == OK && (lines(span_of(out.p, out.n)) != lines(said[i]) || out.failed))
			abort();
		if (rc != OK && (err.code != rc || !err.id))
			abort();
		if (rc == OK)
			ingest_rates_heard(&in, span_of(out.p, out.n));
		ingest_rates_heard(&in, said[i]);
		buf_free(&out);
	}
	ingest_fleet_close(in.fleet);
	ingest_limits_close(in.limits);
	return 0;
}
