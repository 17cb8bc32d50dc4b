/* net/net_worker.c - the worker pool: requests that read blocks or wait run here, so that a slow query never holds a network thread.
 *
 * The queue is bounded: a request that would wait behind more than `queue` others is refused at once (503), because its client gives up before it
 * would be served.
 */
#include <stdlib.h>
#include "net/net_int.h"

struct net_worker_pool {
	pthread_mutex_t mu;
	pthread_cond_t filled;
	struct http_request *first, **last;
	uint32_t n_waiting, max_waiting, n_busy;
	uint32_t n_threads;
	bool closing;
	pthread_t threads[];
};

static _Thread_local struct http_request *current;

void worker_answered(struct http_request *r)
{
	if (current == r)
		current = NULL;
}

static void *worker_main(void *arg)
{
	struct net_worker_pool *p = arg;
	pthread_mutex_lock(&p->mu);
	for (;;) {
		while (!p->first && !p->closing)
			pthread_cond_wait(&p->filled, &p->mu);
		struct http_request *r = p->first;
		if (!r)
			break;
		p->first = r->queue_next;
		if (!p->first)
			p->last = &p->first;
		p->n_waiting--;
		p->n_busy++;
		pthread_mutex_unlock(&p->mu);

		char id[sizeof r->id];
		memcpy(id, r->id, sizeof id);
		log_thread_request(id);
		current = r;
		const struct http_route *route = &r->route->r;
		if (r->server->stopping)
			http_error(r, ERRID_SHUTTING_DOWN, "the server is stopping");
		else
			route->handler(route->arg, r);
		ASSERT(current == NULL); /* a worker's handler answers before it returns */
		log_thread_request(NULL);

		pthread_mutex_lock(&p->mu);
		p->n_busy--;
	}
	pthread_mutex_unlock(&p->mu);
	return NULL;
}

bool worker_pool_put(struct net_worker_pool *p, struct http_request *r)
{
	bool ok = false;
	r->queue_next = NULL;
	pthread_mutex_lock(&p->mu);
	/* a free worker takes it even when nothing may wait */
	if (!p->closing && p->n_busy + p->n_waiting < p->n_threads + p->max_waiting) {
		*p->last = r;
		p->last = &r->queue_next;
		p->n_waiting++;
		pthread_cond_signal(&p->filled);
		ok = true;
	}
	pthread_mutex_unlock(&p->mu);
	return ok;
}

void worker_pool_close(struct net_worker_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->mu);
	p->closing = true;
	pthread_cond_broadcast(&p->filled);
	pthread_mutex_unlock(&p->mu);
	for (uint32_t i = 0; i < p->n_threads; i++)
		pthread_join(p->threads[i], NULL);
	pthread_cond_destroy(&p->filled);
	pthread_mutex_destroy(&p->mu);
	free(p);
}

errc worker_pool_open(uint32_t workers, uint32_t queue, struct net_worker_pool **out, struct err *err)
{
	errc rc = OK;
	struct net_worker_pool *p = calloc(1, sizeof *p + workers * sizeof p->threads[0]);
	if (!p)
		return err_set(err, ERR_NOMEM, "no memory for %u workers", workers);
	pthread_mutex_init(&p->mu, NULL);
	pthread_cond_init(&p->filled, NULL);
	p->last = &p->first;
	p->max_waiting = queue;
	for (uint32_t i = 0; i < workers; i++) {
		int e = pthread_create(&p->threads[i], NULL, worker_main, p);
		CHECK(e == 0, ERR_AGAIN, "cannot start worker %u of %u: %s", i + 1, workers, strerror(e));
		p->n_threads++;
	}
	*out = p;
	return OK;
fail:
	worker_pool_close(p);
	return rc;
}
