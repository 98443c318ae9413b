#!/bin/bash
# A node as a job: sbatch deploy/slurm.sh FOLDER. It ends with the job and goes on in the next one, as its store is on the shared disk.
#SBATCH --job-name=homing-node
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
set -euo pipefail
cd "${HOMING:?the folder of Homing, where .venv is}"
exec .venv/bin/python -m simulations deploy node "${1:?the folder of the node}"
