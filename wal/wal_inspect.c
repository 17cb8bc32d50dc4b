/* wal/wal_inspect.c - `varve wal inspect`: the walk of replay, told instead of replayed. Changes nothing, also beside a running server. */
#include <inttypes.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum { KINDS = 16, FINDINGS_BYTES = 16 * 1024 * 1024 };

/* What one file holds; printed when the next one begins. */
struct file_sum {
	bool open;
	bool checkpoint;
	char path[WAL_PATH_BYTES];
	uint64_t number, size, frames, samples, stored, raw, first_seq, last_seq, damaged;
};

struct inspect {
	const struct wal_inspect_options *opt;
	struct buf *out;
	struct buf findings; /* damage, after the table */
	struct buf frames;   /* JSON's list of frames */
	struct file_sum file;
	bool any_file, any_finding;
	uint64_t records[KINDS], record_bytes[KINDS], undecodable, series, exemplars, metadata, torn_bytes;
};

/* NULL: none of its own. */
static const char *kind_name(size_t kind)
{
	static const char *const names[KINDS] = {
		[0] = "other",
		[WAL_SERIES_1] = "series of 0.1.0",
		[WAL_SAMPLES_1] = "samples of 0.1.0",
		[WAL_CUT] = "cut",
		[WAL_EXEMPLARS] = "exemplars",
		[WAL_METADATA] = "metadata",
		[WAL_HISTOGRAMS] = "histograms",
		[WAL_KEYS] = "keys",
		[WAL_SERIES] = "series",
		[WAL_SAMPLES] = "samples",
	};
	return names[kind];
}

static const char *event_name(enum wal_event_kind kind)
{
	switch (kind) {
	case WAL_EVENT_CHECKPOINT:
		return "checkpoint";
	case WAL_EVENT_SEGMENT:
		return "segment";
	case WAL_EVENT_DAMAGE:
		return "damage";
	case WAL_EVENT_TORN:
		return "torn-end";
	case WAL_EVENT_LOST:
		return "lost";
	case WAL_EVENT_LOST_TORN:
		return "not-synced";
	case WAL_EVENT_MISSING:
		return "missing";
	case WAL_EVENT_RENAMED:
		return "renamed";
	case WAL_EVENT_FOREIGN:
		return "foreign";
	case WAL_EVENT_CHAIN:
		return "chain";
	}
	return "?";
}

