/* fuzz: needs cluster */
/* What people write into the base ConfigMap and the generated one (parted by a zero byte), among members of every state: whatever stands there, a plan
 * is refused or its ring is one that members take, and who can't serve does not come in. */
#include <stdlib.h>
#include <string.h>
#include "cluster/cluster_control_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const names[] = {"s-0", "s-1", "s-2", "s-3", "s-4"};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const struct control_config cfg = {.namespace = "n",
		.label = "l=c",
		.configmap = "base",
		.generated = "g",
		.file_name = "f",
		.cluster_domain = "d",
		.port = 1,
		.gone_after_ms = 10,
		.ring = {.replication_factor = 1 + (uint32_t)(n % 3)},
		.az_aware = n % 2};
	const uint8_t *zero = n ? memchr(data, 0, n) : NULL;
	struct control_set sets[1] = {{.name = SPAN("s"), .ring = SPAN("r"), .service = SPAN("v"), .replicas = 4}};
	struct control_pod pods[5];
	for (int i = 0; i < 5; i++)
		pods[i] = (struct control_pod){.name = span_cstr(names[i]),
			.uid = SPAN("u"),
			.set = SPAN("s"),
			.zone = SPAN("z"),
			.running = true,
			.answer = {.asked = true, .reached = i != 3, .ready = i != 3, .drain = DRAIN_ACTIVE}};
	const struct control_absence absence = {SPAN("s-3.v.n.svc.d:1"), 0};
	const struct control_view v = {.cfg = &cfg,
		.base = span_of(data, zero ? (size_t)(zero - data) : n),
		.in_force = zero ? span_of(zero + 1, n - (size_t)(zero + 1 - data)) : (struct span){0},
		.sets = sets,
		.n_sets = 1,
		.pods = pods,
		.n_pods = 5,
		.absences = &absence,
		.n_absences = 1,
		.now_ms = 100};
	struct arena arena;
	struct control_plan plan;
	struct err err = {0};
	arena_init(&arena, 64 * MIB);
	if (control_plan(&v, &arena, &plan, &err) == OK) {
		if (plan.change) {
			struct ring_set *set = NULL;
			if (ring_set_parse("plan", plan.text, &cfg.ring, &set, &err) != OK)
				abort();
			ring_set_unref(set);
		}
		for (size_t i = 0; i < plan.n_members; i++) {
			const struct control_member *m = &plan.members[i];
			if (m->in && !m->was_in && (m->pod == &pods[3] || m->pod == &pods[4]))
				abort(); /* one does not serve, one is not wanted */
		}
	} else if (!err.msg[0]) {
		abort();
	}
	arena_free(&arena);
	return 0;
}
