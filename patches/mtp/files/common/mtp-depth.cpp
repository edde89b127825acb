#include "mtp-depth.h"

#include "common.h"
#include "ggml.h"

#include <algorithm>

namespace {

const int    N_BINS         = 10;
const double ACCEPT_PRIOR   = 0.7;  // before anything was seen
const double ACCEPT_WEIGHT  = 4;    // tokens that what is expected counts for, beside those that were seen
const double ACCEPT_NARROW  = 16;   // the same for a part (a sequence, a confidence) of what the expectation has seen
const double ACCEPT_HORIZON = 100;
const double ACCEPT_FADE    = 0.01; // share of what is known of a position that a round without it takes away
const double ACCEPT_CARRIED = 0.25; // share of what is known of a sequence that counts for its next text
const double COST_HORIZON   = 16;
const double COST_OUTLIER   = 3;    // a round slower than this many usual ones counts as this many
const double COST_CURIOSITY = 0.98; // taken for cheaper by this until measured twice
const int    COST_STALE     = 256;  // rounds, after which a measurement says little: the machine may have other work
const double COST_RETRIED   = 0.85; // taken for cheaper by this then, and measured anew
const double COST_PRIOR     = 0.06; // what a further token adds to the cost of one, before it was measured
const int    COST_PLAIN     = 2;    // rounds without drafts that come first: what drafting has to beat
const int    COST_PATIENCE  = 4;    // of them, how many may go unmeasured because other tokens share the batch
const int    COST_STRIDE    = 2;    // a batch is at most so many times as wide as the widest that was measured

int bin(float confidence) {
    return confidence > 0.0f ? std::min(N_BINS - 1, (int) (confidence*N_BINS)) : 0; // of no number too
}

} // namespace

void common_mtp_depth::mean::add(double sample, double horizon) {
    weight = std::min(weight + 1.0, horizon);
    value += (sample - value)/weight;
}

common_mtp_depth::common_mtp_depth(uint32_t n_seq, int32_t n_min, int32_t n_max, bool even) :
        n_min(n_min),
        n_max(n_max),
        even(even),
        costs(n_seq*(n_max + 1) + 1),
        n_plain(n_seq + 1),
        by_position(n_seq, std::vector<mean>(n_max)),
        by_position_all(n_max),
        by_confidence(N_BINS),
        verifying(n_seq),
        chosen(n_max + 1, 0) {
}

void common_mtp_depth::begin(llama_seq_id seq_id) {
    for (auto & known : by_position[seq_id]) {
        known.weight *= ACCEPT_CARRIED;
    }
    width_planned = 0;
}

void common_mtp_depth::next_round() {
    if (width_planned > 0 && width_seen == width_planned) {
        auto & cost = costs[width_planned];
        double us = ggml_time_us() - t_planned_us;
        if (round - cost.round > COST_STALE) {
            cost.weight = 0;
        }
        if (cost.weight == 1) {
            cost.value = us = std::min(us, cost.value); // a width's first round also pays for its graph
        } else if (cost.weight > 1) {
            us = std::min(us, COST_OUTLIER*cost.value);
        }
        cost.add(us, COST_HORIZON);
        cost.round = round;
    }
    width_planned = 0;
    width_seen    = 0;
    round++;
}

double common_mtp_depth::estimate_us(int32_t width) const {
    const auto & cost = costs[width];
    if (cost.weight > 0) {
        return cost.value*(round - cost.round > COST_STALE ? COST_RETRIED : cost.weight < 2 ? COST_CURIOSITY : 1.0);
    }

    int32_t lower = width;
    while (lower > 0 && costs[lower].weight == 0) {
        lower--;
    }
    int32_t upper = width;
    while (upper < (int32_t) costs.size() && costs[upper].weight == 0) {
        upper++;
    }
    const bool has_upper = upper < (int32_t) costs.size();

    if (lower > 0 && has_upper) {
        const double share = (double) (width - lower)/(upper - lower);
        return COST_CURIOSITY*(costs[lower].value + share*(costs[upper].value - costs[lower].value));
    }

    // by the nearest width that was measured; with none, any scale will do
    const auto prior = [](int32_t n) { return 1.0 + COST_PRIOR*(n - 1); };
    const int32_t known = lower > 0 ? lower : upper;
    return lower > 0 || has_upper ? costs[known].value*prior(width)/prior(known) : prior(width);
}

