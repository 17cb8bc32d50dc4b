/* fuzz: needs cluster */
/* A ring file: whatever is accepted places every series on as many different nodes as the factor says, for every tenant that it names and for any other, and is
 * the same rings when it is read again; whatever is refused says why. The first byte is the factor and the default algorithm.
 */
#include <stdlib.h>
#include "cluster/cluster_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void place(struct ring_set *set, const struct ring *r)
{
	static const uint64_t hashes[] = {0, 1, UINT64_C(0x7fffffffffffffff), UINT64_C(0x123456789abcdef0), UINT64_MAX - 16, UINT64_MAX};
	uint32_t owners[LIMIT_RING_FACTOR], factor = ring_set_factor(set);
	for (size_t i = 0; i < sizeof hashes / sizeof *hashes; i++) {
		ring_owners(r, hashes[i], owners);
		bool wraps = ring_info(r)->algorithm == RING_HASHMOD && hashes[i] > UINT64_MAX - factor;
		for (uint32_t k = 0; k < factor; k++) {
			if (!ring_set_node(set, owners[k]))
				abort();
			for (uint32_t j = 0; j < k && !wraps; j++)
				if (owners[j] == owners[k])
					abort();
		}
	}
}

static void ask(struct ring_set *set, struct span tenant)
{
	struct ring *r = NULL;
	if (tenant.n > LIMIT_RING_NAME_BYTES || ring_for_tenant(set, tenant, &r, NULL) != OK || !r)
		return;
	place(set, r);
	ring_unref(r);
	ring_external_labels(set, tenant);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ring_options opt = {.replication_factor = 1};
	struct ring_set *set = NULL, *again = NULL;
	struct err err = {0};
	if (size > 0) {
		opt = (struct ring_options){data[0] & 0x80 ? RING_HASHMOD : RING_KETAMA, data[0] & 0x1f};
		data++;
		size--;
	}
	errc rc = ring_set_parse("fuzz.json", span_of(data, size), &opt, &set, &err);
	if (rc != OK) {
		if (set || err.code != rc || err.msg[0] == 0)
			abort();
		return 0;
	}
	if (ring_set_parse("again.json", span_of(data, size), &opt, &again, &err) != OK || ring_set_epoch(again) != ring_set_epoch(set))
		abort();
	for (uint32_t i = 0; i < ring_set_n_rings(set); i++) {
		const struct ring_info *info = ring_set_info(set, i);
		struct ring *whole = ring_set_ring(set, i), *other = ring_set_ring(again, i);
		struct ring_change change;
		place(set, whole);
		if (ring_compare(whole, other, &change, &err) != OK || change.moved > 1e-9 || change.added || change.removed)
			abort();
		for (uint32_t k = 0; k < info->n_tenants && k < 8; k++)
			ask(set, info->tenants[k]);
		ring_unref(whole);
		ring_unref(other);
	}
	ask(set, SPAN("default-tenant"));
	ask(set, span_of(data, size < 16 ? size : 16));
	struct span remarks = ring_set_remarks(set);
	if (remarks.n > 0 && remarks.p[remarks.n - 1] != '\n')
		abort();
	ring_set_unref(again);
	ring_set_unref(set);
	return 0;
}
