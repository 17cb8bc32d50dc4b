/* ingest/ingest_split.c - one request, several tenants: --tenant.split-label=NAME, between decoding and storing.
 *
 *     series with the label     ─▶ the tenant that its value names; the label is taken off, before anything is hashed, as Thanos does it
 *     ... of no valid name      ─▶ refused, alone
 *     without, or with an empty ─▶ the request's tenant, as are 1.0's metadata fields, which belong to no series
 *
 * What comes out is lists of series' numbers by tenant. A series without its label has new labels in the arena: in
 * 1.0 put together anew, in 2.0 as references to the same symbols, so that what is sent on to peers still goes with the client's own symbols (rw_slice_relabel).
 *
 * A part that is stored here becomes a request of its own (ingest_split_part). In 2.0 it gets only those symbols that its series name: the head hashes all of a
 * request's symbols once, and ten thousand tenants must not cost ten thousand times that.
 */
#include <inttypes.h>
#include <xxhash.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "ingest/ingest_int.h"

enum { PARTS_FIRST = 16 };
#define NO_PART UINT32_MAX

struct splitter {
	struct ingest_split *out;
	struct arena *arena;
	struct span label;
	struct arena scratch; /* labels of one series */
	struct buf wire;
	uint64_t seed;
	uint32_t *slots; /* part + 1, by tenant */
	uint32_t mask;
	uint32_t parts_cap;
	uint32_t *part_of; /* of each series */
	uint8_t *relabeled;
};

static errc no_memory(struct err *err, const char *what)
{
	return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to split a request by its label: %s", what);
}

/* ---- tenants of the request ---- */

static errc part_add(struct splitter *s, struct span tenant, uint32_t *part, struct err *err)
{
	struct ingest_split *out = s->out;
	if (out->n_parts == LIMIT_PEER_SECTIONS)
		return err_id(err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "the label \"%.*s\" names more than %d tenants in one request",
			SPAN_ARG(s->label), LIMIT_PEER_SECTIONS);
	if (out->n_parts == s->parts_cap) {
		uint32_t cap = s->parts_cap ? 2 * s->parts_cap : PARTS_FIRST;
		struct ingest_split_part *grown = arena_alloc(s->arena, cap * sizeof *grown);
		if (!grown)
			return no_memory(err, "tenants");
		if (out->n_parts)
			memcpy(grown, out->parts, out->n_parts * sizeof *grown);
		out->parts = grown;
		s->parts_cap = cap;
	}
	*part = out->n_parts++;
	out->parts[*part] = (struct ingest_split_part){.tenant = tenant};
	return OK;
}

/* The tenant's part; *part is where the series before it went. */
static errc part_find(struct splitter *s, struct span tenant, uint32_t *part, struct err *err)
{
	struct ingest_split *out = s->out;
	if (*part != NO_PART && span_eq(out->parts[*part].tenant, tenant))
		return OK;
	uint32_t i = (uint32_t)XXH3_64bits_withSeed(tenant.p, tenant.n, s->seed) & s->mask;
	for (; s->slots[i]; i = (i + 1) & s->mask) {
		*part = s->slots[i] - 1;
		if (span_eq(out->parts[*part].tenant, tenant))
			return OK;
	}
	errc rc = part_add(s, tenant, part, err);
	if (rc == OK)
		s->slots[i] = *part + 1;
	return rc;
}

/* ---- the label of a series ---- */

/* 1.0: its value; then, unless that is empty, the series without it. */
static errc take_wire(struct splitter *s, struct rw_series *x, struct span *value, struct err *err)
{
	errc rc = OK;
	struct labels l;
	uint32_t kept = 0;
	*value = (struct span){"", 0};
	arena_reset(&s->scratch);
	rc = labels_from_wire(x->wire, LIMIT_LABELS_DECODE, &s->scratch, &l, err);
	if (rc != OK) {
		err->id = errid_text(rc == ERR_NOMEM ? ERRID_OVERLOADED : ERRID_PROTOBUF);
		return rc;
	}
	*value = labels_get(l, s->label);
	if (value->n == 0)
		return OK;
	for (uint32_t i = 0; i < l.n; i++)
		if (!span_eq(l.v[i].name, s->label))
			l.v[kept++] = l.v[i];
	l.n = x->n_labels = kept;
	buf_clear(&s->wire);
	labels_to_wire(l, &s->wire);
	x->wire = s->wire.failed ? (struct span){NULL, 0} : arena_dup(s->arena, span_of(s->wire.n ? (const char *)s->wire.p : "", s->wire.n));
	return x->wire.p ? OK : no_memory(err, "labels");
}

