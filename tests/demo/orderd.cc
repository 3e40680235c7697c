// orderd: a small order service that leaks, for `cargo xtask demo`.
//
// What it holds, and why:
//   Session::create      never closed when a client goes away in the middle: the leak
//   Metrics::label       kept for ever for regions that nobody configured: a small leak
//   TemplateCache::load  64 pages, the oldest thrown out for a new one: no leak
//   Order::parse         allocated and freed thousands of times a second: churn
//
// Objects with a payload behind them come from malloc, as in many services;
// built with frame pointers, so that stacks reach the code that asked.

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <pthread.h>
#include <thread>
#include <unistd.h>

// As if each were in a file of its own: a frame for each.
#define FRAME [[gnu::noipa]]

std::atomic<bool> stopping{false};

struct Session {
    Session *next;
    std::uint64_t user;
    std::size_t capacity;
    // `capacity` bytes of the client's state follow.

    FRAME static Session *create(std::uint64_t user, std::size_t capacity) {
        void *memory = std::malloc(sizeof(Session) + capacity);
        if (memory == nullptr) return nullptr;
        std::memset(memory, 0, sizeof(Session) + capacity);
        return new (memory) Session{nullptr, user, capacity};
    }

    static void close(Session *session) { std::free(session); }
};

struct SessionTable {
    std::mutex mutex;
    Session *open = nullptr;

    void add(Session *session) {
        std::lock_guard<std::mutex> lock(mutex);
        session->next = open;
        open = session;
    }
} sessions;

struct Login {
    FRAME static void handle(std::uint64_t user);
};

void Login::handle(std::uint64_t user) {
    Session *session = Session::create(user, 12 * 1024);
    if (session == nullptr) return;
    // A client that goes away here is never seen again, nor is its session.
    if (user % 3 == 0) {
        sessions.add(session);
        return;
    }
    Session::close(session);
}

struct Template {
    unsigned name;
    // The compiled page follows.
};

struct TemplateCache {
    static constexpr unsigned capacity = 64;
    Template *entries[capacity] = {};
    unsigned oldest = 0;

    FRAME Template *load(unsigned name) {
        constexpr std::size_t size = 16 * 1024;
        void *memory = std::malloc(size);
        if (memory == nullptr) return nullptr;
        std::memset(memory, 0, size);
        return new (memory) Template{name};
    }

    FRAME Template *find(unsigned name) {
        for (Template *entry : entries)
            if (entry != nullptr && entry->name == name) return entry;
        Template *&slot = entries[oldest++ % capacity];
        std::free(slot);
        return slot = load(name);
    }
};

struct Metrics {
    FRAME static char *label(unsigned region) {
        constexpr std::size_t size = 48;
        char *text = static_cast<char *>(std::malloc(size));
        if (text != nullptr) std::snprintf(text, size, "orders_total{region=\"%u\"}", region);
        return text;
    }
};

struct Order {
    std::uint64_t id;
    std::uint32_t lines;

    FRAME static Order *parse(std::uint64_t id, std::uint32_t lines) {
        void *memory = std::malloc(sizeof(Order) + 24u * lines);
        return memory == nullptr ? nullptr : new (memory) Order{id, lines};
    }

    // What the service is there for: its work besides allocating.
    std::uint64_t price() const {
        std::uint64_t sum = id;
        for (std::uint32_t step = 0; step < 30'000; ++step) sum = sum * 31 + step % (lines + 1);
        return sum;
    }
};

std::atomic<std::uint64_t> revenue{0};

FRAME void take_order(std::uint64_t id) {
    Order *order = Order::parse(id, 1 + id % 12);
    if (order == nullptr) return;
    revenue += order->price();
    std::free(order);
}

void pause_for(std::chrono::microseconds time) { std::this_thread::sleep_for(time); }

FRAME void *serve_logins(void *) {
    for (std::uint64_t user = 1; !stopping; ++user) {
        Login::handle(user);
        pause_for(std::chrono::milliseconds(6));
    }
    return nullptr;
}

FRAME void *render_pages(void *) {
    TemplateCache cache;
    for (unsigned page = 0; !stopping; ++page) {
        cache.find(page % 300);
        pause_for(std::chrono::milliseconds(10));
    }
    return nullptr;
}

FRAME void *take_orders(void *argument) {
    const std::uint64_t worker = *static_cast<unsigned *>(argument);
    for (std::uint64_t id = worker; !stopping; id += 2) {
        for (int batch = 0; batch < 20; ++batch) take_order(id + batch);
        // The label is only found again for regions that are configured.
        if (id % 64 == worker) Metrics::label(static_cast<unsigned>(id));
        pause_for(std::chrono::milliseconds(4));
    }
    return nullptr;
}

int main() {
    std::signal(SIGTERM, [](int) { stopping = true; });
    // Nobody has to remember to stop a demonstration.
    alarm(300);
    std::printf("orderd: serving as %d\n", static_cast<int>(getpid()));
    std::fflush(stdout);

    unsigned workers[] = {0, 1};
    pthread_t threads[4];
    pthread_create(&threads[0], nullptr, serve_logins, nullptr);
    pthread_create(&threads[1], nullptr, render_pages, nullptr);
    pthread_create(&threads[2], nullptr, take_orders, &workers[0]);
    pthread_create(&threads[3], nullptr, take_orders, &workers[1]);
    for (pthread_t thread : threads) pthread_join(thread, nullptr);
    return 0;
}
