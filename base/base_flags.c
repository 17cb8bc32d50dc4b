/* base/base_flags.c - the command line, from one table.
 *
 *     --name=value   --name value   --switch   --switch=false   --no-switch   -- (nothing but words behind it)
 *
 * Own parser, because argp and getopt_long take any unambiguous beginning of a long option for the option itself ("--wal.s ack"
 * works until a release adds --wal.size) and print their own messages instead of giving one. Here an unknown flag is an error
 * with a suggestion, and a flag given twice is an error too: of two values for one thing, one is a mistake.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/bytes.h"
#include "base/config.h"

enum {
	FLAG_NAME_MAX = 64,
	HELP_COLUMN = 36, /* where the explanation starts */
	HELP_WIDTH = 110, /* and the line ends */
};

#ifndef VARVE_VERSION
#define VARVE_VERSION "unknown"
#endif
const char varve_version[] = VARVE_VERSION;

/* ---- values ---- */

static errc set_choice(struct flag *f, const char *value, struct err *err)
{
	const char *at = f->value_name;
	size_t n = strlen(value);
	while (at) {
		const char *bar = strchr(at, '|');
		size_t len = bar ? (size_t)(bar - at) : strlen(at);
		if (n > 0 && len == n && memcmp(at, value, n) == 0) {
			*(const char **)f->into = value;
			return OK;
		}
		at = bar ? bar + 1 : NULL;
	}
	return err_set(err, ERR_INVALID, "\"%s\" is not one of %s", value, f->value_name);
}

static errc set_bool(struct flag *f, const char *value, struct err *err)
{
	if (strcmp(value, "true") == 0)
		*(bool *)f->into = true;
	else if (strcmp(value, "false") == 0)
		*(bool *)f->into = false;
	else
		return err_set(err, ERR_INVALID, "\"%s\" is neither true nor false", value);
	return OK;
}

static errc set_u64(struct flag *f, const char *value, struct err *err)
{
	uint64_t x = 0;
	bool good = *value != 0;
	for (const char *s = value; *s && good; s++)
		good = *s >= '0' && *s <= '9' && !__builtin_mul_overflow(x, 10u, &x) && !__builtin_add_overflow(x, (uint64_t)(*s - '0'), &x);
	if (!good)
		return err_set(err, ERR_INVALID, "\"%s\" is not a whole number of at least 0", value);
	*(uint64_t *)f->into = x;
	return OK;
}

