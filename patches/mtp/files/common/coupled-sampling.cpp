#include "coupled-sampling.h"

#include "llama-mtp.h"

#include <cmath>
#include <limits>
#include <vector>

namespace {

// 53-bit uniforms give noise between -3.7 and 37.5: what is further than this below the best logit cannot win
const float REACH = 42.0f;

enum numbers { OF_BUCKETS, OF_TOKENS }; // the two sets of a position

const uint64_t STEP = 0x9E3779B97F4A7C15;

// SplitMix64's output function
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30))*0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27))*0x94D049BB133111EB;
    return x ^ (x >> 31);
}

class noise_stream {
public:
    noise_stream(uint32_t seed, int64_t position, numbers which) {
        for (const uint64_t part : { (uint64_t) seed, (uint64_t) position, (uint64_t) which }) {
            start = mix(start + part + STEP);
        }
    }

    double operator[](uint64_t i) const {
        const double uniform = ((mix(start + (i + 1)*STEP) >> 11) + 0.5)*0x1p-53;
        return -std::log(-std::log(uniform));
    }

private:
    uint64_t start = 0;
};

struct sampler_state {
    llama_sampler * dist; // shows the probabilities, and holds the seed
    float           temp;
    int64_t         position;
};

sampler_state & state(const llama_sampler * smpl) {
    return *(sampler_state *) smpl->ctx;
}

const char * coupled_name(const llama_sampler *) {
    return "coupled";
}

void coupled_accept(llama_sampler * smpl, llama_token token) {
    llama_sampler_accept(state(smpl).dist, token);
    state(smpl).position++;
}

// whether candidate a comes before b where one of them has to: the more probable, of equals the lower id
bool is_before(const llama_token_data & a, const llama_token_data & b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

void coupled_apply(llama_sampler * smpl, llama_token_data_array * cur_p) {
    auto & ctx = state(smpl);
    llama_sampler_apply(ctx.dist, cur_p);

    if (cur_p->size < 2) {
        return;
    }
    const llama_token_data * data = cur_p->data;

    std::vector<int64_t> first(LLAMA_MTP_DRAFT_BUCKETS, -1); // [bucket], the index of its most probable candidate
    float best_logit = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < cur_p->size; ++i) {
        auto & of_bucket = first[data[i].id % LLAMA_MTP_DRAFT_BUCKETS];
        if (of_bucket < 0 || is_before(data[i], data[of_bucket])) {
            of_bucket = i;
        }
        best_logit = std::fmax(best_logit, data[i].logit);
    }

    const uint32_t     seed = llama_sampler_get_seed(ctx.dist);
    const noise_stream of_buckets(seed, ctx.position, OF_BUCKETS);
    const noise_stream of_tokens (seed, ctx.position, OF_TOKENS);

    int64_t chosen = -1;
    double  value  = 0.0;
    for (size_t i = 0; i < cur_p->size; ++i) {
        if (!(data[i].logit >= best_logit - REACH)) {
            continue;
        }
        const int32_t bucket = data[i].id % LLAMA_MTP_DRAFT_BUCKETS;
        const double  v      = data[i].logit + (first[bucket] == (int64_t) i ? of_buckets[bucket] : of_tokens[data[i].id]);
        if (chosen < 0 || v > value || (v == value && data[i].id < data[chosen].id)) {
            chosen = i;
            value  = v;
        }
    }
    if (chosen >= 0) { // else no logit is a number, and the choice of `dist` stands
        cur_p->selected = chosen;
    }
}

void coupled_reset(llama_sampler * smpl) {
    llama_sampler_reset(state(smpl).dist);
    state(smpl).position = 0;
}

void coupled_free(llama_sampler * smpl) {
    llama_sampler_free(state(smpl).dist);
    delete &state(smpl);
}

llama_sampler * coupled_clone(const llama_sampler * smpl);

llama_sampler_i * coupled_iface() {
    static llama_sampler_i iface = [] {
        llama_sampler_i result = {};
        result.name   = coupled_name;
        result.accept = coupled_accept;
        result.apply  = coupled_apply;
        result.reset  = coupled_reset;
        result.clone  = coupled_clone;
        result.free   = coupled_free;
        return result;
    }();
    return &iface;
}

llama_sampler * coupled_clone(const llama_sampler * smpl) {
    const auto & from = state(smpl);
    return llama_sampler_init(coupled_iface(), new sampler_state { llama_sampler_clone(from.dist), from.temp, from.position });
}

} // namespace

void common_coupled_noise(uint32_t seed, int64_t position, float * noise) {
    const noise_stream of_buckets(seed, position, OF_BUCKETS);
    for (int i = 0; i < LLAMA_MTP_DRAFT_BUCKETS; ++i) {
        noise[i] = of_buckets[i];
    }
}

llama_sampler * common_coupled_init(uint32_t seed, float temp) {
    return llama_sampler_init(coupled_iface(), new sampler_state { llama_sampler_init_dist(seed), temp, 0 });
}

bool common_coupled_next(const llama_sampler * chain, common_coupled_draw & draw) {
    const int n = llama_sampler_chain_n(chain);
    const llama_sampler * last = n > 0 ? llama_sampler_chain_get(const_cast<llama_sampler *>(chain), n - 1) : nullptr;
    if (last == nullptr || last->iface != coupled_iface()) {
        return false;
    }
    draw = { llama_sampler_get_seed(state(last).dist), state(last).position, state(last).temp };
    return true;
}

uint32_t common_coupled_seed(const llama_sampler * chain) {
    common_coupled_draw draw;
    return common_coupled_next(chain, draw) ? draw.seed : llama_sampler_get_seed(chain);
}
