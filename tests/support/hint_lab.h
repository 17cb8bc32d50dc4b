/* tests/support/hint_lab.h - hints on a simulated disk with a clock that stands still, among nodes that are made up: what they are sent is looked at, and answered as their health has it.
 *
 * Each series of a hint is a number (an id), with some samples. The lab knows of every id whether its node has it, has refused it, or whether another node keeps a hint of it; requests to a node come in
 * order, one at a time, and no faster than the rate. Calls fail the running test as they go.
 */
#pragma once
#include "cluster/cluster_hints_int.h"
#include "tests/support/sim.h"

#define HINT_LAB_DIR "data/hints"
enum { NODES = 4, IDS = 4000, CALLS = 64, HOUR_MS = 3600000 };
/* FULL says "try again" to some, PICKY refuses some, TOO_LARGE answers 413 to more than one series. */
enum health { WELL, DOWN, LOSES_ANSWERS, UNREADY, FULL, PICKY, GARBLED, TOO_LARGE, HEALTHS };

struct hint_lab {
	uint64_t state, seed;
	struct sim *sim;
	struct hints *h;
	struct hints_config cfg;
	struct hint_lab_node { /* 0 is the one whose hints these are */
		char name[8];
		struct roster_node r;
		enum health health;
		uint8_t has[IDS]; /* delivered */
		uint8_t refused[IDS];
		uint8_t held[IDS]; /* the others hold a hint of it for this node */
		uint64_t first;	   /* id of the last request */
		uint32_t requests, most_frames;
	} nodes[NODES];
	struct hint_lab_call {
		struct link_call c;
		char address[32], target[64];
	} calls[CALLS]; /* on their way */
	uint32_t n_calls;
	uint64_t n_ids, opens;
	bool handed; /* hints that nobody else took come later than others */
	uint8_t node_of[IDS], samples_of[IDS];
	uint64_t added, sent_bytes, largest;
	int64_t since_ms;
	double dropped0[16], delivered0;
	struct {
		uint32_t n;
		char address[32];
		int64_t from_ms, to_ms;
	} overflow; /* as it was told last */
};
extern struct hint_lab hint_lab;

void hint_lab_begin(uint64_t seed, bool stores); /* then hint_lab.cfg may be changed, and */
void hint_lab_open(void);
void hint_lab_restart(void); /* what is on its way is answered before */
void hint_lab_end(void);

uint32_t hint_lab_below(uint32_t n);
/* Time goes by, and then one round. */
void hint_lab_pass(int64_t ms);
/* n series of a write that node `to` missed, with so many bytes of noise each; holders by number, `other` -1: none further. */
void hint_lab_miss(int to, uint32_t n, size_t noise, int holder, int other);
void hint_lab_resolve(uint32_t call);
void hint_lab_resolve_all(void);
/* All nodes are well, until nothing is pending. */
void hint_lab_drain(void);

uint64_t hint_lab_pending(void);	    /* bytes */
uint64_t hint_lab_undelivered(void);	    /* samples that neither came, nor were refused, nor are held by another */
uint64_t hint_lab_held(void);		    /* samples that others hold hints of */
uint64_t hint_lab_dropped(const char *why); /* as the metric has it since the lab began */
uint64_t hint_lab_dropped_all(bool refused);
uint64_t hint_lab_delivered(void);