static errc take_refs(struct splitter *s, struct rw_series *x, struct span *value, struct err *err)
{
	const struct span *symbols = s->out->rw->symbols;
	uint32_t n = 0, *refs;
	*value = (struct span){"", 0};
	for (uint32_t i = 0; i < x->n_labels; i++)
		if (span_eq(symbols[x->refs[2 * i]], s->label)) {
			*value = symbols[x->refs[2 * i + 1]];
			break;
		}
	if (value->n == 0)
		return OK;
	refs = arena_alloc(s->arena, 2 * (size_t)x->n_labels * sizeof *refs);
	if (!refs)
		return no_memory(err, "labels");
	for (uint32_t i = 0; i < x->n_labels; i++)
		if (!span_eq(symbols[x->refs[2 * i]], s->label)) {
			refs[2 * n] = x->refs[2 * i];
			refs[2 * n++ + 1] = x->refs[2 * i + 1];
		}
	x->refs = refs;
	x->n_labels = n;
	return OK;
}

/* ---- all series ---- */

/* By part, ascending in each; those of no part are the refused ones. */
static errc lists(struct splitter *s, struct err *err)
{
	struct ingest_split *out = s->out;
	const struct rw_request *rw = out->rw;
	uint32_t *all = arena_alloc(s->arena, rw->n_series * sizeof *all), at = 0;
	if (!all)
		return no_memory(err, "series");
	for (uint32_t k = 0; k < out->n_parts; k++) {
		out->parts[k].series = all + at;
		at += out->parts[k].n_series;
		out->parts[k].n_series = 0;
	}
	uint32_t *refused = all + at;
	for (uint32_t i = 0; i < rw->n_series; i++)
		if (s->part_of[i] == NO_PART)
			refused[out->n_refused++] = i;
		else {
			struct ingest_split_part *p = &out->parts[s->part_of[i]];
			all[p->series - all + p->n_series++] = i;
		}
	out->refused = refused;
	return OK;
}

errc ingest_split(struct rw_request *rw, enum rw_version version, struct span tenant, const char *label, struct arena *arena,
	struct ingest_split *out, struct err *err)
{
	errc rc = OK;
	struct err local = {0};
	struct splitter s = {.out = out, .arena = arena, .label = span_cstr(label), .seed = io_random_u64()};
	uint32_t part = NO_PART;
	size_t slots = 64;
	err = err ? err : &local;
	*out = (struct ingest_split){.rw = rw, .version = version, .label = s.label};
	while (slots < 2 * (rw->n_series + 1))
		slots *= 2;
	s.mask = (uint32_t)(slots - 1);
	arena_init(&s.scratch, MIB);
	buf_init(&s.wire, LIMIT_INGEST_LABEL_BYTES);
	s.slots = arena_calloc(arena, slots, sizeof *s.slots);
	s.part_of = arena_alloc(arena, rw->n_series * sizeof *s.part_of);
	s.relabeled = arena_calloc(arena, rw->n_series + 1, 1);
	if (!s.slots || !s.part_of || !s.relabeled) {
		rc = no_memory(err, "series");
		goto fail;
	}
	if (version == RW_1 && rw->n_metadata > 0) {
		TRY(part_find(&s, tenant, &part, err));
		out->parts[part].metadata = true;
	}
	for (size_t i = 0; i < rw->n_series; i++) {
		struct span value;
		TRY((version == RW_2 ? take_refs : take_wire)(&s, &rw->series[i], &value, err));
		s.relabeled[i] = value.n > 0;
		s.part_of[i] = NO_PART;
		if (value.n > 0 && !tenant_valid(value))
			continue;
		TRY(part_find(&s, value.n > 0 ? value : tenant, &part, err));
		s.part_of[i] = part;
		out->parts[part].n_series++;
	}
	TRY(lists(&s, err));
	out->relabeled = s.relabeled;
fail:
	arena_free(&s.scratch);
	buf_free(&s.wire);
	return rc;
}

/* ---- a part as a request of its own ---- */

/* By the numbers of the client's: the last round, one for each part, that met it; the number that a symbol has there. */
static errc marks_open(struct ingest_split *sp, struct arena *arena, struct err *err)
{
	const struct rw_request *rw = sp->rw;
	if (sp->symbol_met || sp->version != RW_2)
		return OK;
	sp->metadata_met = arena_calloc(arena, rw->n_metadata + 1, sizeof *sp->metadata_met);
	sp->symbol_number = arena_alloc(arena, (rw->n_symbols + 1) * sizeof *sp->symbol_number);
	sp->symbol_met = arena_calloc(arena, rw->n_symbols + 1, sizeof *sp->symbol_met);
	return sp->metadata_met && sp->symbol_number && sp->symbol_met ? OK : no_memory(err, "symbols");
}

