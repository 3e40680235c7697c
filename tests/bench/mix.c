/* A load like a service's: blocks of many sizes from 500 sites, each with a
 * stack of its own, 3 to 10 frames deep; half of the blocks are short-lived, the
 * others live for long and are freed in random order.
 *
 *   mix THREADS BLOCKS
 *
 * THREADS share the work and hold BLOCKS between them. Besides the commands of
 * load.h: `fill N`: each thread goes on to hold its share of N blocks instead,
 * small ones; says `done`. */
#include <pthread.h>

#include "load.h"

struct thread {
    pthread_t id;
    uint64_t random, pairs;
    void **slots;
    size_t slot_count;
    int filling;
};

static size_t thread_count;
static struct thread *threads;
static pthread_barrier_t start_line, finish_line;

static uint64_t next_random(struct thread *thread)
{
    uint64_t x = thread->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return thread->random = x;
}

/* One site: a function of its own that calls malloc. */
#define SITE(NUMBER)                                                           \
    static __attribute__((noinline)) void *site_##NUMBER(size_t size)          \
    {                                                                          \
        void *block = malloc(size);                                            \
        __asm__ volatile("" : "+r"(block));                                    \
        return block;                                                          \
    }
#define NAME(NUMBER) site_##NUMBER,
#define TEN(M, T) M(T##0) M(T##1) M(T##2) M(T##3) M(T##4) M(T##5) M(T##6) M(T##7) M(T##8) M(T##9)
#define HUNDRED(M, H) TEN(M, H##0) TEN(M, H##1) TEN(M, H##2) TEN(M, H##3) TEN(M, H##4) \
                      TEN(M, H##5) TEN(M, H##6) TEN(M, H##7) TEN(M, H##8) TEN(M, H##9)
#define SITES(M) HUNDRED(M, 0) HUNDRED(M, 1) HUNDRED(M, 2) HUNDRED(M, 3) HUNDRED(M, 4)

SITES(SITE)
static void *(*const sites[500])(size_t) = {SITES(NAME)};

/* The layers between a thread's loop and a site. */
static __attribute__((noinline)) void *through(size_t layers, size_t site, size_t size)
{
    void *block = layers ? through(layers - 1, site, size) : sites[site](size);
    __asm__ volatile("" : "+r"(block));
    return block;
}

static void *allocate(struct thread *thread)
{
    uint64_t kind = next_random(thread) % 100, size = next_random(thread);
    size_t site = next_random(thread) % 500;
    if (thread->filling || kind < 70)
        size = 16 + size % (thread->filling ? 48 : 112);
    else if (kind < 97)
        size = 128 + size % 1920;
    else
        size = 2048 + size % 14336;
    return through(site % 8, site, size);
}

static void pair(struct thread *thread)
{
    /* Every second block dies young. */
    uint64_t kind = next_random(thread), index = next_random(thread);
    void **slot = &thread->slots[index % (kind & 1 ? thread->slot_count : thread->slot_count / 64)];
    free(*slot);
    *slot = allocate(thread);
    *(volatile char *)*slot = 1;
}

static void *work(void *argument)
{
    struct thread *thread = argument;
    for (;;) {
        pthread_barrier_wait(&start_line);
        for (uint64_t count = thread->pairs; count; count--)
            pair(thread);
        pthread_barrier_wait(&finish_line);
    }
    return NULL;
}

/* Lets every thread make its share; returns the CPU time of all, ns. */
static uint64_t make_pairs(uint64_t pairs)
{
    for (size_t index = 0; index < thread_count; index++)
        threads[index].pairs = pairs / thread_count;
    uint64_t start = process_cpu_ns();
    pthread_barrier_wait(&start_line);
    pthread_barrier_wait(&finish_line);
    return process_cpu_ns() - start;
}

/* Threads stand at the start line: this one may use their slots. */
static void hold(struct thread *thread, size_t blocks)
{
    for (size_t index = 0; index < thread->slot_count; index++)
        free(thread->slots[index]);
    free(thread->slots);
    thread->slot_count = blocks;
    thread->slots = malloc(blocks * sizeof *thread->slots);
    if (!thread->slots)
        _exit(3);
    for (size_t index = 0; index < blocks; index++)
        thread->slots[index] = allocate(thread);
}

int main(int count, char **arguments)
{
    if (count < 3)
        return 2;
    thread_count = strtoul(arguments[1], NULL, 10);
    size_t blocks = strtoul(arguments[2], NULL, 10);
    if (!thread_count || blocks / thread_count < 64)
        return 2;
    pthread_barrier_init(&start_line, NULL, (unsigned)thread_count + 1);
    pthread_barrier_init(&finish_line, NULL, (unsigned)thread_count + 1);
    threads = calloc(thread_count, sizeof *threads);
    if (!threads)
        return 3;
    for (size_t index = 0; index < thread_count; index++) {
        struct thread *thread = &threads[index];
        thread->random = 0x9e3779b97f4a7c15u * (index + 1);
        hold(thread, blocks / thread_count);
        pthread_create(&thread->id, NULL, work, thread);
    }
    make_pairs(500000);
    say("ready");
    const char *command;
    while ((command = next_command())) {
        uint64_t number;
        if ((number = number_of(command, "round"))) {
            say_number(make_pairs(number));
        } else if ((number = number_of(command, "fill"))) {
            for (size_t index = 0; index < thread_count; index++) {
                threads[index].filling = 1;
                hold(&threads[index], number / thread_count);
            }
            say("done");
        } else if (!strcmp(command, "cpu")) {
            say_number(process_cpu_ns());
        } else if ((number = number_of(command, "watch"))) {
            struct watch watch = watch_start(number);
            do {
                watch_batch_begins(&watch);
                for (int count = 0; count < WATCH_BATCH; count++)
                    pair(&threads[0]);
            } while (!watch_batch_ends(&watch));
        } else {
            say("unknown command");
        }
    }
    _exit(0);
}
