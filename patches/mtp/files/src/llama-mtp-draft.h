#pragma once

// Drafting in one graph: the steps of a Gemma 4 drafter follow each other on the device, each choosing the token
// whose embedding feeds the next. What makes that legal: the position does not move during a draft, and the drafter
// only reads the target's keys and values.

#include "llama.h"

#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

struct llama_model;
struct llm_graph_context;
class  llama_mtp_draft_input;

// what the caller asks of the next decodes of a drafter's context
struct llama_mtp_draft {
    int32_t n_steps     = 0; // 0: one step a decode, with logits and hidden row as outputs
    int32_t n_steps_max = 0; // that there is room for

    // room for the steps beyond the graph of one, by upstream's rule for a graph, and for the two views of each result
    uint32_t n_nodes(uint32_t n_tensors, uint32_t n_outputs) const {
        return n_steps_max > 0 ? 8u*n_tensors*n_steps_max + 2*n_outputs : 0;
    }

    struct sampling {
        float              temp;
        std::vector<float> noise; // [n_steps][LLAMA_MTP_DRAFT_BUCKETS]
    };
    std::map<llama_seq_id, sampling> samplings; // of sequences that sample; all others take the most probable token

    struct bucket_table;
    std::unique_ptr<bucket_table> buckets; // made when a sequence samples for the first time

    llama_mtp_draft();
    ~llama_mtp_draft();
};

// builds the chain of steps; the graph of one step is the model's own
class llama_mtp_draft_chain {
public:
    llama_mtp_draft_chain(const llm_graph_context & graph, const llama_model & drafter, const llama_model & target);

    // whether the graph being built holds a whole draft
    explicit operator bool() const { return n_steps > 0; }

    // cur: F32 [n_embd, n_outputs], the step's normed output -> what the next step reads: the token chosen,
    // I32 [n_outputs], and the hidden row, F32 [n_embd_out, n_outputs]
    void step(ggml_tensor * cur, ggml_tensor * & tokens, ggml_tensor * & hidden);

    // true after the last step: the result is then reachable from the context, see llama_mtp_set_draft
    bool done();

    ggml_tensor * embd_rows; // the target's embedding table

private:
    const llm_graph_context & graph;
    const llama_model       & drafter;

    int64_t n_steps = 0;
    int64_t n_built = 0;

    llama_mtp_draft_input * inp;

    ggml_tensor * chosen     = nullptr; // I32 [n_built,       n_outputs]
    ggml_tensor * candidates = nullptr; // I32 [n_top*n_built, n_outputs]
    ggml_tensor * probs      = nullptr; // F32 [n_top*n_built, n_outputs]
};