double common_mtp_depth::mean::or_expected(double expected, double n_samples) const {
    return (weight*value + n_samples*expected)/(weight + n_samples);
}

// a sequence's position is expected to be like that of the others, and a position like the one before
double common_mtp_depth::acceptance(llama_seq_id seq_id, size_t position) const {
    double expected = ACCEPT_PRIOR;
    for (size_t k = 0; k <= position; ++k) {
        expected = by_position_all[k].or_expected(expected, ACCEPT_WEIGHT);
    }
    return by_position[seq_id][position].or_expected(expected, ACCEPT_NARROW);
}

double common_mtp_depth::acceptance(llama_seq_id seq_id, size_t position, float confidence) const {
    return by_confidence[bin(confidence)].or_expected(acceptance(seq_id, position), ACCEPT_NARROW);
}

std::vector<int32_t> common_mtp_depth::plan(const std::vector<llama_seq_id> & seqs, const std::vector<int32_t> & n_most) {
    std::vector<int32_t> n_draft(seqs.size(), 0);
    std::vector<double>  survival(seqs.size(), 1.0); // probability that a sequence's draft stands as far as it goes

    const auto & plain = costs[seqs.size()];
    if (plain.weight < COST_PLAIN && n_plain[seqs.size()] < COST_PLAIN + COST_PATIENCE) {
        n_plain[seqs.size()]++;
        return n_draft;
    }

    int32_t widest = seqs.size();
    for (size_t i = 0; i < costs.size(); ++i) {
        if (costs[i].weight > 0) {
            widest = std::max<int32_t>(widest, i);
        }
    }

    std::vector<int32_t> best = n_draft;
    double  best_value = 0.0;
    int32_t width      = seqs.size();
    double  tokens     = seqs.size();

    // grow the batch by the tokens most likely to stand; the best width may lie behind worse ones
    const auto together = groups(seqs.size());
    while (true) {
        const int32_t n_steps = *std::max_element(n_draft.begin(), n_draft.end());
        const double  value   = tokens/(estimate_us(width) + n_steps*step.value);
        const bool is_long_enough = std::all_of(n_draft.begin(), n_draft.end(), [&](int32_t n) { return n == 0 || n >= n_min; });
        if (is_long_enough && value > best_value) {
            best_value = value;
            best       = n_draft;
        }

        const std::vector<size_t> * next = nullptr;
        double stands = 0.0; // of one of its tokens
        for (const auto & group : together) {
            double sum = 0.0;
            for (const size_t i : group) {
                const int32_t most = std::min(n_max, n_most[i]);
                if (n_draft[i] == most || most < n_min) {
                    sum = 0.0; // all of them or none
                    break;
                }
                sum += survival[i]*acceptance(seqs[i], n_draft[i]);
            }
            if (sum > stands*group.size()) {
                stands = sum/group.size();
                next   = &group;
            }
        }
        if (!next || (is_long_enough && width >= COST_STRIDE*widest)) {
            return best;
        }
        for (const size_t i : *next) {
            survival[i] *= acceptance(seqs[i], n_draft[i]);
            tokens      += survival[i];
            n_draft[i]++;
            width++;
        }
    }
}

std::vector<std::vector<size_t>> common_mtp_depth::groups(size_t n) const {
    std::vector<std::vector<size_t>> result(even ? 1 : n);
    for (size_t i = 0; i < n; ++i) {
        result[even ? 0 : i].push_back(i);
    }
    return result;
}

