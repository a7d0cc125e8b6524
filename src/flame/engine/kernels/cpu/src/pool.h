// A few threads that wait for work, spin for a moment and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "vec.h"

namespace flame {

INLINE void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until `ready()`; gives the core away when that takes long, because there may be more threads than cores.
template <class Ready>
INLINE void spin_until(Ready&& ready) {
    for (int turn = 0; !ready(); ++turn) {
        if (turn < 1000)
            pause();
        else
            std::this_thread::yield();
    }
}

// Numbers below 2^-126 are taken as zero while this lives: they change no score and cost a hundred cycles each.
class FlushDenormals {
public:
    FlushDenormals() {
#if defined(__x86_64__)
        kept_ = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(kept_ | 0x8040);
#elif defined(__aarch64__)
        asm volatile("mrs %0, fpcr" : "=r"(kept_));
        asm volatile("msr fpcr, %0" : : "r"(kept_ | (1ul << 24)));
#endif
    }
    ~FlushDenormals() {
#if defined(__x86_64__)
        __builtin_ia32_ldmxcsr(kept_);
#elif defined(__aarch64__)
        asm volatile("msr fpcr, %0" : : "r"(kept_));
#endif
    }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
#if defined(__x86_64__)
    unsigned kept_;
#else
    unsigned long kept_;
#endif
};

// Runs one job at a time on `threads` threads, the caller being thread 0. Used by one caller at a time.
class Pool {
public:
    using Job = void (*)(void* context, int thread);

    explicit Pool(int threads) : threads_(threads) {
        for (int thread = 1; thread < threads; ++thread) helpers_.emplace_back([this, thread] { serve(thread); });
    }

    ~Pool() {
        post(nullptr, nullptr);
        for (std::thread& helper : helpers_) helper.join();
    }

    int threads() const { return threads_; }

    void run(Job job, void* context) {
        post(job, context);
        {
            FlushDenormals flush;
            job(context, 0);
        }
        spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
    }

private:
    static constexpr int SPINS = 1000;

    void post(Job job, void* context) {
        job_ = job;
        context_ = context;
        busy_.store(threads_ - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
    }

    void serve(int thread) {
        FlushDenormals flush;
        for (unsigned seen = 0;;) {
            for (int turn = 0; turn < SPINS && round_.load(std::memory_order_acquire) == seen; ++turn) pause();
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
            }
            ++seen;
            if (job_ == nullptr) return;
            job_(context_, thread);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    const int threads_;
    Job job_ = nullptr;
    void* context_ = nullptr;
    std::atomic<int> busy_{0};
    std::atomic<unsigned> round_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> helpers_;
};

}  // namespace flame
