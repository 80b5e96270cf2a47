#!/bin/bash
# Pack a corpus as a Slurm array. Fill in the three lines below, then, once:
#
#   bash slurm.sh plan                      # lists the inputs and writes the plan; on a login node
#   job=$(sbatch --parsable slurm.sh)       # the members
#   sbatch --dependency=afterany:$job --array=0 slurm.sh finish
#
# A member that was killed or preempted is requeued, or submitted again alone: sbatch --array=17 slurm.sh
# `finish` says which tasks are missing, if some are (exit code 3), and may be run again.

#SBATCH --job-name=exact-prep
#SBATCH --array=0-63
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%a.log

set -euo pipefail

MEMBERS=${MEMBERS:-64}    # as many as --array has; not SLURM_ARRAY_TASK_COUNT, which is 1 for a member that is submitted again
PACK=(exact-prep pack ${INPUTS:-/data/corpus} --tokenizer "${TOKENIZER:-/data/tokenizer.json}"
      --seq-len "${SEQ_LEN:-16k}" --out "${OUT:-/data/packed}")

case ${1:-member} in
  plan)   exec "${PACK[@]}" --plan-only ;;
  member) exec "${PACK[@]}" --task-count "$MEMBERS" --workers "${SLURM_CPUS_PER_TASK:-1}" ;;
  finish) exec "${PACK[@]}" --finish ;;
  *)      echo "usage: slurm.sh [plan|member|finish]" >&2; exit 2 ;;
esac
