"""What GPUs hold: which there are, and how generation and learner share their memory.

* `devices`: the GPUs of this machine, and the memory of well-known ones
* `shapes`: a model's sizes, from its config or by its name
* `quantization`: how its weights are stored
* `memory`: bytes of weights, caches, optimizer states and activations
* `plan`: which process gets which GPU, and how much of it
* `host_memory`: main memory and disk that the processes take beside

Without torch, but to check a device: `tuneloop doctor --plan` works on any machine.
"""
