"""One arm in many processes, on PyTorch's own engine: process groups, device meshes, DDP, FSDP2.

launched      what a launcher (torchrun, accelerate) told this process
local         starting processes on this machine
degrees       how many copies of a model, cut into how many shards
processes     this process among the others: who is first, what all agree on
save_group    those that write one checkpoint together, beside training
joining       becoming one of them, and leaving
member        the same for processes that another of ours has started
heartbeat     which process is missing when the others wait in vain
wrapping      DDP and FSDP2 around a model
whole         tensors of a model that is cut, whole again

Nothing is imported here: what a command asks before it trains needs no torch.
"""
