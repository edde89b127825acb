#pragma once

#include "common.h"

// whether the drafter is an MTP model, which cannot run without its target as a draft model of its own does
bool mtp_tree_wanted(const common_params & params);

// Tree drafting with MTP heads. The drafter's most probable chain is the trunk; where a candidate beside it is more
// probable than --spec-draft-p-split it becomes a leaf, up to --parallel sequences in all. Trunk and leaves are
// verified in one batch. Returns the program's exit status.
int mtp_tree(common_params & params);
