/* base/config.h - flags and YAML files: unknown words are start-up errors that say what was probably meant.
 *
 * Flags are declared in one table per program (cmd/). --help shows those marked common, on one
 * or two screens, with default and unit; --help-all shows all. Durations are Prometheus' ("90s", "2h", "1h30m", "15d"), sizes
 * are "512MiB", "8GiB", "100MB", or bytes.
 */
#pragma once
#include "base/arena.h"
#include "base/err.h"

enum flag_kind { FLAG_STRING, FLAG_BOOL, FLAG_U64, FLAG_SIZE, FLAG_DURATION_MS, FLAG_CHOICE, FLAG_LIST };

struct flag_list {
	const char **v;
	size_t n;
};

/* One flag. `into` points at: const char * (STRING, CHOICE), bool, uint64_t (U64, SIZE), int64_t (DURATION_MS), struct flag_list
 * (LIST: may be repeated). */
struct flag {
	const char *name; /* without the dashes: "wal.sync" */
	enum flag_kind kind;
	void *into;
	const char *fallback;	/* default, as one would type it, shown in the help; NULL = none: a NULL string, 0, false, no items */
	const char *value_name; /* "PATH", "DURATION", or the choices "ack|interval|os" for FLAG_CHOICE */
	const char *help;	/* one or two lines, says the unit */
	bool common;		/* in --help, else in --help-all only */
	bool set;		/* out: given on the command line */
};

struct flag_program {
	const char *usage; /* "varve [FLAGS]" */
	const char *about; /* a paragraph above the flags */
	struct flag *flags;
	size_t n_flags;
	bool positionals; /* words without dashes are allowed and land in args */
};

enum flags_action { FLAGS_RUN, FLAGS_EXIT_OK };

/* Sets defaults, then parses. --help, --help-all and --version print and give FLAGS_EXIT_OK. ERR_INVALID: one sentence in err
 * that names the flag, what is wrong, and "did you mean --x?" when an edit distance says so. Strings live in `arena` or argv.
 * Beginnings of a flag's name are not the flag; a flag given twice is an error unless it is a LIST. */
CHECKED errc flags_parse(
	struct flag_program *p, int argc, char **argv, struct arena *arena, struct flag_list *args, enum flags_action *action, struct err *err);

extern const char varve_version[]; /* "0.1.0" */

CHECKED errc parse_duration_ms(struct span s, int64_t *out, struct err *err);
CHECKED errc parse_size(struct span s, uint64_t *out, struct err *err);
/* "2h", "1h30m", "15m"; buf of at least 32 bytes; returns buf. */
char *format_duration_ms(int64_t ms, char *buf, size_t n);
/* "1.5 GiB"; returns buf. */
char *format_size(uint64_t bytes, char *buf, size_t n);

/* The nearest of n words within edit distance 1/3 of the length, or NULL. */
const char *did_you_mean(const char *word, const char *const *words, size_t n);

/* Replaces ${NAME} and ${NAME:-default} from the environment; $$ is a dollar. An unset name without default is ERR_INVALID. */
CHECKED errc config_expand_env(struct span in, struct arena *arena, struct span *out, struct err *err);

/* A parsed YAML file as a tree: what libyaml gives, with line numbers, one document only (a second one is an error, duplicate
 * keys too, no anchors or tags). All memory in the arena. */
struct yaml {
	enum { YAML_SCALAR, YAML_MAP, YAML_LIST } kind;
	struct span scalar; /* NUL-terminated as well */
	bool quoted;
	int line;
	size_t n;
	struct yaml_pair {
		struct span key;
		struct yaml *value;
	} * pairs;	     /* MAP */
	struct yaml **items; /* LIST */
};

/* Parses, then expands ${ENV} inside the values (config_expand_env), so that a password can't become structure. `name` is for
 * messages. An empty document gives an empty map. In a flow map ({a: b}) a value with ${ENV} must be quoted. */
CHECKED errc yaml_parse(const char *name, struct span text, struct arena *arena, struct yaml **out, struct err *err);
struct yaml *yaml_get(const struct yaml *map, const char *key); /* NULL: absent, or nothing, ~ or null behind the colon */
/* ERR_INVALID with line and did-you-mean when the map has a key that is not in the list. `where` is "config", "http_config" ... */
CHECKED errc yaml_only(const char *name, const struct yaml *map, const char *where, const char *const *keys, size_t n, struct err *err);
/* Typed access; absent leaves *out untouched. The message names file, line and key. */
CHECKED errc yaml_string(const char *name, const struct yaml *map, const char *key, const char **out, struct err *err);
CHECKED errc yaml_bool(const char *name, const struct yaml *map, const char *key, bool *out, struct err *err);
CHECKED errc yaml_size(const char *name, const struct yaml *map, const char *key, uint64_t *out, struct err *err);
CHECKED errc yaml_duration_ms(const char *name, const struct yaml *map, const char *key, int64_t *out, struct err *err);
