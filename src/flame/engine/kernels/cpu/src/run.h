// A launch, from the packed buffer to scores.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "schedule.h"

namespace flame {

enum Mode : int32_t { RANK = 0, ENCODE = 1, SCORE = 2 };

// Memory and threads of one launch at a time, sized for one profile.
template <class Model>
class Workspace {
public:
    using Weights = typename Model::WeightsOf;
    using Scratch = typename Model::ScratchOf;

    Workspace(const Weights* weights, const Shape& shape, int threads)
        : weights_(weights), shape_(shape), pool_(threads), progress_(shape.users * BLOCKS) {
        const int64_t events = vectors(shape.events);
        x_ = allocate<float>(x_floats());
        scratch_ = allocate<Scratch>(threads);
        if (RELATIVE_BIAS) bias_ = allocate<float>(bias_floats());
        for (int user = 0; user < shape.users; ++user) {
            own_.push_back(allocate<char>(State::bytes(events)));
            ((State*)own_.back().get())->tiles = (int32_t)events;
        }
    }

    Status launch(Mode mode, const int32_t* words, int users, float* scores, State* const* states) {
        buffer_ = {words, &shape_};
        scores_ = scores;
        states_.clear();
        for (int user = 0; user < users; ++user)
            states_.push_back(mode == RANK ? (State*)own_[user].get() : states[user]);
        if (const Status status = plan(mode, users); status != OK) return status;
        pool_.run([](void* self, int thread) { ((Workspace*)self)->work(thread); }, this);
        return progress_.wrong_index.load() ? INDEX_OUT_OF_RANGE : OK;
    }

    // Overwrites all working memory with not-a-number: what a launch reads, it must have written.
    void poison() {
        std::memset(x_.get(), 0xff, sizeof(float) * x_floats());
        std::memset(scratch_.get(), 0xff, sizeof(Scratch) * pool_.threads());
        const int64_t bytes = State::bytes(vectors(shape_.events));
        for (auto& state : own_) std::memset(state.get() + State::HEAD, 0xff, bytes - State::HEAD);
        if (RELATIVE_BIAS) std::memset(bias_.get(), 0xff, sizeof(float) * bias_floats());
    }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    template <class T>
    using Memory = std::unique_ptr<T, Free>;

    template <class T>
    static Memory<T> allocate(int64_t count) {
        const size_t bytes = ((size_t)count * sizeof(T) + 127) / 64 * 64;
        void* memory = std::aligned_alloc(64, bytes);
        if (memory == nullptr) throw std::bad_alloc();
        std::memset(memory, 0, bytes);
        return Memory<T>((T*)memory);
    }

    int64_t x_floats() const {
        return (int64_t)shape_.users * BLOCKS * (vectors(shape_.events) + vectors(shape_.candidates)) * LANES * DIM;
    }
    // Events have a bias per row and key, candidates per key and tile; a tile has at least one vector.
    int64_t bias_floats() const {
        const int64_t events = (int64_t)HEADS * shape_.events * vectors(shape_.events) * LANES;
        const int64_t candidates = ((int64_t)HEADS * shape_.events + LANES) * vectors(shape_.candidates);
        return (int64_t)shape_.users * BLOCKS * (events + candidates);
    }

    // Fills in the schedule and the lengths of the states that are encoded.
    Status plan(Mode mode, int users) {
        schedule_.tiles.clear();
        schedule_.history_tiles.assign(users * BLOCKS, 0);
        place_ = bias_place_ = 0;
        for (int user = 0; user < users; ++user) {
            const int32_t* header = buffer_.header(user);
            const int scenario = header[HEADER_SCENARIO], candidates = header[HEADER_CANDIDATES];
            if ((uint32_t)scenario >= (uint32_t)SCENARIOS) return INDEX_OUT_OF_RANGE;
            if (mode != ENCODE && (uint32_t)candidates > (uint32_t)shape_.candidates) return LENGTH_OUT_OF_RANGE;
            if (mode != ENCODE && candidates == 0) continue;
            for (int block = 0; block < BLOCKS; ++block) {
                if (const Status status = plan_block(mode, user, block, candidates); status != OK) return status;
            }
        }
        schedule_.divide(pool_.threads());
        progress_.reset();
        return OK;
    }

    Status plan_block(Mode mode, int user, int block, int candidates) {
        State& state = *states_[user];
        if (mode != SCORE) {
            const int length = buffer_.header(user)[HEADER_LENGTHS + block];
            if ((uint32_t)length > (uint32_t)shape_.events) return LENGTH_OUT_OF_RANGE;
            if (vectors(length) > state.tiles) return STATE_TOO_SMALL;
            const int prefix = APPENDABLE && mode == ENCODE ? buffer_.header(user)[HEADER_PREFIX] : 0;
            if ((uint32_t)prefix > (uint32_t)length || prefix % LANES) return LENGTH_OUT_OF_RANGE;
            if (prefix && prefix > state.lengths[block]) return PREFIX_ABSENT;
            state.lengths[block] = length;
            if (RELATIVE_BIAS)
                for (int event = 0; event < length; ++event)
                    state.ages(block)[event] = buffer_.event(user, block, event)[EVENT_AGE];
            cut(length - prefix, [&](int first, int rows, int vecs) {
                add({user, block, false, prefix + first, rows, vecs, length, 0, 0});
                ++schedule_.history_tiles[user * BLOCKS + block];
            });
        }
        if (mode == SCORE && state.lengths[block] < 0) return STATE_EMPTY;
        if (RELATIVE_BIAS && state.lengths[block] > shape_.events) return STATE_TOO_LONG;
        if (mode != ENCODE)
            cut(candidates, [&](int first, int rows, int vecs) {
                add({user, block, true, first, rows, vecs, state.lengths[block], 0, 0});
            });
        return OK;
    }