/* Paths come from the command line: quoted as JSON wants it. */
static void json_string(struct buf *b, const char *s)
{
	buf_u8(b, '"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		if (c == '"' || c == '\\')
			buf_printf(b, "\\%c", c);
		else if (c < 0x20)
			buf_printf(b, "\\u%04x", c);
		else
			buf_u8(b, c);
	}
	buf_u8(b, '"');
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static void file_end(struct inspect *x)
{
	struct file_sum *f = &x->file;
	if (!f->open)
		return;
	if (x->opt->json) {
		buf_printf(x->out, "%s{\"kind\":\"%s\",\"file\":", x->any_file ? "," : "", f->checkpoint ? "checkpoint" : "segment");
		json_string(x->out, f->path);
		buf_printf(x->out,
			",\"number\":%" PRIu64 ",\"size\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"first_seq\":%" PRIu64 ",\"last_seq\":%" PRIu64
			",\"samples\":%" PRIu64 ",\"stored_bytes\":%" PRIu64 ",\"record_bytes\":%" PRIu64 ",\"damaged_ranges\":%" PRIu64 "}",
			f->number, f->size, f->frames, f->first_seq, f->last_seq, f->samples, f->stored, f->raw, f->damaged);
	} else {
		buf_printf(x->out,
			"%-24s %12" PRIu64 " %9" PRIu64 " %12" PRIu64 " %12" PRIu64 " %12" PRIu64 " %12" PRIu64 " %12" PRIu64 " %8" PRIu64 "\n",
			base_name(f->path), f->size, f->frames, f->first_seq, f->last_seq, f->samples, f->stored, f->raw, f->damaged);
	}
	x->any_file = true;
	f->open = false;
}

static void file_begin(struct inspect *x, const struct wal_event *e)
{
	file_end(x);
	x->file = (struct file_sum){.open = true, .checkpoint = e->kind == WAL_EVENT_CHECKPOINT, .number = e->segment, .size = e->bytes};
	size_t n = strlen(e->path);
	ASSERT(n < sizeof x->file.path);
	memcpy(x->file.path, e->path, n + 1);
}

static void inspect_event(void *arg, const struct wal_event *e)
{
	struct inspect *x = arg;
	if (e->kind == WAL_EVENT_CHECKPOINT || e->kind == WAL_EVENT_SEGMENT) {
		file_begin(x, e);
		return;
	}
	if (e->kind == WAL_EVENT_DAMAGE)
		x->file.damaged++;
	if (e->kind == WAL_EVENT_TORN)
		x->torn_bytes += e->bytes;
	struct buf *b = &x->findings;
	if (x->opt->json) {
		buf_printf(b, "%s{\"kind\":\"%s\",\"file\":", x->any_finding ? "," : "", event_name(e->kind));
		json_string(b, e->path ? e->path : "");
		buf_printf(b,
			",\"segment\":%" PRIu64 ",\"segment_last\":%" PRIu64 ",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"seq\":%" PRIu64
			",\"frames\":%" PRIu64 ",\"samples\":%" PRIu64 ",\"why\":",
			e->segment, e->segment_last, e->offset, e->bytes, e->seq, e->frames, e->samples);
		json_string(b, e->why ? e->why : "");
		buf_u8(b, '}');
	} else {
		buf_printf(b, "%-10s %s", event_name(e->kind), e->path ? base_name(e->path) : "");
		if (e->kind == WAL_EVENT_MISSING)
			buf_printf(b, " segments %" PRIu64 "-%" PRIu64, e->segment, e->segment_last);
		if (e->bytes > 0)
			buf_printf(b, " bytes %" PRIu64 "-%" PRIu64, e->offset, e->offset + e->bytes - 1);
		if (e->seq > 0)
			buf_printf(b, " from frame %" PRIu64, e->seq);
		if (e->frames > 0)
			buf_printf(b, ", %" PRIu64 " frames, %" PRIu64 " samples", e->frames, e->samples);
		buf_printf(b, ": %s\n", e->why ? e->why : "");
	}
	x->any_finding = true;
}

/* False: a record does not decode, though its frame was whole. */
static bool inspect_records(struct inspect *x, struct span records, size_t *n)
{
	struct rd r = rd_of(records.p, records.n);
	struct wal_record rec;
	bool ok = true, good = true;
	while (wal_record_next(&r, &rec, &ok)) {
		if (rec.kind == WAL_GROUP && n != NULL) {
			good = inspect_records(x, rec.body, NULL) && good;
			++*n;
			continue;
		}
		size_t k = rec.kind < KINDS && kind_name(rec.kind) ? rec.kind : 0;
		x->records[k]++;
		x->record_bytes[k] += rec.body.n;
		if (n)
			++*n;
		bool fine = true;
		if (rec.kind == WAL_SERIES || rec.kind == WAL_SERIES_1) {
			struct wal_series_dec d;
			uint64_t ref;
			struct span wire;
			struct wal_keys keys;
			fine = wal_series_open(rec.kind, rec.body, &d);
			while (fine && wal_series_next(&d, &ref, &wire, &keys, &fine))
				x->series++;
		} else if (rec.kind == WAL_SAMPLES || rec.kind == WAL_SAMPLES_1) {
			struct wal_samples_dec d;
			fine = wal_samples_open(rec.kind, rec.body, &d);
		} else if (rec.kind == WAL_HISTOGRAMS) {
			struct wal_histograms_dec d;
			struct wal_histogram h;
			fine = wal_histograms_open(rec.body, &d);
			while (fine && wal_histograms_next(&d, &h, &fine))
				;
		} else if (rec.kind == WAL_KEYS) {
			struct rd keys = rd_of(rec.body.p, rec.body.n);
			struct wal_key_change c = {0};
			while (fine && wal_keys_next(&keys, &c, &fine))
				;
		} else if (rec.kind == WAL_CUT) {
			struct wal_cut cut;
			fine = wal_cut_get(rec.body, &cut);
		} else if (rec.kind == WAL_EXEMPLARS) {
			struct wal_exemplars_dec d;
			struct span series;
			struct exemplar e;
			fine = wal_exemplars_open(rec.body, &d);
			while (fine && wal_exemplars_next(&d, &series, &e, &fine))
				x->exemplars++;
		} else if (rec.kind == WAL_METADATA) {
			struct wal_metadata_dec d;
			struct metadata m;
			fine = wal_metadata_open(rec.body, &d);
			while (fine && wal_metadata_next(&d, &m, &fine))
				x->metadata++;
		}
		good = good && fine;
	}
	return ok && good;
}

static errc inspect_frame(void *arg, const struct wal_frame *f, const struct wal_frame_header *h, struct err *err)
{
	struct inspect *x = arg;
	struct file_sum *sum = &x->file;
	(void)err;
	sum->frames++;
	sum->samples += h->samples;
	sum->stored += wal_frame_size(h->stored);
	sum->raw += h->raw;
	if (sum->first_seq == 0)
		sum->first_seq = h->seq;
	sum->last_seq = h->seq;

	size_t n = 0;
	bool ok = inspect_records(x, f->payload, &n);
	if (!ok)
		x->undecodable++;
	if (!x->opt->frames)
		return OK;
	if (x->opt->json)
		buf_printf(&x->frames,
			"%s{\"seq\":%" PRIu64 ",\"segment\":%" PRIu64 ",\"offset\":%" PRIu64
			",\"stored\":%u,\"raw\":%u,\"records\":%zu,\"first_sample\":%" PRIu64 ",\"samples\":%u,\"durable\":%" PRIu64
			",\"flags\":%u,\"decodes\":%s}",
			x->frames.n > 0 ? "," : "", h->seq, f->segment, f->offset, h->stored, h->raw, n, h->first_sample, h->samples, h->durable,
			h->flags, ok ? "true" : "false");
	else
		buf_printf(x->out,
			"  frame %" PRIu64 " at %" PRIu64 ": %u bytes, %u of records in %zu, samples %" PRIu64 "+%u, synced %" PRIu64
			", flags %u%s\n",
			h->seq, f->offset, h->stored, h->raw, n, h->first_sample, h->samples, h->durable, h->flags, ok ? "" : ", records damaged");
	return OK;
}

errc wal_inspect(const char *dir, const struct wal_inspect_options *opt, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct inspect x = {.opt = opt, .out = out};
	struct wal_walk w = {.dir = dir, .frame = inspect_frame, .event = inspect_event, .arg = &x};
	buf_init(&x.findings, FINDINGS_BYTES);
	buf_init(&x.frames, out->max);
	CHECK(strlen(dir) + 64 < WAL_PATH_BYTES, ERR_INVALID, "the log directory's path of %zu bytes is too long", strlen(dir));
	if (opt->json)
		buf_printf(out, "{\"files\":[");
	else
		buf_printf(out, "%-24s %12s %9s %12s %12s %12s %12s %12s %8s\n", "file", "size", "frames", "first", "last", "samples", "stored",
			"records", "damaged");
	TRY(wal_walk_run(&w, err));
	file_end(&x);
	if (x.findings.failed)
		log_warn("more findings than can be shown", LSTR("dir", dir));
	if (opt->json) {
		buf_printf(out, "],");
		if (opt->frames) {
			buf_printf(out, "\"frame_list\":[");
			buf_put(out, x.frames.p, x.frames.n);
			buf_printf(out, "],");
			out->failed |= x.frames.failed;
		}
		buf_printf(out, "\"findings\":[");
		buf_put(out, x.findings.p, x.findings.n);
		buf_printf(out,
			"],\"frames\":%" PRIu64 ",\"samples\":%" PRIu64 ",\"frames_lost\":%" PRIu64 ",\"samples_lost\":%" PRIu64
			",\"frames_not_synced\":%" PRIu64 ",\"samples_not_synced\":%" PRIu64 ",\"damaged_ranges\":%" PRIu64
			",\"definitions\":%" PRIu64 ",\"exemplars\":%" PRIu64 ",\"metadata\":%" PRIu64 ",\"clean_end\":%s,\"records\":{",
			w.frames, w.samples, w.frames_lost, w.samples_lost, w.frames_torn, w.samples_torn, w.damaged_ranges, x.series, x.exemplars,
			x.metadata, w.end.clean ? "true" : "false");
		for (size_t k = 0; k < KINDS; k++)
			if (kind_name(k)) /* groups are shown as what is in them */
				buf_printf(out, "%s\"%s\":{\"count\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", k == 0 ? "" : ",", kind_name(k),
					x.records[k], x.record_bytes[k]);
		buf_printf(out, "}%s%s}\n", opt->also ? "," : "", opt->also ? opt->also : "");
	} else {
		buf_printf(out, "\nrecords:");
		for (size_t k = 0; k < KINDS; k++)
			if (kind_name(k))
				buf_printf(out, "%s %s %" PRIu64 " (%" PRIu64 " bytes)", k == 0 ? "" : ",", kind_name(k), x.records[k],
					x.record_bytes[k]);
		buf_printf(out, "\n");
		buf_printf(out, "definitions: %" PRIu64 "\nexemplars: %" PRIu64 "\nmetadata: %" PRIu64 "\nend: %s\n", x.series, x.exemplars,
			x.metadata, w.end.clean ? "closed in order" : "not closed (running, or it crashed)");
		if (opt->also)
			buf_printf(out, "%s\n", opt->also);
		buf_put(out, x.findings.p, x.findings.n);
		buf_printf(out,
			"%" PRIu64 " frames, %" PRIu64 " samples; lost: %" PRIu64 " frames, %" PRIu64
			" samples; not synced when the power went: %" PRIu64 " frames, %" PRIu64 " samples; damaged ranges: %" PRIu64 "\n",
			w.frames, w.samples, w.frames_lost, w.samples_lost, w.frames_torn, w.samples_torn, w.damaged_ranges);
	}
	CHECK(!out->failed, ERR_LIMIT, "the report on %s is larger than %zu bytes", dir, out->max);
fail:
	wal_walk_free(&w);
	buf_free(&x.findings);
	buf_free(&x.frames);
	return rc;
}
