#pragma once

struct common_params;
struct llama_model;

// Gemma 4's MTP heads read keys and values of two of the target's layers in every step: without --spec-draft-device they
// are computed where those lie. A list that leaves out such a device is corrected, as the heads could not read them.
// params: of the drafter, see common_base_params_to_speculative
// quiet: without a warning, where this is only a trial
void common_mtp_place_drafter(common_params & params, const llama_model * target, bool quiet = false);