    void add(Tile tile) {
        tile.place = place_;
        tile.bias_place = bias_place_;
        place_ += (int64_t)tile.vecs * LANES * DIM;
        const int64_t bias = (int64_t)HEADS * tile.keys * (tile.candidates ? 1 : tile.vecs * LANES);
        bias_place_ += (bias + LANES - 1) / LANES * LANES;
        schedule_.tiles.push_back(tile);
    }

    // Calls `body(Constant<vecs>)`.
    template <int VECS = TILE, class Body>
    static void with_height(int vecs, Body&& body) {
        if constexpr (VECS > 0) {
            if (vecs == VECS)
                body(Constant<VECS>{});
            else
                with_height<VECS - 1>(vecs, body);
        }
    }

    void work(int thread) {
        Scratch& scratch = scratch_.get()[thread];
        const int begin = schedule_.starts[thread], end = schedule_.starts[thread + 1];
        for (int index = begin; index < end; ++index) prepare(schedule_.tiles[index], scratch);
        for (int layer = 0; layer < LAYERS; ++layer)
            for (int index = begin; index < end; ++index) run_layer(schedule_.tiles[index], layer, scratch);
        progress_.arrived.fetch_add(1, std::memory_order_acq_rel);
        spin_until([&] { return progress_.arrived.load(std::memory_order_acquire) == pool_.threads(); });
        finish(scratch);
    }

    void prepare(const Tile& tile, Scratch& scratch) {
        with_height(tile.vecs, [&](auto vecs) {
            bool wrong = false;
            State& state = *states_[tile.user];
            Vec* x = tokens_of(tile);
            Model::template prepare<vecs>(*weights_, buffer_, tile, state, x, bias_.get() + tile.bias_place, scratch,
                                          wrong);
            if (wrong) progress_.wrong_index.store(true, std::memory_order_relaxed);
            if (!tile.candidates) write<vecs>(tile, x, 0, scratch);
        });
    }

    void run_layer(const Tile& tile, int layer, Scratch& scratch) {
        if (!tile.candidates && layer == LAYERS - 1) return;
        const int pair = tile.user * BLOCKS + tile.block;
        const int wanted = (layer + 1) * schedule_.history_tiles[pair];
        spin_until([&] { return progress_.encoded[pair].load(std::memory_order_acquire) >= wanted; });
        with_height(tile.vecs, [&](auto vecs) {
            Vec* x = tokens_of(tile);
            const int scenario = buffer_.header(tile.user)[HEADER_SCENARIO];
            Model::template layer<vecs>(*weights_, tile, scenario, x, *states_[tile.user], layer,
                                        bias_.get() + tile.bias_place, scratch);
            if (!tile.candidates) write<vecs>(tile, x, layer + 1, scratch);
        });
    }

    template <int VECS>
    void write(const Tile& tile, const Vec* x, int layer, Scratch& scratch) {
        Model::template write<VECS>(*weights_, tile, x, *states_[tile.user], layer, scratch);
        progress_.encoded[tile.user * BLOCKS + tile.block].fetch_add(1, std::memory_order_release);
    }

    // Heads of the candidate tiles, taken one by one by whoever is free. Tiles of block 0 stand for all blocks.
    void finish(Scratch& scratch) {
        for (;;) {
            const int index = progress_.claimed.fetch_add(1, std::memory_order_relaxed);
            if (index >= (int)schedule_.tiles.size()) return;
            const Tile& tile = schedule_.tiles[index];
            if (tile.candidates && tile.block == 0) finish(tile, index, scratch);
        }
    }

    void finish(const Tile& tile, int index, Scratch& scratch) {
        const Vec* x[BLOCKS];
        for (int block = 0; block < BLOCKS; ++block) {
            while (schedule_.tiles[index].block != block || !schedule_.tiles[index].candidates ||
                   schedule_.tiles[index].first != tile.first)
                ++index;
            x[block] = tokens_of(schedule_.tiles[index]);
        }
        float* scores = scores_ + ((int64_t)tile.user * shape_.candidates + tile.first) * TASKS;
        const int scenario = buffer_.header(tile.user)[HEADER_SCENARIO];
        with_height(tile.vecs, [&](auto vecs) {
            Model::template finish<vecs>(*weights_, scenario, x, scores, tile.rows, scratch);
        });
    }

    Vec* tokens_of(const Tile& tile) { return (Vec*)(x_.get() + tile.place); }

    const Weights* weights_;
    const Shape shape_;
    Pool pool_;
    Progress progress_;
    Schedule schedule_;
    std::vector<State*> states_;
    std::vector<Memory<char>> own_;
    Memory<float> x_, bias_;
    Memory<Scratch> scratch_;
    Buffer buffer_{};
    float* scores_ = nullptr;
    int64_t place_ = 0, bias_place_ = 0;
};

}  // namespace flame
