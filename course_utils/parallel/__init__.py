"""Several processes: starting local ranks, and what a CPU needs to run FSDP and DeepSpeed (lessons 11-13, 15)."""
