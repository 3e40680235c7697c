/* What loads of the benchmark have in common: they are told what to do line by
 * line (../fixtures/command.h) and measure themselves, by the CPU time that the
 * kernel charges them, traps of probes included.
 *
 * Commands that every load knows:
 *   round N   makes N pairs of malloc and free; says the CPU time, ns
 *   cpu       says the CPU time since it was started, ns
 *   watch N   says `watching`, makes pairs until they take less than N ns each
 *             again and again; says when that began, CLOCK_MONOTONIC ns */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../fixtures/command.h"

/* Pairs between two looks at the clock while watching: about 5 us untraced. */
#define WATCH_BATCH 200
/* So many batches in a row must be fast: no probe is in any more. */
#define WATCH_RUN 3
/* Nothing is traced for longer after the signal. */
#define WATCH_PATIENCE_NS 20000000000u

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t process_cpu_ns(void)
{
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* The number after `name` in a command, or 0 when it is another command. */
static inline uint64_t number_of(const char *command, const char *name)
{
    size_t length = strlen(name);
    if (strncmp(command, name, length) || command[length] != ' ')
        return 0;
    return strtoull(command + length + 1, NULL, 10);
}

/* The state of `watch`. A batch that is slowed down by anything else than
 * probes only makes the result later; while a probe is in, none is fast. */
struct watch {
    uint64_t limit_ns, started, batch_at, batch_cpu, since;
    int run;
};

static inline struct watch watch_start(uint64_t limit_ns)
{
    struct watch watch = {.limit_ns = limit_ns, .started = clock_ns(CLOCK_MONOTONIC)};
    say("watching");
    return watch;
}

static inline void watch_batch_begins(struct watch *watch)
{
    watch->batch_at = clock_ns(CLOCK_MONOTONIC);
    watch->batch_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* Whether the watch is over, and said so. */
static inline int watch_batch_ends(struct watch *watch)
{
    uint64_t took = clock_ns(CLOCK_THREAD_CPUTIME_ID) - watch->batch_cpu;
    if (took >= watch->limit_ns * WATCH_BATCH) {
        watch->run = 0;
        if (watch->batch_at - watch->started > WATCH_PATIENCE_NS) {
            say("slow for ever");
            return 1;
        }
        return 0;
    }
    if (!watch->run++)
        watch->since = watch->batch_at;
    if (watch->run < WATCH_RUN)
        return 0;
    say_number(watch->since);
    return 1;
}
