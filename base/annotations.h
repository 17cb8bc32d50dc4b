/* base/annotations.h - what remote write says beside samples: exemplars of a series, metadata of a metric family. Spans are borrowed. */
#pragma once
#include "base/span.h"

struct exemplar {
	struct span wire; /* its own labels in wire form (base/labels.h), often trace_id alone; may be empty */
	uint32_t n_labels;
	int64_t t;  /* ms */
	uint64_t v; /* float bits */
};

/* Numbers as in prompb.MetricMetadata and the log of the reference. */
enum metric_type {
	METRIC_UNKNOWN,
	METRIC_COUNTER,
	METRIC_GAUGE,
	METRIC_HISTOGRAM,
	METRIC_GAUGEHISTOGRAM,
	METRIC_SUMMARY,
	METRIC_INFO,
	METRIC_STATESET,
	METRIC_TYPES
};

struct metadata {
	struct span family; /* metric family name: 1.0 says it, 2.0's is the series' __name__ */
	enum metric_type type;
	struct span help, unit;
};
