// Speculative decoding on a simulated clock: rounds cost what a table says, drafts stand by chance.
//
//     simulation SEED FIXED N_SEQ STREAMS N_TOKENS DRAFT_MS SWITCH_MS CHANCE,... MS,... [MS,...]
//
// STREAMS is 1 where a batch is decoded in passes of equally many tokens a sequence, as without a unified KV cache. FIXED
// is a depth, or -1 for the controller's choice. CHANCE is what each draft token is accepted with; several divide the
// text into equal parts. MS are the costs of a round by width, the last two continued; several lists divide the text.
// Prints tokens a second and the rounds with each number of verified draft tokens, as JSON.

#include "mtp-depth.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <vector>

static double t_us = 0.0;

int64_t ggml_time_us() {
    return (int64_t) t_us;
}

// The standard's distributions are each library's own: these draw the same numbers everywhere.
static double uniform(std::mt19937 & rng) {
    return rng()/4294967296.0; // 2^32
}

static double normal(std::mt19937 & rng) { // Box and Muller
    const double radius = std::sqrt(-2*std::log(1.0 - uniform(rng)));
    return radius*std::cos(2*3.14159265358979323846*uniform(rng));
}

static std::vector<double> numbers(const char * text) {
    std::vector<double> result;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
        result.push_back(std::atof(part.c_str()));
    }
    return result;
}

int main(int argc, char ** argv) {
    if (argc < 10) {
        return 2;
    }
    const int32_t N_MAX = 5;
    const double  NOISE = 0.05;

    std::mt19937 rng(std::atoi(argv[1]));
    const int    fixed     = std::atoi(argv[2]);
    const int    n_seq     = std::atoi(argv[3]);
    const bool   streams   = std::atoi(argv[4]) != 0;
    const int    n_tokens  = std::atoi(argv[5]);
    const double draft_us  = 1000*std::atof(argv[6]);
    const double switch_us = 1000*std::atof(argv[7]); // of a round whose width is not that of the one before
    const auto   chances   = numbers(argv[8]);
    std::vector<std::vector<double>> costs_ms;
    std::transform(argv + 9, argv + argc, std::back_inserter(costs_ms), numbers);

    std::vector<int> made(n_seq, 0);
    const auto cost_us = [&](size_t width) {
        const auto & ms = costs_ms[std::min(costs_ms.size() - 1, made[0]*costs_ms.size()/n_tokens)];
        const size_t n = ms.size();
        return 1000*(width <= n ? ms[width - 1] : ms[n - 1] + (width - n)*(ms[n - 1] - ms[n - 2]));
    };

    common_mtp_depth depth(n_seq, 0, N_MAX, streams);
    std::vector<int> verified(N_MAX + 1, 0);
    int last_width = 0;

    while (true) {
        std::vector<llama_seq_id> seqs;
        std::vector<int32_t>      n_draft;
        for (int s = 0; s < n_seq; ++s) {
            if (made[s] < n_tokens) {
                seqs.push_back(s);
                n_draft.push_back(std::min(fixed < 0 ? N_MAX : fixed, n_tokens - made[s] - 1));
            }
        }
        if (seqs.empty()) {
            break;
        }
        if (fixed < 0) {
            depth.next_round();
            n_draft = depth.plan(seqs, n_draft);
        }
        const int32_t n_steps = *std::max_element(n_draft.begin(), n_draft.end());
        t_us += n_steps*draft_us;

        // a confidence that says nothing: the hardest case, and that of random weights
        std::vector<std::vector<float>> confidence(seqs.size());
        for (size_t i = 0; i < seqs.size(); ++i) {
            std::generate_n(std::back_inserter(confidence[i]), n_draft[i], [&]() { return (float) uniform(rng); });
        }
        if (fixed < 0) {
            n_draft = depth.cut(seqs, confidence, n_steps, n_steps*draft_us);
        }

        int width = 0;
        for (const int32_t n : n_draft) {
            width += 1 + n;
            verified[n]++;
        }
        double passes_us = streams ? 0.0 : cost_us(width);
        for (int32_t done = -1; streams && done < n_steps; ) {
            int32_t upto = n_steps; // the least that a sequence with more than `done` has
            int32_t n    = 0;
            for (const int32_t drafts : n_draft) {
                if (drafts > done) {
                    upto = std::min(upto, drafts);
                    n++;
                }
            }
            passes_us += n > 0 ? cost_us(n*(upto - done)) : 0.0;
            done = upto;
        }
        t_us += passes_us*std::exp(NOISE*normal(rng)) + (width != last_width ? switch_us : 0.0);
        last_width = width;
        depth.processed(width);

        for (size_t i = 0; i < seqs.size(); ++i) {
            int & n_made = made[seqs[i]];
            const double chance = chances[std::min(chances.size() - 1, n_made*chances.size()/n_tokens)];
            int32_t n_accepted = 0;
            while (n_accepted < n_draft[i] && uniform(rng) < chance) {
                n_accepted++;
            }
            depth.accepted(seqs[i], n_accepted);
            n_made += n_accepted + 1;
        }
    }

    printf("{\"rate\": %f, \"verified\": [", n_seq*n_tokens/t_us*1e6);
    for (size_t n = 0; n < verified.size(); ++n) {
        printf("%s%d", n ? ", " : "", verified[n]);
    }
    printf("]}\n");
}