std::vector<int32_t> common_mtp_depth::cut(const std::vector<llama_seq_id> & seqs, const std::vector<std::vector<float>> & confidence,
        int32_t n_steps, int64_t t_draft_us) {
    if (n_steps > 0) {
        step.add((double) t_draft_us/n_steps, COST_HORIZON);
    }

    // until a group's turn comes, its drafts count whole and as likely as drafts have been
    int32_t width  = seqs.size();
    double  tokens = seqs.size();
    std::vector<double> drafted(seqs.size(), 0.0);
    for (size_t i = 0; i < seqs.size(); ++i) {
        double survival = 1.0;
        for (size_t k = 0; k < confidence[i].size(); ++k) {
            survival   *= acceptance(seqs[i], k);
            drafted[i] += survival;
        }
        width  += confidence[i].size();
        tokens += drafted[i];
    }

    std::vector<int32_t> n_keep(seqs.size(), 0);
    std::vector<double>  survival(seqs.size(), 1.0);
    for (const auto & group : groups(seqs.size())) {
        for (const size_t i : group) {
            width  -= confidence[i].size();
            tokens -= drafted[i];
        }

        const int32_t width_without  = width;
        const double  tokens_without = tokens;
        for (int32_t k = 0; k < n_steps; ++k) {
            if (std::any_of(group.begin(), group.end(), [&](size_t i) { return (int32_t) confidence[i].size() <= k; })) {
                break;
            }
            // these tokens by their confidence, those behind them as they have been
            std::vector<double> ahead(seqs.size(), 0.0);
            double sum  = 0.0;
            double best = 0.0;
            for (int32_t j = k; j < n_steps; ++j) {
                for (const size_t i : group) {
                    ahead[i] = j == k ? survival[i]*acceptance(seqs[i], k, confidence[i][k]) : ahead[i]*acceptance(seqs[i], j);
                    sum += ahead[i];
                }
                best = std::max(best, (tokens + sum)/estimate_us(width + (j - k + 1)*group.size()));
            }
            if (best <= tokens/estimate_us(width)) {
                break;
            }
            for (const size_t i : group) {
                survival[i] *= acceptance(seqs[i], k, confidence[i][k]);
                tokens      += survival[i];
                width++;
                n_keep[i]++;
            }
        }
        if (n_keep[group[0]] < n_min) { // a group keeps equally many
            for (const size_t i : group) {
                n_keep[i] = 0;
            }
            width  = width_without;
            tokens = tokens_without;
        }
    }

    for (size_t i = 0; i < seqs.size(); ++i) {
        verifying[seqs[i]].assign(confidence[i].begin(), confidence[i].begin() + n_keep[i]);

        chosen[n_keep[i]]++;

        // what is not verified is not measured either, and may have changed
        auto & positions = by_position[seqs[i]];
        for (int32_t k = n_keep[i]; k < n_max; ++k) {
            positions[k].weight *= 1.0 - ACCEPT_FADE;
        }
    }
    for (auto & known : by_position_all) {
        known.weight *= 1.0 - ACCEPT_FADE;
    }
    for (auto & known : by_confidence) {
        known.weight *= 1.0 - ACCEPT_FADE;
    }

    width_planned = width;
    t_planned_us  = ggml_time_us();

    return n_keep;
}

void common_mtp_depth::accepted(llama_seq_id seq_id, int32_t n_accepted) {
    auto & tokens    = verifying[seq_id];
    auto & positions = by_position[seq_id];

    const int32_t n = tokens.size();
    for (int32_t k = 0; k < n && k <= n_accepted; ++k) {
        const double stood = k < n_accepted ? 1.0 : 0.0;
        positions[k].add(stood, ACCEPT_HORIZON);
        by_position_all[k].add(stood, ACCEPT_HORIZON);
        by_confidence[bin(tokens[k])].add(stood, ACCEPT_HORIZON);
    }
    tokens.clear();
}

std::string common_mtp_depth::summary() const {
    std::string drafts;
    for (const int64_t n : chosen) {
        drafts += (drafts.empty() ? "" : ", ") + std::to_string(n);
    }
    std::string ms;
    for (size_t width = 0; width < costs.size(); ++width) {
        if (costs[width].weight > 0) {
            ms += string_format("%s%zu: %.1f", ms.empty() ? "" : ", ", width, costs[width].value/1000);
        }
    }
    return string_format("drafts of 0 to %d tokens = (%s), ms a round by width = (%s), ms a draft step = %.2f",
            n_max, drafts.c_str(), ms.c_str(), step.value/1000);
}
