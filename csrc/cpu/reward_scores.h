// Reward scores on the CPU.

#pragma once

#include "cpu/isa.h"
#include "cpu/reward_terms.h"

namespace visa {

// Scores every completion, then the advantages of every group, in job.threads threads.
VISA_DECLARE_KERNEL(void reward_scores(const RewardJob& job))

}  // namespace visa