static errc list_add(struct flag_list *l, const char *value, struct arena *arena, struct err *err)
{
	/* Capacity is the next power of two: growing when n reaches one needs no field for it. */
	if ((l->n & (l->n - 1)) == 0) {
		const char **v = arena_alloc(arena, (l->n ? l->n * 2 : 1) * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for %zu values", l->n + 1);
		if (l->n)
			memcpy(v, l->v, l->n * sizeof *v);
		l->v = v;
	}
	l->v[l->n++] = value;
	return OK;
}

static errc flag_assign(struct flag *f, const char *value, struct arena *arena, struct err *err)
{
	switch (f->kind) {
	case FLAG_STRING:
		*(const char **)f->into = value;
		return OK;
	case FLAG_CHOICE:
		return set_choice(f, value, err);
	case FLAG_BOOL:
		return set_bool(f, value, err);
	case FLAG_U64:
		return set_u64(f, value, err);
	case FLAG_SIZE:
		return parse_size(span_cstr(value), f->into, err);
	case FLAG_DURATION_MS:
		return parse_duration_ms(span_cstr(value), f->into, err);
	case FLAG_LIST:
		return list_add(f->into, value, arena, err);
	}
	return err_set(err, ERR_INVALID, "no such kind of flag");
}

static void flag_clear(struct flag *f)
{
	f->set = false;
	switch (f->kind) {
	case FLAG_STRING:
	case FLAG_CHOICE:
		*(const char **)f->into = NULL;
		return;
	case FLAG_BOOL:
		*(bool *)f->into = false;
		return;
	case FLAG_U64:
	case FLAG_SIZE:
		*(uint64_t *)f->into = 0;
		return;
	case FLAG_DURATION_MS:
		*(int64_t *)f->into = 0;
		return;
	case FLAG_LIST:
		*(struct flag_list *)f->into = (struct flag_list){0};
		return;
	}
}

static errc set_defaults(struct flag_program *p, struct arena *arena, struct err *err)
{
	for (size_t i = 0; i < p->n_flags; i++) {
		struct flag *f = &p->flags[i];
		flag_clear(f);
		if (!f->fallback)
			continue;
		errc rc = flag_assign(f, f->fallback, arena, err);
		if (rc) {
			err_wrap(err, "default of --%s", f->name);
			return rc;
		}
	}
	return OK;
}

/* ---- words of the command line ---- */

static struct flag *flag_find(struct flag_program *p, const char *name)
{
	for (size_t i = 0; i < p->n_flags; i++)
		if (strcmp(p->flags[i].name, name) == 0)
			return &p->flags[i];
	return NULL;
}

/* The nearest flag by spelling, else the only one that begins with the word or ends in ".word" ("--sync" for "--wal.sync"). */
static const char *flag_suggest(struct flag_program *p, const char *word)
{
	static const char *const own[] = {"help", "help-all", "version"};
	size_t n_own = sizeof own / sizeof *own, n = p->n_flags + n_own;
	const char **names = calloc(n, sizeof *names);
	if (!names)
		return NULL;
	memcpy(names, own, sizeof own);
	for (size_t i = 0; i < p->n_flags; i++)
		names[n_own + i] = p->flags[i].name;
	const char *found = did_you_mean(word, names, n);
	if (!found) {
		size_t hits = 0;
		for (size_t i = 0; i < n; i++) {
			const char *dot = strchr(names[i], '.');
			bool begins = strlen(word) > 2 && strncmp(names[i], word, strlen(word)) == 0;
			if ((begins || (dot && strcmp(dot + 1, word) == 0)) && hits++ == 0)
				found = names[i];
		}
		if (hits != 1)
			found = NULL;
	}
	free(names);
	return found;
}

static errc unknown_flag(struct flag_program *p, const char *word, struct err *err)
{
	const char *name = word;
	while (*name == '-')
		name++;
	char bare[FLAG_NAME_MAX];
	snprintf(bare, sizeof bare, "%.*s", (int)strcspn(name, "="), name);
	const char *near = *bare ? flag_suggest(p, bare) : NULL;
	if (near)
		return err_set(err, ERR_INVALID, "unknown flag %.*s, did you mean --%s?", (int)strcspn(word, "="), word, near);
	return err_set(err, ERR_INVALID, "unknown flag %.*s, see --help-all", (int)strcspn(word, "="), word);
}

static errc parse_flag(struct flag_program *p, int argc, char **argv, int *at, struct arena *arena, struct err *err)
{
	const char *word = argv[*at];
	char name[FLAG_NAME_MAX];
	size_t n = strcspn(word + 2, "=");
	const char *value = word[2 + n] == '=' ? word + 2 + n + 1 : NULL;
	if (strncmp(word, "--", 2) != 0 || n >= sizeof name)
		return unknown_flag(p, word, err);
	memcpy(name, word + 2, n);
	name[n] = 0;

	struct flag *f = flag_find(p, name);
	if (!f && strncmp(name, "no-", 3) == 0 && !value) {
		f = flag_find(p, name + 3);
		if (f && f->kind != FLAG_BOOL)
			f = NULL;
		value = "false";
	}
	if (!f)
		return unknown_flag(p, word, err);
	if (f->kind == FLAG_BOOL && !value)
		value = "true";
	if (!value) {
		if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0)
			return err_set(err, ERR_INVALID, "--%s needs a value: --%s=%s", f->name, f->name, f->value_name ? f->value_name : "VALUE");
		value = argv[++*at];
	}
	if (f->set && f->kind != FLAG_LIST)
		return err_set(err, ERR_INVALID, "--%s is given twice", f->name);
	if (f->kind == FLAG_LIST && !f->set)
		*(struct flag_list *)f->into = (struct flag_list){0}; /* the first one replaces the default */
	f->set = true;
	errc rc = flag_assign(f, value, arena, err);
	if (rc)
		err_wrap(err, "--%s", f->name);
	return rc;
}