/* The number of a client's symbol in the part that is made. */
static uint32_t symbol_number(void *arg, uint32_t ref)
{
	struct ingest_split *sp = arg;
	if (ref >= sp->rw->n_symbols)
		return 0; /* of what is said twice only the last counts, and was judged */
	if (sp->symbol_met[ref] == sp->round)
		return sp->symbol_number[ref];
	if (sp->n_symbols == sp->symbols_cap) {
		size_t cap = sp->symbols_cap ? 2 * sp->symbols_cap : 32;
		struct span *v = arena_alloc(sp->arena, cap * sizeof *v);
		if (!v) {
			sp->failed = true;
			return 0;
		}
		if (sp->n_symbols > 0)
			memcpy(v, sp->symbols, sp->n_symbols * sizeof *v);
		sp->symbols = v;
		sp->symbols_cap = cap;
	}
	sp->symbol_met[ref] = sp->round;
	sp->symbol_number[ref] = (uint32_t)sp->n_symbols;
	sp->symbols[sp->n_symbols] = sp->rw->symbols[ref];
	return (uint32_t)sp->n_symbols++;
}

static errc part_symbols(struct ingest_split *sp, struct arena *arena, struct rw_request *out, struct err *err)
{
	size_t n_refs = 0;
	for (size_t i = 0; i < out->n_series; i++)
		n_refs += 2 * (size_t)out->series[i].n_labels;
	uint32_t *refs = arena_alloc(arena, n_refs * sizeof *refs);
	if (!refs)
		return no_memory(err, "symbols");
	sp->symbols = NULL;
	sp->n_symbols = sp->symbols_cap = 0;
	(void)symbol_number(sp, 0); /* the first is the empty one everywhere */
	for (size_t i = 0; i < out->n_series; i++) {
		struct rw_series *x = &out->series[i];
		const uint32_t *from = x->refs;
		x->refs = refs;
		for (uint32_t k = 0; k < 2 * x->n_labels; k++)
			*refs++ = symbol_number(sp, from[k]);
	}
	out->symbols = sp->symbols;
	out->n_symbols = sp->n_symbols;
	return sp->failed ? no_memory(err, "symbols") : OK;
}

static errc part_metadata(struct ingest_split *sp, struct arena *arena, struct rw_request *out, struct err *err)
{
	const struct rw_request *rw = sp->rw;
	size_t n = 0, most = out->n_series < rw->n_metadata ? out->n_series : rw->n_metadata;
	struct metadata *v = arena_alloc(arena, most * sizeof *v);
	if (!v)
		return no_memory(err, "metadata");
	for (size_t i = 0; i < out->n_series; i++) {
		uint32_t m = out->series[i].metadata;
		if (m == 0 || sp->metadata_met[m - 1] == sp->round)
			continue;
		sp->metadata_met[m - 1] = sp->round;
		v[n++] = rw->metadata[m - 1];
	}
	out->metadata = v;
	out->n_metadata = n;
	return OK;
}

/* Samples that stand in one run stay where they are; others are put into one: the head has arrays as long as a batch's samples. */
static errc part_samples(const struct rw_request *rw, struct arena *arena, struct rw_request *out, struct err *err)
{
	uint32_t first = 0, n = 0;
	bool run = true;
	for (size_t i = 0; i < out->n_series; i++) {
		const struct rw_series *x = &out->series[i];
		if (x->n_samples == 0)
			continue;
		first = n == 0 ? x->first_sample : first;
		run &= x->first_sample == first + n;
		n += x->n_samples;
	}
	struct rw_sample *v = run ? rw->samples + first : arena_alloc(arena, n * sizeof *v);
	int64_t *starts = !rw->starts ? NULL : run ? rw->starts + first : arena_alloc(arena, n * sizeof *starts);
	if (!run && (!v || (rw->starts && !starts)))
		return no_memory(err, "samples");
	n = 0;
	for (size_t i = 0; i < out->n_series; i++) {
		struct rw_series *x = &out->series[i];
		if (!run && x->n_samples > 0) {
			memcpy(v + n, rw->samples + x->first_sample, x->n_samples * sizeof *v);
			if (starts)
				memcpy(starts + n, rw->starts + x->first_sample, x->n_samples * sizeof *starts);
		}
		x->first_sample = n;
		n += x->n_samples;
	}
	out->samples = v;
	out->starts = starts;
	out->n_samples = n;
	return OK;
}

/* Histograms are judged and reduced where they stand, all of a request: so a part has its own. Their buckets stay. */
static errc part_hists(const struct rw_request *rw, struct arena *arena, struct rw_request *out, struct err *err)
{
	struct rw_hist *v = arena_alloc(arena, out->n_hists * sizeof *v);
	uint32_t n = 0;
	if (!v)
		return no_memory(err, "histograms");
	for (size_t i = 0; i < out->n_series; i++) {
		struct rw_series *x = &out->series[i];
		if (x->n_hists == 0)
			continue;
		memcpy(v + n, rw->hists + x->first_hist, x->n_hists * sizeof *v);
		x->first_hist = n;
		n += x->n_hists;
	}
	out->hists = v;
	return OK;
}

