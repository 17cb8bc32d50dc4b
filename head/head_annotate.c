/* head/head_annotate.c - exemplars and metadata of one request: the room they need in the log, and the order in which they are taken. */
#include "head/head_annotations_int.h"

size_t head_annotations_bound(const struct head *h, const struct head_annotations *a)
{
	return exemplars_bound(h, a) + metadata_bound(h, a);
}

errc head_annotate(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err)
{
	errc rc = OK;
	a->leans = false;
	memset(a->exemplars_by, 0, sizeof a->exemplars_by);
	a->metadata_new = a->metadata_known = a->metadata_refused = 0;
	size_t bound = head_annotations_bound(h, a);
	CHECK(buf_reserve(records, bound), ERR_NOMEM, "no memory for log records of %zu bytes", bound);
	size_t before = records->n;
	rc = exemplars_append(h, ticket, a, records, err);
	if (rc == OK)
		rc = metadata_append(h, ticket, a, records, err);
	ASSERT(!records->failed && records->n - before <= bound);
fail:
	return rc;
}

void head_annotations_forget(struct tenant *tn)
{
	exemplar_ring_free(tn->exemplars);
	metadata_table_free(tn->metadata);
}
