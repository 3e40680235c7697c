/* A load that does nothing but malloc and free, called through four frames:
 * main, outer, middle, inner.
 *
 *   tight [FRAMES [changing]]
 *
 * With more FRAMES, at least six, a recursion through frames of several sizes
 * is between main and outer. With `changing`, each pair has another stack than
 * the one before, as long and at the same place: who remembers the last one
 * does not meet it again.
 *
 * Besides the commands of load.h:
 *   idle N      N pairs, one each millisecond; says the CPU time, ns
 *   failing N   as `round`, of pairs whose malloc fails: there is a stack to be
 *               looked at, and no block to be recorded */
#include "load.h"

static __attribute__((noipa)) void inner(size_t size)
{
    void *volatile block = malloc(size);
    free(block);
}

static __attribute__((noipa)) void middle(size_t size)
{
    inner(size + 16);
    __asm__ volatile("");
}

static __attribute__((noipa)) void outer(size_t size)
{
    middle(size + 16);
    __asm__ volatile("");
}

/* What outer is called with: it asks for 32 bytes more. */
static size_t size = 32;

#define FRAME(name, next, room_bytes) \
    static __attribute__((noipa)) void name(unsigned left) \
    { \
        char room[room_bytes]; \
        __asm__ volatile("" : : "r"(room) : "memory"); \
        if (left) \
            next(left - 1); \
        else \
            outer(size); \
        __asm__ volatile(""); \
    }

static void small_frame(unsigned left);
FRAME(large_frame, small_frame, 56)
FRAME(middling_frame, large_frame, 24)
FRAME(small_frame, middling_frame, 8)

/* main, this one, outer, middle, inner. */
#define FRAMES_BESIDES_RECURSION 5

/* Frames of the recursion, or 0 without. */
static unsigned recursion;
static int is_changing;

static __attribute__((noipa)) void through_recursion(uint64_t pair)
{
    /* Two calls, so two return addresses; else compilers make them one. */
    if (is_changing && pair & 1) {
        small_frame(recursion - 1);
        __asm__ volatile("# one");
    } else {
        small_frame(recursion - 1);
        __asm__ volatile("# other");
    }
}

static inline void make_pair(uint64_t pair)
{
    if (recursion)
        through_recursion(pair);
    else
        outer(size);
}

static void sleep_until(uint64_t at_ns)
{
    struct timespec at = {(time_t)(at_ns / 1000000000u), (long)(at_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
        ;
}

int main(int count, char **arguments)
{
    unsigned frames = count > 1 ? (unsigned)atoi(arguments[1]) : 0;
    if (frames > FRAMES_BESIDES_RECURSION)
        recursion = frames - FRAMES_BESIDES_RECURSION;
    is_changing = count > 2 && !strcmp(arguments[2], "changing");
    for (int pair = 0; pair < 1000000; pair++)
        make_pair((uint64_t)pair);
    say("ready");
    const char *command;
    while ((command = next_command())) {
        uint64_t number, start = process_cpu_ns();
        if ((number = number_of(command, "round"))) {
            for (uint64_t pair = 0; pair < number; pair++)
                make_pair(pair);
            say_number(process_cpu_ns() - start);
        } else if ((number = number_of(command, "failing"))) {
            size = SIZE_MAX / 2;
            for (uint64_t pair = 0; pair < number; pair++)
                make_pair(pair);
            size = 32;
            say_number(process_cpu_ns() - start);
        } else if ((number = number_of(command, "idle"))) {
            uint64_t next = clock_ns(CLOCK_MONOTONIC);
            for (uint64_t pair = 0; pair < number; pair++) {
                make_pair(pair);
                sleep_until(next += 1000000);
            }
            say_number(process_cpu_ns() - start);
        } else if (!strcmp(command, "cpu")) {
            say_number(process_cpu_ns());
        } else if ((number = number_of(command, "watch"))) {
            struct watch watch = watch_start(number);
            do {
                watch_batch_begins(&watch);
                for (uint64_t pair = 0; pair < WATCH_BATCH; pair++)
                    make_pair(pair);
            } while (!watch_batch_ends(&watch));
        } else {
            say("unknown command");
        }
    }
    _exit(0);
}