errc ingest_split_part(struct ingest_split *sp, uint32_t part, struct arena *arena, struct rw_request *out, struct err *err)
{
	errc rc = OK;
	const struct rw_request *rw = sp->rw;
	const struct ingest_split_part *p = &sp->parts[part];
	*out = *rw;
	sp->round++;
	sp->arena = arena;
	sp->failed = false;
	if (p->n_series == rw->n_series && (sp->version == RW_2 || p->metadata || rw->n_metadata == 0))
		return OK;
	out->n_series = p->n_series;
	out->n_hists = out->n_exemplars = 0;
	out->series = arena_alloc(arena, p->n_series * sizeof *out->series);
	if (!out->series)
		return no_memory(err, "series");
	for (uint32_t i = 0; i < p->n_series; i++) {
		out->series[i] = rw->series[p->series[i]];
		out->n_hists += out->series[i].n_hists;
		out->n_exemplars += out->series[i].n_exemplars;
	}
	TRY(part_samples(rw, arena, out, err));
	if (out->n_hists > 0)
		TRY(part_hists(rw, arena, out, err));
	if (sp->version == RW_2) {
		TRY(marks_open(sp, arena, err));
		TRY(part_symbols(sp, arena, out, err));
		TRY(part_metadata(sp, arena, out, err));
	} else if (!p->metadata)
		out->n_metadata = 0;
fail:
	return rc;
}

/* ---- a part as it is sent on ---- */

static errc slices_of(struct ingest_split *sp, const struct ingest_split_part *p, const struct rw_slices *whole, struct rw_request *rw,
	struct buf *scratch, struct rw_slices *out, struct err *err)
{
	errc rc = OK;
	bool renumbered = sp->version == RW_2 && p->n_series < sp->rw->n_series;
	for (uint32_t i = 0; i < p->n_series; i++) {
		uint32_t no = p->series[i];
		out->series[i] = whole->series[no];
		if (renumbered) {
			buf_clear(scratch);
			TRY(rw2_slice_renumber(whole->series[no], &rw->series[i], symbol_number, sp, scratch, err));
			out->series[i] = arena_dup(sp->arena, span_of(scratch->p, scratch->n));
			if (!out->series[i].p)
				return no_memory(err, "a series");
		} else if (sp->relabeled[no])
			TRY(rw_slice_relabel(whole->series[no], &sp->rw->series[no], sp->arena, &out->series[i], err));
	}
	if (!renumbered)
		return OK;
	buf_clear(scratch);
	for (size_t i = 0; i < sp->n_symbols; i++)
		pb_bytes(scratch, 4, sp->symbols[i]);
	out->symbols = arena_alloc(sp->arena, sizeof *out->symbols);
	struct span text = arena_dup(sp->arena, span_of(scratch->n ? (const char *)scratch->p : "", scratch->n));
	if (!out->symbols || !text.p || scratch->failed || sp->failed)
		return no_memory(err, "symbols");
	out->symbols[0] = text;
	out->n_symbols = 1;
	rw->symbols = sp->symbols;
	rw->n_symbols = sp->n_symbols;
fail:
	return rc;
}

errc ingest_split_slices(
	struct ingest_split *sp, uint32_t part, const struct rw_slices *whole, struct rw_request *rw, struct rw_slices *out, struct err *err)
{
	const struct ingest_split_part *p = &sp->parts[part];
	struct buf scratch;
	*out = *whole;
	out->metadata = p->metadata ? whole->metadata : NULL;
	out->series = arena_alloc(sp->arena, (p->n_series + 1) * sizeof *out->series);
	if (!out->series)
		return no_memory(err, "series");
	buf_init(&scratch, LIMIT_INGEST_LABEL_BYTES);
	errc rc = slices_of(sp, p, whole, rw, &scratch, out, err);
	buf_free(&scratch);
	return rc;
}

/* ---- what is refused for its tenant ---- */

struct span ingest_split_refusal(const struct ingest_split *sp, struct arena *arena)
{
	if (sp->n_refused == 0)
		return (struct span){"", 0};
	const struct rw_series *s = &sp->rw->series[sp->refused[0]];
	struct labels l = ingest_labels_of(sp->rw, s, arena);
	char text[1024];
	const char *words = arena_printf(arena,
		"%s: %u of %zu series refused: their label \"%.*s\" is no tenant's name ([A-Za-z0-9_-][A-Za-z0-9._-]{0,127}), the rest is stored; "
		"first, "
		"without it: %s\n",
		errid_text(ERRID_TENANT), sp->n_refused, sp->rw->n_series, SPAN_ARG(sp->label), labels_format(l, text, sizeof text));
	return span_cstr(words ? words : errid_text(ERRID_TENANT));
}
