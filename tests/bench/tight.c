/* A load that does nothing but malloc and free, called through four frames:
 * main, outer, middle, inner.
 *
 *   tight
 *
 * Besides the commands of load.h: `idle N`: N pairs, one each millisecond; says
 * the CPU time, ns. */
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

static void sleep_until(uint64_t at_ns)
{
    struct timespec at = {(time_t)(at_ns / 1000000000u), (long)(at_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
        ;
}

int main(void)
{
    for (int pair = 0; pair < 1000000; pair++)
        outer(32);
    say("ready");
    const char *command;
    while ((command = next_command())) {
        uint64_t number, start = process_cpu_ns();
        if ((number = number_of(command, "round"))) {
            for (uint64_t pair = 0; pair < number; pair++)
                outer(32);
            say_number(process_cpu_ns() - start);
        } else if ((number = number_of(command, "idle"))) {
            uint64_t next = clock_ns(CLOCK_MONOTONIC);
            for (uint64_t pair = 0; pair < number; pair++) {
                outer(32);
                sleep_until(next += 1000000);
            }
            say_number(process_cpu_ns() - start);
        } else if (!strcmp(command, "cpu")) {
            say_number(process_cpu_ns());
        } else if ((number = number_of(command, "watch"))) {
            struct watch watch = watch_start(number);
            do {
                watch_batch_begins(&watch);
                for (int pair = 0; pair < WATCH_BATCH; pair++)
                    outer(32);
            } while (!watch_batch_ends(&watch));
        } else {
            say("unknown command");
        }
    }
    _exit(0);
}
