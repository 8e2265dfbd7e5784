"""Trains a residual network with stochastic depth as the composed configuration says.

python train.py schedule.p_L=0.8 seed=1            # see conf/ for every setting
python train.py show=true                          # what would be run
python train.py -m schedule.p_L=0.5,0.8 seed=0,1   # a sweep; the same command continues it
python train.py resume=outputs/<run name>/<time>   # continue an interrupted run
torchrun --nproc-per-node=4 train.py ...           # several processes, one per CUDA device
"""

from sdnet import processes

if __name__ == "__main__":
    processes.interrupt_quietly()
    from sdnet.launch.command import run_command

    run_command()