/* ---- help ---- */

/* Words of `text` from column `from`, which is where the cursor already is, to HELP_WIDTH. */
static void print_wrapped(const char *text, int from)
{
	int at = from;
	bool first = true;
	while (*text) {
		text += strspn(text, " ");
		int n = (int)strcspn(text, " \n");
		if (!first && at + 1 + n > HELP_WIDTH) {
			printf("\n%*s", from, "");
			at = from;
			first = true;
		}
		printf("%s%.*s", first ? "" : " ", n, text);
		at += n + !first;
		first = false;
		text += n;
		if (*text == '\n') {
			text++;
			printf("\n%*s", from, "");
			at = from;
			first = true;
		}
	}
	printf("\n");
}

static void print_flag(const struct flag *f)
{
	static const char *const kinds[] = {
		[FLAG_STRING] = "TEXT",
		[FLAG_U64] = "N",
		[FLAG_SIZE] = "SIZE",
		[FLAG_DURATION_MS] = "DURATION",
		[FLAG_CHOICE] = "WORD",
		[FLAG_LIST] = "TEXT",
	};
	char left[160], right[1024];
	if (f->kind == FLAG_BOOL)
		snprintf(left, sizeof left, "  --%s%s", f->fallback && strcmp(f->fallback, "true") == 0 ? "[no-]" : "", f->name);
	else
		snprintf(left, sizeof left, "  --%s=%s%s", f->name, f->value_name ? f->value_name : kinds[f->kind],
			f->kind == FLAG_LIST ? " ..." : "");
	bool shown = f->fallback && *f->fallback && (f->kind != FLAG_BOOL || strcmp(f->fallback, "true") == 0);
	snprintf(right, sizeof right, "%s%s%s%s", f->help ? f->help : "", shown ? " (default " : "", shown ? f->fallback : "", shown ? ")" : "");
	if (strlen(left) + 2 > HELP_COLUMN)
		printf("%s\n%*s", left, HELP_COLUMN, "");
	else
		printf("%-*s", HELP_COLUMN, left);
	print_wrapped(right, HELP_COLUMN);
}

static void print_help(const struct flag_program *p, bool all)
{
	size_t hidden = 0;
	printf("usage: %s\n\n", p->usage);
	if (p->about) {
		print_wrapped(p->about, 0);
		printf("\n");
	}
	for (size_t i = 0; i < p->n_flags; i++) {
		if (all || p->flags[i].common)
			print_flag(&p->flags[i]);
		else
			hidden++;
	}
	struct flag own[] = {
		{.name = "help", .kind = FLAG_BOOL, .help = "Show this."},
		{.name = "help-all", .kind = FLAG_BOOL, .help = "Show every flag."},
		{.name = "version", .kind = FLAG_BOOL, .help = "Show the version."},
	};
	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		print_flag(&own[i]);
	if (hidden)
		printf("\n%zu more, rarely needed: --help-all\n", hidden);
}

errc flags_parse(
	struct flag_program *p, int argc, char **argv, struct arena *arena, struct flag_list *args, enum flags_action *action, struct err *err)
{
	errc rc = OK;
	bool words_only = false;
	*action = FLAGS_RUN;
	if (args)
		*args = (struct flag_list){0};
	TRY(set_defaults(p, arena, err));
	for (int i = 1; i < argc; i++) {
		const char *word = argv[i];
		if (!words_only && strcmp(word, "--") == 0) {
			words_only = true;
		} else if (words_only || word[0] != '-' || word[1] == 0) {
			CHECK(p->positionals, ERR_INVALID, "\"%s\" is not a flag: flags start with --, and values are written --flag=value", word);
			if (args)
				TRY(list_add(args, word, arena, err));
		} else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "--help-all") == 0) {
			print_help(p, strcmp(word, "--help-all") == 0);
			*action = FLAGS_EXIT_OK;
			return OK;
		} else if (strcmp(word, "--version") == 0) {
			printf("varve %s\n", varve_version);
			*action = FLAGS_EXIT_OK;
			return OK;
		} else {
			TRY(parse_flag(p, argc, argv, &i, arena, err));
		}
	}
fail:
	return rc;
}
